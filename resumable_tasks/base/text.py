"""Text from elsewhere (keys, messages of exceptions), fit for a terminal or a log line."""

from __future__ import annotations

import re
import shlex


def clean(text: str, limit: int | None = None) -> str:
    """One line without control characters: they are shown as escapes; what is too long is cut."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def without_password(url: str) -> str:
    """The URL without the password that stands in it."""
    return re.sub(r"(://[^:/]*):.*@", r"\1:***@", url)


def count(number: float, noun: str) -> str:
    """``1 item``, ``41,000 items``, ``0.5 items``"""
    text = f"{number:,}" if isinstance(number, int) else f"{number:,.1f}".removesuffix(".0")
    return f"{text} {noun}" + ("" if text == "1" else "s")


def duration(seconds: float) -> str:
    """``0.3 s``, ``54 s``, ``4 min``, ``3 h 20 min``, ``12 days``"""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} days"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def rate(a_second: float) -> str:
    """``42/s``, ``0.5/s``"""
    return f"{a_second:,.0f}/s" if a_second >= 10 else f"{a_second:.2g}/s"


def command(*words: str) -> str:
    """A command of ours as it can be pasted into a shell, in backquotes."""
    return "`" + shlex.join(("resumable", *words)) + "`"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
