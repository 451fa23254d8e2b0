"""The nightly ingest as a flow: what Prefect is told, what it refuses, and how to do without it."""

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

from tests.flows.test_http_server import Api, orders, says, serving
from tests.prefect import server
from tests.prefect.api import Api as Prefect
from tests.prefect.api import until

pytest.importorskip("prefect")
pytestmark = [
    # Prefect's and its dependencies' own are not ours to mend.
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


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The session's one server, which the tests of tests/prefect use too."""
    base = tmp_path_factory.getbasetemp()
    in_xdist = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if in_xdist else base) / "prefect"
    return server.shared(folder, os.getppid() if in_xdist else os.getpid())


@pytest.fixture
def prefect(prefect_server: tuple[int, Path]) -> Prefect:
    return Prefect(prefect_server[0])


@pytest.fixture
def environment(prefect_server: tuple[int, Path]) -> dict[str, str]:
    port, home = prefect_server
    return {**server.environment(home, port), "PYTHONPATH": str(REPOSITORY)}


def command(api: Api, *arguments: str, **others: Any) -> list[str]:
    fields = {
        "url": f"{api.url}/link",
        "pagination": "link",
        "detail_url": f"{api.url}/detail/{{id}}",
        "retry_pause": 0.01,
        **others,
    }
    script = [sys.executable, "-m", "flows.nightly_ingest", "--api", json.dumps(fields)]
    return [*script, *(arguments or ("--date", DATE))]


def run(
    cwd: Path, environment: dict[str, str], command: list[str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def flow_runs(prefect: Prefect, out: str | Path) -> list[dict[str, Any]]:
    """Those that publish to this folder, in the order of their start."""
    return [
        each
        for each in prefect.flow_runs(sort="EXPECTED_START_TIME_ASC")
        if each["parameters"].get("out") == str(out)
    ]


def keys_in_journal(place: Path) -> int:
    records = (place / DATE / "journal").glob("*.jsonl")
    return sum(text.count('\n{"key":') for text in (r.read_text("utf-8") for r in records))


def test_a_script_with_a_server_is_a_flow_run_and_its_state_says_how_it_went(
    api: Api, prefect: Prefect, environment: dict[str, str], tmp_path: Path
) -> None:
    out = str(tmp_path / "published")
    environment["API_TOKEN"] = "s3cret-T0ken"
    api.fail("/detail/3", says(404))
    arguments = ("--from", DATE, "--to", "2026-11-24", "--out", out, "--limit", "20")
    started = command(api, *arguments, token_env="API_TOKEN")

    first = run(tmp_path, environment, started)
    second = run(tmp_path, environment, started)

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
    messages = [each["state"]["message"] for each in found]
    assert "1 of 20 items of nightly_ingest_api failed" in messages[0]
    assert messages[1:] == [
        "20 done: 0 resumed, 20 new, 0 failed",
        "20 done: 19 resumed, 1 new, 0 failed",
        "20 done: 20 resumed, 0 new, 0 failed",
    ]
    name = prefect.call("GET", f"flows/{found[0]['flow_id']}")["name"]
    assert name == "nightly-ingest"
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
    process = subprocess.Popen(
        command(api, *arguments),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while keys_in_journal(place) < 50:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # what it had asked may be heard a little later
    done = keys_in_journal(place)
    asked = api.count("/detail")
    assert 50 <= done < 200
    assert len(flow_runs(prefect, out)) == 1
    api.before = lambda path: None

    resumed = run(tmp_path, environment, command(api, *arguments, "--local"))

    assert resumed.returncode == 0, resumed.stderr
    said = f"200 records on {DATE}: {200 - done} handled now, {done} resumed, 0 failed"
    assert said in resumed.stdout
    assert api.count("/detail") - asked == 200 - done
    rows = pads.dataset(out, partitioning="hive").to_table()["id"].to_pylist()
    assert sorted(rows) == list(range(200))
    assert len(flow_runs(prefect, out)) == 1  # --local has made none


def test_a_server_that_fails_is_said_and_the_work_is_safe(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "import httpx\n"
        "from flows import nightly_ingest as script\n"
        "def fails(**_): raise httpx.ConnectError('refused')\n"
        "script.nightly_ingest = fails\n"
        f"raise SystemExit(script.main(['--date', {DATE!r}]))\n"
    )
    failed = run(tmp_path, environment, [sys.executable, "-c", script])
    assert failed.returncode == 75
    assert "has failed the flow run: ConnectError('refused'). What is done is" in failed.stderr


def test_no_server_is_started_where_none_answers(api: Api, tmp_path: Path) -> None:
    url = f"http://me:s3cret@127.0.0.1:{server.free_port()}/api"
    refused = run(tmp_path, {**ENVIRONMENT, "PREFECT_API_URL": url}, command(api))
    assert refused.returncode == 75
    assert "no answer from the Prefect server at 127.0.0.1:" in refused.stderr
    assert "--local to do without it" in refused.stderr
    assert "s3cret" not in refused.stderr
    assert "Traceback" not in refused.stderr
    assert api.asked == []


def test_processes_are_for_local_runs(api: Api, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    refused = run(tmp_path, environment, command(api, "--date", DATE, "--processes"))
    assert refused.returncode == 2
    assert "--processes is for --local" in refused.stderr
    assert api.asked == []


@pytest.mark.parametrize("argument", ["--local", None])
def test_a_plain_script_does_not_load_prefect(
    argument: str | None, api: Api, tmp_path: Path
) -> None:
    environment = {**ENVIRONMENT, "PREFECT_API_URL": "http://127.0.0.1:1/api" if argument else ""}
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('flows.nightly_ingest', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    print([name for name in ('prefect', 'pydantic') if name in sys.modules])\n"
    )
    arguments = command(api, "--date", DATE, *([argument] if argument else []))[3:]
    done = run(tmp_path, environment, [sys.executable, "-c", script, *arguments])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
    assert api.count("/detail") == 35


def test_without_prefect_the_flow_is_a_plain_function(api: Api, tmp_path: Path) -> None:
    (tmp_path / "prefect.py").write_text("raise ImportError('no module named prefect')")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    script = (
        "from flows.nightly_ingest import HttpApi, nightly_ingest\n"
        "import datetime\n"
        f"api = HttpApi({api.url + '/link'!r}, 'link')\n"
        "result = nightly_ingest(api=api)\n"
        "print(result.summary, result.checkpoint.endswith(str(datetime.date.today())))\n"
    )
    done = run(tmp_path, environment, [sys.executable, "-c", script])
    assert done.stdout == "35 done: 0 resumed, 35 new, 0 failed True\n", done.stderr

    environment["PREFECT_API_URL"] = "http://127.0.0.1:1/api"
    refused = run(tmp_path, environment, command(api))
    assert refused.returncode == 2
    assert "pip install 'resumable-tasks[prefect]', or --local" in refused.stderr
    assert (
        run(tmp_path, environment, command(api, "--local", "--date", "2026-10-01")).returncode == 0
    )


def parameters(**given: Any) -> dict[str, Any]:
    """All parameters of the flow, as Prefect would have validated them."""
    import inspect

    from flows.nightly_ingest import nightly_ingest

    names = inspect.signature(nightly_ingest.fn).parameters
    defaults = {name: parameter.default for name, parameter in names.items()}
    return nightly_ingest.validate_parameters({**defaults, **given})


def test_a_deployment_finds_it_by_its_entrypoint() -> None:
    script = (
        "from prefect.flows import load_flow_from_entrypoint\n"
        "flow = load_flow_from_entrypoint('flows/nightly_ingest.py:nightly_ingest')\n"
        "print(flow.name, *flow.parameters.properties)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    names = "sources api date tz checkpoint out batch_size concurrency limit"
    assert found.stdout == f"nightly-ingest {names}\n", found.stderr


def test_parameters_from_prefect_become_what_they_should() -> None:
    from flows.http_api import HttpApi
    from flows.nightly_ingest import nightly_ingest

    fields = {
        "url": "https://x/",
        "pagination": "cursor",
        "schema": {"a": "json"},
        "params": {"n": 5, "q": "5"},
        "timeout": 5,
    }
    found = parameters(api=fields, date="2026-11-23")
    assert found["api"] == HttpApi(**fields)
    assert found["date"] == datetime.date(2026, 11, 23)
    api = HttpApi(**fields)
    assert parameters(api=api)["api"] is api
    assert nightly_ingest.name == "nightly-ingest"


@pytest.mark.parametrize(
    ("api", "said"),
    [
        ({"url": "x", "pagination": "page"}, "api: Value error, url='x' is no address that begins"),
        ({"url": "http://x"}, "api.pagination: Field required"),
        ({"url": "http://x", "pagination": "no"}, "api.pagination: Input should be 'link', 'cur"),
        ({"url": "http://x", "pagination": "page", "keey": "a"}, "api.keey: Unexpected keyword"),
        (
            {"url": "http://x", "pagination": "page", "token_env": "a-b"},
            "token_env is not the name",
        ),
        ({"url": "http://x", "pagination": "page", "retries": -1}, "retries=-1 is no whole number"),
        ({"url": "http://x", "pagination": "page", "schema": {"a": "int"}}, "api.schema.a: Input"),
        ("api.json", "api: Input should be a dictionary or an instance of HttpApi"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(api: Any, said: str) -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError) as caught:
        parameters(api=api)
    assert said in str(caught.value)
