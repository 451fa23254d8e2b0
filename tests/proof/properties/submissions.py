"""The machine of `CheckpointMachine`, whose runs also hand batches to a service.

What the service has is whatever was durable when a run died: submissions are to be as the last
record says, through deaths, takeovers, folding, merging and snapshots; no item that is out is
planned by any run, and each is completed once, by the commit that settles its submission.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.engine.withservice import batches_of, left_behind
from resumable_tasks.errors import Fenced
from resumable_tasks.items import fingerprints, keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.submission import Transition
from resumable_tasks.runners.outcome import Rest
from tests.proof.properties import raw
from tests.proof.properties.machine import (
    IN_COMMIT,
    ITEMS,
    Attempt,
    CheckpointMachine,
    Died,
    Driver,
    at,
    die,
)

IN_RECORD = ("journal.before_create", "store.linked", "store.created", "journal.created")
which = st.integers(0, 9)


class Collected(Attempt):
    """A commit of what a service has done, which settles its submission."""

    def __init__(self, driver: Driver, token: str, batch: Batch, undone: int, values: Any) -> None:
        lines = list(keys.split(batch.lines))
        # Each but the first is left undone by its bit.
        left = [at for at in range(len(lines)) if undone >> at & 1]
        kept = [at for at in range(len(lines)) if at not in left]
        self.token = token
        self.rest = Rest(batch, tuple(lines[at] for at in left)) if left else None
        items = [{"id": key, "version": None} for key in batch.keys]
        known = batch.submission is None
        part = replace(batch, items=batch.items if known else items).choose(
            kept, batch.number, None
        )
        self._known = known
        super().__init__(driver, [part], 0, values)

    def check_version(self, row: dict[str, Any], taken: int | None) -> None:
        if self._known:
            super().check_version(row, taken)

    def settles(self) -> tuple[str, ...]:
        return (self.token,)


class SubmissionMachine(CheckpointMachine):
    """``out`` is what the model says is out, ``mine`` are the batches of the run at work."""

    def __init__(self) -> None:
        super().__init__()
        self.out: dict[str, raw.Out] = {}
        self.tokens = count()
        self.mine: dict[int, dict[str, Batch]] = {}
        self.again: dict[int, list[Batch]] = {}
        self.perhaps: list[Callable[[raw.Raw], None]] = []

    damage_and_repair = None  # loses intents, which `tests/submitted/test_guards.py` is about

    def _enter(self, driver: Driver) -> None:
        super()._enter(driver)
        planned = driver.checkpoint
        assert [each.token for each in planned.submissions] == [*planned.state.out.each]
        self.mine[id(driver)] = {
            each.token: left_behind(planned.planner, each) for each in planned.submissions
        }
        self.again[id(driver)] = []

    # Transitions

    def _next_batch(self, driver: Driver) -> Batch | None:
        again = self.again[id(driver)]
        return again.pop() if again else next(islice(driver.batches, 1), None)

    def _intend(self, driver: Driver, batch: Batch) -> tuple[Transition, Callable[[], None]]:
        token = f"token-{next(self.tokens)}"
        taken = [fingerprints.to_text(each) for each in batch.fingerprints]
        model = raw.Out(list(batch.keys), [text.decode() for text in taken])
        busy = {key for each in self.out.values() for key in each.keys}
        if driver is self.current:
            assert not busy & set(batch.keys), "an item that is out is planned"
        info = {"expected_cost": 1.0}
        made = Transition("submitting", token, info, batch.lines, b"\n".join(taken))

        def landed() -> None:
            self.out[token] = model
            self.mine[id(driver)][token] = batch

        return made, landed

    def _follow(self, kind: Any, token: str) -> tuple[Transition, Callable[[], None]]:
        def landed() -> None:
            if kind == "withdrawn":
                self.out.pop(token, None)
            elif kind == "prepared":
                self.out[token].prepared = {"file": token}
            else:
                self.out[token].handle = {"id": token}

        info = {"prepared": {"file": token}, "handle": {"id": token}, "by": "sent", "why": "no"}
        named = {"prepared": ("prepared",), "submitted": ("handle", "by"), "withdrawn": ("why",)}
        return Transition(kind, token, {name: info[name] for name in named[kind]}), landed

    def _next_step(self, driver: Driver, n: int, kind: str) -> Any:
        """A transition of this run, and what the model takes in once it is durable."""
        mine = self.mine[id(driver)]
        if kind == "submitting" or not mine:
            batch = self._next_batch(driver)
            return self._intend(driver, batch) if batch is not None else None
        token = [*mine][n % len(mine)]
        return self._follow(kind, token)

    def _record(self, driver: Driver, step: Any) -> None:
        made, landed = step
        driver.checkpoint.record(made)
        landed()
        if made.kind == "withdrawn":
            batch = self.mine[id(driver)].pop(made.token)
            self._plan_again(driver, Rest(batch, tuple(keys.split(batch.lines))))

    def _plan_again(self, driver: Driver, rest: Rest) -> None:
        self.again[id(driver)] += batches_of(rest, driver.planner)

    all_steps = st.sampled_from(["submitting", "prepared", "submitted", "withdrawn"])

    @precondition(lambda self: self.current)
    @rule(n=which, kinds=st.lists(all_steps, min_size=1, max_size=4))
    def transitions(self, n: int, kinds: list[str]) -> None:
        assert self.current is not None
        for kind in kinds:
            if step := self._next_step(self.current, n, kind):
                self._record(self.current, step)

    @precondition(lambda self: self.current)
    @rule(n=which, kind=all_steps, point=st.sampled_from(IN_RECORD))
    def die_in_a_transition(self, n: int, kind: str, point: str) -> None:
        driver = self.current
        assert driver is not None
        if (step := self._next_step(driver, n, kind)) is None:
            return
        made, landed = step

        def look(found: raw.Raw) -> None:
            if any(
                head["kind"] == made.kind and head["info"]["token"] == made.token
                for head in found.heads
                if "token" in head.get("info", {})
            ):
                landed()

        try:
            with at(point, 1, die):
                self._record(driver, step)
        except Died:
            self.perhaps.append(look)
            driver.die()
            self.current = None

    @precondition(lambda self: self.zombies)
    @rule(n=which, which=which, kind=all_steps)
    def a_zombie_records(self, n: int, which: int, kind: str) -> None:
        zombie = self.zombies[which % len(self.zombies)]
        if (step := self._next_step(zombie, n, kind)) is None:
            return
        before = raw.records(self.store.root)
        with pytest.raises(Fenced):
            zombie.checkpoint.record(step[0])
        self._bury(zombie)
        assert raw.records(self.store.root) == before

    # Collecting

    def _collected(self, driver: Driver, n: int, undone: int) -> Collected | None:
        mine = self.mine[id(driver)]
        if not mine:
            return None
        token = [*mine][n % len(mine)]
        return Collected(driver, token, mine[token], undone, self.values)

    def _collect(self, driver: Driver, n: int, undone: int) -> None:
        attempt = self._collected(driver, n, undone)
        if attempt is None:
            return
        self._settle(attempt)
        batch = self.mine[id(driver)].pop(attempt.token)
        if batch.submission is not None:
            driver.planner.out.answered(keys.join(map(keys.canonical, attempt.rows)))
        if attempt.rest is not None:
            self._plan_again(driver, attempt.rest)

    @precondition(lambda self: self.current)
    @rule(n=which, undone=st.integers(0, 31))
    def collect(self, n: int, undone: int) -> None:
        assert self.current is not None
        self._collect(self.current, n, undone)

    @precondition(lambda self: self.current)
    @rule()
    def come_to_the_end(self) -> None:
        """All that this run has is handled, and then nothing is left."""
        driver = self.current
        assert driver is not None
        while self.mine[id(driver)]:
            self._collect(driver, 0, 0)
        while (batch := self._next_batch(driver)) is not None:
            self._settle(Attempt(driver, [batch], 0, self.values))
        left = {f"k{n}" for n in range(ITEMS)} - self.done.keys() - self.failed
        assert not left, left

    @precondition(lambda self: self.current)
    @rule(n=which, undone=st.integers(0, 31), point=st.sampled_from(IN_COMMIT))
    def die_in_collecting(self, n: int, undone: int, point: str) -> None:
        driver = self.current
        assert driver is not None
        attempt = self._collected(driver, n, undone)
        if attempt is None:
            return

        def look(found: raw.Raw) -> None:
            if attempt.token not in found.out:
                self.out.pop(attempt.token, None)

        try:
            with at(point, 1, die):
                attempt.carry_out()
        except Died:
            if attempt.rows:
                self.maybe.append(attempt)
            self.perhaps.append(look)
            driver.die()
            self.current = None
        else:
            self._acknowledge(attempt)
            del self.mine[id(driver)][attempt.token]

    def _acknowledge(self, attempt: Attempt) -> None:
        super()._acknowledge(attempt)
        for token in attempt.settles():
            del self.out[token]

    # What always holds

    def _read(self) -> raw.Raw:
        found = super()._read()
        for look in self.perhaps:
            look(found)
        self.perhaps = []
        return found

    @invariant()
    def what_is_out_is_what_the_files_and_the_library_say(self) -> None:
        if not (self.store.root / "job.json").exists():
            return
        if not (self.store.root / "journal").exists():
            return
        found = self._read()
        assert found.out == self.out
        out = read_checkpoint(self.store)[1].out
        assert not out.strays
        assert {
            each.token: raw.Out(
                keys.parse_lines(each.lines),
                each.fingerprints.decode().split("\n") if each.fingerprints else [],
                each.prepared,
                each.handle,
            )
            for each in out
        } == self.out
