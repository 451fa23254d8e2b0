"""Text from elsewhere (keys, messages of exceptions), fit for a terminal or a log line."""

from __future__ import annotations

import re


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


def duration(seconds: float) -> str:
    """``0:54`` or ``3:25:45``"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
