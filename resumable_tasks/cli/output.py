"""Output to the terminal: nothing that could control it, and a closed pipe is no error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from resumable_tasks.base.text import clean, count, duration
from resumable_tasks.errors import StoreError

MESSAGE_CHARS = 300


def clean_lines(text: str) -> str:
    """`clean` for text of several lines, which stay lines."""
    return "\n".join(clean(line.replace("\t", "    ")) for line in text.split("\n"))


def safe_json(text: str) -> str:
    """The same JSON value (or lines of them) without characters that a terminal obeys.

    `json.dumps` escapes those below U+0020 alone; U+009B and the marks that reverse a line's
    direction are as bad.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def dumps(value: Any, indent: int | None = None) -> str:
    return safe_json(json.dumps(value, ensure_ascii=False, indent=indent))


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


def lines(many: Iterable[str]) -> None:
    write("".join(f"{line}\n" for line in many))


def show(as_json: bool, document: Any, text: Iterable[str]) -> None:
    """Print what a command has found: as one JSON document, or as lines for people."""
    if as_json:
        write(dumps(document, indent=1) + "\n", utf8=True)
    else:
        lines(text)


def note(text: str) -> None:
    """Say something on standard error, where it does not get between the output."""
    click.echo(clean_lines(text), err=True)


def size(number: int) -> str:
    """``12.3 MB``"""
    if number < 1_000:
        return count(number, "byte")
    value = float(number)
    for unit in ("kB", "MB", "GB"):
        value /= 1_000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1_000:,.1f} TB"


def age(time: str) -> float | None:
    """Seconds since a time in ISO 8601, by this machine's clock; None if it is not one."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return None


def when(time: str) -> str:
    """A time, and how long ago that was; clocks of two machines may differ, so no future."""
    seconds = age(time)
    return clean(time, 40) + (f" ({duration(seconds)} ago)" if seconds and seconds > 0 else "")
