"""Makes completed items missing when a person asks for it; `repair.release` is for failed ones.

One record retracts the shards with their rows, and completes the other items of these shards again,
as for changed items (`replace`). So the other items have their rows at every moment.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from resumable_tasks.checkpoint.choice import Choice
from resumable_tasks.checkpoint.directory import holder, schemas, shards
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.completed import completed_at
from resumable_tasks.checkpoint.directory.held import held
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.reader import reading, retry_if_swept
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.directory.where import Where
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key, KeyScheme
from resumable_tasks.runners.outcome import Failure


def redo(store: Store, choice: Choice, *, dry_run: bool = False) -> list[Key]:
    """Make the chosen items missing, durable on return. Returns their keys.

    Their rows no longer count, and the next run handles them. Readers see all other rows at every
    moment. The record written for this fences every run that may still be alive. ``dry_run``
    changes nothing.

    Raises:
        CheckpointHeld: a run is active.
        CheckpointDamaged: a shard with rows of chosen items is damaged.
        UsageError: there is no checkpoint, a key is not completed, or the condition is invalid.
    """
    if dry_run:
        return _would_redo(store, choice)
    with held(store) as it:
        found = it.manifest.named(it.state.names)
        lines = _chosen(store, found, it.state, choice)
        if lines:
            _take_back(store, found, it.state, it.journal, lines, it.run)
        return _sorted(lines)


@retry_if_swept
def _would_redo(store: Store, choice: Choice) -> list[Key]:
    with reading(store) as (found, state):
        return _sorted(_chosen(store, found, state, choice))


def _take_back(
    store: Store, found: Manifest, state: State, journal: Journal, lines: list[bytes], run: str
) -> None:
    state.epoch += 1  # which also names the copies
    done = {line for line in lines if line in state.done}
    copied = supersede.Superseder(store, found, state).supersede(done)
    info = holder.me(run)
    info.pop("run")
    # Chosen items that failed when handled again, or are parked, must be tried again too.
    known = [failure for line in lines if (failure := state.known(line)) is not None]
    commit = Commit("redo", state.epoch, run, failures=tuple(map(_released, known)), info=info)
    journal.append(copied.added_to(commit, []))


def _released(failure: Failure) -> Failure:
    return replace(failure, attempts=0, rows=None)


def _chosen(store: Store, found: Manifest, state: State, choice: Choice) -> list[bytes]:
    """The canonical keys of the chosen items."""
    lines: set[bytes] | None = None
    if choice.keys is not None:
        lines = set(choice.keys)
        for line in lines:
            if line not in state.done and line not in state.parked:
                key = keys.shown(keys.parse(line))
                if (out := state.out.holding(line)) is not None:
                    raise UsageError(
                        f"the item with key {key} is not completed: a service has it, in "
                        f"submission {out.token}; nothing was changed",
                        remedy="Run the job; it collects the result",
                    )
                raise UsageError(
                    f"no item with key {key} is completed; nothing was changed",
                    remedy=f"Choose among those that `resumable keys {store.url}` lists",
                )
    if choice.before is not None:
        lines = _both(lines, _completed_before(store, choice.before))
    if choice.where is not None:
        lines = _both(lines, _fitting(store, found, state, choice.where))
    return list(lines or ())


def _sorted(lines: list[bytes]) -> list[Key]:
    return sorted(keys.parse_lines(keys.join(lines)), key=keys.sortable)


def _both(one: set[bytes] | None, other: set[bytes]) -> set[bytes]:
    return other if one is None else one & other


def _completed_before(store: Store, moment: datetime) -> set[bytes]:
    found: set[bytes] = set()
    for when, lines in completed_at(store):
        if datetime.fromisoformat(when) < moment:
            found.update(keys.split(lines))
    return found


def _fitting(store: Store, found: Manifest, state: State, condition: str) -> set[bytes]:
    """The keys of the items with a row that meets the condition."""
    if state.schema is None:
        raise UsageError(
            f"{store.url} has no rows to apply a condition to",
            remedy="Choose by keys= or before=",
        )
    schema = schemas.schema_from_text(state.schema)
    where, scheme = Where(condition, schema), KeyScheme.of(found.key)
    lines: set[bytes] = set()
    for found_rows in shards.read_all(store, state.shards.values()):
        rows = schemas.cast(found_rows, schema)
        each = scheme.lines_of(rows, state.done)
        lines.update(each[at] for at in where.fitting(rows))
    return lines
