"""Of a dataset of Parquet files only the keys are read where all items are completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from resumable_tasks import DuplicateKey, InvalidKey, JobFailed, resumable_task
from resumable_tasks.items import arrow

ROWS = [{"id": f"k{n}", "text": f"{n:04d}" * 50} for n in range(100)]
calls: list[str] = []


@resumable_task(name="job", key="id", batch_size=10)
def job(items: pa.Table) -> list[dict[str, Any]]:
    calls.extend(items["id"].to_pylist())
    return [{"id": item["id"], "length": len(item["text"])} for item in items.to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, each of five row groups, whose column of text takes most of them."""
    calls.clear()
    (tmp_path / "data").mkdir()
    for at in range(2):
        write(tmp_path / "data" / f"{at}.parquet", ROWS[at * 50 : at * 50 + 50])
    return tmp_path / "data"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, **plain)


def spoil(path: Path, group: int) -> None:
    """Make the column of text of this row group unreadable."""
    column = pq.ParquetFile(path).metadata.row_group(group).column(1)
    data = bytearray(path.read_bytes())
    at = column.data_page_offset
    data[at : at + column.total_compressed_size] = bytes([255]) * column.total_compressed_size
    path.write_bytes(data)


def run(folder: Path, place: Path, **options: Any) -> Any:
    calls.clear()
    return job.run(ds.dataset(folder, **options), checkpoint=place, progress=False)


def test_what_is_completed_is_not_read(folder: Path, place: Path) -> None:
    run(folder, place)
    for path in folder.iterdir():
        for group in range(5):
            spoil(path, group)
    with pytest.raises(OSError, match=r"."):
        ds.dataset(folder).to_table()
    again = run(folder, place)
    assert (again.skipped, again.completed, calls) == (100, 0, [])
    assert again.table().num_rows == 100


def test_a_row_group_with_one_new_item_is_read_and_no_other(folder: Path, place: Path) -> None:
    run(folder, place)
    rows = [*ROWS[50:73], {"id": "new", "text": "x"}, *ROWS[74:100]]
    write(folder / "1.parquet", rows)
    for path, group in (("0.parquet", 3), ("1.parquet", 1), ("1.parquet", 4)):
        spoil(folder / path, group)
    again = run(folder, place)
    assert (again.skipped, again.completed, calls) == (99, 1, ["new"])
    write(folder / "0.parquet", [*ROWS[:49], {"id": "newer", "text": ""}])
    spoil(folder / "0.parquet", 4)
    with pytest.raises(OSError, match=r"."):
        run(folder, place)


def test_a_key_that_comes_twice_is_found(folder: Path, place: Path) -> None:
    run(folder, place)
    write(folder / "2.parquet", ROWS[30:35])
    with pytest.raises(DuplicateKey, match="items 30 and 100 have the same key"):
        run(folder, place)


def test_positions_count_what_was_not_read(folder: Path, place: Path) -> None:
    run(folder, place)
    write(folder / "2.parquet", [*ROWS[:0], {"id": "n", "text": ""}, {"id": None, "text": ""}])
    with pytest.raises(JobFailed, match="item 101: the key is None"):
        run(folder, place)


def test_keys_in_the_names_of_folders(tmp_path: Path, place: Path) -> None:
    @resumable_task(name="job", key=("part", "id"), batch_size=10)
    def of_both(items: pa.Table) -> list[dict[str, Any]]:
        return [{"part": item["part"], "id": item["id"]} for item in items.to_pylist()]

    for part in "ab":
        (tmp_path / "data" / f"part={part}").mkdir(parents=True)
        write(tmp_path / "data" / f"part={part}" / "0.parquet", ROWS[:20])
    found = ds.dataset(tmp_path / "data", partitioning="hive")
    assert of_both.run(found, checkpoint=place).completed == 40
    assert of_both.run(found, checkpoint=place).skipped == 40
    spoil(tmp_path / "data" / "part=b" / "0.parquet", 1)
    assert of_both.run(found, checkpoint=place).skipped == 40


def test_what_a_filter_leaves_out_is_left_out(folder: Path, place: Path) -> None:
    some = ds.dataset(folder).filter(ds.field("id") < "k5")
    assert not arrow.in_parts(some)
    done = job.run(some, checkpoint=place)
    assert job.run(some, checkpoint=place).skipped == done.completed < 100


def test_a_column_that_is_not_there_is_an_error(folder: Path, place: Path) -> None:
    run(folder, place)
    for path in folder.iterdir():
        pq.write_table(pq.read_table(path).rename_columns(["ident", "text"]), path)
    with pytest.raises(InvalidKey, match="no column 'id'"):
        run(folder, place)
