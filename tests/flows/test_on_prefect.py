"""The HTTP flow on a real Prefect server, and without one: what `as_flow` and `command` promise."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

pytest.importorskip("prefect")

from tests import warm
from tests.flows.api import Api, orders, says, serving
from tests.ports import free_port
from tests.prefect import server
from tests.prefect.api import Api as Prefect
from tests.prefect.api import until
from tests.prefect.conftest import prefect_server

__all__ = ["prefect_server"]
pytestmark = [
    # Prefect's and its dependencies' own are not ours to repair.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
REPOSITORY = Path(__file__).parents[2]
DATE = "2026-11-23"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
ENVIRONMENT.pop("PREFECT_API_URL", None)


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(Api(orders(35))) as started:
        yield started


@pytest.fixture
def prefect(prefect_server: tuple[int, Path]) -> Prefect:
    return Prefect(prefect_server[0])


@pytest.fixture
def environment(prefect_server: tuple[int, Path]) -> dict[str, str]:
    port, home = prefect_server
    return {**server.environment(home, port), "PYTHONPATH": str(REPOSITORY)}


def command(api: Api, *arguments: str) -> list[str]:
    detail = ("--detail", f"{api.url}/detail/{{key}}")
    return [sys.executable, "-m", "flows.http_ingest", f"{api.url}/link", *detail, *arguments]


def run(
    cwd: Path, environment: dict[str, str], command: list[str]
) -> subprocess.CompletedProcess[str]:
    return warm.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def run_with_prefect(
    cwd: Path, environment: dict[str, str], command: list[str]
) -> subprocess.CompletedProcess[str]:
    return warm.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        prefect=True,
    )


def flow_runs(prefect: Prefect, out: str | Path) -> list[dict[str, Any]]:
    """Those that publish to this folder, in the order of their start."""
    found = prefect.flow_runs(sort="EXPECTED_START_TIME_ASC")
    return [each for each in found if each["parameters"].get("out") == str(out)]


def done_in(place: Path) -> int:
    records = (place / DATE / "journal").glob("*.jsonl")
    return sum(text.count('\n{"key":') for text in (r.read_text("utf-8") for r in records))


def test_a_script_with_a_server_is_a_flow_run_and_its_state_says_how_it_went(
    api: Api, prefect: Prefect, environment: dict[str, str], tmp_path: Path
) -> None:
    out = str(tmp_path / "published")
    environment["API_TOKEN"] = "s3cret-T0ken"
    api.fail("/detail/3", says(404))
    arguments = ("--from", DATE, "--to", "2026-11-24", "--out", out, "--limit", "20")
    started = command(api, *arguments, "--token-env", "API_TOKEN")

    first = run_with_prefect(tmp_path, environment, started)
    second = run_with_prefect(tmp_path, environment, started)

    assert first.returncode == 1, first.stderr
    assert second.returncode == 0, second.stderr
    table = re.findall(r"^(2026-\S+)  +(\S+)  (.*) in \S+ s$", first.stdout, re.M)
    assert table == [
        (DATE, "1", "19 handled now, 0 resumed, 1 failed,"),
        ("2026-11-24", "0", "20 handled now, 0 resumed, 0 failed,"),
    ]
    assert f"20 records on {DATE}: 1 handled now, 19 resumed, 0 failed" in second.stdout
    found = until(lambda: len(found := flow_runs(prefect, out)) == 4 and found)
    assert [(each["state_type"], each["parameters"]["date"]) for each in found] == [
        ("FAILED", DATE),
        ("COMPLETED", "2026-11-24"),
        ("COMPLETED", DATE),
        ("COMPLETED", "2026-11-24"),
    ]
    assert "1 of 20 items of http_ingest failed" in found[0]["state"]["message"]
    assert found[2]["state"]["message"] == "20 of 20 items done (19 before, 1 now), 0 failed"
    assert prefect.call("GET", f"flows/{found[0]['flow_id']}")["name"] == "http-ingest"
    # The token has reached the API, and neither the parameters nor the logs.
    assert {each.headers["authorization"] for each in api.asked} == {"Bearer s3cret-T0ken"}
    logs = [line for each in found for line in prefect.logs(each["id"])]
    assert logs
    told = json.dumps(found) + json.dumps(logs) + first.stderr + first.stdout
    assert "API_TOKEN" in told
    assert "s3cret" not in told


def test_killed_in_a_flow_run_and_resumed_without_prefect(
    api: Api, prefect: Prefect, environment: dict[str, str], tmp_path: Path
) -> None:
    api.records = orders(200)
    api.before = lambda path: time.sleep(0.02 * path.startswith("/detail"))
    place, out = tmp_path / "checkpoint", str(tmp_path / "published")
    arguments = ("--date", DATE, "--checkpoint", str(place), "--out", out, "--batch-size", "5")
    process = warm.start(
        command(api, *arguments),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        prefect=True,
    )
    end = time.monotonic() + 60
    while done_in(place) < 50:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # what it had asked may arrive a little later
    done, asked = done_in(place), api.count("/detail")
    assert 50 <= done < 200
    assert len(flow_runs(prefect, out)) == 1
    api.before = lambda path: None

    resumed = run(tmp_path, environment, command(api, *arguments, "--local"))

    assert resumed.returncode == 0, resumed.stderr
    told = f"200 records on {DATE}: {200 - done} handled now, {done} resumed, 0 failed"
    assert told in resumed.stdout
    assert api.count("/detail") - asked == 200 - done
    rows = pads.dataset(out, partitioning="hive").to_table()["id"].to_pylist()
    assert sorted(rows) == list(range(200))
    assert len(flow_runs(prefect, out)) == 1  # --local has made none


def test_a_server_that_fails_the_flow_run_ends_it_with_75(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "import httpx\n"
        "from flows import http_ingest, _command\n"
        "def fails(**_): raise httpx.ConnectError('refused')\n"
        f"_command.command(http_ingest.ingest, fails)(['http://h/', '--date', {DATE!r}])\n"
    )
    failed = run_with_prefect(tmp_path, environment, [sys.executable, "-c", script])
    assert failed.returncode == 75
    assert "failed the flow run: ConnectError('refused'). Completed work is" in failed.stderr


def test_no_server_is_started_where_none_answers(api: Api, tmp_path: Path) -> None:
    url = f"http://me:s3cret@127.0.0.1:{free_port()}/api"
    environment = {**ENVIRONMENT, "PREFECT_API_URL": url}
    refused = run_with_prefect(tmp_path, environment, command(api))
    assert refused.returncode == 75
    assert "no answer from the Prefect server at 127.0.0.1:" in refused.stderr
    assert "--local to run without it" in refused.stderr
    assert "s3cret" not in refused.stderr
    assert "Traceback" not in refused.stderr
    assert api.asked == []


@pytest.mark.parametrize("argument", [pytest.param("--local", marks=pytest.mark.long), None])
def test_a_plain_script_does_not_load_prefect(
    argument: str | None, api: Api, tmp_path: Path
) -> None:
    environment = {**ENVIRONMENT, "PREFECT_API_URL": "http://127.0.0.1:1/api" if argument else ""}
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('flows.http_ingest', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    print([name for name in ('prefect', 'pydantic') if name in sys.modules])\n"
    )
    arguments = command(api, "--date", DATE, *([argument] if argument else []))[3:]
    done = subprocess.run(  # in a fresh interpreter
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
    assert api.count("/detail") == 35


def test_without_prefect_the_flow_is_a_plain_function(api: Api, tmp_path: Path) -> None:
    (tmp_path / "prefect.py").write_text("raise ImportError('no module named prefect')")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    script = (
        "from flows.http_ingest import http_ingest\n"
        "import datetime\n"
        f"result = http_ingest({api.url + '/link'!r})\n"
        "print(result.summary, result.checkpoint.endswith(str(datetime.date.today())))\n"
    )
    done = run(tmp_path, environment, [sys.executable, "-c", script])
    assert done.stdout == "35 of 35 items done, 0 failed True\n", done.stderr
    environment["PREFECT_API_URL"] = "http://127.0.0.1:1/api"
    refused = run(tmp_path, environment, command(api))
    assert refused.returncode == 2
    assert "pip install 'resumable-tasks[prefect]', or --local" in refused.stderr
    local = command(api, "--local", "--date", "2026-10-01")
    assert run(tmp_path, environment, local).returncode == 0


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("http_ingest.py:http_ingest", "http-ingest"),
        ("nightly_ingest.py:nightly_ingest", "nightly-ingest"),
        ("backfill_table.py:backfill_table", "backfill-table"),
        ("llm_classify.py:llm_classify", "llm-classify"),
    ],
)
def test_a_deployment_finds_a_flow_by_its_entrypoint(entrypoint: str, name: str) -> None:
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(str(REPOSITORY / "flows" / entrypoint))
    assert flow.name == name
    assert flow.parameters.properties
    if name == "llm-classify":
        assert " ".join(flow.parameters.properties) == (
            "texts labels checkpoint publish rate_limit max_cost batch_size concurrency timeout "
            "retries retry_delay give_up_after batch_api tolerated_failures on_version_change "
            "dry_run progress"
        )
    texts = [each.get("description") for each in flow.parameters.properties.values()]
    assert all(texts), "Prefect's UI shows what the docstring says of each parameter"


def test_parameters_become_what_they_should_and_a_bad_one_is_named() -> None:
    from prefect.exceptions import ParameterTypeError
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(str(REPOSITORY / "flows/http_ingest.py:http_ingest"))
    found = flow.validate_parameters({"url": "http://h/", "date": DATE, "batch_size": "7"})
    assert found["date"] == datetime.date(2026, 11, 23)
    assert found["batch_size"] == 7
    with pytest.raises(ParameterTypeError, match="batch_size"):
        flow.validate_parameters({"url": "http://h/", "batch_size": "many"})
    with pytest.raises(TypeError, match="keey"):
        flow.validate_parameters({"url": "http://h/", "keey": "a"})
