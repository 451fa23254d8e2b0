"""Rows published as a Delta table: each exactly once, whoever else publishes or writes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import CheckpointDamaged, StoreError, UsageError, redo, resumable_task
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory.archive import archive
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.directory.repair import repair
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.results import delta
from resumable_tasks.results.publish import publish
from tests.conftest import Bucket

polars = pytest.importorskip("polars")
deltalake = pytest.importorskip("deltalake")
DeltaTable, write_deltalake = deltalake.DeltaTable, deltalake.write_deltalake


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(delta, "_TRIES", 3)
    yield
    faults.arm(None)


def run(place: Path, count: int, word: Any = "a") -> Any:
    def rows(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": item["id"], "word": word} for item in items]

    job = resumable_task(rows, name="job", key="id", batch_size=10)
    return job.run([{"id": i} for i in range(count)], checkpoint=place)


def rows(table: Path) -> list[tuple[Any, ...]]:
    return sorted(polars.read_delta(str(table)).rows())


def ids(table: Path) -> list[int]:
    return [row[0] for row in rows(table)]


def modes(table: Path) -> list[str]:
    """How each version was written, after the first, which has no rows."""
    found = [entry["operationParameters"]["mode"] for entry in DeltaTable(table).history()]
    return [mode.lower() for mode in reversed(found)][1:]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "labels"


def test_what_has_come_since_is_appended(place: Path, table: Path) -> None:
    for count in (30, 70, 70, 100):
        published = run(place, count).publish(table, form="delta")
        assert published.rows == count
        assert ids(table) == list(range(count))
    assert modes(table) == ["overwrite", "append", "append"]
    there = {path.name: path.stat().st_size for path in table.iterdir() if path.is_file()}
    assert (set(published.files), published.bytes) == (set(there), sum(there.values()))


def test_the_table_says_how_far_the_checkpoint_was(place: Path, table: Path) -> None:
    run(place, 30).publish(table, form="delta")
    found = Directory(str(place)).reader().read(lambda rows: rows.identity)
    app = f"resumable-tasks/{found['checkpoint']}"
    assert DeltaTable(table).transaction_version(app) == found["records"]


def test_if_rows_were_taken_back_all_are_written_in_one_commit(place: Path, table: Path) -> None:
    run(place, 50).publish(table, form="delta")
    redo(place, keys=[7])
    run(place, 60, word="b").publish(table, form="delta")
    assert modes(table) == ["overwrite", "overwrite"]
    again = [row for row in rows(table) if row[1] == "b"]
    assert ids(table) == list(range(60))
    assert {7, 55} <= {row[0] for row in again} <= {*range(10), *range(50, 60)}


def test_if_rows_have_another_type_since_all_are_written(place: Path, table: Path) -> None:
    run(place, 20, word=None).publish(table, form="delta")
    assert rows(table) == [(i, None) for i in range(20)]
    run(place, 30, word=1.5).publish(table, form="delta")
    assert rows(table) == [(i, None) for i in range(20)] + [(i, 1.5) for i in range(20, 30)]
    assert modes(table) == ["overwrite", "overwrite"]


@pytest.mark.parametrize(("what", "nth"), [("shards", 0), ("journal", 1)])
def test_rows_that_damage_has_taken_leave_the_table_and_come_back(
    what: str, nth: int, place: Path, table: Path
) -> None:
    """A record that is lost has a number before those that were published."""
    for count in (20, 40, 50):
        run(place, count).publish(table, form="delta")
    path = sorted((place / what).iterdir())[nth]
    path.write_bytes(path.read_bytes()[:-3] + b"\n\n\n")
    repair(open_store(place))
    publish(Directory(str(place)).reader(), table, form="delta")
    assert len(ids(table)) < 50
    run(place, 50).publish(table, form="delta")
    assert ids(table) == list(range(50))


def test_a_damaged_shard_is_raised_and_the_table_stays(place: Path, table: Path) -> None:
    run(place, 20).publish(table, form="delta")
    result = run(place, 40)
    path = max((place / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    with pytest.raises(CheckpointDamaged, match=path.name):
        result.publish(table, form="delta")
    assert ids(table) == list(range(20))


def test_a_new_checkpoint_replaces_what_the_old_one_has_published(place: Path, table: Path) -> None:
    run(place, 50).publish(table, form="delta")
    archived = archive(open_store(place), "someone")
    run(place, 30, word="new").publish(table, form="delta")
    assert rows(table) == [(i, "new") for i in range(30)]
    # Or the other way round, if one wants.
    publish(Directory(archived).reader(), table, form="delta")
    assert rows(table) == [(i, "a") for i in range(50)]
    run(place, 40, word="new").publish(table, form="delta")
    assert rows(table) == [(i, "new") for i in range(40)]


def between(point: str, act: Any, times: int = 1) -> list[str]:
    """Do something at a point of this process, the first so many times that it is passed."""
    passed: list[str] = []

    def pass_(name: str) -> None:
        if name == point and len(passed) < times:
            passed.append(name)
            act()

    faults.arm(pass_)
    return passed


@pytest.mark.parametrize(("before", "redone"), [(0, False), (20, False), (20, True)])
def test_another_publisher_comes_between_looking_and_writing(
    before: int, redone: bool, place: Path, table: Path
) -> None:
    if before:
        run(place, before).publish(table, form="delta")
    if redone:
        redo(place, keys=[3])
    result = run(place, 50)
    passed = between("publish.looked", lambda: result.publish(table, form="delta"))
    result.publish(table, form="delta")
    assert passed
    assert ids(table) == list(range(50))


def test_an_older_publisher_that_comes_late_takes_nothing_away(place: Path, table: Path) -> None:
    run(place, 20).publish(table, form="delta")
    run(place, 30)

    def further() -> None:
        run(place, 50).publish(table, form="delta")

    passed = between("publish.looked", further)
    published = publish(Directory(str(place)).reader(), table, form="delta")
    assert passed
    assert (published.rows, ids(table)) == (50, list(range(50)))


def test_a_commit_whose_answer_is_an_error_is_found(
    place: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deltalake

    run(place, 20).publish(table, form="delta")
    write, calls = deltalake.write_deltalake, []

    def lost(*arguments: Any, **options: Any) -> None:
        calls.append(options["mode"])
        write(*arguments, **options)
        raise deltalake.exceptions.DeltaError("the reply was lost")

    monkeypatch.setattr(deltalake, "write_deltalake", lost)
    assert run(place, 50).publish(table, form="delta").rows == 50
    assert (calls, ids(table)) == (["append"], list(range(50)))


def test_an_error_that_stays_is_ours(
    place: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deltalake

    run(place, 20).publish(table, form="delta")
    result = run(place, 30)

    def broken(*_: Any, **__: Any) -> None:
        raise deltalake.exceptions.DeltaError("denied for s3://me:pw@host\n  0: <unknown>")

    monkeypatch.setattr(deltalake, "write_deltalake", broken)
    with pytest.raises(StoreError, match="denied for") as caught:
        result.publish(table, form="delta")
    assert "pw" not in str(caught.value)
    assert "unknown" not in str(caught.value)
    assert ids(table) == list(range(20))


def foreign_table(table: Path) -> None:
    write_deltalake(table, pa.table({"id": [1]}))


def foreign_rows(table: Path) -> None:
    write_deltalake(table, pa.table({"id": [77], "word": ["x"]}), mode="append")


def foreign_delete(table: Path) -> None:
    DeltaTable(table).delete("id = 3")


@pytest.mark.parametrize("write", [foreign_table, foreign_rows, foreign_delete])
def test_what_others_have_written_is_neither_replaced_nor_added_to(
    write: Any, place: Path, table: Path
) -> None:
    result = run(place, 20)
    if write is not foreign_table:
        result.publish(table, form="delta")
    write(table)
    before = rows(table)
    for look in (result, run(place, 30)):
        with pytest.raises(UsageError, match=r"publish did not create|another program writes"):
            look.publish(table, form="delta")
    assert rows(table) == before


def test_care_for_the_table_is_no_foreign_write(place: Path, table: Path) -> None:
    for count in (10, 20, 30):
        run(place, count).publish(table, form="delta")
    found = DeltaTable(table)
    found.optimize.compact()
    found.vacuum(0, dry_run=False, enforce_retention_duration=False)
    found.create_checkpoint()
    published = run(place, 40).publish(table, form="delta")
    assert (ids(table), len(published.files)) == (list(range(40)), 2)


def test_other_peoples_files_are_no_table(place: Path, table: Path) -> None:
    result = run(place, 20)
    table.mkdir()
    (table / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"mine\.txt.*not a Delta table"):
        result.publish(table, form="delta")
    with pytest.raises(UsageError, match="is a file"):
        result.publish(table / "mine.txt", form="delta")
    result.publish(table / "deep" / "parquet")
    with pytest.raises(UsageError, match=r"_published\.json.*not a Delta table"):
        result.publish(table / "deep" / "parquet", form="delta")
    result.publish(table / "deep" / "delta", form="delta")
    with pytest.raises(UsageError, match=r"Delta table.*form"):
        result.publish(table / "deep" / "delta")


def test_a_table_without_rows_and_one_of_a_first_try_that_died(place: Path, table: Path) -> None:
    (table / "_delta_log").mkdir(parents=True)
    with pytest.raises(UsageError, match="no columns"):
        run(place, 0).publish(table, form="delta")
    run(place, 10).publish(table, form="delta")
    assert ids(table) == list(range(10))


def test_only_what_was_given(place: Path, table: Path) -> None:
    run(place, 50)
    result = run(place, 20)
    for _ in range(2):
        result.publish(table, form="delta", only_given=True)
        assert ids(table) == list(range(20))
    result.publish(table, form="delta")
    assert ids(table) == list(range(50))
    run(place, 60).publish(table, form="delta")
    assert (ids(table), modes(table)[-1]) == (list(range(60)), "append")


def test_what_a_table_is_not_is_refused(place: Path, tmp_path: Path, table: Path) -> None:
    result = run(place, 20)
    with pytest.raises(UsageError, match="no order"):
        result.publish(table, form="delta", ordered=True)
    with pytest.raises(UsageError, match="'iceberg' is not one of 'parquet', 'delta'"):
        result.publish(table, form="iceberg")
    for name in ("a%20b", "a[1]", "a\\b", "a\nb"):
        with pytest.raises(UsageError, match="in its path"):
            result.publish(tmp_path / name, form="delta")
    assert {path.name for path in tmp_path.iterdir()} == {place.name}


@pytest.mark.parametrize("name", ["a b", "ü#?{1}", "date=2026-11-23"])
def test_a_place_may_have_any_other_name(name: str, place: Path, tmp_path: Path) -> None:
    for count in (10, 20):
        run(place, count).publish(tmp_path / name, form="delta")
    found = DeltaTable(tmp_path / name).to_pyarrow_table()
    assert sorted(found["id"].to_pylist()) == list(range(20))
    assert {path.name for path in tmp_path.iterdir()} == {place.name, name}


def test_without_deltalake_it_is_said_what_to_install(
    place: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(place, 20)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.setattr(delta, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "resumable-tasks\[delta\]"'):
        result.publish(table, form="delta")


def test_large_results_are_several_files(place: Path, table: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=2_000)
    items = [{"id": i, "text": f"{i * 7919:030}" * 5} for i in range(40_000)]
    published = job.run(items, checkpoint=place).publish(table, form="delta", target_bytes=200_000)
    assert len(published.files) > 2
    assert ids(table) == list(range(40_000))


def test_the_time_of_a_row_is_the_same_moment(place: Path, table: Path) -> None:
    moment = datetime(2026, 11, 23, 3, 4, 5, 678901, UTC)
    rows = [{"id": i, "at": moment + timedelta(days=i)} for i in range(10)]
    job = resumable_task(lambda items: [rows[item["id"]] for item in items], name="job", key="id")
    job.run([{"id": i} for i in range(10)], checkpoint=place).publish(table, form="delta")
    assert sorted(polars.read_delta(str(table)).to_dicts(), key=lambda row: row["id"]) == rows


@pytest.mark.parametrize(
    "in_a_bucket",
    [pytest.param(False, id="folder"), pytest.param(True, id="bucket", marks=pytest.mark.long)],
)
def test_of_those_that_make_a_table_at_once_one_does(
    in_a_bucket: bool, place: Path, tmp_path: Path, bucket: Bucket
) -> None:
    """Each other commit would come after the rows of the first, and say that there are none."""
    run(place, 10)
    for number in range(8):
        dest = f"{bucket.url}/{number}" if in_a_bucket else str(tmp_path / f"table-{number}")
        at_once = threading.Barrier(3)

        def one(dest: str = dest, at_once: threading.Barrier = at_once) -> int:
            at_once.wait(30)
            return publish(Directory(place).reader(), dest, form="delta").rows

        with ThreadPoolExecutor(3) as threads:
            assert {each.result(60) for each in [threads.submit(one) for _ in range(3)]} == {10}
        store = open_store(dest)
        log = sorted(name for name in store.list("_delta_log") if name.endswith(".json"))
        made = [b'"metaData"' in store.read(f"_delta_log/{Path(name).name}") for name in log]
        assert made == [True, False]
        assert not [name for name in disk.names(store, "") if name.startswith("_delta_log.")]
