"""The command `diff`: two partitions side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from resumable_tasks.base.text import clean, count
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.cli import output
from resumable_tasks.cli.look import json_option
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.directory.comparing import Difference

_VALUE_CHARS = 60


@click.command(
    epilog="\b\nExit codes:\n  0  compared, whether they differ or not\n  2  not two checkpoints, "
    "or their keys have different fields\n  4  one of them is damaged\n\n\b\nExamples:\n  "
    "resumable diff nightly/2026-11-27 nightly/2026-11-28\n  resumable diff old new --most 1000 "
    "--csv > differences.csv",
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--most",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Maximum number of items of each kind to show.",
)
@json_option
@output.csv_option
def diff(a: str, b: str, most: int, as_json: bool, as_csv: bool) -> None:
    """Compare the completed items and the rows of two checkpoints, A and B, by key.

    Shows keys that are only in A or only in B, and items whose rows differ, with the differing
    columns. Changes nothing. Holds the rows of both in memory.
    """
    from resumable_tasks.checkpoint.directory.comparing import compare

    output.refuse_both(as_json, as_csv)
    readers = Reader.at(a), Reader.at(b)
    found = compare(*readers, most)
    if as_csv:
        output.write_csv(("what", "key", "column", "a", "b"), _records(found))
        return
    places = [clean(reader.store.url) for reader in readers]
    output.show(as_json, _document(found, places), _lines(found, places))


def _document(found: Difference, places: Sequence[str]) -> dict[str, Any]:
    return {
        "a": places[0],
        "b": places[1],
        "same": found.same,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "both": found.both,
        "differ": found.differ,
        "columns_only_a": list(found.columns_only_a),
        "columns_only_b": list(found.columns_only_b),
        "first_only_a": list(found.first_only_a),
        "first_only_b": list(found.first_only_b),
        "first_differ": [
            {
                "key": each.key,
                "columns": {name: {"a": x, "b": y} for name, (x, y) in each.columns.items()},
            }
            for each in found.first_differ
        ],
    }


def _records(found: Difference) -> Iterator[dict[str, Any]]:
    yield from ({"what": "only_a", "key": key} for key in found.first_only_a)
    yield from ({"what": "only_b", "key": key} for key in found.first_only_b)
    for each in found.first_differ:
        for name, (x, y) in each.columns.items():
            yield {"what": "differ", "key": each.key, "column": name, "a": x, "b": y}
        if not each.columns:
            yield {"what": "differ", "key": each.key}


def _lines(found: Difference, places: Sequence[str]) -> Iterator[str]:
    yield f"A  {places[0]}"
    yield f"B  {places[1]}"
    yield from _only("A", found.only_a, found.first_only_a)
    yield from _only("B", found.only_b, found.first_only_b)
    for side, names in (("A", found.columns_only_a), ("B", found.columns_only_b)):
        if names:
            shown = ", ".join(clean(name, 40) for name in names[:20])
            yield f"  columns      only in {side}: {shown}"
    of = f" of {count(found.both, 'item')} in both"
    yield f"  differ       {found.differ:,}{of}" if found.differ else f"  differ       none{of}"
    for each in found.first_differ:
        yield f"    {keys.shown(each.key)}"
        if not each.columns:
            yield "      one has more rows than the other"
        for name, values in each.columns.items():
            yield f"      {clean(name, 40)}  {' → '.join(map(_value, values))}"
    yield from _more(found.differ, len(found.first_differ))


def _only(side: str, many: int, first: Sequence[Key]) -> Iterator[str]:
    yield f"  only in {side}    {count(many, 'item') if many else 'none'}"
    yield from (f"    {keys.shown(key)}" for key in first)
    yield from _more(many, len(first))


def _more(many: int, shown: int) -> Iterator[str]:
    if many > shown:
        yield f"    and {many - shown:,} more"


def _value(value: Any) -> str:
    return clean(output.dumps(value), _VALUE_CHARS)
