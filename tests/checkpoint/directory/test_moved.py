"""What happens to a checkpoint under a run: archived, moved, replaced, removed, emptied."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointDamaged, UsageError, resumable_task
from resumable_tasks.checkpoint.directory import archive as archiving
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.engine.events import Committed, Event
from resumable_tasks.errors import Fenced

ITEMS = [{"id": i} for i in range(60)]


def handler(rows: list[dict[str, int]]) -> list[dict[str, int]]:
    time.sleep(0.005)  # dearer than a commit, so that there are some
    return [{"id": row["id"], "v": 1} for row in rows]


JOB = resumable_task(handler, name="job", key="id", batch_size=5, concurrency=1)


class Told:
    """What a run tells of its commits. ``happens`` once, after so many commits or at the last."""

    def __init__(self, happens: Callable[[], object], after: int | None) -> None:
        self.items = 0
        self.before = 60
        self._happens, self._after = happens, after

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Committed):
            return
        self.items += event.completed
        if event.number == self._after or (self._after is None and self.items == 60):
            self.before = self.items
            self._happens()


def run_while(
    place: Path, happens: Callable[[], object], after: int | None, error: type[Exception]
) -> tuple[Told, Any]:
    told = Told(happens, after)
    with pytest.raises(error) as caught:
        JOB.run(ITEMS, checkpoint=place, listeners=[told])
    return told, caught.value


def other(place: Path, **how: Any) -> Callable[[], object]:
    """Another run, of a newer version, that takes over and starts from the beginning."""
    return lambda: JOB.with_options(version="2").run(
        ITEMS, checkpoint=place, takeover=True, on_version_change="restart", **how
    )


def away(place: Path) -> Path:
    moved = [path for path in place.parent.iterdir() if path.name.startswith(f"{place.name}.")]
    return moved[0]


MOVES: dict[str, Callable[[Path], object]] = {
    "a new version starts over": lambda place: other(place)(),
    "it is reset where locks do not reach": lambda place: archiving.archive(
        LocalStore(place), "reset"
    ),
    "a person moves it": lambda place: place.rename(f"{place}.old"),
    "a person moves it, and another job starts": lambda place: (
        place.rename(f"{place}.old"),
        other(place)(),
    ),
    "a copy takes its place": lambda place: (
        place.rename(f"{place}.old"),
        shutil.copytree(f"{place}.old", place),
    ),
}


@pytest.mark.parametrize("how", MOVES)
def test_a_run_whose_checkpoint_is_moved_commits_nothing_into_what_comes_there(
    how: str, place: Path
) -> None:
    told, error = run_while(place, lambda: MOVES[how](place), 3, Fenced)
    assert error.exit_code == 3
    assert told.items == told.before
    old = LocalStore(away(place))
    assert verify(old).damages == []
    assert told.items <= len(list(DirectoryReader(old).completed_keys()))
    if not place.exists():
        return
    assert verify(LocalStore(place)).damages == []
    if how != "a copy takes its place":
        assert other(place)().completed == (60 if "locks" in how else 0)
    assert verify(LocalStore(place)).damages == []


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


REMOVALS: dict[str, Callable[[Path], object]] = {
    "all of it": shutil.rmtree,
    "all in it": empty,
    "journal": lambda place: shutil.rmtree(place / "journal"),
    "all in journal": lambda place: empty(place / "journal"),
    "shards": lambda place: shutil.rmtree(place / "shards"),
    "job.json": lambda place: (place / "job.json").unlink(),
}
# What the next commit has no reason to look at is found at the end.
AT_THE_END: dict[str, Callable[[Path], object]] = {
    "all in shards": lambda place: empty(place / "shards"),
    "the first record": lambda place: (place / f"journal/{0:020d}.jsonl").unlink(),
    "a shard": lambda place: min((place / "shards").iterdir()).unlink(),
}


@pytest.mark.parametrize("after", [3, None])
@pytest.mark.parametrize("what", [*REMOVALS, *AT_THE_END])
def test_what_is_removed_under_a_run_is_noticed(what: str, after: int | None, place: Path) -> None:
    remove = (REMOVALS | AT_THE_END)[what]
    told, error = run_while(place, lambda: remove(place), after, CheckpointDamaged)
    assert "othing is lost" not in str(error)
    assert "othing that was committed is lost" not in str(error)
    if what in REMOVALS:
        assert told.items == told.before  # at the next commit


def test_a_checkpoint_that_is_removed_before_anything_is_missing_is_not_told_as_done(
    place: Path,
) -> None:
    """All is skipped, and so there is nothing to commit but the end."""
    JOB.run(ITEMS, checkpoint=place)

    def items() -> Any:
        yield from ITEMS
        shutil.rmtree(place)

    with pytest.raises(CheckpointDamaged):
        JOB.run(items(), checkpoint=place)


def test_an_archived_checkpoint_can_be_put_back_and_goes_on(place: Path) -> None:
    told, _ = run_while(place, lambda: archiving.archive(LocalStore(place), "reset"), 3, Fenced)
    with pytest.raises(UsageError):
        verify(LocalStore(place))
    away(place).rename(place)
    result = JOB.run(ITEMS, checkpoint=place)
    assert (result.skipped, result.completed) == (told.items, 60 - told.items)
    assert result.table().num_rows == 60
