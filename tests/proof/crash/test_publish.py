"""Publishing is killed, or goes on, under a reader's eyes: the old dataset or the new, whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.proof.crash import attacks
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher
from tests.proof.crash.system_calls import calls, traced


@pytest.mark.parametrize("fault", ["publish.staged", "publish.exchanged"])
def test_publishing_is_killed(launch: Launcher, place: Path, fault: str) -> None:
    attacks.kill_publish(launch, Spec(str(place)), fault)


@pytest.mark.parametrize(
    ("fault", "items"),
    [
        ("publish.exchanged", 15),
        pytest.param("publish.staged", 60, marks=pytest.mark.long),
        pytest.param("publish.exchanged", 60, marks=pytest.mark.long),
    ],
)
def test_publishing_of_several_files_is_killed(
    launch: Launcher, place: Path, fault: str, items: int
) -> None:
    attacks.kill_publish(launch, Spec(str(place), items=items, target_bytes=300), fault)


@pytest.mark.parametrize(
    ("target_bytes", "items"),
    [
        (300, 15),
        pytest.param(0, 60, marks=pytest.mark.long),
        pytest.param(300, 60, marks=pytest.mark.long),
    ],
)
def test_a_reader_reads_while_it_is_published_over_and_over(
    launch: Launcher, place: Path, target_bytes: int, items: int
) -> None:
    target = place / "published"
    spec = Spec(str(place), items=items, publish=str(target), target_bytes=target_bytes)
    launch.to_end(spec)
    with attacks.Reader(target, retry=target_bytes > 0) as reader:
        for times in (2, 3, 4, 5):
            launch.to_end(replace(spec, items=times * spec.items))
        reader.look()
    assert set(reader.seen) <= {times * spec.items for times in (1, 2, 3, 4, 5)}
    assert not reader.failed, reader.failed[0]
    assert attacks.read_dataset(target) == 5 * spec.items


@pytest.mark.parametrize("fault", ["publish.staged"])
def test_the_first_publishing_is_killed(launch: Launcher, place: Path, fault: str) -> None:
    target = place / "published"
    spec = Spec(str(place), publish=str(target))
    assert launch.fork(replace(spec, faults=fault)).wait() == -9
    assert not target.exists()
    launch.to_end(replace(spec, publish_only=True))
    assert attacks.read_dataset(target) == spec.items
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []


@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("count", [4, pytest.param(None, marks=pytest.mark.long)])
def test_publishing_is_killed_at_system_calls(
    launch: Launcher, place: Path, count: int | None
) -> None:
    """A dataset stands, of one run; the next one's is killed while it is being published."""
    target = place / "published"
    spec = Spec(str(place), publish=str(target))
    launch.to_end(spec)
    kept = place / "kept"
    shutil.copytree(target, kept)
    launch.to_end(replace(spec, items=2 * spec.items, publish=""))
    publish = replace(spec, publish_only=True)
    _, log = traced(launch, publish)
    every = [(call, n) for call, total in sorted(calls(log).items()) for n in range(1, total + 1)]
    # A write that does not come leaves a file empty: its maker's marker, the worst.
    writes = [point for point in every if point[0] == "write"]
    for call, nth in every if count is None else writes + Random(1).sample(every, count):
        shutil.rmtree(target)
        shutil.copytree(kept, target)
        traced(launch, publish, f"{call}:signal=KILL:when={nth}")
        seen = attacks.read_dataset(target)
        assert seen in (spec.items, 2 * spec.items), f"{call} {nth}: {seen} rows"
        launch.to_end(publish)
        assert attacks.read_dataset(target) == 2 * spec.items
        left = [path.name for path in place.iterdir() if path.name.startswith(".")]
        assert not left, f"killed at {call} {nth}: {left} stay"
