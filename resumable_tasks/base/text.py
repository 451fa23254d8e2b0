"""Makes external text (keys, messages of exceptions) safe for a terminal or a log line."""

from __future__ import annotations

import re


def clean(text: str, limit: int | None = None) -> str:
    """Return one line, with control characters as escapes, shortened to ``limit``."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def clean_lines(text: str) -> str:
    """`clean` each line of a text of several lines."""
    return "\n".join(clean(line.replace("\t", "    ")) for line in text.split("\n"))


# The user info before the host of a URL. A port is not part of it, even if the path has an @.
_USER_INFO = r"(://)(?:[^\s:/?#@\[\'\"<>]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s\'\"<>]*|[^\s:/?#@\'\"<>]+)@"
_NAMED = (
    r"(?i)([?&;#](?:[^=&;#\s\'\"<>]*(?:pass|pwd|secret|token|sign|credential|auth|api[-_.]?key|"
    r"access[-_.]?key)[^=&;#\s\'\"<>]*|key|sig|code|session|jwt)=)[^&;#\s\'\"<>]*"
)
_OF_A_DSN = r"(?i)\b((?:ssl)?(?:password|passwd|pwd)\s*=\s*)(\'[^\']*\'|[^\s;&\'\"]+)"
_STARS = "***"


def without_secrets(text: str) -> str:
    """Return a text that is safe to show: its URLs have no user, password, token or key.

    Everything that shows a URL, or a foreign error that may contain one, uses this function.
    """
    if "://" in text:
        text = re.sub(_USER_INFO, rf"\g<1>{_STARS}@", text)
        text = re.sub(_NAMED, rf"\g<1>{_STARS}", text)
    if "=" in text:
        text = re.sub(_OF_A_DSN, rf"\g<1>{_STARS}", text)
    return text


def count(number: float, noun: str) -> str:
    """``1 item``, ``41,000 items``, ``0.5 items``"""
    text = f"{number:,}" if isinstance(number, int) else f"{number:,.1f}".removesuffix(".0")
    return f"{text} {noun}" + ("" if text == "1" else "s")


def size(number: float) -> str:
    """``1 byte``, ``12.3 MB``"""
    if number < 1_000:
        return count(round(number), "byte")
    value = float(number)
    for unit in ("kB", "MB", "GB"):
        value /= 1_000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1_000:,.1f} TB"


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
    """Return a `resumable` command in backquotes, ready to paste into a shell."""
    return f"`{shell_words('resumable', *words)}`"


def shell_words(*words: str) -> str:
    """Quote words for a shell and join them."""
    import shlex  # most runs print no command and need not import it

    return shlex.join(words)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
