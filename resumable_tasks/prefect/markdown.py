"""Escapes foreign text (keys, messages, paths) for the markdown of Prefect's UI."""

from __future__ import annotations

import re
from collections.abc import Sequence

from resumable_tasks.base.text import clean

# Words, and punctuation without a meaning in markdown; not "1." at the start, which is a list.
_PLAIN = re.compile(r"(?!\d+[.)])['\"(]*[^\W_](?:[^\W_]|[ ,.;:'\"()/=%?!…-])*")


def code(text: str, limit: int | None = None) -> str:
    """Any text as one line of code in Markdown, shown exactly as it is."""
    text = clean(text, limit)
    fence = "`" * (_longest_fence(text) + 1)
    # Then no backtick of its own meets the fence, and no space of its own is taken away.
    edges = text.strip(" ") and text[0] + text[-1]
    pad = " " if "`" in edges or " " in edges else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str | Sequence[str], language: str = "sh") -> str:
    """Any text, or lines of it, as a block of code."""
    lines = [clean(line) for line in ([text] if isinstance(text, str) else text)]
    fence = "`" * max(3, *(_longest_fence(line) + 1 for line in lines))
    return "\n".join([f"{fence}{language}", *lines, fence])


def literal(text: str, limit: int | None = None) -> str:
    """Any text for a place that only some versions of the UI render as markdown.

    Cells of tables are markdown with HTML in the older UI, and plain text in the newer one.
    """
    text = clean(text, limit)
    return text if not text.strip() or _PLAIN.fullmatch(text) else code(text)


def _longest_fence(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
