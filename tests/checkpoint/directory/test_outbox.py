"""The outbox: what a worker leaves there, the driver takes, whole or not at all."""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from resumable_tasks.checkpoint.directory.outbox import FOLDER, Outbox, epoch_of
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import CheckpointUnusable, StoreError
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch, Cause, ErrorKind
from resumable_tasks.runners.outcome import Done, Failed, Failure, Fatal, Shard, Times

SHARD = Shard("shards/e3-00.parquet", 2, 100, "c0ffee", 2)
FAILURE = Failure('c\n"é', "ValueError", "no\nluck", 2, "batch", "time", "Traceback …")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture
def outbox(store: LocalStore) -> Outbox:
    found = Outbox(store, 3)
    found.open()
    return found


def batch(number: int = 7, of: tuple[keys.Key, ...] = ("a", 2, 'c\n"é')) -> Batch:
    return Batch(number, list(of), keys.join(map(keys.canonical, of)), list(of))


def outcome(of: Batch | None = None) -> Done:
    """Two items done, the third failed."""
    of = of or batch()
    done = keys.join(map(keys.canonical, of.keys[:2]))
    schema = pa.schema([("id", pa.string()), ("n", pa.int64())])
    times = Times(0.5, 1.0, 2.0, 3, waits={"told": 1.5})
    return Done(of, done, 2, None, SHARD, schema, (FAILURE,), (2,), 1.25, times)


def test_what_is_put_is_taken(outbox: Outbox) -> None:
    outbox.put(outcome())
    assert outbox.numbers() == {7}
    taken = outbox.take(batch())
    assert taken == replace(outcome(), batch=batch())


def test_an_outcome_may_have_no_rows_and_no_failures(outbox: Outbox) -> None:
    plain = Done(batch(), batch().lines, 3)
    outbox.put(plain)
    assert outbox.take(batch()) == plain


@pytest.mark.parametrize("cause", Cause)
def test_a_batch_that_failed_as_a_whole_is_told_with_its_error(
    outbox: Outbox, cause: Cause
) -> None:
    of = batch()
    error = ErrorKind("Odd", cause, transient=True, outage=cause is Cause.RAISED)
    failed = Failed(of, error, tuple(replace(FAILURE, key=key) for key in of.keys), 0.5)
    outbox.put(failed)
    assert outbox.take(batch()) == failed


def test_it_is_removed_and_that_may_be_repeated(outbox: Outbox) -> None:
    outbox.put(outcome())
    outbox.remove(7)
    outbox.remove(7)
    assert outbox.take(batch()) is None
    assert outbox.numbers() == set()


@pytest.mark.parametrize(
    "error", [StoreError("full"), CheckpointUnusable("no permission"), OSError("odd")]
)
def test_what_ends_the_run_crosses_by_its_name(outbox: Outbox, error: Exception) -> None:
    outbox.put(Fatal(batch(), error))
    taken = outbox.take(batch())
    assert isinstance(taken, Fatal)
    ours = type(error) if not isinstance(error, OSError) else StoreError
    assert type(taken.error) is ours
    assert str(error) in str(taken.error)


def test_a_name_that_is_no_error_of_ours_is_not_called(outbox: Outbox) -> None:
    for name in ("annotations", "EXIT_DONE", "Any"):
        outbox.put(Fatal(batch(), type(name, (Exception,), {})("x")))
        taken = outbox.take(batch())
        assert isinstance(taken, Fatal)
        assert str(taken.error) == f"{name}: x. Run the same command again"


class TestDamage:
    """Whatever is in the file, it is the whole outcome of this batch, or none."""

    def test_cut_anywhere(self, outbox: Outbox, tmp_path: Path) -> None:
        outbox.put(outcome())
        path = tmp_path / FOLDER / "e3-7"
        data = path.read_bytes()
        for end in range(len(data)):
            path.write_bytes(data[:end])
            assert outbox.take(batch()) is None, end

    def test_any_byte_changed(self, outbox: Outbox, tmp_path: Path) -> None:
        outbox.put(outcome())
        path = tmp_path / FOLDER / "e3-7"
        data = bytearray(path.read_bytes())
        for at in range(len(data) - 1):
            data[at] ^= 1
            path.write_bytes(data)
            assert outbox.take(batch()) is None, at
            data[at] ^= 1

    def test_under_another_number(self, outbox: Outbox, tmp_path: Path) -> None:
        outbox.put(outcome())
        (tmp_path / FOLDER / "e3-7").rename(tmp_path / FOLDER / "e3-8")
        assert outbox.take(batch(8)) is None

    @pytest.mark.parametrize(
        "other",
        [("a", 2), ("a", 2, "c"), ("a", "2", 'c\n"é'), ("a", 2, 'c\n"é', "d")],
        ids=str,
    )
    def test_of_a_batch_with_other_keys(self, outbox: Outbox, other: tuple[keys.Key, ...]) -> None:
        outbox.put(outcome())
        assert outbox.take(batch(of=other)) is None

    def test_the_order_of_the_keys_is_no_damage(self, outbox: Outbox) -> None:
        outbox.put(outcome())
        assert outbox.take(batch(of=('c\n"é', 2, "a"))) is not None

    def test_nothing_in_it_is_run(self, outbox: Outbox, tmp_path: Path) -> None:
        outbox.put(outcome())
        lines = (tmp_path / FOLDER / "e3-7").read_text().splitlines()
        assert [type(json.loads(line)) for line in lines] == [dict] * len(lines)


class TestLeave:
    """When a worker may begin."""

    def test_while_it_is_open_and_the_task_run_is_expected(self, outbox: Outbox) -> None:
        assert outbox.is_open()
        assert not outbox.expects(0)
        outbox.expect(0)
        assert outbox.expects(0)
        assert not outbox.expects(1)
        outbox.close()
        assert not outbox.is_open()
        assert not outbox.expects(0)
        outbox.close()

    def test_not_once_the_task_run_is_withdrawn(self, outbox: Outbox) -> None:
        outbox.expect(0)
        assert outbox.begin(0)
        outbox.withdraw(0)
        assert not outbox.expects(0)
        assert outbox.is_open()
        assert not outbox.has_begun(0)

    def test_a_task_run_is_begun_once(self, outbox: Outbox) -> None:
        outbox.expect(0)
        assert not outbox.has_begun(0)
        together = threading.Barrier(8)

        def begin(_: int) -> bool:
            together.wait()
            return outbox.begin(0)

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(begin, range(8))) == [False] * 7 + [True]
        assert outbox.has_begun(0)

    def test_it_is_this_driver_s_and_crosses_to_its_workers(
        self, outbox: Outbox, store: LocalStore
    ) -> None:
        outbox.expect(0)
        crossed = pickle.loads(pickle.dumps(outbox))
        assert (crossed.epoch, crossed.token) == (3, outbox.token)
        assert crossed.expects(0)
        assert not Outbox(store, 3).is_open(), "another driver's, under the same path"
        assert not Outbox(store, 4).is_open()
        outbox.put(outcome())
        assert crossed.take(batch()) is not None


def test_another_epoch_is_another_outbox(store: LocalStore) -> None:
    """A batch's number says nothing over restarts."""
    for epoch in (3, 30, 13):
        Outbox(store, epoch).open()
    Outbox(store, 30).put(outcome())
    Outbox(store, 30).expect(1)
    assert Outbox(store, 3).numbers() == Outbox(store, 13).numbers() == set()
    assert Outbox(store, 3).take(batch()) is None
    assert not Outbox(store, 3).has_begun(1)
    Outbox(store, 3).clear()
    assert not any(name.startswith("outbox/e3-") for name in store.list(FOLDER))
    assert Outbox(store, 30).numbers() == {7}


def test_all_of_it_says_whose_it_is(outbox: Outbox, store: LocalStore) -> None:
    outbox.expect(0)
    outbox.begin(0)
    outbox.put(outcome())
    assert len(store.list(FOLDER)) == 4
    assert {epoch_of(name) for name in store.list(FOLDER)} == {3}
    assert epoch_of("outbox/other") == epoch_of("outbox/e-1") == epoch_of("outbox/e³-1") == 0
    outbox.clear()
    assert store.list(FOLDER) == {}


def test_what_is_no_outcome_has_no_number(outbox: Outbox, store: LocalStore) -> None:
    for name in ("e3-²", "e3-7x", "e3-", "e3--7", ".e3-8.tmp"):
        (store.root / FOLDER / name).write_text("")
    assert outbox.numbers() == set()
