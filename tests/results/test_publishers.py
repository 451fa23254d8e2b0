"""Several publishers of one folder, and what others may have put beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest

from resumable_tasks import StoreError, UsageError, resumable_task
from resumable_tasks.base import faults
from resumable_tasks.results import swap

ROWS = 300


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm(None)


@pytest.fixture
def result(place: Path) -> Any:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=50)
    return job.run([{"id": i, "text": f"{i}" * 50} for i in range(ROWS)], checkpoint=place)


def rows(target: Path) -> int:
    return pyarrow.dataset.dataset(target, format="parquet").count_rows()


@pytest.mark.parametrize(("one", "other"), [(None, 3_000), (3_000, None), (3_000, 3_000)])
def test_two_at_once_leave_one_dataset_whole(
    one: int | None, other: int | None, result: Any, tmp_path: Path
) -> None:
    """Between what one looks at and what it renames, another one comes."""
    target = tmp_path / "labels"
    result.publish(target)
    sizes = [{} if size is None else {"target_bytes": size} for size in (one, other)]
    second = threading.Thread(target=lambda: result.publish(target, **sizes[1]))
    look = swap._is_one_file

    def slow(folder: Path) -> bool:
        found = look(folder)
        if folder == target and not second.ident:
            second.start()
            second.join(0.5)  # it waits, if publishers exclude each other
        return found

    swap._is_one_file = slow
    try:
        result.publish(target, **sizes[0])
        if second.ident:
            second.join()
    finally:
        swap._is_one_file = look
    assert rows(target) == ROWS
    result.publish(target)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_publisher_that_sleeps_keeps_others_only_so_long(
    result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "labels"
    monkeypatch.setattr(swap, "_PATIENCE", 0.1)
    with swap.alone(target), pytest.raises(StoreError, match="another publisher"):
        result.publish(target)
    assert not target.exists()
    assert result.publish(target).rows == ROWS


def test_what_comes_into_the_folder_while_rows_are_written_is_not_replaced(
    result: Any, tmp_path: Path
) -> None:
    target = tmp_path / "labels"
    result.publish(target)

    def come(name: str) -> None:
        if name == "publish.staged":
            (target / "mine.txt").write_text("mine")

    faults.arm(come)
    with pytest.raises(UsageError, match=r"mine\.txt"):
        result.publish(target)
    assert (target / "mine.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def stage_of_a_dead_one(target: Path) -> Path:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return target.with_name(swap._stage_prefix(target) + f"{dead.pid}-00000000")


def test_a_link_that_is_called_as_a_dead_stage_leads_nowhere(result: Any, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "labels", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs.parquet").write_text("theirs")
    stage_of_a_dead_one(target).symlink_to(elsewhere)
    result.publish(target)
    assert (elsewhere / "theirs.parquet").read_text() == "theirs"


def test_a_dead_stage_is_removed_with_what_its_marker_does_not_name(
    result: Any, tmp_path: Path
) -> None:
    """After a power loss a file may have the name again that it had while it was written."""
    target = tmp_path / "labels"
    stage = stage_of_a_dead_one(target)
    result.publish(target)
    shutil.copytree(target, stage)
    (stage / "part-00000.parquet").rename(stage / "0.parquet")
    result.publish(target)
    assert not stage.exists()


@pytest.mark.parametrize("kind", ["pipe", "link", "deep", "list", "folder"])
def test_a_marker_that_is_none_names_no_files(kind: str, result: Any, tmp_path: Path) -> None:
    target = tmp_path / "labels"
    result.publish(target)
    marker = target / "_published.json"
    marker.unlink()
    if kind == "pipe":
        os.mkfifo(marker)
    elif kind == "link":
        marker.symlink_to("/dev/zero")
    elif kind == "folder":
        marker.mkdir()
    else:
        marker.write_text("[" * 100_000 if kind == "deep" else '{"files": 7}')
    with pytest.raises(UsageError, match="publish did not write"):
        result.publish(target)


def test_an_error_of_the_disk_is_ours(
    result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "labels"
    result.publish(target)

    def broken(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(swap, "read_plain", broken)
    with pytest.raises(StoreError, match="Permission denied"):
        result.publish(target)
