"""Output to the terminal: nothing that could control it, and a closed pipe is no error."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from resumable_tasks.base.text import clean, clean_lines, duration
from resumable_tasks.errors import StoreError, UsageError

MESSAGE_CHARS = 300


def safe_json(text: str) -> str:
    """The same JSON value (or lines of them) without characters that a terminal obeys.

    `json.dumps` escapes those below U+0020 alone; U+009B and the marks that reverse a line's
    direction are as bad.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def dumps(value: Any, indent: int | None = None) -> str:
    """The JSON text of a value; what JSON has not, such as times, bytes and NaN, is text in it."""
    try:
        text = json.dumps(
            value, ensure_ascii=False, indent=indent, default=_as_text, allow_nan=False
        )
    except ValueError:
        return dumps(_with_finite_numbers(value), indent)
    return safe_json(text)


def _with_finite_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_finite_numbers(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_finite_numbers(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def write(text: str, *, utf8: bool = False) -> bool:
    """Write to standard output; False once nobody reads it any more, which is no error.

    ``utf8``: whatever the terminal's encoding is, as JSON demands. Raises `StoreError` if the
    output cannot be written for another reason, such as a full disk.
    """
    try:
        click.echo(text.encode("utf-8", "backslashreplace") if utf8 else text, nl=False)
    except BrokenPipeError:
        _discard_the_rest()
        return False
    except OSError as error:
        _discard_the_rest()
        raise StoreError(
            f"the output could not be written: {error.strerror}",
            remedy="Free some space, or write elsewhere, and run the command again",
        ) from error
    return True


def _discard_the_rest() -> None:
    """Python writes out at its end what is still buffered; that must not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def lines(many: Iterable[str], *, whole: bool = False) -> None:
    """Print lines for people: wrapped to the terminal unless ``whole``, coloured on one alone."""
    columns = None if whole else width()
    each = (part for line in many for part in (wrapped(line, columns) if columns else [line]))
    text = "".join(f"{line}\n" for line in each)
    if not (sys.stdout.isatty() and "\x1b" in text):
        write(click.unstyle(text))
        return
    from rich.console import Console
    from rich.text import Text

    # It knows what a terminal can, and NO_COLOR.
    Console(highlight=False).print(Text.from_ansi(text), end="", soft_wrap=True)


def show(as_json: bool, document: Any, text: Iterable[str], *, whole: bool = False) -> None:
    """Print what a command has found: as one JSON document, or as lines for people."""
    if as_json:
        write(dumps(document, indent=1) + "\n", utf8=True)
    else:
        lines(text, whole=whole)


_COLOURS = {
    "done": "green",
    "completed": "green",
    "running": "cyan",
    **dict.fromkeys(("interrupted", "incomplete", "spent", "died", "parked"), "yellow"),
    **dict.fromkeys(("failed", "damaged", "unusable", "quarantined", "error"), "red"),
}


def status_word(word: str, more: str = "", text: str | None = None) -> str:
    """The word for a status, or another text, in its colour, which only a terminal shows."""
    colour, text = _COLOURS.get(word), word if text is None else text
    return click.style(text, fg=colour, bold=True) + more if colour else text + more


def bold(text: str) -> str:
    """What the lines below are about, set off on a terminal."""
    return click.style(text, bold=True)


def refuse_both(as_json: bool, as_csv: bool) -> None:
    """Raises `UsageError` if two forms of output are wanted at once."""
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other", remedy="Give one of them")


def width() -> int | None:
    """The columns to print in; None where lines stay whole, as in a pipe."""
    given = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty() or (given.isdigit() and int(given)):
        return max(40, shutil.get_terminal_size().columns)
    return None


# A label of a field, or of an example; what stands in backquotes is a command to be pasted.
_LABEL = re.compile(r"next: | *(?:\S+(?: \S+)* {2,})*")
_WORD = re.compile(r"[^\s`]*`[^`]*`\S*|\S+")


def wrapped(line: str, columns: int) -> Iterator[str]:
    """The line, with what does not fit on lines below, under its first word after the label.

    A command in backquotes is not broken, nor is a path: it stands on a line of its own.
    """
    if columns_of(line) <= columns or line.lstrip().startswith("|"):
        yield line
        return
    found = _LABEL.match(line)
    label = found[0] if found else ""
    indent = columns_of(label) if 0 < columns_of(label) <= columns // 2 else 4
    text, empty = label, True
    for word in _WORD.findall(line[len(label) :]):
        if not empty and columns_of(text) + 1 + columns_of(word) > columns:
            yield text
            text, empty = " " * indent, True
        text, empty = text + ("" if empty else " ") + word, False
    yield text


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: colours none, letters of Chinese two."""
    text = click.unstyle(text)
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> Iterator[str]:
    """The lines of a table; ``right`` names the columns of numbers.

    Where a row does not fit the terminal, its last cell stands on a line of its own.
    """
    every = [tuple(titles), *map(tuple, rows)]
    widths = [max(columns_of(row[at]) for row in every) for at in range(len(titles) - 1)]
    columns = width()
    for row in every:
        cells = [
            " " * (wide - columns_of(cell)) + cell
            if title in right.split()
            else cell + " " * (wide - columns_of(cell))
            for title, cell, wide in zip(titles, row, widths, strict=False)
        ]
        line = "  ".join([*cells, row[-1]])
        if columns and columns_of(line) > columns:
            yield from ("  ".join(cells).rstrip(), f"    {row[-1]}")
        else:
            yield line.rstrip()


csv_option = click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for a spreadsheet.")


def traceback_lines(text: str) -> Iterator[str]:
    """A traceback, line by line, set off from what is around it."""
    trace = clean_lines(text.rstrip() or "(there is no traceback)")
    return (f"    | {line}" for line in trace.split("\n"))


def write_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows as CSV (RFC 4180), for a spreadsheet: nothing in it is run there as a formula."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    write(file.getvalue(), utf8=True)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return round(value, 9)
    text = clean(value) if isinstance(value, str) else dumps(value)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text


def note(text: str) -> None:
    """Say something on standard error, where it does not get between the output."""
    click.echo(clean_lines(text), err=True)


def age(time: str) -> float | None:
    """Seconds since a time in ISO 8601, by this machine's clock; None if it is not one."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return None


def when(time: str) -> str:
    """A time, and how long ago that was; clocks of two machines may differ, so no future."""
    seconds = age(time)
    return moment(time) + (f" ({ago(time)})" if seconds and seconds > 0 else "")


def moment(time: str) -> str:
    """``2026-11-23 01:12:09 UTC``"""
    try:
        found = datetime.fromisoformat(time).astimezone(UTC)
        return f"{found:%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, TypeError, OverflowError):
        return clean(str(time), 40)


def ago(time: str | None) -> str:
    """How long ago a time was."""
    seconds = age(time) if time else None
    if seconds is None:
        return "-"
    return "now" if seconds < 1 else f"{duration(round(seconds))} ago"
