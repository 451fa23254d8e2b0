"""Scripts that are flows, killed, stopped, edited, run again and run twice, with real processes."""

from __future__ import annotations

import asyncio
import runpy
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointHeld, CheckpointMismatch, Failing, ItemFailure, resumable_task
from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import FLOW, PATIENCE, Scene, run_here

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PREFECT = str(Path(sys.executable).with_name("prefect"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.close()


def state(api: Api, run: str) -> str:
    return str(api.flow_run(run)["state"]["type"])


@pytest.mark.long
def test_a_script_that_was_killed_is_left_running_and_a_new_run_resumes(
    scene: Scene, api: Api, prefect_env: dict[str, str]
) -> None:
    script = scene.script(prefect_env)
    scene.wait_for_ended(6)
    death = scene.kill(script.pid)
    assert script.wait() == -signal.SIGKILL
    left = scene.wait_for_flow(1)["id"]

    retry = scene.start([PREFECT, "flow-run", "retry", left, "-e", f"{FLOW}:job"], prefect_env)
    assert scene.script(prefect_env).wait() == 0
    scene.check(100)
    scene.check_little_was_redone(death)
    assert retry.wait() == 1
    assert "Only flow runs in terminal states" in scene.output(1)
    new = scene.wait_for_flow(2)["id"]
    assert (state(api, left), state(api, new)) == ("RUNNING", "COMPLETED")

    # What puts the one away that is left.
    crashed = '{"state": {"type": "CRASHED"}}'
    mark = [PREFECT, "api", "POST", f"/flow_runs/{left}/set_state", "--data", crashed]
    assert scene.start(mark, prefect_env).wait() == 0
    assert state(api, left) == "CRASHED"


def test_a_retry_of_the_same_run_resumes_also_with_an_edited_handler(
    scene: Scene, api: Api, prefect_env: dict[str, str]
) -> None:
    file = scene.place / "edited.py"
    file.write_text(FLOW.read_text())
    script = scene.script(prefect_env, file)
    scene.wait_for_ended(6)
    death = scene.kill(script.pid)
    run = scene.wait_for_flow(1)["id"]

    edited = FLOW.read_text().replace('WRITTEN = "first"', 'WRITTEN = "second"')
    file.write_text(edited.replace('VERSION = "1"', 'VERSION = "2"'))
    with pytest.raises(CheckpointMismatch, match="version"):
        runpy.run_path(str(file))["job"](**scene.parameters())
    refused = api.flow_run(scene.wait_for_flow(2)["id"])
    assert refused["state"]["type"] == "FAILED"
    assert "CheckpointMismatch" in refused["state"]["message"]
    assert len(scene.began()) == death.began

    file.write_text(edited)
    api.call("POST", f"flow_runs/{run}/set_state", {"state": {"type": "CRASHED"}})
    retry = scene.start([PREFECT, "flow-run", "retry", run, "-e", f"{file}:job"], prefect_env)
    assert retry.wait() == 0, scene.output()
    assert (state(api, run), api.flow_run(run)["run_count"]) == ("COMPLETED", 2)
    assert scene.wait_for_flow(3)["id"] == run
    scene.check(100)
    scene.check_little_was_redone(death)
    written = [note["written"] for note in scene.notes("began")]
    assert set(written[: death.began]) == {"first"}
    assert set(written[death.began :]) == {"second"}


def test_ctrl_c_lets_what_runs_finish(scene: Scene, api: Api, prefect_env: dict[str, str]) -> None:
    script = scene.script(prefect_env, items=100, seconds=1.0)
    until(lambda: len(scene.began()) >= 4, PATIENCE)
    script.send_signal(signal.SIGINT)
    assert script.wait() == 75
    assert "Run the same command again to resume" in scene.output()
    assert set(scene.began()) == set(scene.ended())
    done = {key for keys in scene.ended() for key in keys}
    assert scene.check() == done
    assert len(done) < 50
    assert state(api, scene.wait_for_flow(1)["id"]) == "CRASHED"
    assert run_here(scene, 100).skipped == len(done)
    scene.check(100)
    assert max(Counter(scene.began()).values()) == 1


def test_one_flow_run_executed_twice_at_once(
    scene: Scene, api: Api, prefect_env: dict[str, str]
) -> None:
    flow = api.call("POST", "flows/", {"name": "job"})["id"]
    asked = {"flow_id": flow, "parameters": scene.parameters(items=100, seconds=2.0)}
    run = api.call("POST", "flow_runs/", {**asked, "state": {"type": "PENDING"}})["id"]
    env = {**prefect_env, "PREFECT__FLOW_RUN_ID": run}
    engine = [sys.executable, "-m", "prefect.flow_engine", f"{FLOW}:job"]
    both = [scene.start(engine, env), scene.start(engine, env)]
    until(lambda: any(each.poll() is not None for each in both), PATIENCE)
    scene.hurry()
    assert [each.wait() for each in both] == [0, 0], scene.output(0) + scene.output(1)

    said = [scene.output(0), scene.output(1)]
    second = 0 if "aborted by orchestrator" in said[0] else 1
    assert f"already being executed by pid {both[1 - second].pid}" in said[second]
    assert "100 of 100 items done" in said[1 - second]
    assert len(scene.notes("flow")) == 2
    assert {note["pid"] for note in scene.notes("began")} == {both[1 - second].pid}
    scene.check(100)
    assert max(Counter(scene.began()).values()) == 1
    assert state(api, run) == "COMPLETED"


def test_one_flow_run_twice_at_one_checkpoint_is_an_error(scene: Scene, api: Api) -> None:
    """Not a second execution, which would leave the flow run as it is: Running, for ever."""
    from prefect import flow

    from tests.prefect.recovery.flow import begun, made, source

    task = made(str(scene.place), 0.0, {}, False, {})

    def again() -> Iterator[Any]:
        yield from source(10)
        task.run(source(10), checkpoint=scene.checkpoint)

    @flow
    def job() -> None:
        begun(str(scene.place))
        task.run(again(), checkpoint=scene.checkpoint)

    with pytest.raises(CheckpointHeld):
        job()
    assert state(api, scene.wait_for_flow(1)["id"]) == "FAILED"
    assert scene.check() == set(range(10))


def test_a_flows_retry_handles_only_what_failed(scene: Scene, api: Api) -> None:
    from prefect import flow

    from tests.prefect.recovery.flow import begun, source

    handled: list[list[int]] = []

    @resumable_task(key="id", batch_size=10, concurrency=1, failing=Failing(isolate=False))
    def invert(rows: list[dict[str, int]]) -> list[Any]:
        handled.append([row["id"] for row in rows])
        if rows[0]["id"] == 20 and len(handled) <= 4:
            raise OSError("the service is away")
        return [
            ItemFailure(row["id"], "not yet")
            if row["id"] == 7 and len(handled) <= 6
            else {"id": row["id"], "value": row["id"] ** 2 + 7}
            for row in rows
        ]

    @flow(retries=2)
    def job() -> tuple[int, int]:
        begun(str(scene.place))
        result = invert.run(source(40), checkpoint=scene.checkpoint)
        return result.skipped, result.completed

    assert job() == (39, 1)
    tens = [list(range(start, start + 10)) for start in (0, 10, 20, 30)]
    assert handled == [*tens, [7, *tens[2][:9]], [29], [7]]
    scene.check(40)
    runs = {note["id"] for note in scene.notes("flow")}
    assert len(runs) == 1
    run = api.flow_run(runs.pop())
    assert (run["state"]["type"], run["run_count"]) == ("COMPLETED", 3)


@pytest.mark.parametrize(
    "way", [pytest.param("run in a flow", marks=pytest.mark.long), "arun in an async flow"]
)
def test_a_flow_that_takes_too_long_commits_what_is_done(scene: Scene, api: Api, way: str) -> None:
    from prefect import flow

    from tests.prefect.recovery.flow import begun, made, source

    place = str(scene.place)
    task = made(place, 0.4, {}, False, {})

    @flow(timeout_seconds=1)
    def plain() -> None:
        begun(place)
        task.run(source(200), checkpoint=scene.checkpoint)

    @flow(timeout_seconds=1)
    async def awaited() -> None:
        begun(place)
        try:
            await task.arun(source(200), checkpoint=scene.checkpoint)
        finally:
            assert set(scene.began()) == set(scene.ended())

    with pytest.raises(TimeoutError):
        plain() if way == "run in a flow" else asyncio.run(awaited())
    assert api.flow_run(scene.wait_for_flow(1)["id"])["state"]["name"] == "TimedOut"
    done = {key for keys in scene.ended() for key in keys}
    assert set(scene.began()) == set(scene.ended())
    assert scene.check() == done
    assert 0 < len(done) <= 50
    assert run_here(scene, 200).skipped == len(done)
    scene.check(200)
