"""The command `submissions`: what a service has, and what a person says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from resumable_tasks.base.text import clean, command, count
from resumable_tasks.checkpoint.directory.outstanding import lost_intents, shown
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import output
from resumable_tasks.cli.look import checkpoint_argument, json_option
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.submission import Out, age_of

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.directory.submissions import Known
    from resumable_tasks.checkpoint.store.base import Store
    from resumable_tasks.items.submission import Submission

_TITLES = ("TOKEN", "STATE", "ITEMS", "PENDING", "AGE", "COST", "RUN", "HANDLE")


@click.command(
    epilog="\b\nExit codes:\n  0  listed, or recorded\n  2  there is no such open submission, or "
    "the service has it; nothing was changed\n  3  a run holds the checkpoint; nothing was "
    "changed\n\n\b\nExamples:\n  resumable submissions checkpoints/classify\n  resumable "
    "submissions checkpoints/classify attach 5fd54e2b0c1a9d37 batch_6823a1\n  resumable "
    "submissions checkpoints/classify withdraw 5fd54e2b0c1a9d37",
)
@checkpoint_argument
@click.argument("action", type=click.Choice(["attach", "withdraw"]), required=False)
@click.argument("token", required=False)
@click.argument("handle", required=False)
@click.option(
    "--yes",
    is_flag=True,
    help="Also if the service has the submission; its items must then be paid for again.",
)
@json_option
def submissions(
    checkpoint: str,
    action: str | None,
    token: str | None,
    handle: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """List the submissions of CHECKPOINT that are with a service, not collected yet.

    `attach` TOKEN HANDLE: the service has this submission, and knows it by HANDLE (JSON, or a plain
    string); the next run collects it. `withdraw` TOKEN: the service does not have it, and will not;
    the next run submits its items again. Both are refused while a run is at work.
    """
    from resumable_tasks.checkpoint.directory import submissions as there

    store = open_store(checkpoint)
    given = [each for each in (token, handle) if each is not None]
    wanted = {None: 0, "attach": 2, "withdraw": 1}[action]
    if len(given) != wanted:
        raise UsageError(
            f"{action} takes {'a TOKEN and a HANDLE' if wanted == 2 else 'a TOKEN'}",
            remedy=f"{command('submissions', checkpoint)} lists the tokens",
        )
    if action is None:
        found = there.read(store)
        output.show(as_json, _document(store, found), _lines(store, found), whole=True)
        return
    assert token is not None
    if action == "attach":
        named = _handle(handle or "")
        items = there.attach(store, token, named, again=yes).count
        text = f"submission {token} is with the service: {shown(named)}"
        then = f"collects its {count(items, 'item')}"
    else:
        before = there.withdraw(store, token, lose=yes)
        text = f"submission {token} is withdrawn"
        again = count(before.count, "item") if before is not None else "what it had"
        then = f"submits {again} again, as far as nothing else has completed it"
    document = {"checkpoint": store.url, "token": token, "done": action}
    output.show(as_json, document, [text, f"next: run the same command again; it {then}"])


def _handle(text: str) -> Any:
    """What was typed, as JSON or as the text that it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _document(store: Store, found: Known) -> dict[str, Any]:
    out = Out.of(found.each)
    return {
        "checkpoint": store.url,
        "items": out.items,
        "submissions": out.submissions,
        "since": out.since or None,
        "expected_cost": out.cost,
        "each": [described(each) for each in found.each],
        "strays": [{"token": token, "handle": known} for token, known in found.strays.items()],
    }


def described(submission: Submission) -> dict[str, Any]:
    """A submission as JSON has it, without its keys."""
    return {
        "token": submission.token,
        "state": submission.state,
        "handle": submission.handle,
        "by": submission.by or None,
        "items": submission.count,
        "pending": _pending(submission),
        "since": submission.time,
        "run": submission.run,
        "record": submission.number,
        "expected_cost": submission.cost,
    }


def _pending(submission: Submission) -> int:
    return sum(1 for _ in keys.split(submission.pending))


def _lines(store: Store, found: Known) -> Iterator[str]:
    if not found.each and not found.strays:
        yield "no open submissions"
    if found.each:
        yield from output.table(_TITLES, map(_row, found.each), right="ITEMS PENDING AGE COST")
        yield str(Out.of(found.each))
    yield from lost_intents(found.strays, store.url)
    unknown = [each for each in found.each if each.handle is None]
    if unknown:
        token = unknown[0].token
        yield (
            "the next run finds out whether the service has the unconfirmed submissions. If it "
            f"cannot: {command('submissions', store.url, 'attach', token, 'HANDLE')}, or "
            f"{command('submissions', store.url, 'withdraw', token)}"
        )


def _row(submission: Submission) -> tuple[str, ...]:
    return (
        clean(submission.token, 40),
        submission.state,
        f"{submission.count:,}",
        f"{_pending(submission):,}",
        age_of(submission.time) or "?",
        "" if submission.cost is None else f"{submission.cost:,.4g}",
        clean(submission.run, 20),
        "" if submission.handle is None else shown(submission.handle),
    )
