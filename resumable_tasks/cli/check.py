"""`check`: a place is tried out by its owner, before anything is kept there."""

from __future__ import annotations

from dataclasses import asdict

import click

from resumable_tasks.base.text import clean, without_secrets
from resumable_tasks.cli import output
from resumable_tasks.cli.look import json_option

_WORDS = {"good": "good", "note": "note", "bad": "NOT FIT"}


@click.command(
    epilog="\b\nExit codes:\n  0  checkpoints can be kept there\n  1  they cannot: the lines with "
    "NOT FIT say why\n  2  not the name of a place\n\n\b\nExamples:\n  resumable check "
    "s3://bucket/checkpoints\n  resumable check /mnt/shared/checkpoints --json",
)
@click.argument("place")
@click.option(
    "--names",
    type=click.IntRange(min=1),
    default=1001,
    show_default=True,
    help="Number of objects to write to test long listings.",
)
@json_option
@click.pass_context
def check(context: click.Context, place: str, names: int, as_json: bool) -> None:
    """Test whether checkpoints can be kept at PLACE, a directory or the URL of a bucket.

    Tests put-if-absent (sequential and concurrent), permissions, listings, large objects, the
    clock, and how long a commit takes. Writes below a fresh name, and removes that again.
    """
    from resumable_tasks.checkpoint.store import probe

    found = []
    for finding in probe.check(place, names):
        found.append(finding)
        if not as_json:
            word = _WORDS[finding.verdict]
            output.lines([f"{word:<8} {finding.probe:<22} {clean(finding.said, 600)}"])
    bad = [finding.probe for finding in found if finding.verdict == "bad"]
    shown = without_secrets(place)
    if as_json:
        document = {"place": shown, "fit": not bad, "findings": [asdict(each) for each in found]}
        output.show(True, document, [])
    else:
        end = f"checkpoints cannot be kept at {clean(shown)}: {', '.join(bad)}"
        output.lines([end if bad else f"checkpoints can be kept at {clean(shown)}"])
    context.exit(1 if bad else 0)
