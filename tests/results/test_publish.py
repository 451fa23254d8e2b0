"""Published results: whole, compact, in order on request, and never over other people's files."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet
import pytest

from resumable_tasks import UsageError, resumable_task
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.results.publish import publish

ITEMS = [{"id": f"{i:05}", "text": f"{random.Random(i).random()}" * 5} for i in range(2_000)]


@pytest.fixture
def result(place: Path) -> Any:
    shuffled = random.Random(7).sample(ITEMS, len(ITEMS))
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=37, concurrency=2)
    job.run(shuffled[:500], checkpoint=place)
    return job.run(shuffled, checkpoint=place)


def test_the_folder_holds_the_results_compacted(result: Any, tmp_path: Path) -> None:
    published = result.publish(tmp_path / "out" / "date=2026-11-23")
    assert (published.rows, published.files) == (2_000, ("part-00000.parquet",))
    found = pyarrow.dataset.dataset(tmp_path / "out", partitioning="hive").to_table()
    assert found.num_rows == 2_000
    assert set(found.column("date").to_pylist()) == {"2026-11-23"}
    meta = pyarrow.parquet.read_metadata(tmp_path / "out/date=2026-11-23/part-00000.parquet")
    assert meta.row_group(0).column(0).compression == "ZSTD"
    marker = json.loads((tmp_path / "out/date=2026-11-23/_published.json").read_text())
    assert marker["rows"] == 2_000


def test_order_is_by_item_where_known_else_by_key(result: Any, tmp_path: Path, place: Path) -> None:
    shuffled = [item["id"] for item in random.Random(7).sample(ITEMS, len(ITEMS))]
    result.publish(tmp_path / "by_item", ordered=True)
    found = pyarrow.parquet.read_table(tmp_path / "by_item/part-00000.parquet")
    assert found.column("id").to_pylist() == shuffled
    publish(Directory(str(place)).reader(), tmp_path / "by_key", ordered=True)
    found = pyarrow.parquet.read_table(tmp_path / "by_key/part-00000.parquet")
    assert found.column("id").to_pylist() == sorted(shuffled)
    assert result.table(ordered=True).column("id").to_pylist() == shuffled


def test_a_large_result_is_several_files_of_about_the_size(result: Any, tmp_path: Path) -> None:
    published = result.publish(tmp_path / "out", target_bytes=5_000)
    assert 2 < len(published.files) < 20
    sizes = [(tmp_path / "out" / name).stat().st_size for name in published.files]
    assert max(sizes) < 20_000
    found = pyarrow.dataset.dataset(tmp_path / "out").to_table()
    assert sorted(found.column("id").to_pylist()) == [item["id"] for item in ITEMS]


def test_a_reader_sees_the_old_or_the_new_dataset_and_never_a_half(
    result: Any, tmp_path: Path
) -> None:
    out, stop, wrong = tmp_path / "out", threading.Event(), []
    result.publish(out)

    def read() -> None:
        while not stop.is_set():
            rows = pyarrow.dataset.dataset(out).to_table().num_rows
            if rows != 2_000:
                wrong.append(rows)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        result.publish(out)
    stop.set()
    reader.join()
    assert not wrong
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


def test_a_reader_that_has_opened_the_folder_finds_the_file_there(
    result: Any, tmp_path: Path
) -> None:
    """A reader that was halted after it had opened the folder, and before it has listed it."""
    out = tmp_path / "out"
    result.publish(out)
    folder = os.open(out, os.O_RDONLY)
    try:
        result.publish(out, ordered=True)
        assert sorted(os.listdir(folder)) == ["_published.json", "part-00000.parquet"]
    finally:
        os.close(folder)
    assert pyarrow.dataset.dataset(out).count_rows() == 2_000


@pytest.mark.parametrize("before", [5_000, 10**9])
@pytest.mark.parametrize("after", [5_000, 10**9])
def test_one_file_and_several_replace_each_other(
    result: Any, tmp_path: Path, before: int, after: int
) -> None:
    """Through a link, too: it is the folder behind it that is replaced."""
    real, link = tmp_path / "real", tmp_path / "out"
    real.mkdir()
    link.symlink_to(real)
    result.publish(link, target_bytes=before)
    published = result.publish(link, target_bytes=after)
    assert (len(published.files) == 1) == (after > 5_000)
    assert {path.name for path in real.iterdir()} == {"_published.json", *published.files}
    assert json.loads((real / "_published.json").read_text())["files"] == list(published.files)
    assert pyarrow.dataset.dataset(link).count_rows() == 2_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out", "real"]


def test_other_peoples_files_are_never_replaced(result: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    result.publish(out)  # an empty folder is free
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        result.publish(out)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        result.publish(tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(UsageError, match="part-00000"):
        result.publish(other)


def test_where_folders_cannot_be_exchanged_it_is_two_renames(
    result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resumable_tasks.results.swap._swap", lambda a, b: False)
    for _ in range(3):
        result.publish(tmp_path / "out")
    assert pyarrow.dataset.dataset(tmp_path / "out").count_rows() == 2_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


def test_no_results_are_an_empty_dataset(tmp_path: Path, place: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id")
    result = job.run([], checkpoint=place)
    assert result.publish(tmp_path / "out").rows == 0
    assert pyarrow.dataset.dataset(tmp_path / "out").count_rows() == 0
