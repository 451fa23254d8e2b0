"""The contract of the journal on a store, as a pytest class to inherit from.

::

    class TestJournalOnMyStore(JournalSuite):
        def make_store(self, tmp_path): return MyStore(tmp_path / "place")
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory.journal import Journal, RecordTaken
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import FOLDER, decode, encode, record_name
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, CommitStateUnknown, Fenced, StoreError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key
from resumable_tasks.runners.outcome import Failure, Shard
from resumable_tasks.testing.troubled_store import TroubledStore

if TYPE_CHECKING:
    pass

ANCHOR = "the id of the manifest"
NASTY_KEYS: tuple[Key, ...] = (
    "plain",
    'a "quoted" \\ key',
    "two\nlines\r\nand\ttabs",
    '"}\n{"key":"forged"',
    '{"end":3,"keys":1}',
    "\u2028\u2029\x85\x1c\x00\x7f",
    "Ünïcödé 漢字 🦜",
    "x" * 10_000,
    " ",
    "1",
    1,
    -(2**63),
    2**64 - 1,
    ("a", 1),
    ("a", "1"),
    ('nested\n"]', 0),
)
NASTY_TEXT = 'first\nsecond "quoted" \\ {"key":1}\n{"end":0}\u2028🦜\x00'


def _lines(*many: Key) -> tuple[bytes, int]:
    return keys.join(map(keys.canonical, many)), len(many)


def _commit(*many: Key, epoch: int = 1, run: str = "run-1") -> Commit:
    lines, count = _lines(*many)
    return Commit(kind="commit", epoch=epoch, run=run, keys=lines, key_count=count)


def _claim(epoch: int, run: str = "run-1") -> Commit:
    info = {"host": "h", "pid": 1, "version": "1"}
    return Commit(kind="claim", epoch=epoch, run=run, info=info)


def _shard(name: str, count: int = 1) -> Shard:
    return Shard(f"shards/{name}.parquet", count, 1234, "0f" * 16, count)


def _failure(key: Key, batch: str = "b1") -> Failure:
    return Failure(key, "ValueError", NASTY_TEXT, 3, batch, "2026-01-01T00:00:00.000+00:00", "")


EVERY_KIND: dict[str, Commit] = {
    "claim": _claim(1),
    "keys": _commit(*NASTY_KEYS),
    "keys in shards": replace(
        _commit("s1", "s2"),
        shards=(_shard("e1-0a"), _shard("e12-ff-2")),
        schema="/////3gAAAA=",
    ),
    "failures": replace(
        _commit(),
        failures=tuple(_failure(key) for key in NASTY_KEYS),
    ),
    "keys and failures": replace(
        _commit("k1", "k2"), failures=(replace(_failure("f"), traceback=NASTY_TEXT),)
    ),
    "fingerprints": replace(
        _commit("p1", "p2"),
        fingerprints=b"0123456789abcdef\n",  # of the first key only
        adopted=_lines("s1", NASTY_KEYS[3])[0],
        adopted_fingerprints=b"0123456789abcdef\nfedcba9876543210",
    ),
    "repair": Commit(
        kind="repair",
        epoch=1,
        run="run-2",
        retracted=_lines("s1", "s2", NASTY_KEYS[3])[0],
        info={"retracted_shards": ["shards/e1-0a.parquet"]},
    ),
    "everything": Commit(
        kind="repair",
        epoch=1,
        run="run-3",
        keys=_lines("x", 1)[0],
        key_count=2,
        failures=(_failure("y"), _failure(2)),
        retracted=_lines("k1", "k2")[0],
        shards=(_shard("e1-1"),),
        info={"note": NASTY_TEXT},
    ),
    "lost": Commit(kind="lost", epoch=1, run="run-4"),
    "close": Commit(kind="close", epoch=1, run="run-1", info={"how": "done", "total": 3}),
}

SMALL: dict[str, Commit] = {
    "claim": Commit(kind="claim", epoch=1, run="r"),
    "one key": _commit("a"),
    "two keys": _commit("a", 2),
    "one failure": replace(_commit(), failures=(Failure("a", "E", "m"),)),
    "a key and two failures": replace(
        _commit("a"), failures=(Failure("b", "E", "m"), Failure("c", "E", "m"))
    ),
    "a key and a retraction": replace(_commit("a"), retracted=b'"b"'),
    "a key and its fingerprint": replace(_commit("a"), fingerprints=b"0123456789abcdef"),
    "two retractions": replace(_commit(), retracted=b'"b"\n"c"'),
    "all": replace(
        _commit("a"),
        failures=(Failure("b", "E", "m", traceback="t", batch="x"),),
        retracted=b'"c"',
        shards=(Shard("shards/e1-0.parquet", 1, 2, "ab", 1),),
        schema="AA==",
    ),
}


_LANDED, _NOT_LANDED = ("ours", "hidden"), ("unknown", "false")
SCRIPTS = [
    (*before, last)
    for length in range(3)
    for before in itertools.product(_NOT_LANDED, repeat=length)
    for last in (*_LANDED, *_NOT_LANDED)
]
"""The scripts of a `TroubledStore` for the tries of one append."""


class JournalSuite:
    """The contract of `resumable_tasks.checkpoint.directory.journal.Journal`, on any store."""

    appends_under_readers = 60
    racing_drivers = 4

    def make_store(self, tmp_path: Path) -> Store:
        """A new store at a place below ``tmp_path`` that does not exist yet."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = self.make_store(tmp_path)
        disk.prepare(store, (FOLDER, "shards"))
        return store

    # Reading what was appended

    def test_every_kind_of_record_is_read_as_it_was_appended(self, store: Store) -> None:
        journal = Journal(store, ANCHOR)
        appended = [journal.append(commit) for commit in EVERY_KIND.values()]
        assert read_all(store) == appended
        for number, (wanted, found) in enumerate(zip(EVERY_KIND.values(), appended, strict=True)):
            assert found.number == number
            given = replace(
                found, number=-1, time="", nonce="", previous="", checksum="", info=wanted.info
            )
            assert given == wanted
            assert dict(found.info) == dict(wanted.info)
        assert len({commit.nonce for commit in appended}) == len(appended)
        assert len({commit.checksum for commit in appended}) == len(appended)
        assert [commit.previous for commit in appended] == [
            ANCHOR,
            *(commit.checksum for commit in appended[:-1]),
        ]

    def test_nasty_keys_are_read_as_they_were(self, store: Store) -> None:
        journal = Journal(store, ANCHOR)
        journal.append(_commit(*NASTY_KEYS))
        journal.append(replace(_commit(), failures=tuple(_failure(key) for key in NASTY_KEYS)))
        first, second = read_all(store)
        assert keys.parse_lines(first.keys) == list(NASTY_KEYS)
        assert [type(key) for key in keys.parse_lines(first.keys)] == list(map(type, NASTY_KEYS))
        assert [failure.key for failure in second.failures] == list(NASTY_KEYS)
        assert {failure.message for failure in second.failures} == {NASTY_TEXT}

    def test_each_failure_keeps_its_own_traceback(self, store: Store) -> None:
        failures = (
            replace(_failure("a"), traceback="the traceback of a"),
            replace(_failure("b"), traceback="the traceback of b"),
            replace(_failure("c"), traceback=""),
            replace(_failure("d", batch="b2"), traceback="the traceback of d"),
        )
        Journal(store, ANCHOR).append(replace(_commit(), failures=failures))
        assert read_all(store)[0].failures == failures

    def test_a_record_stands_under_its_number_and_is_lines_of_json(self, store: Store) -> None:
        journal = Journal(store, ANCHOR)
        for commit in EVERY_KIND.values():
            journal.append(commit)
        assert sorted(store.list(FOLDER)) == [record_name(n) for n in range(len(EVERY_KIND))]
        for name in store.list(FOLDER):
            for line in store.read(name).removesuffix(b"\n").split(b"\n"):
                assert isinstance(json.loads(line), dict)

    def test_reading_goes_on_where_it_ended(self, store: Store) -> None:
        writer, reader = Journal(store, ANCHOR), Journal(store, ANCHOR)
        assert list(reader.read_new()) == []
        first = [writer.append(_claim(1)), writer.append(_commit("a"))]
        assert list(reader.read_new()) == first
        assert list(reader.read_new()) == []
        second = [writer.append(_commit("b")), writer.append(_commit("c"))]
        assert list(reader.read_new()) == second
        assert reader.next_number == 4

    def test_names_that_are_no_records_are_passed_over(self, store: Store) -> None:
        appended = [Journal(store, ANCHOR).append(_claim(1))]
        for name in ("notes.txt", "7.jsonl", f"{0:020d}.jsonl.bak", f"{1:021d}.jsonl"):
            store.put(f"{FOLDER}/{name}", b"not a record")
        assert read_all(store) == appended

    def test_an_empty_journal_is_no_damage(self, store: Store) -> None:
        assert read_all(store) == []

    # Damage

    @pytest.mark.parametrize("kind", SMALL)
    def test_no_byte_of_a_record_changes_unnoticed(self, kind: str) -> None:
        name = record_name(7)
        commit = replace(SMALL[kind], number=7, previous="p", nonce="n", time="t")
        data, _ = encode(commit)
        original = decode(data, name)
        unnoticed = []
        for what, damaged in one_byte_damages(data):
            try:
                if decode(damaged, name) != original:
                    unnoticed.append(what)
            except CheckpointDamaged:
                pass
        assert not unnoticed, data.decode()

    @pytest.mark.parametrize("kind", SMALL)
    def test_no_cut_of_a_record_goes_unnoticed(self, kind: str) -> None:
        name = record_name(0)
        data, _ = encode(replace(SMALL[kind], number=0))
        for length in range(len(data)):
            with pytest.raises(CheckpointDamaged):
                decode(data[:length], name)
        for length in range(1, len(data)):
            with pytest.raises(CheckpointDamaged):
                decode(data[length:], name)

    @pytest.mark.parametrize("kind", SMALL)
    def test_no_line_of_a_record_goes_or_comes_unnoticed(self, kind: str) -> None:
        name = record_name(0)
        data, _ = encode(replace(SMALL[kind], number=0))
        lines = data.splitlines(keepends=True)
        for at in range(len(lines)):
            for changed in (
                lines[:at] + lines[at + 1 :],
                lines[: at + 1] + lines[at:],
                [*lines[:at], b'{"key":"forged"}\n', *lines[at:]],
                [*lines[:at], b"\n", *lines[at:]],
            ):
                with pytest.raises(CheckpointDamaged):
                    decode(b"".join(changed), name)
        for one, other in itertools.combinations(range(len(lines)), 2):
            swapped = list(lines)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            if swapped != lines:
                with pytest.raises(CheckpointDamaged):
                    decode(b"".join(swapped), name)

    def _ten(self, store: Store) -> list[bytes]:
        journal = Journal(store, ANCHOR)
        journal.append(_claim(1))
        for number in range(1, 10):
            journal.append(_commit(f"key-{number}"))
        return [store.read(record_name(number)) for number in range(10)]

    @pytest.mark.parametrize("number", range(9))
    def test_a_missing_record_is_found(self, store: Store, number: int) -> None:
        self._ten(store)
        store.delete(record_name(number))
        assert _damaged_file(store) == record_name(number)

    @pytest.mark.parametrize("number", range(9))
    def test_two_swapped_records_are_found(self, store: Store, number: int) -> None:
        before = self._ten(store)
        store.put(record_name(number), before[number + 1])
        store.put(record_name(number + 1), before[number])
        assert _damaged_file(store) == record_name(number)

    @pytest.mark.parametrize("number", range(10))
    def test_a_record_under_another_ones_name_is_found(self, store: Store, number: int) -> None:
        before = self._ten(store)
        store.put(record_name(number), before[number - 1])
        assert _damaged_file(store) == record_name(number)

    @pytest.mark.parametrize("number", range(10))
    def test_a_cut_record_is_found_the_last_one_too(self, store: Store, number: int) -> None:
        before = self._ten(store)
        for data in (b"", before[number][:1], before[number][:-1], before[number][:-20]):
            store.put(record_name(number), data)
            assert _damaged_file(store) == record_name(number)

    @pytest.mark.parametrize("number", range(9))
    def test_a_record_that_was_edited_and_sealed_again_is_found(
        self, store: Store, number: int
    ) -> None:
        before = self._ten(store)
        name = record_name(number)
        edited, _ = encode(replace(decode(before[number], name), run="another"))
        store.put(name, edited)
        assert _damaged_file(store) == record_name(number + 1)

    def test_a_record_of_another_checkpoint_is_found(self, store: Store) -> None:
        self._ten(store)
        with pytest.raises(CheckpointDamaged) as caught:
            list(Journal(store, "another id").read_new())
        assert caught.value.files == (record_name(0),)

    def test_a_record_far_ahead_of_the_others_is_found_at_once(self, store: Store) -> None:
        self._ten(store)
        store.put(record_name(10**18), store.read(record_name(9)))
        assert _damaged_file(store) == record_name(10)

    def test_an_epoch_never_goes_back(self, store: Store) -> None:
        journal = Journal(store, ANCHOR)
        last = journal.append(_claim(2))
        lower = replace(_commit("a", epoch=1), number=1, previous=last.checksum)
        store.put(record_name(1), encode(lower)[0])
        assert _damaged_file(store) == record_name(1)

    @pytest.mark.parametrize("data", [b"\xff\xfe", b"[]\n", b"null\n", b"{}\n", b"[" * 100_000])
    def test_what_is_no_record_at_all_is_found(self, store: Store, data: bytes) -> None:
        self._ten(store)
        for damaged in (data, data + b"\n", b"{}\n" + data):
            store.put(record_name(4), damaged)
            assert _damaged_file(store) == record_name(4)

    @pytest.mark.parametrize(
        "path",
        [
            "../outside.parquet",
            "shards/../job.json",
            "shards/../../outside.parquet",
            "/etc/passwd",
            "/shards/e1-0.parquet",
            "shards/e1-0.parquet/../../../outside",
            "shards/sub/e1-0.parquet",
            "shards/e1-0.parquet\n",
            "shards/e1-0.parquet\0",
            "shards/e-0.parquet",
            "shards/e1-.parquet",
            "shards/e1-A.parquet",
            "journal/00000000000000000000.jsonl",
            "s3://bucket/shards/e1-0.parquet",
            "file:///shards/e1-0.parquet",
            "",
        ],
    )
    def test_a_path_outside_the_shards_is_refused(self, store: Store, path: str) -> None:
        bad = replace(_commit("a"), number=0, previous=ANCHOR)
        store.put(record_name(0), encode(replace(bad, shards=(Shard(path, 1, 1, "", 1),)))[0])
        assert _damaged_file(store) == record_name(0)

    # Several at once

    def test_a_reader_during_appends_never_sees_damage(self, store: Store) -> None:
        ended = threading.Event()
        errors: SimpleQueue[BaseException] = SimpleQueue()
        counts: SimpleQueue[int] = SimpleQueue()

        def look() -> None:
            following = Journal(store, ANCHOR)
            seen = 0
            try:
                while not ended.is_set():
                    from_the_start = len(read_all(store))
                    assert from_the_start >= seen
                    seen += len(list(following.read_new()))
                    assert seen == following.next_number
                counts.put(seen + len(list(following.read_new())))
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.put(error)

        readers = [threading.Thread(target=look) for _ in range(2)]
        for reader in readers:
            reader.start()
        journal = Journal(store, ANCHOR)
        for number in range(self.appends_under_readers):
            journal.append(_commit(f"key-{number}"))
        ended.set()
        for reader in readers:
            reader.join()
        if not errors.empty():
            raise errors.get()
        assert {counts.get(), counts.get()} == {self.appends_under_readers}

    def test_a_driver_that_was_overtaken_is_fenced(self, store: Store) -> None:
        old, new = Journal(store, ANCHOR), Journal(store, ANCHOR)
        first = [old.append(_claim(1)), old.append(_commit("a"))]
        assert list(new.read_new()) == first
        claim = new.append(_claim(2, "run-2"))
        with pytest.raises(Fenced) as caught:
            old.append(_commit("b"))
        assert caught.value.holder["run"] == "run-2"
        assert caught.value.holder["host"] == "h"
        later = new.append(_commit("b", epoch=2, run="run-2"))
        with pytest.raises(StoreError):
            old.append(_commit("c"))
        assert read_all(store) == [*first, claim, later]

    @pytest.mark.parametrize("kind", ["close", "repair", "commit"])
    def test_whatever_an_overtaken_driver_appends_is_fenced(self, store: Store, kind: str) -> None:
        old, new = Journal(store, ANCHOR), Journal(store, ANCHOR)
        old.append(_claim(1))
        list(new.read_new())
        new.append(_claim(2, "run-2"))
        before = read_all(store)
        with pytest.raises(Fenced):
            old.append(replace(_commit("b"), kind=kind))  # type: ignore[arg-type]
        assert read_all(store) == before

    def test_a_claim_whose_place_is_taken_reads_on_and_tries_again(self, store: Store) -> None:
        old, new = Journal(store, ANCHOR), Journal(store, ANCHOR)
        first = old.append(_claim(1))
        list(new.read_new())
        second = old.append(_commit("a"))
        with pytest.raises(RecordTaken) as caught:
            new.append(_claim(2, "run-2"))
        assert caught.value.other == second
        assert list(new.read_new()) == [second]
        third = new.append(_claim(2, "run-2"))
        assert read_all(store) == [first, second, third]
        with pytest.raises(Fenced):
            old.append(_commit("b"))

    def test_of_two_claims_one_is_first_and_the_other_comes_after(self, store: Store) -> None:
        one, other = Journal(store, ANCHOR), Journal(store, ANCHOR)
        first = one.append(_claim(1, "run-1"))
        with pytest.raises(RecordTaken):
            other.append(_claim(1, "run-2"))
        assert list(other.read_new()) == [first]
        other.append(_claim(2, "run-2"))
        with pytest.raises(Fenced):
            one.append(_commit("a"))

    def test_racing_drivers_complete_each_key_once_and_lose_no_commit(self, store: Store) -> None:
        """I1 to I4, with real threads: each driver claims, commits, is fenced, claims again."""
        wanted = [f"key-{number}" for number in range(40)]
        acknowledged: SimpleQueue[Commit] = SimpleQueue()
        errors: SimpleQueue[BaseException] = SimpleQueue()
        barrier = threading.Barrier(self.racing_drivers)

        def drive(run: str) -> None:
            try:
                barrier.wait(60)
                while _drive(store, run, wanted, acknowledged):
                    pass
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.put(error)

        drivers = [
            threading.Thread(target=drive, args=(f"run-{n}",)) for n in range(self.racing_drivers)
        ]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        if not errors.empty():
            raise errors.get()
        records = read_all(store)
        done = [key for record in records for key in keys.split(record.keys)]
        assert sorted(done) == sorted(keys.canonical(key) for key in wanted)
        epochs = [record.epoch for record in records]
        assert epochs == sorted(epochs)
        runs_of = {record.epoch: record.run for record in records if record.kind == "claim"}
        assert len(runs_of) == sum(record.kind == "claim" for record in records)
        assert all(runs_of[record.epoch] == record.run for record in records)
        told = [acknowledged.get() for _ in range(acknowledged.qsize())]
        assert sorted(told, key=lambda record: record.number) == records

    # Unknown outcomes of the store

    @pytest.mark.parametrize("script", SCRIPTS, ids=" ".join)
    @pytest.mark.parametrize("kind", ["commit", "claim"])
    def test_an_unknown_outcome_is_settled_or_said_and_never_doubled(
        self, store: Store, script: tuple[str, ...], kind: str
    ) -> None:
        troubled = TroubledStore(store, list(script))
        journal = Journal(troubled, ANCHOR)
        first = journal.append(_claim(1))
        troubled.armed = True
        wanted = _claim(2) if kind == "claim" else _commit("a", "b")
        if len(script) == 3 and script[-1] in _NOT_LANDED:
            with pytest.raises(CommitStateUnknown):
                journal.append(wanted)
            assert read_all(store) == [first]
            with pytest.raises(StoreError):
                journal.append(wanted)
            assert read_all(store) == [first]
        else:
            second = journal.append(wanted)
            assert read_all(store) == [first, second]
            assert len(set(troubled.tried)) == 1, "another try wrote other bytes"
            third = journal.append(_commit("c", epoch=wanted.epoch))
            assert read_all(store) == [first, second, third]

    @pytest.mark.parametrize("script", [["rival"], ["unknown", "rival"], ["false", "rival"]])
    def test_an_unknown_outcome_behind_which_another_run_has_won_is_fenced(
        self, store: Store, script: list[str]
    ) -> None:
        troubled = TroubledStore(store, list(script))
        journal, rival = Journal(troubled, ANCHOR), Journal(store, ANCHOR)
        journal.append(_claim(1))
        troubled.armed = True
        list(rival.read_new())
        troubled.rival = lambda: rival.append(_claim(2, "run-2"))
        with pytest.raises(Fenced):
            journal.append(_commit("a"))
        assert [record.epoch for record in read_all(store)] == [1, 2]

    @pytest.mark.parametrize("landed", [True, False])
    def test_what_can_be_read_but_not_be_trusted_is_said_at_once(
        self, store: Store, landed: bool
    ) -> None:
        troubled = TroubledStore(store, ["not durable" if landed else "not durable, not there"])
        journal = Journal(troubled, ANCHOR)
        first = journal.append(_claim(1))
        troubled.armed = True
        with pytest.raises(CommitStateUnknown):
            journal.append(_commit("a"))
        assert len(troubled.tried) == 1, "it tried again after a failed flush"
        assert len(read_all(store)) == 1 + landed
        assert read_all(store)[0] == first
        with pytest.raises(StoreError):
            journal.append(_commit("b"))
        assert len(read_all(store)) == 1 + landed

    @pytest.mark.parametrize("broken", ["sync", "read"])
    @pytest.mark.parametrize("how", ["ours", "hidden", "unknown", "false"])
    def test_a_store_that_fails_while_an_outcome_is_settled_leaves_it_unknown(
        self, store: Store, how: str, broken: str
    ) -> None:
        troubled = TroubledStore(store, [how])
        journal = Journal(troubled, ANCHOR)
        journal.append(_claim(1))
        troubled.armed = True
        troubled.broken = broken
        with pytest.raises(CommitStateUnknown):
            journal.append(_commit("a"))

    def test_an_error_before_anything_was_written_is_no_unknown_outcome(self, store: Store) -> None:
        troubled = TroubledStore(store, ["error"])
        journal = Journal(troubled, ANCHOR)
        first = journal.append(_claim(1))
        troubled.armed = True
        with pytest.raises(StoreError) as caught:
            journal.append(_commit("a"))
        assert not isinstance(caught.value, CommitStateUnknown)
        assert len(troubled.tried) == 1
        assert read_all(store) == [first]
        with pytest.raises(StoreError):
            journal.append(_commit("a"))
        assert read_all(store) == [first]

    @pytest.mark.parametrize("point", ["journal.before_create", "journal.created"])
    def test_a_journal_that_was_interrupted_appends_no_more(self, store: Store, point: str) -> None:
        journal = Journal(store, ANCHOR)
        journal.append(_claim(1))

        def interrupt(name: str) -> None:
            if name == point:
                raise KeyboardInterrupt

        faults.arm(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                journal.append(_commit("a"))
        finally:
            faults.arm(None)
        before = read_all(store)
        assert len(before) == (2 if point == "journal.created" else 1)
        for commit in (_commit("a"), _claim(2)):
            with pytest.raises(StoreError):
                journal.append(commit)
        assert read_all(store) == before


def read_all(store: Store) -> list[Commit]:
    """All records, read by a new reader."""
    return list(Journal(store, ANCHOR).read_new())


def one_byte_damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a record with each byte removed, each byte doubled, and each bit flipped."""
    for at in range(len(data)):
        here = f"byte {at} ({data[at : at + 1]!r})"
        yield f"{here} taken away", data[:at] + data[at + 1 :]
        yield f"{here} doubled", data[: at + 1] + data[at:]
        for bit in range(8):
            flipped = bytes([data[at] ^ 1 << bit])
            yield f"{here} as {flipped!r}", data[:at] + flipped + data[at + 1 :]


def _damaged_file(store: Store) -> str:
    with pytest.raises(CheckpointDamaged) as caught:
        read_all(store)
    (name,) = caught.value.files
    assert name in str(caught.value)
    return name


def _drive(store: Store, run: str, wanted: list[str], acknowledged: SimpleQueue[Commit]) -> bool:
    """Drive one run. Returns whether it was fenced."""
    journal, state = Journal(store, ANCHOR), State()
    while True:
        state.apply_all(journal.read_new())
        try:
            claim = journal.append(_claim(state.epoch + 1, run))
        except RecordTaken:
            continue
        break
    acknowledged.put(claim)
    missing = [key for key in wanted if keys.canonical(key) not in state.done]
    for at in range(0, len(missing), 3):
        try:
            acknowledged.put(
                journal.append(_commit(*missing[at : at + 3], epoch=claim.epoch, run=run))
            )
        except Fenced:
            return True
    return False
