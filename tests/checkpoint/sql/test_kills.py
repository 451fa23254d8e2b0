"""Drivers are killed, stopped and overtaken: each row once, the column on the completed alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.sql import oracle
from tests.checkpoint.sql.child import Child, Spec, until
from tests.checkpoint.sql.conftest import Db

Start = Callable[[Spec], Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[Child] = []

    def begin(spec: Spec) -> Child:
        children.append(Child(spec, tmp_path / f"child-{len(children)}.log"))
        return children[-1]

    yield begin
    for child in children:
        if child.running():
            child.kill()


@pytest.fixture
def scene(db: Db, tmp_path: Path) -> Callable[..., Spec]:
    """A table that is prepared and watched."""

    def make(items: int, **named: Any) -> Spec:
        spec = Spec(db.url, str(tmp_path / "handled"), shards=str(tmp_path / "shards"), **named)
        db.make(items)
        db.prepare(spec.checkpoint)
        oracle.watch(db)
        return spec

    return make


def at_work(db: Db, driver: Child) -> bool:
    """Whether the driver's run has begun, and not ended."""
    runs = f"FROM lessons_processed_at_runs WHERE pid = {driver.pid} AND ended IS NULL"
    return bool(db.one(f"SELECT count(*) {runs}"))


def done(db: Db) -> int:
    count: int = db.one("SELECT count(*) FROM lessons WHERE processed_at IS NOT NULL")
    return count


@pytest.mark.sample
@pytest.mark.parametrize("fault", ["sql.written:1", "sql.written:3", "sql.committed:2"])
@pytest.mark.parametrize("place", ["columns", "results"])
def test_killed_at_a_point_and_resumed(
    db: Db, scene: Callable[..., Spec], start: Start, place: str, fault: str
) -> None:
    spec = scene(600, place=place)
    # More batches, and slower ones, than one commit that is slow itself could take.
    killed = start(replace(spec, faults=fault, seconds=0.02))
    assert killed.wait() == -signal.SIGKILL, killed.says()
    before = oracle.consistent(db, spec)
    assert before < 600
    again = start(spec)
    assert again.wait() == 0, again.says()
    oracle.complete(db, spec, 600)
    assert f"completed {600 - before} skipped {before} total 600" in again.says()
    # Nothing that was committed is redone.
    assert len(spec.calls()) <= 600 + (600 - before)


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("nth", [1, 2])
def test_killed_between_the_shards_commit_and_the_column(
    db: Db, scene: Callable[..., Spec], start: Start, nth: int
) -> None:
    """The column is fixed from the journal, and the handler is not called for those rows."""
    spec = scene(600, place="shards")
    killed = start(replace(spec, faults=f"sql.behind:{nth}", seconds=0.05))
    assert killed.wait() == -signal.SIGKILL, killed.says()
    in_shards = len(list(completed_in(spec)))
    assert done(db) < in_shards < 600
    again = start(spec)
    assert again.wait() == 0, again.says()
    assert f"skipped {in_shards} total 600" in again.says()
    assert done(db) == 600
    oracle.consistent(db, spec)
    assert sorted(completed_in(spec)) == list(range(1, 601))


def completed_in(spec: Spec) -> Iterator[int]:
    """The keys in the journal's commits, read as the lines that they are."""
    for path in sorted(Path(spec.shards, "journal").glob("*.jsonl")):
        each = [json.loads(line) for line in path.read_text().splitlines()]
        yield from (line["key"] for line in each if "key" in line)


@pytest.fixture
def two(db: Db) -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite is for one driver at a time")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "items", [2_500, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_two_drivers_are_each_killed_twice(
    db: Db, scene: Callable[..., Spec], start: Start, items: int, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.write_text("0")
    spec = scene(items, place="results", batch_size=items // 250, seconds=0.02, gate=str(gate))
    drivers = [start(spec), start(spec)]
    kills = 0
    for share in (0.15, 0.35, 0.55, 0.75):
        victim = kills % 2
        until("its run has begun", lambda victim=victim: at_work(db, drivers[victim]))
        # Killed amid its work, and however late that is, with work left.
        gate.write_text(str(int((share + 0.2) * items)))
        until(f"{share:.0%} are done", lambda share=share: done(db) >= share * items, 300)
        assert drivers[victim].running(), drivers[victim].says()
        drivers[victim].kill()
        oracle.consistent(db, spec)
        drivers[victim] = start(spec)
        kills += 1
    gate.write_text(str(items))
    assert [driver.wait(600) for driver in drivers] == [0, 0], drivers[0].says()
    assert kills == 4
    oracle.complete(db, spec, items)
    ended = db.rows("SELECT ended, count(*) FROM lessons_processed_at_runs GROUP BY ended")
    assert dict(ended) == {"lost": 4, "done": 2}
    # At most what each of the four had out, a few batches, was handled once more.
    assert len(spec.calls()) <= items + 4 * 32 * spec.batch_size


@pytest.mark.sample
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("fault", ["sql.claimed:1", "sql.written:2"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_a_killed_driver_had_claimed_is_handled_by_the_one_at_work(
    db: Db, scene: Callable[..., Spec], start: Start, fault: str, elsewhere: bool
) -> None:
    """At once if its process can be seen to be gone, else when it has been silent too long."""
    spec = scene(400, seconds=0.1, claim_seconds=2.0 if elsewhere else 600.0)
    if elsewhere:
        db.do(
            "CREATE FUNCTION hide() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN NEW.machine := 'another'; RETURN NEW; END$$",
            "CREATE TRIGGER hide BEFORE INSERT ON lessons_processed_at_runs "
            "FOR EACH ROW EXECUTE FUNCTION hide()",
        )
    killed = start(replace(spec, faults=f"{fault}:stop"))
    until("it has stopped", killed.stopped)
    other = start(spec)
    until("another is at work", lambda: at_work(db, other))
    killed.kill()
    assert other.wait() == 0, other.says()
    oracle.complete(db, spec, 400)
    ended = {how for (how,) in db.rows("SELECT ended FROM lessons_processed_at_runs")}
    assert ended == ({None, "done"} if elsewhere else {"lost", "done"})


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "where",
    [
        pytest.param("while a row is handled", marks=pytest.mark.long),
        pytest.param("sql.claimed", marks=pytest.mark.long),
        "sql.written",
    ],
)
def test_a_driver_that_wakes_up_commits_nothing_that_was_taken(
    db: Db, scene: Callable[..., Spec], start: Start, where: str
) -> None:
    """Wherever it was stopped, its claims run out; and its locks, which the server takes back."""
    spec = scene(200, place="results", claim_seconds=1.0, seconds=0.3)
    if where.startswith("while"):
        sleeper = start(replace(spec, seconds=3.0))
        until("rows are handled", spec.calls)
        sleeper.send(signal.SIGSTOP)
    else:
        sleeper = start(replace(spec, faults=f"{where}:2:stop"))
        until("it has stopped", sleeper.stopped)
    other = start(spec)
    try:
        assert other.wait() == 0, other.says()
        assert oracle.consistent(db, spec) == 200
    finally:
        sleeper.send(signal.SIGCONT)
    # In the middle of a transaction, too: that one is lost, and what is left of it written again.
    assert sleeper.wait() == 0, sleeper.says()
    assert " rows, without writing anything" in sleeper.says()
    oracle.complete(db, spec, 200)


@pytest.mark.sample(only="postgresql")
def test_sigterm_gives_back_what_was_claimed(
    db: Db, scene: Callable[..., Spec], start: Start
) -> None:
    spec = scene(2_000, seconds=0.5, claim_seconds=600.0)
    stopped = start(spec)
    until("some are done", lambda: done(db) > 0)
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 75, stopped.says()
    assert 0 < oracle.consistent(db, spec) < 2_000
    assert db.one("SELECT count(*) FROM lessons_processed_at_claims") == 0
    assert db.rows("SELECT ended FROM lessons_processed_at_runs") == [("interrupted",)]
    again = start(replace(spec, seconds=0.0))
    assert again.wait() == 0, again.says()  # long before the claims would have run out
    oracle.complete(db, spec, 2_000)


def test_on_sqlite_a_second_driver_is_refused_and_a_dead_one_taken_over(
    db: Db, scene: Callable[..., Spec], start: Start
) -> None:
    if db.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL takes several")
    spec = scene(2_000, seconds=0.5, claim_seconds=600.0)
    first = start(spec)
    until("some are done", lambda: done(db) > 0)
    second = start(spec)
    assert second.wait() == 3
    assert f"pid {first.pid}" in second.says()
    first.kill()
    third = start(replace(spec, seconds=0.0))
    assert third.wait() == 0, third.says()
    oracle.complete(db, spec, 2_000)
