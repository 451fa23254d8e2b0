"""The command `advise`: whether a checkpoint is worth it, before there is one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from resumable_tasks.cli import output
from resumable_tasks.cli.look import json_option
from resumable_tasks.cli.numbers import Number

_MOST = 10**18


@click.command(
    epilog="\b\nExamples:\n  resumable advise --items 681 --seconds-per-item 6 --external-api"
    "\n  resumable advise --items 50000 --seconds-per-item 0.4 --cost-per-item 0.01 --max-loss 5",
)
@click.option("--items", type=click.IntRange(0, _MOST), required=True, help="Number of items.")
@click.option(
    "--seconds-per-item", type=Number(0, _MOST), required=True, help="Seconds that one item takes."
)
@click.option(
    "--external-api", is_flag=True, help="The handler calls a service with limits or a price."
)
@click.option(
    "--cost-per-item", type=Number(0, _MOST), default=0.0, help="Cost of an item, in any unit."
)
@click.option("--not-idempotent", is_flag=True, help="Repeating the whole job would do harm.")
@click.option("--in-table", is_flag=True, help="The items are rows of a database table.")
@click.option("--structure", is_flag=True, help="The state is a cursor or sums, not keys.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, _MOST),
    default=4,
    show_default=True,
    help="Number of batches at the same time.",
)
@click.option(
    "--max-loss",
    type=Number(0, _MOST),
    help="Maximum cost of a crash; in seconds of work if items have no cost.",
)
@json_option
def advise(as_json: bool, not_idempotent: bool, **given: Any) -> None:
    """Advise whether to keep a checkpoint, in which form, and how often to commit.

    Also estimates what a crash would cost with and without it. Reads and writes nothing.
    """
    from resumable_tasks.task import advice

    found = advice.advise(idempotent=not not_idempotent, **given)
    output.show(as_json, asdict(found), [str(found)])
