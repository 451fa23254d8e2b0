"""Work that was submitted to a service and is not settled, from the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.text import clean, command, count
from resumable_tasks.checkpoint.directory.record import OF_SUBMISSIONS, Commit
from resumable_tasks.items import keys
from resumable_tasks.items.fingerprints import from_text
from resumable_tasks.items.keytable import KeyTable

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.directory.state import State
    from resumable_tasks.items.plan import Planner
    from resumable_tasks.items.submission import Out, Submission, Transition

_TEXTS = ("lines", "fingerprints")
_MOST_NAMED = 10


class Outstanding:
    """The submissions that are neither settled nor withdrawn, by token, oldest first.

    ``strays`` are submissions whose intent was lost with a record, so that their items are unknown;
    each with its handle if there is one.
    """

    __slots__ = ("each", "strays")

    def __init__(self) -> None:
        self.each: dict[str, Submission] = {}
        self.strays: dict[str, Any] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outstanding):
            return NotImplemented
        return (self.each, self.strays) == (other.each, other.strays)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.each)

    def __iter__(self) -> Iterator[Submission]:
        return iter(self.each.values())

    @property
    def counts(self) -> Out:
        """The totals of all submissions."""
        from resumable_tasks.items.submission import Out

        return Out.of(self)

    @property
    def items(self) -> int:
        """The number of items with a service."""
        return sum(submission.count for submission in self)

    def holding(self, line: bytes) -> Submission | None:
        """The submission that contains this key; None if there is none."""
        found = (each for each in self if line in keys.split(each.lines))
        return next(found, None)

    def apply(self, commit: Commit) -> None:
        """Apply one more record."""
        for token in commit.info.get("settled", ()):
            self.each.pop(token, None)
            self.strays.pop(token, None)
        if commit.kind in OF_SUBMISSIONS and commit.kind != "withdrawn":
            self._follow(commit, commit.info["token"])

    def _follow(self, commit: Commit, token: str) -> None:
        info = commit.info
        if commit.kind == "submitting":
            from resumable_tasks.items.submission import Submission

            self.each[token] = Submission(
                token,
                commit.out,
                commit.out.count(b"\n") + 1,
                commit.out_fingerprints,
                number=commit.number,
                run=commit.run,
                time=commit.time,
                cost=info.get("expected_cost"),
                prepares=bool(info.get("prepares")),
            )
        elif token not in self.each:
            self.strays[token] = info.get("handle", self.strays.get(token))
        elif commit.kind == "prepared":
            self.each[token] = replace(self.each[token], prepared=info["prepared"])
        else:
            by = info.get("by", "sent")
            self.each[token] = replace(self.each[token], handle=info["handle"], by=by)

    def forget_fingerprints(self) -> None:
        """Drop fingerprints, since those of another scheme cannot be compared."""
        for token, submission in self.each.items():
            self.each[token] = replace(submission, fingerprints=b"")

    def told(self) -> dict[str, Any]:
        """The data that a snapshot of the journal stores."""
        each = [asdict(submission) for submission in self]
        for submission in each:
            submission.update({name: submission[name].decode() for name in _TEXTS})
        return {"each": each, "strays": self.strays}

    @classmethod
    def of_told(cls, told: Mapping[str, Any]) -> Outstanding:
        """Restore from a snapshot's data."""
        found = cls()
        found.strays = dict(told["strays"])
        for each in told["each"]:
            from resumable_tasks.items.submission import Submission

            bytes_of = {name: each[name].encode() for name in _TEXTS}
            found.each[each["token"]] = Submission(**{**each, **bytes_of})
        return found


def shown(handle: Any, limit: int = 120) -> str:
    """A handle as text to display, shortened."""
    import json

    text = handle if isinstance(handle, str) else json.dumps(handle, ensure_ascii=False)
    return clean(text, limit)


def named(out: Outstanding) -> str:
    """A text that lists the submissions with tokens and handles; empty if there are none.

    For a warning to a user who is about to lose them.
    """
    each = {found.token: found.handle for found in out} | out.strays
    if not each:
        return ""
    some = list(each.items())[:_MOST_NAMED]
    texts = [
        clean(token, 40) + (f" ({shown(handle)})" if handle is not None else "")
        for token, handle in some
    ]
    if len(each) > len(some):
        texts.append(f"and {len(each) - len(some):,} more")
    counts = out.counts
    cost = f", at an expected cost of {counts.cost:,.4g}" if counts.cost is not None else ""
    what = f"{counts}{cost}" if counts else count(len(each), "submission")
    return f"a service has {what}: {', '.join(texts)}"


def lost_intents(strays: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yield a sentence about each submission whose items are no longer known."""
    for token, handle in strays.items():
        known = f" ({shown(handle)})" if handle is not None else ""
        yield (
            f"submission {clean(token, 40)}{known} is with a service, but the record of its items "
            "was lost: its items may be submitted, and paid for, again. Once you have handled it, "
            f"{command('submissions', place, 'withdraw', token)} forgets it"
        )


def unanswered(submission: Submission, done: KeyTable) -> Submission:
    """The submission, with ``left`` set to those of its keys that are not completed since.

    Some are completed only if the record that settled it was lost, and keys that it had left undone
    were submitted again meanwhile.
    """
    lines = submission.lines.split(b"\n")
    missing = done.missing(lines)
    if len(missing) == len(lines):
        return submission
    texts = submission.fingerprints.split(b"\n") if submission.fingerprints else [b""] * len(lines)
    # A completed key with another fingerprint is to be done again, so it is still unanswered.
    left = [
        line
        for line, text in zip(lines, texts, strict=True)
        if (found := done.get(line)) is None or (text and found != from_text(text))
    ]
    return replace(submission, left=b"\n".join(left)) if len(left) < len(lines) else submission


def held_back(state: State, planner: Planner) -> list[Submission]:
    """The submissions with a service, whose items must not be planned, with their open keys.

    Two submissions can have a key in common if the record that withdrew one of them was lost; the
    first one keeps such a key.
    """
    found = []
    for each in state.out:
        each = unanswered(each, state.done)
        new = planner.out.hold(each.pending)
        found.append(each if len(new) == len(each.pending) else replace(each, left=new))
    return found


def record_of(transition: Transition, epoch: int, run: str) -> Commit:
    """The record of a transition, for the journal."""
    info = {"token": transition.token, **transition.info}
    if transition.kind == "withdrawn":
        info["settled"] = [transition.token]
    return Commit(
        kind=transition.kind,
        epoch=epoch,
        run=run,
        out=transition.lines,
        out_fingerprints=transition.fingerprints,
        info=info,
    )


def settling(info: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """The info of a commit that settles these submissions."""
    return {**info, "settled": list(tokens)} if tokens else dict(info)
