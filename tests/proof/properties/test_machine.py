"""The state machine holds on the library as it is, and finds every fault that is put into it."""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from hashlib import blake2b

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from resumable_tasks.checkpoint.directory import repair, shards
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.homes import Homes
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.merging import Merging
from resumable_tasks.checkpoint.directory.moving import Repairs
from resumable_tasks.checkpoint.directory.replace import KeyIndex, Superseded, Superseder
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.errors import Fenced, ResumableTasksError
from resumable_tasks.items.walk import Walk
from resumable_tasks.runners.outcome import Shard
from tests.proof.properties.machine import CheckpointMachine

FOUND = (AssertionError, pytest.fail.Exception, ResumableTasksError, FileNotFoundError)
# Not shrunk, so that a failure is told within seconds; the long form shrinks.
QUICK = [Phase.explicit, Phase.reuse, Phase.generate]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False}


def test_nothing_is_lost_and_nothing_comes_twice() -> None:
    run_state_machine_as_test(
        CheckpointMachine,
        settings=settings(max_examples=10, stateful_step_count=20, phases=QUICK, **QUIET),
    )


@pytest.mark.long
def test_nothing_is_lost_and_nothing_comes_twice_at_length() -> None:
    examples = int(os.environ.get("RESUMABLE_TASKS_EXAMPLES", "5000"))
    run_state_machine_as_test(
        CheckpointMachine, settings=settings(max_examples=examples, stateful_step_count=50, **QUIET)
    )


# A function, and a few of its words that are exchanged for others.
WORDS = {
    "the sweep asks for no epoch": (
        DirectoryCheckpoint._sweep, "if 0 < shards.epoch_of(path) < epoch and", "if"),
    "the sweep takes committed shards": (
        DirectoryCheckpoint._sweep, "and path not in self.state.shards", ""),
    "the sweep comes before the claim": (
        DirectoryCheckpoint.open,
        "checkpoint._claim(",
        "checkpoint.state.epoch += 1; checkpoint._sweep(there); checkpoint.state.epoch -= 1; "
        "checkpoint._claim("),
    "a claim enters no new epoch": (
        DirectoryCheckpoint._claim, "epoch=self.state.epoch + 1", "epoch=self.state.epoch or 1"),
    "a second run is let in": (
        Holder.lock, "self._try_lock(steal=steal)", "self._try_lock(steal=True)"),
    "a journal record is overwritten": (
        Journal._create,
        "self._store.create(name, data)",
        "self._store.put(name, data) is None"),
    "any record in the place is taken for one's own": (
        Journal._create, "if other.nonce == commit.nonce:", "if True:"),
    "the chain is not looked at": (
        Journal._follow, "if commit.previous not in", "if None in"),
    "keys stand in another order than their shards": (
        DirectoryCheckpoint._commit,
        "for o in (*remote, *local) if",
        "for o in (*local, *remote) if"),
    "open does not look for the shards": (
        DirectoryCheckpoint._read_all,
        "shards.check_sizes(self.store, self.state.shards.values(), there)",
        "pass"),
    "open does not mind cut shards": (
        shards.check_sizes, "there.get(shard.path) != shard.bytes", "shard.path not in there"),
    "done keys are planned again": (
        Walk.match, "if not len(self._done):", "if len(self._done):"),
    "failures are never forgotten": (
        State._forget, "self.failures.pop(line, None)", "pass"),
    "retracted keys stay done": (
        State.apply, "self.done.remove(key)", "pass"),
    "retracted shards still count": (
        State._take_shards, "self.shards.pop(path, None)", "None"),
    "verify reads no checksums": (
        repair._examine, "shards.checked_each(store, each)", "each"),
    "a repair retracts the wrong keys": (
        supersede.shard_of_each, "fromkeys(section.lines,", "fromkeys(section.lines[1:],"),
    "old rows are copied with those that stay": (
        Superseder._rows_that_stay, "line in stays for", "True for"),
    "what shares a shard with a changed item is not copied": (
        Superseder._take_back, "if not stay:", "if True:"),
    "the last record that has a key is not the one that counts": (
        KeyIndex._sections, "numbers.pop()", "numbers.pop(0)"),
    "keys and their fingerprints differ in order": (
        Superseded.added_to,
        "[*self.fingerprints, *fingerprints,",
        "[*fingerprints, *self.fingerprints,"),
    "what is retracted stays done until the end of its record": (
        repair._examine_keys, "done.remove(key)", "None"),
    "what is adopted has no fingerprint": (
        State._adopt, "self.done.add(key, fingerprint)", "self.done.add(key, -1)"),
    "a repair breaks the chain": (
        Repairs._substitute, "if after else {}", "if None else {}"),
    "what was merged still counts": (
        State._merge, "left.remove(path)", "left.remove(path), after.append(each)"),
    "a merged shard counts, and what it is of is not known": (
        Homes.follow, "self._into.update(", "dict().update("),
    "rows that a lost record had completed stay in what was merged": (
        supersede.with_strangers, "if not state.gap:", "if True:"),
    "of the keys that share a merged shard some are forgotten": (
        KeyIndex.shared, "self.homes.sections(self._store, home)",
        "self.homes.sections(self._store, home)[-1:]"),
    "parts are deleted before their merge is recorded": (
        Merging.step, "shard = self._written(parts, stop)",
        "shard = self._written(parts, stop); "
        "self._store.delete_all([part.path for part in parts])"),
    "a repair does not see that keys come twice": (
        repair._examine_keys, "if twice:", "if None:"),
}  # fmt: skip


def exchange(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., object], old: str, new: str
) -> None:
    """Put a function in the place of this one that differs by these words."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} is not in {function.__qualname__}: seed it again"
    module = sys.modules[function.__module__]
    scope: dict[str, object] = {}
    code = f"from __future__ import annotations\n{source.replace(old, new)}"
    exec(compile(code, "a seeded fault", "exec"), module.__dict__, scope)
    owner, _, name = function.__qualname__.rpartition(".")
    monkeypatch.setattr(getattr(module, owner) if owner else module, name, scope[name])


def fenced_runs_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def stubborn(self, commit, **how):
        try:
            return append(self, commit, **how)
        except Fenced:
            list(self.read_new())
            self._usable = True
            return append(self, commit, **how)

    monkeypatch.setattr(Journal, "append", stubborn)


def commits_come_before_their_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    append, waiting = Journal.append, []

    def write(store, epoch, table, keys):
        data, path = shards.encode(table), shards.new_path(epoch)
        waiting.append((store, path, data))
        checksum = blake2b(data, digest_size=16).hexdigest()
        return Shard(path, table.num_rows, len(data), checksum, keys)

    def early(self, commit, **how):
        commit = append(self, commit, **how)
        for store, path, data in waiting:
            if store is self._store:
                store.put(path, data)
        return commit

    monkeypatch.setattr(shards, "write", write)
    monkeypatch.setattr(Journal, "append", early)


def claims_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(self, *_):
        self.state.epoch += 1
        self._begin(self.state.last)

    monkeypatch.setattr(DirectoryCheckpoint, "_claim", claim)


DEEDS = [fenced_runs_try_again, commits_come_before_their_shards, claims_are_not_written]
FAULTS = {
    **{fault: lambda m, words=words: exchange(m, *words) for fault, words in WORDS.items()},
    **{deed.__name__.replace("_", " "): deed for deed in DEEDS},
}


# Found within a few examples, half a second each. The others take up to a minute, and are for
# `make test-long`.
AT_ONCE = {
    "the sweep takes committed shards",
    "a journal record is overwritten",
}


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=() if f in AT_ONCE else pytest.mark.long) for f in FAULTS]
)
def test_the_machine_finds(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises(FOUND):
        run_state_machine_as_test(
            CheckpointMachine,
            settings=settings(
                max_examples=500,
                stateful_step_count=20,
                phases=[Phase.generate],
                database=None,
                derandomize=True,
                report_multiple_bugs=False,
                **QUIET,
            ),
        )
