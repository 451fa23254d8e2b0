"""What a flow costs whose items are all done, and one of very many batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import Scene
from tests.prefect.test_recovery_server import batches

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.close()


def test_a_flow_whose_items_are_all_done_takes_hardly_longer_than_an_empty_one(
    scene: Scene,
) -> None:
    from prefect import flow

    from tests.prefect.recovery.flow import made, source

    task = made(str(scene.place), 0.0, {}, False, {"batch_size": 1_000})
    task.run(source(10_000), checkpoint=scene.checkpoint)

    @flow
    def empty() -> None:
        pass

    @flow
    def done() -> None:
        assert task.run(source(10_000), checkpoint=scene.checkpoint).skipped == 10_000

    empty()  # loads what both need
    taken: dict[Callable[[], None], float] = {}
    for each in (empty, done):
        began = time.process_time()  # other work makes both wait, and neither work longer
        each()
        taken[each] = time.process_time() - began
    assert taken[done] - taken[empty] < 1
    assert len(scene.began()) == 10


@pytest.mark.long
@pytest.mark.parametrize("batches_", [2_000, 20_000], ids=["short", "long"])
def test_very_many_batches_are_all_told_and_none_is_kept(
    scene: Scene, api: Api, prefect_env: dict[str, str], batches_: int
) -> None:
    assert scene.script(prefect_env, flow="many", batches=batches_).wait() == 0
    before, after = (note["bytes"] for note in scene.notes("memory"))
    assert after - before < 100_000_000
    run = scene.wait_for_flow(1)["id"]
    told = until(lambda: told if sum(told := counts(api, run)) >= batches_ + 100 else None, 60)
    assert sum(told) == batches_ + 100
    assert len(told) < 150


def counts(api: Api, run: str) -> list[int]:
    return [batches(each["name"]) for each in api.task_runs(run)]
