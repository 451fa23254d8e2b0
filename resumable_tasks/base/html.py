"""HTML for notebooks: values are always escaped, shortened, and without secrets."""

from __future__ import annotations

from collections.abc import Iterable

from resumable_tasks.base.text import clean, without_secrets

LONGEST = 300


def escaped(value: object, limit: int = LONGEST) -> str:
    """Return any value as one line of plain text in HTML."""
    from html import escape  # imports tables of entities that most programs never need

    return escape(clean(without_secrets(str(value)), limit))


def page(body: str) -> str:
    """Return HTML for the output of a cell, in which dollar signs do not start formulas."""
    return f'<div class="tex2jax_ignore mathjax_ignore">{body}</div>'


def table(title: str, rows: Iterable[Iterable[object]], head: Iterable[str] = ()) -> str:
    """Return a small table with escaped cells."""
    lines = [f"<b>{escaped(title)}</b>", "<table>"]
    if head:
        lines.append(_row(head, "th"))
    lines += (_row(row, "td") for row in rows)
    return page("\n".join([*lines, "</table>"]))


def lines_of(text: str, most: int = 30) -> str:
    """Return the last lines of a text, such as a traceback, preformatted."""
    lines = [escaped(line) for line in text.rstrip().split("\n")[-most:]]
    return page("\n".join(["<pre>", *lines, "</pre>"])) if text else ""


def _row(cells: Iterable[object], tag: str) -> str:
    shown = (f'<{tag} style="text-align: left">{escaped(cell)}</{tag}>' for cell in cells)
    return f"<tr>{''.join(shown)}</tr>"
