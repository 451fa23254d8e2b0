"""Small records are folded into segments: each is found at every moment, and nobody is let by."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import CheckpointDamaged, StoreError, redo
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory import folding, merging, segments, snapshots
from resumable_tasks.checkpoint.directory import journal as of_journal
from resumable_tasks.checkpoint.directory.compacting import compact
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.journal import Journal, RecordTaken
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import FOLDER, record_name
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.directory.segments import Listing, Segment, packed, segment_of
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import main
from resumable_tasks.errors import CommitStateUnknown, Fenced
from tests.checkpoint.directory.made import commit, filled, never, opened, rows_in
from tests.checkpoint.store.plain import Plain
from tests.conftest import Bucket


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of 60 records has two whole segments and a rest."""
    for module in (folding, segments):
        monkeypatch.setattr(module, "MOST_RECORDS", 24)
    monkeypatch.setattr(folding, "FEWEST_AT_FIRST", 16)
    monkeypatch.setattr(folding, "FEWEST", 8)
    monkeypatch.setattr(folding, "_NEWEST", 4)
    monkeypatch.setattr(segments, "_IN_A_MEMBER", 4)
    monkeypatch.setattr(merging, "FEWEST", 1_000)
    yield
    faults.arm(None)


def names(place: Any) -> tuple[list[Segment], list[int]]:
    """The segments of a checkpoint, and the records that have their own files."""
    there = open_store(place).list(FOLDER)
    found = [segment for name in there if (segment := segment_of(name))]
    return sorted(found), sorted(number for number in range(1_000) if record_name(number) in there)


def interrupted(place: Any, count: int) -> DirectoryCheckpoint:
    """A run that has folded while it was at work, and did not come to its end."""
    checkpoint = opened(place)
    for n in range(count):
        commit(checkpoint, [n])
        checkpoint.tidy(never)
    return checkpoint


# What is folded


def test_the_files_of_a_run_become_few(place: Path) -> None:
    filled(place, 60, tidy=True)
    found, single = names(place)
    assert [(each.first, each.last, each.kept) for each in found] == [
        *((0, 23, 1), (24, 47, 0), (48, 60, 0)),
    ]
    assert single == [0, 61], "the claim refuses whoever sleeps there, the close is the last"
    assert rows_in(place) == [(n, "a") for n in range(60)]
    again = opened(place)
    assert len(again.state.done) == 60
    assert commit(again, [60]) == 63
    again.end("done", {})
    again.close()
    assert rows_in(place) == [(n, "a") for n in range(61)]


def test_a_small_journal_stays_as_it_is(place: Path) -> None:
    filled(place, 14)
    assert names(place) == ([], list(range(16)))


def test_what_is_folded_at_work_is_deleted_after_a_grace(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(place, 60).close()
    found, single = names(place)
    assert len(found) == 2
    assert single == list(range(61)), "somebody may have listed them"
    monkeypatch.setattr(folding, "GRACE_SECONDS", 0.0)
    shutil.rmtree(place)
    interrupted(place, 60).close()
    assert names(place)[1] == [0, *range(48, 61)]


def test_what_a_crash_has_left_goes_at_the_end_of_the_next_run(place: Path) -> None:
    interrupted(place, 60).close()
    again = opened(place)
    again.end("done", {})
    again.close()
    found, single = names(place)
    assert [each.last for each in found] == [23, 47, 61]
    assert single == [0, 61, 62], "both claims, and the close"


def test_a_run_that_is_interrupted_leaves_it_to_the_next(place: Path) -> None:
    checkpoint = interrupted(place, 60)
    checkpoint.end("interrupted", {})
    checkpoint.close()
    assert len(names(place)[1]) == 62


def test_records_of_many_keys_are_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_LARGE", 500)
    checkpoint = opened(place)
    for n in range(0, 600, 30):
        commit(checkpoint, range(n, n + 30))
    checkpoint.end("done", {})
    checkpoint.close()
    assert names(place)[0] == []


def test_in_a_short_journal_the_claims_keep_their_files(place: Path) -> None:
    for n in range(12):
        one_run(place, range(n * 3, n * 3 + 3))
    found, single = names(place)
    assert found
    whole = verify(open_store(place))
    assert (whole.records, whole.items) == (60, 36)
    assert {number for number in range(60) if number % 5 == 0} <= set(single)
    assert len(single) < 30


@pytest.mark.parametrize("commits", [0, 1])
def test_many_short_runs_have_few_files_and_few_requests(
    place: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """A job that runs each hour, whether or not there is something to do."""
    monkeypatch.setattr(of_journal, "LOOKED_AT_FROM", 16)
    monkeypatch.setattr(snapshots, "_RECORDS", 16)
    monkeypatch.setattr(snapshots, "_FEW_RECORDS", 8)
    store, asked, there = Plain(place), [], []
    monkeypatch.setattr("tests.checkpoint.directory.made.open_store", lambda place: store)
    for n in range(120):
        store.counted()
        one_run(place, range(n, n + commits))
        asked.append(store.counted().total())
        there.append(len(names(place)[1]))
    assert max(there) < 30
    assert max(asked[80:]) <= max(asked[20:60])
    assert verify(open_store(place)).items == 120 * commits


def test_the_claim_of_one_that_takes_over_keeps_its_file(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before it may be asleep, and does not look."""
    monkeypatch.setattr(of_journal, "LOOKED_AT_FROM", 1)
    for n in range(30):
        checkpoint = opened(place)
        commit(checkpoint, [n])
        if n != 20:
            checkpoint.end("done", {})
        checkpoint.close()
    assert names(place)[1][:2] == [0, 62]


def one_run(place: Any, ids: range) -> None:
    checkpoint = opened(place)
    for n in ids:
        commit(checkpoint, [n])
    checkpoint.end("done", {})
    checkpoint.close()


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("fault", ["segment.before_create", "segment.created", "segment.deleted"])
def test_an_error_at_any_point_ends_no_run(
    place: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(point: str) -> None:
        if point == fault:
            raise StoreError("the disk is full")

    faults.arm(failing)
    filled(place, 60, tidy=True)
    faults.arm(None)
    assert "this run no longer folds records, but continues" in caplog.text
    assert rows_in(place) == [(n, "a") for n in range(60)]
    for _ in range(10):
        again = opened(place)
        again.end("done", {})
        again.close()
    assert len(names(place)[1]) < 30, "two of each run that came since"
    assert len(rows_in(place)) == 60


def test_compact_folds_and_says_so(place: Path) -> None:
    interrupted(place, 12).close()
    assert names(place)[0] == []
    said = CliRunner().invoke(main, ["compact", str(place)])
    assert said.exit_code == 0
    assert "12 records of the journal went into segments" in said.output
    assert names(place)[1] == [0, 12]
    assert len(rows_in(place)) == 12
    assert compact(open_store(place)).folded == 0


@pytest.mark.long
def test_in_a_bucket(bucket: Bucket) -> None:
    filled(bucket.url, 60, tidy=True)
    assert [each.last for each in names(bucket.url)[0]] == [23, 47, 60]
    assert rows_in(bucket.url) == [(n, "a") for n in range(60)]
    again = opened(bucket.url)
    assert commit(again, [60]) == 63


# Whoever sleeps


def journal(store: Store) -> Journal:
    return Journal(store, "anchor")


def written(store: Store, count: int) -> Journal:
    """The journal of a run with so many commits."""
    log = journal(store)
    log.append(Commit("claim", 1, "first"))
    for n in range(count):
        log.append(Commit("commit", 1, "first", keys=b"%d" % n, key_count=1))
    return log


def read(store: Store) -> list[str]:
    return [each.nonce for each in journal(store).read_new()]


@pytest.fixture(params=["disk", "plain"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / FOLDER).mkdir()
    kind = LocalStore if request.param == "disk" else Plain
    return kind(tmp_path / "store")


def test_whoever_wakes_up_where_a_record_was_folded_claims_behind_it(store: Store) -> None:
    driver = written(store, 10)
    sleeper = journal(store)
    list(sleeper.read_new())
    for n in range(10, 30):
        driver.append(Commit("commit", 1, "first", keys=b"%d" % n, key_count=1))
    assert folding.fold_all(store, 30) == 24
    before = read(store)
    assert record_name(11) not in store.list(FOLDER)
    with pytest.raises(RecordTaken) as taken:
        sleeper.append(Commit("claim", 2, "second"))
    assert taken.value.other.run == "first"
    assert record_name(11) not in store.list(FOLDER)
    assert read(store) == before
    list(sleeper.read_new())
    claim = sleeper.append(Commit("claim", 2, "second"))
    assert claim.number == 31
    with pytest.raises(Fenced):
        driver.append(Commit("commit", 1, "first", keys=b"99", key_count=1))


def test_a_command_that_wakes_up_there_is_refused(store: Store) -> None:
    driver = written(store, 10)
    sleeper = journal(store)
    list(sleeper.read_new())
    for n in range(10, 30):
        driver.append(Commit("commit", 1, "first", keys=b"%d" % n, key_count=1))
    folding.fold_all(store, 30)
    with pytest.raises(Fenced, match="record 11 is from run first"):
        sleeper.append(Commit("release", 2, "second"))


def test_a_run_that_was_overtaken_is_refused_by_the_file_that_stays(store: Store) -> None:
    overtaken = written(store, 10)
    newer = journal(store)
    list(newer.read_new())
    newer.append(Commit("claim", 2, "second"))
    for n in range(10, 40):
        newer.append(Commit("commit", 2, "second", keys=b"%d" % n, key_count=1))
    folding.fold_all(store, 41)
    assert sorted(store.list(FOLDER)).count(record_name(11)) == 1
    with pytest.raises(Fenced, match="record 11 is from run second"):
        overtaken.append(Commit("commit", 1, "first", keys=b"99", key_count=1))


def test_what_cannot_be_found_out_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written(store, 10)
    opener = journal(store)
    list(opener.read_new())

    def fails(folder: str) -> Any:
        raise StoreError("no answer")

    monkeypatch.setattr(store, "list", fails)
    monkeypatch.setattr(store, "names", fails, raising=False)
    with pytest.raises(CommitStateUnknown, match="cannot tell whether record 11 counts"):
        opener.append(Commit("claim", 2, "second"))
    monkeypatch.undo()
    assert len(read(store)) == 12


def test_a_reader_that_had_listed_them_reads_on(store: Store) -> None:
    driver = written(store, 30)
    reader = journal(store)
    each = reader.read_new()
    before = [next(each).nonce for _ in range(3)]
    folding.fold_all(store, 30)
    assert before + [commit.nonce for commit in each] == read(store)
    late = journal(store)
    late.read_first(Listing(range(31)))  # as they were listed before
    assert len(list(late.read_new())) == 31
    assert [each.number for each in segments.read_some(store, [30, 3, 0])] == [30, 3, 0]
    assert driver.next_number == 31


def test_a_folding_whose_outcome_is_unknown_is_found_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, 30)
    before, create = read(store), store.create

    def lost(name: str, data: bytes) -> bool:
        create(name, data)
        raise CreateUnknown("no reply")

    monkeypatch.setattr(store, "create", lost)
    assert folding.fold_all(store, 30) == 24
    assert read(store) == before


def test_another_segment_of_that_name_deletes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, 30)
    before = store.list(FOLDER)
    group = folding.choose(before, 30)[0]

    def taken(name: str, data: bytes) -> bool:
        store.put(name, packed([b'{}\n{"end":0}\n'] * len(group)))
        return False

    monkeypatch.setattr(store, "create", taken)
    with pytest.raises(StoreError, match="holds different records"):
        folding.fold(store, group)
    assert store.list(FOLDER).keys() > before.keys()


def test_what_another_folds_meanwhile_is_left_to_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a file that has come since into the place of a folded one could go into a segment."""
    written(store, 30)
    before, read_all = read(store), folding._records
    others = [lambda: folding.fold_all(store, 28)]

    def late(*of: Any) -> Any:
        found = read_all(*of)
        if others:
            others.pop()()
        return found

    monkeypatch.setattr(folding, "_records", late)
    assert folding.fold(store, range(4, 26)) == []
    assert [each.first for each in map(segment_of, store.list(FOLDER)) if each] == [0]
    assert folding.fold(store, range(4, 26)) == []
    assert read(store) == before


def test_records_that_do_not_continue_each_other_are_not_folded(store: Store) -> None:
    written(store, 30)
    other = Journal(store, "another")
    data = store.read(record_name(7))
    store.put(record_name(7), data.replace(b'"previous":"', b'"previous":"0'))
    with pytest.raises(CheckpointDamaged):
        folding.fold_all(store, 30)
    assert other.next_number == 0
    assert len(store.list(FOLDER)) == 31


def test_watch_finds_what_was_folded_while_it_slept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "GRACE_SECONDS", 0.0)
    checkpoint = opened(place)
    commit(checkpoint, [0])
    reader = Reader(open_store(place))
    reader.follow()
    for n in range(1, 60):
        commit(checkpoint, [n])
        checkpoint.tidy(never)
    for _ in range(20):
        reader.follow()
    assert reader.damage is None
    assert len(reader.state.done) == 60
    checkpoint.close()


# Damage


def damaged(place: Path, how: str) -> str:
    """A checkpoint of 60 records whose second segment is damaged; its name."""
    filled(place, 60, tidy=True)
    segment = names(place)[0][1]
    path = place / segment.name
    data = path.read_bytes()
    if how == "flipped":
        path.write_bytes(data[:400] + bytes([data[400] ^ 255]) + data[401:])
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "more":
        path.write_bytes(data + data)
    elif how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        (path / "within").mkdir(parents=True)
    elif how == "another's":
        filled(place.parent / "other", 60, tidy=True)
        shutil.copyfile(place.parent / "other" / segment.name, path)
    return segment.name


HOW = ["flipped", "cut", "empty", "more", "missing", "a folder", "another's"]


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("how", HOW)
def test_damage_is_named_and_repaired(place: Path, how: str) -> None:
    name = damaged(place, how)
    with pytest.raises(CheckpointDamaged) as caught:
        read_checkpoint(open_store(place))
    if how != "missing":
        assert caught.value.files == (name,)
    with pytest.raises(CheckpointDamaged):
        opened(place)
    found = verify(open_store(place))
    assert found.damages
    repair(open_store(place))
    whole = verify(open_store(place))
    assert whole.damages == []
    # A member is of four records here.
    fewest = {"flipped": 56, "cut": 44, "more": 60}.get(how, 36)
    assert 36 <= fewest <= whole.items
    left = set(range(60)) - {n for n, _ in rows_in(place)}
    again = opened(place)
    for n in sorted(left):
        commit(again, [n])
    again.end("done", {})
    again.close()
    assert sorted(rows_in(place)) == [(n, "a") for n in range(60)]


def test_a_repair_that_is_killed_anywhere_is_repaired(place: Path, tmp_path: Path) -> None:
    damaged(place, "flipped")
    for at in itertools.count():
        shutil.copytree(place, killed := tmp_path / str(at))
        points = itertools.count()

        def die(point: str, points: Iterator[int] = points, at: int = at) -> None:
            if next(points) == at:
                raise KeyboardInterrupt

        faults.arm(die)
        try:
            repair(open_store(killed))
            break
        except KeyboardInterrupt:
            faults.arm(None)
        repair(open_store(killed))
        assert len(rows_in(killed)) >= 56
    faults.arm(None)
    assert at > 5


def test_a_damaged_segment_whose_records_have_their_files_costs_no_item(place: Path) -> None:
    filled(place, 5)
    (place / Segment(0, 3, 1).name).write_bytes(b"")
    assert [damage.items for damage in repair(open_store(place)).damages] == [0]
    assert len(rows_in(place)) == 5


def test_what_is_folded_while_it_is_examined_is_not_missing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(place)
    for n in range(60):
        commit(checkpoint, [n])
    checkpoint.close()
    read_each = disk.read_each

    def meanwhile(store: Store, files: Any) -> Any:
        monkeypatch.setattr(disk, "read_each", read_each)
        assert folding.fold_all(open_store(place), 60)
        return read_each(store, files)

    monkeypatch.setattr(disk, "read_each", meanwhile)
    assert verify(open_store(place)).damages == []


def test_an_overtaken_run_deletes_no_record_that_a_repair_has_kept(place: Path) -> None:
    overtaken = interrupted(place, 60)
    pending = [number for number in range(60) if number in names(place)[1]]
    overtaken.close()
    segment = names(place)[0][0]
    path = place / segment.name
    path.write_bytes(path.read_bytes()[:-200])
    assert set(segment.numbers) <= set(pending), "they wait for their grace"
    for number in segment.numbers[:20]:
        if number not in (0, 1):
            (place / record_name(number)).unlink()
    repair(open_store(place))
    whole = rows_in(place)
    for files in overtaken._small_files:
        if isinstance(files, folding.Folding):
            files._delete(float("inf"))
    assert rows_in(place) == whole


def test_what_is_folded_while_a_run_ends_is_not_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(place)
    for n in range(60):
        commit(checkpoint, [n])
    before = disk.names(checkpoint.store, FOLDER)
    monkeypatch.setattr(folding.Folding, "end", lambda self: None)
    assert folding.fold_all(open_store(place), 60)
    unseen = {record_name(number) for number in range(10, 20)}
    stale = iter([{name for name in before if name not in unseen}])
    real = disk.names
    monkeypatch.setattr(disk, "names", lambda *given: next(stale, None) or real(*given))
    checkpoint.end("done", {})
    checkpoint.close()
    assert len(rows_in(place)) == 60


def test_whoever_was_overtaken_appends_nothing_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = written(store, 3)
    other = journal(store)
    list(other.read_new())
    other.append(Commit("claim", 2, "other"))

    def refuse(name: str, data: bytes) -> bool:
        raise StoreError("not now")

    with monkeypatch.context() as context:
        context.setattr(store, "create", refuse)
        with pytest.raises(Fenced):
            mine.append(Commit("merge", 1, "run"), again=True)
    with pytest.raises(StoreError, match="an earlier write to this journal failed"):
        mine.append(Commit("commit", 1, "run"))


def test_a_name_that_says_too_much_is_no_segment(place: Path) -> None:
    filled(place, 5)
    name = f"{FOLDER}/{0:020d}-{10**19:020d}-0.jsonl.gz"
    (place / name).write_bytes(b"")
    assert len(rows_in(place)) == 5


# With the rest of the house


def test_snapshots_stand_on_records_in_segments(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_RECORDS", 10)
    monkeypatch.setattr(snapshots, "_FEW_RECORDS", 2)
    monkeypatch.setattr(folding, "GRACE_SECONDS", 0.0)
    interrupted(place, 40).close()
    again = opened(place)  # which writes a snapshot
    for n in range(40, 90):
        commit(again, [n])
        again.tidy(never)
    again.end("done", {})
    again.close()
    assert list((place / "snapshots").iterdir())
    assert len(names(place)[1]) < 10
    for path in (place / "snapshots").glob("*.keys.zst"):
        path.write_bytes(b"")
    assert rows_in(place) == [(n, "a") for n in range(90)]


def test_items_of_folded_records_are_done_again(place: Path) -> None:
    filled(place, 60, tidy=True)
    assert redo(place, keys=[3, 30]) == [3, 30]
    assert rows_in(place) == [(n, "a") for n in range(60) if n not in (3, 30)]


def test_changed_items_of_folded_records(place: Path) -> None:
    filled(place, 60, changes=True, tidy=True)
    again = opened(place, changes=True)
    commit(again, [5, 50], "b")
    again.end("done", {})
    again.close()
    assert sorted(rows_in(place)) == [(n, "b" if n in (5, 50) else "a") for n in range(60)]
