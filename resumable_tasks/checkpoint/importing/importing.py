"""What a progress file says is done becomes a checkpoint that the job's next run takes up."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resumable_tasks.checkpoint.directory import manifest
from resumable_tasks.checkpoint.directory.driver import Checkpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.importing import progressfile
from resumable_tasks.checkpoint.importing.progressfile import KeyType, Progress
from resumable_tasks.checkpoint.importing.progresstext import Format
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import BadResult, InvalidItems, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme, join
from resumable_tasks.runners import match as rows
from resumable_tasks.runners.outcome import Outcome, ResultsMode
from resumable_tasks.task.options import JobOptions

# A record of the journal is read whole; a file of fewer items is taken over in one step.
_PER_COMMIT = 1_000_000
# What a line has beside its key where it says no more than that this is done.
_WHEN = {"t", "ts", "time", "timestamp"}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, or would do. Counts are items, ``rows`` rows.

    ``skipped`` were in the checkpoint before, ``duplicates`` are lines whose item has a later one,
    ``failed`` those that were left out since their item is not done, ``torn`` is the number of a
    last line without an end that was left out, or None. ``columns`` are those of the rows, with
    their types. ``job``, ``key`` and ``results`` are empty if the first run
    names them.
    """

    checkpoint: str
    job: str
    key: Any
    results: str
    lines: int
    imported: int
    rows: int
    columns: dict[str, str]
    skipped: int
    duplicates: int
    torn: int | None
    failed: int = 0


def import_file(
    path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    job: str | None = None,
    version: str | None = None,
    key: Sequence[str] = (),
    results: ResultsMode | None = None,
    format: Format | None = None,
    key_type: KeyType | None = None,
    failed_too: bool = False,
    skip_failed: bool = False,
    keys_only: bool = False,
    complete: bool = False,
    dry_run: bool = False,
) -> Imported:
    """Take the items of a progress file over as completed, durable on return.

    The file is read whole before anything is written; up to a million items are then committed in
    one step. Killed in the middle, it can be run again: what is in the checkpoint is skipped. Of
    several lines of one item the last counts (with ``results="many"`` all do). Lines that say that
    their item has failed, or is not done yet, are refused, unless ``failed_too`` takes them for
    completed as well, or ``skip_failed`` leaves them out, with all others of an item whose last
    line is such.

    ``job``, ``version``, ``key`` and ``results`` are those of the job; by default those of the
    checkpoint, if there is one. In a new one they may be left open: the first run names them, but
    for ``key`` if there are rows or keys of several parts, where the items then are their own
    keys. Items have rows if the file says more of any than when it was done; with ``keys_only``
    none has, whatever the job's results are, which stay open if nothing else names them.

    A last line without an end may be torn, and is left out, unless ``complete`` says that the file
    was written to its end. Raises `UsageError` (`InvalidItems` with the line,
    `CheckpointMismatch`), `ResultConflict` for a column whose type does not fit the rows that are
    there, and what the opening of a checkpoint raises; nothing was imported then.
    """
    began = time.monotonic()
    if failed_too and skip_failed:
        raise UsageError(
            "items that have failed are taken (--failed-too) or left out (--skip-failed), not both"
        )
    store = open_store(os.fspath(checkpoint))
    there = _there(store)
    wanted = _wanted(there, job, version, tuple(key), results)
    if there is not None:
        manifest.check(store, there[0], wanted)
        manifest.check_version(store, _version(*there), wanted.version)
    scheme = _scheme(wanted.key)
    with _no_garbage():
        found = progressfile.read(
            path,
            scheme,
            format=format,
            key_type=key_type,
            else_type=lambda: _type_there(store) if there is not None else None,
            failed_too=failed_too,
            skip_failed=skip_failed,
            complete=complete,
        )
        # How the lines are taken; the results of the job stay what they are.
        mode = "none" if keys_only else wanted.results
        chosen = _last_of_each(found.lines) if mode != "many" else range(len(found.lines))
        if not mode and len(chosen) < len(found.lines):
            _refuse_ambiguous(found)
        many = _Many(found, scheme, mode, chosen)
    if not wanted.key and (many.has_rows or tuple in set(map(type, found.keys))):
        wanted = replace(wanted, key="item")
    if dry_run:
        done = there[1].done if there is not None else State().done
        left = many.missing(done)
        for outcome in many.outcomes(left, os.fspath(path)):
            many.count(outcome)
    else:
        identity = {"imported": Path(os.fspath(path)).name}
        into = Checkpoint.open(store, wanted, identity=identity)
        try:
            left = many.missing(into.state.done)
            many.commit(into, left, os.fspath(path))
            counts = {"total": many.items, "completed": len(left), "failed": 0}
            counts["skipped"] = many.items - len(left)
            seconds = round(time.monotonic() - began, 3)
            into.end({"how": "imported", **counts, "seconds": seconds})
        finally:
            into.close()
    return Imported(
        checkpoint=store.url,
        job=wanted.job,
        key=wanted.key,
        results=wanted.results,
        lines=len(found.lines),
        imported=len(left),
        rows=many.rows,
        columns=many.columns,
        skipped=many.items - len(left),
        duplicates=len(found.lines) - len(chosen),
        torn=found.torn,
        failed=found.failed,
    )


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Millions of small values are made, and no cycles: looking for those takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _there(store: Store) -> tuple[Manifest, State] | None:
    """The checkpoint that is there, if any."""
    if manifest.NAME not in (store.list("") if store.exists() else ()):
        return None
    return read_checkpoint(store)


def _version(found: Manifest, state: State) -> str:
    return state.version or found.version


def _wanted(
    there: tuple[Manifest, State] | None,
    job: str | None,
    version: str | None,
    key: tuple[str, ...],
    results: ResultsMode | None,
) -> Manifest:
    spec = key[0] if len(key) == 1 else key or None
    given = KeyScheme(spec).describe() if key else ""
    if there is None:
        # Raises for what no job can have.
        JobOptions(name="imported" if job is None else job, key=spec, results=results or "one")
        return Manifest(job or "", version or "", given, results or "")
    before = there[0]
    return Manifest(
        job or before.job,
        version or _version(*there),
        given or before.key,
        results or before.results,
    )


def _scheme(described: Any) -> KeyScheme:
    """The scheme of a manifest's key; where a callable makes the key, the file holds keys."""
    if isinstance(described, dict) and "field" in described:
        return KeyScheme(described["field"])
    if isinstance(described, dict) and "fields" in described:
        return KeyScheme(tuple(described["fields"]))
    return KeyScheme(None)


def _last_of_each(lines: list[bytes]) -> Sequence[int]:
    last = dict(zip(lines, range(len(lines)), strict=True))
    return range(len(lines)) if len(last) == len(lines) else sorted(last.values())


def _says_no_more(found: Progress) -> bool:
    """Whether the lines have nothing but a key and when it was done."""
    return found.fields - set(found.key_fields) <= _WHEN


def _refuse_ambiguous(found: Progress) -> None:
    """Lines of one item that say different things may be corrections, or all of them count."""
    aside = {*found.key_fields, *_WHEN}
    first: dict[bytes, int] = {}
    for at, line in enumerate(found.lines if found.rows else ()):
        here, there = (
            {name: value for name, value in found.rows[n].items() if name not in aside}
            for n in (at, first.setdefault(line, at))
        )
        if here != there:
            raise InvalidItems(
                f"{found.place(at)}: it is of the same item as {found.place(first[line])}, and "
                "says other things: say --results one (the last counts) or many (all do), or "
                "--keys-only. Nothing was imported"
            )


def _type_there(store: Store) -> KeyType | None:
    """The type that all keys of a checkpoint are of; None if there are none, or several types."""
    kinds = {
        line[:1] if line[:1] in b'"[' else b"1"
        for commit in Journal(store, manifest.read(store).id).read_new()
        for line in keys.split(commit.keys)
    }
    if kinds == {b"1"}:
        return "int"
    return "string" if kinds == {b'"'} else None


class _Many:
    """The items of a file, each with the places of its lines."""

    def __init__(
        self, found: Progress, scheme: KeyScheme, results: str, chosen: Sequence[int]
    ) -> None:
        self._found = found
        self._scheme = scheme
        plain = results in ("", "one") and _says_no_more(found)
        self._results: Any = "none" if plain else results or "one"
        self.has_rows = self._results != "none" and bool(found.lines)
        self.rows = 0
        self.columns: dict[str, str] = {}
        self._places: dict[bytes, list[int]] = {}
        if results == "many":
            for at in chosen:
                self._places.setdefault(found.lines[at], []).append(at)
            chosen = [places[0] for places in self._places.values()]
        self._chosen = chosen
        self.items = len(chosen)

    def missing(self, done: Any) -> list[int]:
        """The items that are not done, by the place of a line of theirs."""
        lines = self._found.lines
        chosen = [lines[at] for at in self._chosen]
        return [self._chosen[at] for at in done.missing(chosen)] if chosen else []

    def outcomes(self, left: list[int], path: str) -> Iterator[Outcome]:
        """These items, in as many parts as they are committed in."""
        for start in range(0, len(left), _PER_COMMIT):
            yield self._outcome(left[start : start + _PER_COMMIT], path)

    def count(self, outcome: Outcome) -> None:
        """Take these rows into ``rows`` and ``columns``."""
        if outcome.table is not None:
            self.rows += outcome.table.num_rows
            self.columns |= {field.name: str(field.type) for field in outcome.table.schema}

    def commit(self, into: Checkpoint, left: list[int], path: str) -> None:
        """Commit these items."""
        for outcome in self.outcomes(left, path):
            into.commit([outcome], into.accept(outcome, None, [])[1])
            self.count(outcome)

    def _outcome(self, part: list[int], path: str) -> Outcome:
        found, scheme = self._found, self._scheme
        batch = Batch(0, [found.keys[at] for at in part], join(found.lines[at] for at in part), [])
        try:
            matched = rows.match(self._rows(part), batch, scheme, self._results)
        except BadResult as error:
            what = str(error).replace("of the handler's result", "of the file")
            raise InvalidItems(
                f"{path}: {what}. Nothing was imported; --keys-only (in Python "
                "keys_only=True) takes the keys without their rows"
            ) from error
        table = matched.table
        schema = table.schema if table is not None else None
        return Outcome(batch, matched.done, matched.completed, table, schema=schema)

    def _rows(self, part: list[int]) -> Any:
        """What a handler would have returned for these items."""
        if self._results == "none":
            return None
        found, scheme = self._found, self._scheme
        if self._results == "many":
            part = [at for first in part for at in self._places[found.lines[first]]]
        table = rows.to_table([found.rows[at] for at in part]) if found.rows else None
        others = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))
        # A field that is called as the key's column gives way to it.
        for name in (*found.key_fields, *scheme.columns):
            others.pop(name, None)
        many: list[Any] = [found.keys[at] for at in part]
        if scheme.composite:
            columns = [[key[place] for key in many] for place in range(len(scheme.columns))]
        else:
            # Those of a callable that are tuples get their column by their places.
            columns = [] if tuple in set(map(type, many)) else [many]
        own = {
            name: rows.array(name, column)
            for name, column in zip(scheme.columns, columns, strict=False)
        }
        import pyarrow as pa

        return pa.table({**own, **others}) if own or others else [{} for _ in part]
