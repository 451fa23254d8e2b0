"""Values in the HTML that a notebook shows: always escaped, cut, and without secrets."""

from __future__ import annotations

from collections.abc import Iterable

from resumable_tasks.base.text import clean, without_secrets

LONGEST = 300


def escaped(value: object, limit: int = LONGEST) -> str:
    """Any value, as one line of plain text in HTML."""
    from html import escape  # loads tables of entities, which most programs never need

    return escape(clean(without_secrets(str(value)), limit))


def page(body: str) -> str:
    """HTML for the output of a cell; a front end looks for no formulas between its dollar signs."""
    return f'<div class="tex2jax_ignore mathjax_ignore">{body}</div>'


def table(title: str, rows: Iterable[Iterable[object]], head: Iterable[str] = ()) -> str:
    """A small table, each cell of it escaped."""
    lines = [f"<b>{escaped(title)}</b>", "<table>"]
    if head:
        lines.append(_row(head, "th"))
    lines += (_row(row, "td") for row in rows)
    return page("\n".join([*lines, "</table>"]))


def lines_of(text: str, most: int = 30) -> str:
    """The last lines of a text such as a traceback, as they are."""
    lines = [escaped(line) for line in text.rstrip().split("\n")[-most:]]
    return page("\n".join(["<pre>", *lines, "</pre>"])) if text else ""


def _row(cells: Iterable[object], tag: str) -> str:
    shown = (f'<{tag} style="text-align: left">{escaped(cell)}</{tag}>' for cell in cells)
    return f"<tr>{''.join(shown)}</tr>"
