"""Imports a progress file into a checkpoint, from which the job's next run continues."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.checkpoint.directory import manifest
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.form import Opening
from resumable_tasks.checkpoint.importing.progressfile import Format, KeyType, Progress, Reader
from resumable_tasks.checkpoint.importing.signs import Signs
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import BadResult, InvalidItems, UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme, join
from resumable_tasks.runners import match
from resumable_tasks.runners.outcome import Done, ResultsMode
from resumable_tasks.runners.values import tables

# Limited because a record of the journal is read whole. Fewer items are imported in one step.
_PER_COMMIT = 1_000_000
# A line with only its key and one of these fields says just that the item is done.
_WHEN = {"t", "ts", "time", "timestamp"}


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import or of its dry run. Counts are items, except ``rows``.

    ``skipped`` items were in the checkpoint before. ``duplicates`` are lines whose item has a later
    line, ``failed`` are lines left out because their item is not done. ``torn`` is the number of a
    last line that was left out because it has no end, or None. ``columns`` are the columns of the
    rows with their types. ``job``, ``key`` and ``results`` are empty if the first run sets them.
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
    failed: int


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
    done_if: Sequence[str] = (),
    failed_if: Sequence[str] = (),
    keys_only: bool = False,
    complete: bool = False,
    dry_run: bool = False,
) -> Imported:
    """Import the items of a progress file as completed, durable on return.

    Reads the whole file before it writes anything, then commits up to a million items in one step.
    An import that was killed can be run again; it skips items that are in the checkpoint. If an
    item has several lines, the last one counts (with ``results="many"`` all count).

    Args:
        path: the file, in UTF-8.
        checkpoint: the checkpoint's directory or URL, new or existing.
        job, version, key, results: those of the job; by default those of the existing checkpoint.
            In a new checkpoint the first run sets those that are left open. An exception is ``key``
            if there are rows or keys of several parts: then each item is its own key.
        format: the file's format; by default recognised by its name and first character.
        key_type: the type to which all keys are converted.
        failed_too: import lines that say that their item is not done, as completed.
        skip_failed: leave such lines out, and all lines of an item whose last line is such a line.
        done_if, failed_if: texts ``FIELD=VALUE``, such as ``status=shipped``. They give the meaning
            of a sign that is known neither as success nor as failure; otherwise such a sign ends
            the import. The value ``*`` matches any; a nested field is ``response.status``.
        keys_only: give no item a row, whatever the job's results are.
        complete: the file was written to its end, so a last line without an end is not torn.
        dry_run: write nothing.

    Raises:
        UsageError: also `InvalidItems`, which names the line, and `CheckpointMismatch`. Nothing was
            imported.
        ResultConflict: the type of a column does not fit the existing rows.
    """
    began = time.monotonic()
    if failed_too and skip_failed:
        raise UsageError("give --failed-too or --skip-failed, not both")
    store = open_store(os.fspath(checkpoint))
    is_there = manifest.NAME in store.list("")
    there = read_checkpoint(store) if is_there else None
    wanted = _wanted(there, job, version, tuple(key), results)
    if there is not None:
        manifest.check(store, there[0], wanted)
        manifest.check_version(store, there[1].version or there[0].version, wanted.version)
    scheme = KeyScheme.of(wanted.key)
    reader = Reader(os.fspath(path), scheme, key_type, complete, Signs(done_if, failed_if))
    found = reader.read(format, failed_too=failed_too, skip_failed=skip_failed)
    _refuse_clashes(found, scheme, there)
    items = _Items(reader, found, scheme, "none" if keys_only else wanted.results)
    if not wanted.key and (items.have_rows or tuple in set(map(type, found.keys))):
        wanted = replace(wanted, key="item")
    if dry_run:
        left = items.missing(there[1].done if there is not None else State().done)
        for _ in items.outcomes(left, os.fspath(path)):
            pass
    else:
        opening = Opening(identity={"imported": Path(path).name})
        into = DirectoryCheckpoint.open(store, wanted, opening=opening)
        try:
            left = items.missing(into.state.done)
            for outcome in items.outcomes(left, os.fspath(path)):
                with into.begin() as unit:
                    unit.add(outcome)
                    unit.commit()
            counts = {"total": len(items), "completed": len(left), "failed": 0}
            seconds = round(time.monotonic() - began, 3)
            skipped = len(items) - len(left)
            into.end("imported", {**counts, "skipped": skipped, "seconds": seconds})
        finally:
            into.close()
    return Imported(
        checkpoint=store.url,
        job=wanted.job,
        key=wanted.key,
        results=wanted.results,
        lines=len(found.lines),
        imported=len(left),
        rows=items.rows,
        columns=items.columns,
        skipped=len(items) - len(left),
        duplicates=len(found.lines) - len(items) if wanted.results != "many" else 0,
        torn=found.torn,
        failed=found.failed,
    )


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
        # These raise for values that no job can have.
        checks.job_name("imported" if job is None else job)
        checks.choice("results", results or "one", ("one", "many", "none"))
        return Manifest(job or "", version or "", given, results or "")
    found, state = there
    version = version or state.version or found.version
    return Manifest(job or found.job, version, given or found.key, results or found.results)


def _refuse_clashes(
    found: Progress, scheme: KeyScheme, there: tuple[Manifest, State] | None
) -> None:
    """Refuse a tuple and a string key of the same text, in the file or with the checkpoint."""
    alike = [line for line in found.lines if line.startswith((b"[", b'"['))]
    why = scheme.clash(alike, set(alike), there[1].done if there else set())
    if why is not None:
        raise InvalidItems(why, safe="Nothing was imported")


class _Items:
    """The items of a file, each with the positions of its lines that count."""

    def __init__(self, reader: Reader, found: Progress, scheme: KeyScheme, mode: str) -> None:
        self._found = found
        self._scheme = scheme
        says_no_more = set().union(*found.rows) - set(found.key_fields) <= _WHEN
        without = mode == "none" or (mode != "many" and says_no_more)
        self._results: Any = "none" if without else mode or "one"
        self.have_rows = not without and bool(found.lines)
        self.rows = 0
        self.columns: dict[str, str] = {}
        self._places: dict[bytes, list[int]] = {}
        for at, line in enumerate(found.lines):
            places = self._places.setdefault(line, [])
            if places and self.have_rows and not mode:
                reader.wrong(
                    found.numbers[at],
                    f"it has the same item as {found.numbers[places[0]]}: give --results one (the "
                    "last counts) or many (all count), or --keys-only",
                )
            if mode != "many":
                places.clear()
            places.append(at)

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, done: Any) -> list[list[int]]:
        """The items that are not in ``done``, each as the positions of its lines."""
        lines = list(self._places)
        return [self._places[lines[at]] for at in done.missing(lines)] if lines else []

    def outcomes(self, left: list[list[int]], path: str) -> Iterator[Done]:
        """Yield these items in parts, each to be committed at once, and count their rows."""
        for start in range(0, len(left), _PER_COMMIT):
            outcome = self._outcome(left[start : start + _PER_COMMIT], path)
            yield outcome
            if outcome.table is not None:
                self.rows += outcome.table.num_rows
                self.columns |= {each.name: str(each.type) for each in outcome.table.schema}

    def _outcome(self, part: list[list[int]], path: str) -> Done:
        found, first = self._found, [places[0] for places in part]
        many = [found.keys[at] for at in first]
        batch = Batch(0, many, join(found.lines[at] for at in first), [])
        try:
            rows = self._rows([at for places in part for at in places])
            matched = match.match(rows, batch, self._scheme, self._results)
        except BadResult as error:
            what = str(error).replace("of the handler's result", "of the file")
            raise InvalidItems(
                f"{path}: {what}. Nothing was imported; --keys-only (in Python keys_only=True) "
                "imports the keys without their rows",
                remedy="Fix the rows, or import only the keys",
            ) from error
        table = matched.table
        schema = table.schema if table is not None else None
        return Done(batch, matched.done, matched.completed, table, schema=schema)

    def _rows(self, part: list[int]) -> Any:
        """The rows of these lines, as a handler would return them."""
        if self._results == "none":
            return None
        import pyarrow as pa

        found, names = self._found, self._scheme.columns
        table = tables.to_table([found.rows[at] for at in part]) if found.rows else None
        others = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))
        # The key's columns replace fields of the same name.
        for name in (*found.key_fields, *names):
            others.pop(name, None)
        many: list[Any] = [found.keys[at] for at in part]
        if self._scheme.composite:
            columns = list(map(list, zip(*many, strict=True)))
        else:
            # Tuple keys of a callable have one column, filled by position.
            columns = [] if tuple in set(map(type, many)) else [many]
        own = {n: tables.array(n, column) for n, column in zip(names, columns, strict=False)}
        return pa.table({**own, **others}) if own or others else [{} for _ in part]
