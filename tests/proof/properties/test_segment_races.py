"""Folding beside runs, tools and readers: whatever the order of their calls, the journal holds.

Each seed is an order of its own (`turns`). What `Journal` and `folding` promise is checked at each
step; ``FAULTS`` shows that what breaks a rule is found.
"""

from __future__ import annotations

import inspect
import logging
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from greenlet import getcurrent  # type: ignore[import-untyped]

from resumable_tasks.checkpoint.directory import folding, journal, records, segments
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.errors import CommitStateUnknown, Fenced, StoreError
from tests.proof.properties.turns import Turns, World

ANCHOR = "an id"
LONG = (pytest.mark.long, pytest.mark.timeout(600))
HOME = "resumable_tasks.checkpoint.directory"


class Code:
    """The modules of the journal, with small limits, and perhaps with a fault in their source."""

    def __init__(self, *changes: tuple[str, str]) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        left = dict(changes)
        for module in (segments, journal, folding):
            text, name = inspect.getsource(module), module.__name__.rpartition(".")[2]
            for old, new in changes:
                if old in text:
                    assert text.count(old) == 1, f"{old!r} is there more than once"
                    text = text.replace(old, new)
                    del left[old]
            for other in self.modules:
                text = text.replace(f"from {HOME}.{other} import", f"from small_{other} import")
                text = text.replace(
                    f"from {HOME} import {other}", f"import small_{other} as {other}"
                )
            made = self.modules[name] = types.ModuleType(f"small_{name}")
            sys.modules[made.__name__] = made
            exec(compile(text, made.__name__, "exec"), made.__dict__)
        assert not left, f"seed these faults again: {list(left)}"
        self._shrink(8)
        self.Journal = self.modules["journal"].Journal
        self.RecordTaken = self.modules["journal"].RecordTaken
        self.folding, self.segments = self.modules["folding"], self.modules["segments"]

    def _shrink(self, most: int) -> None:
        for name in ("segments", "folding"):
            vars(self.modules[name])["MOST_RECORDS"] = most
        vars(self.modules["segments"])["_IN_A_MEMBER"] = 2
        vars(self.modules["journal"])["LOOKED_AT_FROM"] = 12
        small = {"FEWEST": 2, "FEWEST_AT_FIRST": 2, "_NEWEST": 1, "GRACE_SECONDS": 0}
        vars(self.modules["folding"]).update(small)


class Actors:
    """What the actors of one world do."""

    def __init__(self, code: Code, world: World) -> None:
        self.code = code
        self.world = world
        self.store = Turns(world)
        self.random = world.random
        self._runs = 0
        self.refused: list[tuple[str | None, str]] = []

    def _allowed(self) -> tuple[type[Exception], ...]:
        return (self.code.RecordTaken, Fenced, StoreError)

    def _run_id(self) -> str:
        self._runs += 1
        return f"run {self._runs}"

    def _read(self, log: Any) -> Iterator[Commit]:
        """The records as `Journal.read_new` has them; none is missing that was there before."""
        count, before = len(self.world.truth), set(self.world.files)
        yield from self._checked(log.read_new())
        if log.next_number < count == len(self.world.truth):
            self.world.wrong.append(f"{log.next_number} of {count} records were read")
        throughout = segments.Listing.of(before.intersection(self.world.files)).numbers
        if throughout and throughout[-1] >= log.next_number:
            self.world.wrong.append(f"{log.next_number} records were read, not {throughout[-1]}")

    def _checked(self, commits: Iterator[Commit]) -> Iterator[Commit]:
        for commit in commits:
            self._check(commit, "read")
            yield commit

    def _check(self, commit: Commit, how: str) -> None:
        there = self.world.truth[commit.number : commit.number + 1]
        if there != [commit.nonce]:
            self.world.wrong.append(f"record {commit.number} was {how}, and is {there}")

    def _opened(self, *, listed_first: bool = False) -> tuple[Any, int]:
        log, epoch = self.code.Journal(self.store, ANCHOR), 0
        if listed_first:
            log.read_first(self.code.segments.listed(self.store))
            self.world.turn()
            commits = self._checked(log.read_new())
        else:
            commits = self._read(log)
        for commit in commits:
            epoch = max(epoch, commit.epoch)
        return log, epoch

    def _append(self, log: Any, commit: Commit, *, again: bool = False) -> None:
        if commit.kind == "merge":
            commit = replace(commit, info={"merged": [], "retracted_shards": []})
        try:
            appended = log.append(commit, again=again)
        except CommitStateUnknown:
            raise
        except self._allowed() as error:
            nonce = self.world.last_nonce.get(getcurrent())
            if nonce in self.world.truth:
                self.world.wrong.append(f"a record stands whose author was told {error!r}")
            self.refused.append((nonce, repr(error)))
            raise
        self._check(appended, "appended")

    def _claimed(self, run: str) -> tuple[Any, int]:
        log, epoch = self._opened(listed_first=self.random.random() < 0.5)
        for _ in range(5):
            epoch += 1
            try:
                self._append(log, Commit("claim", epoch, run))
                break
            except self.code.RecordTaken:
                for commit in self._read(log):
                    epoch = max(epoch, commit.epoch)
        else:
            raise StoreError("other runs keep starting")
        return log, epoch

    def drive(self, most: int = 14) -> None:
        """Open, claim, commit, fold meanwhile and at the end, whether overtaken or not."""
        run = self._run_id()
        try:
            log, epoch = self._claimed(run)
        except self._allowed():
            return
        work = self.code.folding.Folding(self.store, log)
        try:
            for _ in range(self.random.randint(1, most)):
                kind: Any = self.random.choice(["commit", "commit", "merge"])
                try:
                    self._append(log, Commit(kind, epoch, run), again=kind == "merge")
                except CommitStateUnknown:
                    raise
                except StoreError:
                    if kind != "merge":
                        raise
                work.step(lambda: False)
            self._append(log, Commit("close", epoch, run))
        except self._allowed():
            if self.random.random() < 0.5:
                return
        work.end()

    def use_tool(self) -> None:
        """Append one record after all others."""
        kinds: list[Any] = ["release", "redo", "archive", "repair"]
        run, kind = self._run_id(), self.random.choice(kinds)
        try:
            log, epoch = self._opened()
            if kind == "repair" and log.next_number:
                last = self._last()
                log, epoch = self.code.Journal.after(self.store, last), last.epoch
            for _ in range(3):
                try:
                    self._append(log, Commit(kind, epoch + 1, run))
                    return
                except self.code.RecordTaken:
                    for commit in self._read(log):
                        epoch = max(epoch, commit.epoch)
        except self._allowed():
            return

    def _last(self) -> Commit:
        *_, last = self._read(self.code.Journal(self.store, ANCHOR))
        return last

    def compact(self) -> None:
        """Append merges, and fold."""
        run = self._run_id()
        try:
            log, epoch = self._opened()
            for _ in range(self.random.randint(0, 3)):
                self._append(log, Commit("merge", epoch + 1, run))
            self.code.folding.fold_all(self.store, log.next_number - 1, 2)
        except self._allowed():
            return

    def fold(self) -> None:
        try:
            for _ in range(2):
                log, _ = self._opened()
                self.code.folding.fold_all(self.store, log.next_number - 1)
        except StoreError:
            return

    def clean(self) -> None:
        for _ in range(2):
            self.store.delete_all(self.code.folding.leftovers(self.store))

    def follow(self) -> None:
        """Read on and on, and old records again."""
        log, _ = self._opened()
        for _ in range(6):
            if self.random.random() < 0.5:
                list(self._read(log))
            else:
                list(self._checked(log.follow()))
            if log.next_number:
                wanted = sorted(self.random.sample(range(log.next_number), min(3, log.next_number)))
                found = list(self._checked(self.code.segments.read_some(self.store, wanted)))
                if [commit.number for commit in found] != wanted:
                    self.world.wrong.append(f"{wanted} were asked for, {found} given")
            self.world.turn()

    def carry(self) -> None:
        """Be the network, in which requests come late."""
        for _ in range(40):
            self.world.turn()
            self.world.land_late()


# How many drive, use a tool, compact, fold, clean and follow, at most.
CROWDS = [(3, 4, 1, 2, 1, 2), (1, 5, 0, 5, 0, 0), (3, 0, 0, 2, 0, 4)]


def found_wrong(code: Code, seed: int) -> list[str]:
    """What is wrong in the world of this seed."""
    world = World(seed)
    actors = Actors(code, world)
    actors.drive(10)  # alone
    most = world.random.choice(CROWDS)
    every = (
        actors.drive,
        actors.use_tool,
        actors.compact,
        actors.fold,
        actors.clean,
        actors.follow,
    )
    crowd = []
    for actor, count in zip(every, most, strict=True):
        crowd += [actor] * world.random.randint(min(count, 1), count)
    world.run([*crowd, actors.carry])
    if not world.wrong:
        there = [commit.nonce for commit in code.Journal(actors.store, ANCHOR).read_new()]
        if there != world.truth:
            world.wrong.append("a new reader reads another journal")
        world.wrong += [f"{why}, but it stands" for nonce, why in actors.refused if nonce in there]
    return world.wrong


_CHECK = """        if self._may_be_folded:
            self._check_counts(commit)
"""
_LISTED = """    for _ in range(2):
        if not found or"""
_CREATE = """    with contextlib.suppress(CreateUnknown):"""
_RETRIED = """            except FileNotFoundError:
                listed = segments.listed("""
FAULTS = {
    "whether a record counts is not looked at": [(_CHECK, "")],
    "every author counts as that of the record before": [
        (_CHECK, _CHECK.replace("self._may_be_folded", "False")),
    ],
    "files that refuse others are deleted, too": [
        ("if of_it or (next_run and is_looked_at(commit.number)):", "if True:"),
    ],
    "the file of a claim goes where its run has taken over": [
        ('(before.kind, commit.kind) == ("close", "claim")', 'commit.kind == "claim"'),
    ],
    "the file of a claim goes where nobody looks": [
        ("(next_run and is_looked_at(commit.number))", "next_run"),
    ],
    "whoever claims after an end does not look": [
        (" or is_looked_at(self.next_number)\n", "\n"),
    ],
    "files are deleted before there is a segment": [
        (_CREATE, "    store.delete_all(free)\n" + _CREATE),
    ],
    "a file counts, not the segment": [
        ("default_factory=list)\n", "default_factory=list)\n    files_of: Any = ()\n"),
        ("return cls(sorted(numbers), sorted(segments))",
         "return cls(sorted(numbers), sorted(segments), set(map(record_number, names)))"),
        ("return Listing([n for n in self.numbers if first <= n <= last], self.segments)",
         "return Listing([n for n in self.numbers if first <= n <= last], self.segments, "
         "self.files_of)"),
        ("        at = bisect_right(",
         "        if number in self.files_of: return None\n        at = bisect_right("),
    ],
    "there is no second listing": [(_LISTED, _LISTED.replace("range(2)", "range(0)"))],
    "what goes while it is read is not looked for in a segment": [
        (_RETRIED, _RETRIED.replace("FileNotFoundError", "ZeroDivisionError")),
    ],
    "what goes while some are read is not looked for in a segment": [
        ("            if missed == at:", "            if True:"),
    ],
    "a reader believes each file that continues the record before it": [
        ("        return self._may_be_folded and self._author != (commit.run, commit.epoch)\n",
         "        return False\n"),
    ],
}  # fmt: skip
# Found by one of two thousand seeds.
RARE = "a reader believes each file that continues the record before it"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "seeds",
    [
        range(50),
        *(pytest.param(range(n, n + 2_000), marks=LONG) for n in range(50, 12_050, 2_000)),
    ],
)
def test_whatever_the_order_the_journal_holds(seeds: range) -> None:
    code = Code()
    for seed in seeds:
        assert found_wrong(code, seed) == [], f"seed {seed}"


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=LONG if fault == RARE else ()) for fault in FAULTS]
)
def test_what_breaks_a_rule_is_found(fault: str) -> None:
    code = Code(*FAULTS[fault])
    assert any(found_wrong(code, seed) for seed in range(6_000 if fault == RARE else 400))


def _of_one_run(count: int) -> tuple[Turns, list[Commit]]:
    """A store with the records of a run, and these."""
    store = Turns(World(0))
    log = journal.Journal(store, ANCHOR)
    made = [log.append(Commit("claim", 1, "one"))]
    return store, made + [log.append(Commit("commit", 1, "one")) for _ in range(count - 1)]


def _void(after: Commit) -> bytes:
    """What a tool that slept behind this record puts after it."""
    commit = Commit("release", 2, "a tool", after.number + 1, previous=after.checksum, nonce="void")
    return records.encode(commit)[0]


def test_what_another_has_folded_meanwhile_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code()
    store, made = _of_one_run(8)
    read_all = store.read_all

    def meanwhile(names: Any) -> Iterator[bytes]:
        monkeypatch.setattr(store, "read_all", read_all)
        code.folding.fold_all(store, 7)
        assert store.create(records.record_name(4), _void(made[3]))
        return read_all(names)

    monkeypatch.setattr(store, "read_all", meanwhile)
    assert code.folding.fold(store, range(3, 5)) == []
    assert list(code.Journal(store, ANCHOR).read_new()) == made


def test_the_file_of_a_record_that_is_folded_at_once_still_refuses_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, store = Code(), Turns(World(0))
    sleeper, tool = code.Journal(store, ANCHOR), code.Journal(store, ANCHOR)
    sleeper.append(Commit("claim", 1, "one"))
    assert len(list(tool.read_new())) == 1
    listing = store.list

    def meanwhile(folder: str) -> dict[str, int]:
        monkeypatch.setattr(store, "list", listing)
        other = code.Journal(store, ANCHOR)
        assert len(list(other.read_new())) == 2
        for kind in ("claim", "commit", "commit", "commit"):
            other.append(Commit(kind, 3, "other"))
        assert code.folding.fold_all(store, 5)
        return listing(folder)

    monkeypatch.setattr(store, "list", meanwhile)
    tool.append(Commit("release", 2, "tool"))
    assert records.record_name(1) in store.list(records.FOLDER)
    with pytest.raises(Fenced):
        sleeper.append(Commit("commit", 1, "one"))


def test_a_record_that_goes_while_it_is_read_lets_no_later_one_in() -> None:
    code = Code()
    store, made = _of_one_run(8)
    log = code.Journal(store, ANCHOR)
    log.read_first(code.segments.listed(store).since(0, 5))
    code.folding.fold_all(store, 8 - 1)
    assert list(log.read_new()) == made[:6]


def test_three_listings_find_what_two_have_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Turns(World(0))
    name = records.record_name
    there = [
        {name(0), name(1), name(3)},  # 2 comes during this one
        {name(0), name(3), name(4), name(6)},  # 1 and 2 go into a segment during this one
        {segments.Segment(1, 2, 0).name, name(0), name(3), name(4), name(7)},
    ]
    listings = iter(there)
    monkeypatch.setattr(store, "list", lambda folder: dict.fromkeys(next(listings), 1))
    assert segments.listed(store).numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("last", [5, 6])
def test_a_reader_who_listed_long_ago_believes_no_void_file(
    last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = Code()
    store, made = _of_one_run(8)
    stale = code.segments.listed(store)
    log, follower = code.Journal(store, ANCHOR), code.Journal(store, ANCHOR)
    follower.read_first(stale.since(0, 4))
    assert len(list(follower.read_new())) == 5
    log.read_first(stale.since(0, last))
    assert code.folding.fold(store, range(5, 7))
    store.delete(records.record_name(5))
    assert store.create(records.record_name(5), _void(made[4]))
    assert list(log.read_new()) == made[: last + 1]
    assert list(follower.follow()) == []
    listed, once = code.segments.listed, iter([stale])
    monkeypatch.setattr(code.segments, "listed", lambda *given: next(once, None) or listed(*given))
    assert list(code.segments.read_some(store, [5])) == [made[5]]


def test_after_a_lost_answer_nobody_is_told_that_nothing_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Turns(World(0))
    errors = iter([CreateUnknown("no answer"), StoreError("refused")])

    def create(name: str, data: bytes) -> bool:
        raise next(errors)

    monkeypatch.setattr(store, "create", create)
    with pytest.raises(CommitStateUnknown):
        journal.Journal(store, ANCHOR).append(Commit("claim", 1, "one"))
