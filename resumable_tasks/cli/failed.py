"""The commands about items that failed: `failures` lists and exports, `retry` releases them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import click

from resumable_tasks.base.files import open_plain
from resumable_tasks.base.text import clean, command, count
from resumable_tasks.checkpoint.directory.keyless import Keyless
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.repair import release
from resumable_tasks.cli import output
from resumable_tasks.cli.look import checkpoint_argument, json_option
from resumable_tasks.errors import InvalidKey, StoreError, UsageError
from resumable_tasks.items import keys as keys_
from resumable_tasks.items.keys import Lines
from resumable_tasks.runners.outcome import Failure

_FEW = 5


@click.command(
    epilog="\b\nExamples:\n  resumable failures checkpoints/classify"
    "\n  resumable failures checkpoints/classify --all --traceback"
    "\n  resumable failures checkpoints/classify --jsonl | jq .key"
    "\n  resumable failures checkpoints/classify --export failed.parquet",
)
@checkpoint_argument
@click.option(
    "--all", "show_all", is_flag=True, help="Show every failed item, not only the classes of error."
)
@click.option("--quarantined", is_flag=True, help="Show only items that are no longer tried.")
@click.option("--parked", is_flag=True, help="Show only items whose result does not fit the table.")
@click.option("--traceback", is_flag=True, help="Show the tracebacks as well.")
@click.option("--jsonl", is_flag=True, help="Print every failed item, one JSON object per line.")
@output.csv_option
@click.option("--follow", is_flag=True, help="Print each item as it fails, until the run ends.")
@click.option(
    "--export",
    metavar="FILE",
    help="Write every failed item, with its traceback and the item itself if it was kept, to "
    "FILE.jsonl or FILE.parquet.",
)
@json_option
def failures(
    checkpoint: str,
    show_all: bool,
    quarantined: bool,
    parked: bool,
    traceback: bool,
    jsonl: bool,
    as_csv: bool,
    follow: bool,
    export: str | None,
    as_json: bool,
) -> None:
    """List the items of CHECKPOINT whose last attempt failed.

    By default grouped by class of error, with a count and an example each. The next run tries all
    of them again, except quarantined items, which have failed max_attempts times; `retry` releases
    those. With --parked, lists handled items whose result is kept but does not fit the table;
    --jsonl and --export include their rows. Exits with 0 even if there are failures; `status` exits
    with 1.
    """
    if quarantined and parked:
        raise UsageError("give --quarantined or --parked: no item is both")
    if sum((jsonl, as_json, as_csv)) > 1:
        raise UsageError("give only one of --json, --jsonl and --csv")
    if follow and (as_json or as_csv or export or show_all):
        raise UsageError(
            "--follow prints lines, or objects with --jsonl: leave --json, --csv, --export and "
            "--all out"
        )
    reader = Reader.at(checkpoint)
    chosen = _Chosen(checkpoint, quarantined, parked, traceback, show_all)
    if follow:
        _follow(reader, chosen, jsonl)
        return
    failed, keyless = chosen.of(reader)
    each = [*failed, *keyless.first]
    if export is not None:
        _export(each, export)
        kind = "parked item" if parked else "failed item"
        output.lines([f"{count(len(each), kind)} written to {clean(export)}"])
    elif jsonl:
        for failure in each:
            if not _write_jsonl(failure, traceback):
                return
    elif as_csv:
        names = [*_COLUMNS, "position", *(["traceback"] if traceback else [])]
        output.write_csv(names, (failure_fields(failure, traceback) for failure in each))
    else:
        _show(reader, chosen, as_json)


_COLUMNS = ("key", "error", "message", "attempts", "batch", "time")
_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The failures that are wanted, and how much of each."""

    checkpoint: str
    quarantined: bool
    parked: bool
    traceback: bool
    show_all: bool

    def of(self, reader: Reader) -> tuple[list[Failure], Keyless]:
        """Those of this checkpoint, and its items without keys."""
        state = reader.state
        if self.quarantined:
            return state.quarantined, Keyless()
        if self.parked:
            return list(state.parked.values()), Keyless()
        return list(state.failures.values()), reader.keyless


def _write_jsonl(failure: Failure, traceback: bool) -> bool:
    return output.write(output.dumps(failure_fields(failure, traceback)) + "\n", utf8=True)


def _follow(reader: Reader, chosen: _Chosen, jsonl: bool) -> None:
    """Print each failure that is there, and each that comes while a run is at work."""
    seen: dict[bytes, Failure] = {}
    while True:
        going_on = reader.holder is not None
        failed, keyless = chosen.of(reader)
        now = {keys_.canonical(failure.key): failure for failure in failed}
        new = [each for line, each in now.items() if seen.get(line) != each]
        for failure in new if going_on else (*new, *keyless.first):
            if jsonl and not _write_jsonl(failure, chosen.traceback):
                return
            if not jsonl:
                output.lines(_followed(failure, chosen.traceback))
        sys.stdout.flush()
        if not going_on:
            return
        seen = now
        time.sleep(_INTERVAL)
        reader.follow()
        if reader.damage is not None:
            raise reader.damage


def _followed(failure: Failure, traceback: bool) -> Iterator[str]:
    said = clean(f"{failure.error}: {failure.message}", output.MESSAGE_CHARS)
    key = "-" if failure.position is not None else keys_.shown(failure.key)
    yield f"{output.moment(failure.time)}  {key}  {said}"
    if traceback:
        yield from output.traceback_lines(failure.traceback)


def _show(reader: Reader, chosen: _Chosen, as_json: bool) -> None:
    """Print the failures by class of error."""
    state, (failed, keyless), traceback = reader.state, chosen.of(reader), chosen.traceback
    kinds: dict[str, list[Failure]] = {}
    for failure in failed:
        kinds.setdefault(failure.error, []).append(failure)
    groups = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    document: dict[str, Any] = {
        "failed": len(state.failures if chosen.parked else failed),
        "quarantined": len(state.quarantined),
        "parked": len(state.parked),
        "without_key": {
            "count": keyless.there,
            "first": [failure_fields(failure, traceback) for failure in keyless.first],
        },
        "errors": [
            {"error": kind, "count": len(each), "example": failure_fields(each[0], traceback)}
            for kind, each in groups
        ],
    }
    if chosen.show_all:
        document["failures"] = [failure_fields(failure, traceback) for failure in failed]
    output.show(as_json, document, _listed(reader, chosen, groups, keyless))


def _listed(
    reader: Reader, chosen: _Chosen, groups: list[tuple[str, list[Failure]]], keyless: Keyless
) -> Iterator[str]:
    state, show_all = reader.state, chosen.show_all
    if not groups and not keyless.there:
        which = (
            "is quarantined"
            if chosen.quarantined
            else "is parked"
            if chosen.parked
            else "has failed"
        )
        yield f"no item {which}"
    for kind, each in groups:
        more = "" if show_all or len(each) == 1 else ", for example"
        yield f"{len(each):,} × {output.status_word('failed', text=clean(kind, 80))}{more}"
        for failure in each if show_all else each[:1]:
            yield from _lines(failure, chosen.traceback)
    yield from _keyless_lines(keyless, show_all)
    if chosen.parked or chosen.quarantined:
        return
    if state.parked:
        yield (
            f"{count(len(state.parked), 'item')} parked: kept, but not in the table; "
            f"{command('failures', chosen.checkpoint, '--parked')} lists them"
        )
    if state.quarantined:
        yield (
            f"{count(len(state.quarantined), 'item')} of them quarantined, after "
            f"{count(state.max_attempts or 0, 'attempt')}; "
            f"{command('retry', chosen.checkpoint, '--quarantined')} releases them"
        )


@click.command(
    epilog="\b\nExit codes:\n  0  released, or there was nothing to release"
    "\n  2  no such item has failed; nothing was changed"
    "\n  3  a run holds the checkpoint; nothing was changed\n"
    "\n\b\nExamples:\n  resumable retry checkpoints/classify --quarantined"
    "\n  resumable retry checkpoints/classify --error-class RateLimitError"
    "\n  resumable retry checkpoints/classify --key 17 --key lesson-18",
)
@checkpoint_argument
@click.option(
    "--key",
    "keys",
    multiple=True,
    help="Release the item with this key, as `keys` or `failures` prints it.",
)
@click.option(
    "--error-class", "classes", multiple=True, help="Release all items that failed with this error."
)
@click.option("--quarantined", is_flag=True, help="Release all items that are no longer tried.")
@json_option
def retry(
    checkpoint: str, keys: Sequence[str], classes: Sequence[str], quarantined: bool, as_json: bool
) -> None:
    """Release failed items of CHECKPOINT: the next run tries them again.

    Resets their attempts, so that quarantined items are tried again. Without an option, releases
    all failed items. Several options release all items that match any of them.
    """
    reader = Reader.at(checkpoint)
    state = reader.state
    lines = {line for line, failure in state.failures.items() if failure.error in classes}
    for key in keys:
        _refuse_parked(key, state.parked, checkpoint)
        lines.add(typed_key(key, state.failures, "has failed", command("failures", checkpoint)))
    if quarantined:
        lines |= {keys_.canonical(failure.key) for failure in state.quarantined}
    if not (keys or classes or quarantined):
        lines = set(state.failures)
    unknown = sorted(set(classes) - {failure.error for failure in state.failures.values()})
    if unknown:
        raise UsageError(
            f"no item has failed with {clean(unknown[0], 80)}; "
            f"{command('failures', checkpoint)} lists the errors",
            remedy="Choose among them",
        )
    released = (
        release(reader.store, lambda failure: keys_.canonical(failure.key) in lines)
        if lines
        else []
    )
    document = {"checkpoint": reader.store.url, "released": [each.key for each in released]}
    text = [f"{count(len(released), 'item')} released"]
    text += ["next: run the same command again"] if released else []
    output.show(as_json, document, text)


def _refuse_parked(text: str, parked: Lines, checkpoint: str) -> None:
    if any(form in parked for form in typed_forms(text)):
        raise UsageError(
            f"the item with key {text} has not failed: its result is kept but does not fit the "
            "table",
            remedy=f"Take it over with {command('accept', checkpoint)}, or have the item handled "
            f"again with {command('redo', checkpoint, '--key', text)}",
        )


def typed_key(text: str, known: Lines, what: str, listed: str) -> bytes:
    """The canonical form of a key that was typed: as JSON, or as a plain string.

    ``listed``: the command that lists those that are known.
    """
    forms = list(typed_forms(text))
    for form in forms:
        if form in known:
            return form
    shown = " or ".join(keys_.shown(keys_.parse(form)) for form in forms) or keys_.shown(text)
    raise UsageError(
        f"no item with key {shown} {what}; nothing was changed",
        remedy=f"Choose among the keys that {listed} lists",
    )


def typed_forms(text: str) -> Iterator[bytes]:
    """The canonical forms that a key can have which was typed: that of JSON, of a plain string."""
    for value in dict.fromkeys((_parsed(text), text)):
        with contextlib.suppress(InvalidKey):
            yield keys_.canonical(value)


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, list) and all(isinstance(part, (str, int)) for part in value):
        return tuple(value)
    return value if isinstance(value, (str, int)) else text


def failure_fields(failure: Failure, traceback: bool) -> dict[str, Any]:
    fields = asdict(failure)
    if not traceback:
        del fields["traceback"]
    if failure.item is None:
        del fields["item"]
    if failure.error_of == "item":
        del fields["error_of"]
    if failure.position is not None:
        fields["key"] = None
    for name in ("rows", "position"):
        if fields[name] is None:
            del fields[name]
    del fields["fingerprint"]
    return fields


def _lines(failure: Failure, traceback: bool) -> Iterator[str]:
    tried = count(failure.attempts, "attempt") if failure.attempts else "released"
    of_batch = ", the error of its batch" if failure.error_of == "batch" else ""
    yield f"  {keys_.shown(failure.key)}  {tried}, {output.ago(failure.time)}{of_batch}"
    yield f"    {clean(failure.message, output.MESSAGE_CHARS)}"
    if traceback:
        yield from output.traceback_lines(failure.traceback)


def _keyless_lines(keyless: Keyless, show_all: bool) -> Iterator[str]:
    if not keyless.there:
        return
    yield f"{keyless}; every run fails them until their keys are fixed"
    shown = keyless.first if show_all else keyless.first[:_FEW]
    for failure in shown:
        yield f"  {clean(failure.message, output.MESSAGE_CHARS)}"
    if keyless.there > len(shown):
        yield f"  and {keyless.there - len(shown):,} more"


def _export(failed: list[Failure], path: str) -> None:
    """Write the failures to a file, whole or not at all."""
    rows = [failure_fields(failure, True) for failure in failed]
    temp = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        if not path.endswith((".jsonl", ".ndjson", ".parquet")):
            raise UsageError(
                f"--export {path}: end its name in .jsonl or .parquet",
                remedy="Choose a file name with the format's suffix",
            )
        # For its owner alone, as the checkpoint is: errors quote items.
        with os.fdopen(open_plain(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            if path.endswith(".parquet"):
                _write_parquet(rows, file)
            else:
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.write(text.encode("utf-8", "backslashreplace"))
        os.replace(temp, path)
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}",
            remedy="Name a file in an existing folder with free space, and export again",
        ) from error
    finally:
        if os.path.exists(temp):
            os.unlink(temp)


def _write_parquet(rows: list[dict[str, Any]], file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = (*_COLUMNS, "traceback")
    columns = {}
    for name in (*names, "item", "error_of", "rows", "position"):
        values = [row.get(name) for row in rows]
        if name not in names and not any(value is not None for value in values):
            continue
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, OverflowError):
            # Keys or items of several kinds: as JSON.
            columns[name] = pa.array(
                [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
            )
    pq.write_table(pa.table(columns), file)
