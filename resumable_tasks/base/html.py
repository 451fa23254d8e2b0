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
        lines.append(f"<tr>{''.join(f'<th>{escaped(name)}</th>' for name in head)}</tr>")
    for row in rows:
        cells = (f'<td style="text-align: left">{escaped(cell)}</td>' for cell in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return page("\n".join([*lines, "</table>"]))
