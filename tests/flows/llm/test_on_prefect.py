"""The same flow as flow runs of a real Prefect server.

What `make test` needs of them, tests/flows/test_on_prefect.py has.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.flows.llm.conftest import COST_OF_A_TEXT, Job
from tests.flows.llm.server import KEY, Llm
from tests.flows.llm.test_runs import CONCURRENCY, OUT, wait_until
from tests.prefect import server
from tests.prefect.api import Api as Prefect
from tests.prefect.api import until
from tests.prefect.conftest import prefect_server

__all__ = ["prefect_server"]

pytest.importorskip("prefect")
pytestmark = [
    pytest.mark.long,
    # Prefect's and its dependencies' own are not ours to fix.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MANY = ("--concurrency", str(CONCURRENCY))


@pytest.fixture
def prefect(prefect_server: tuple[int, Path]) -> Prefect:
    return Prefect(prefect_server[0])


@pytest.fixture
def of_prefect(prefect_server: tuple[int, Path]) -> dict[str, str]:
    port, home = prefect_server
    named = server.environment(home, port).items()
    return {name: value for name, value in named if name.startswith("PREFECT")}


def flow_runs(prefect: Prefect, job: Job) -> list[dict[str, Any]]:
    return [
        each
        for each in prefect.flow_runs(sort="EXPECTED_START_TIME_ASC")
        if each["parameters"].get("publish") == str(job.published)
    ]


def test_killed_in_a_flow_run_and_resumed_in_another(
    llm: Llm,
    tmp_path: Path,
    prefect: Prefect,
    of_prefect: dict[str, str],
    background: list[warm.Program],
) -> None:
    job = Job(tmp_path, llm, 150)
    llm.hold(12)
    process = job.start(*MANY, **of_prefect)
    background.append(process)
    wait_until(lambda: llm.holds and job.done(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    llm.release()
    llm.settle()
    done = len(job.done())
    assert 0 < done < 150

    ended = job.call(*MANY, **of_prefect)

    assert ended.returncode == 0, ended.stderr
    assert f"150 texts: {150 - done} handled now, {done} resumed" in ended.stdout
    job.check()
    assert job.batches <= llm.paid() <= job.batches + OUT
    found = until(lambda: len(found := flow_runs(prefect, job)) == 2 and found)
    assert (
        found[1]["state"]["message"]
        == f"150 of 150 items done ({done} before, {150 - done} now), 0 failed"
    )
    assert prefect.call("GET", f"flows/{found[1]['flow_id']}")["name"] == "llm-classify"
    # The key has reached the API, and neither the parameters nor the logs.
    logs = [line for each in found for line in prefect.logs(each["id"])]
    assert logs
    assert KEY not in json.dumps(found) + json.dumps(logs) + ended.stderr + ended.stdout


def test_a_budget_ends_a_flow_run_with_5_too(
    job: Job, prefect: Prefect, of_prefect: dict[str, str]
) -> None:
    ended = job.call(*MANY, "--max-cost", str(23 * COST_OF_A_TEXT), **of_prefect)
    assert ended.returncode == 5, ended.stderr
    assert job.failed() == []
    assert 20 <= len(job.done()) < 40
    (found,) = flow_runs(prefect, job)
    assert found["state_type"] == "FAILED"
    assert "cost" in found["state"]["message"]
