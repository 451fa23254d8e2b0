"""Batches that are with a service: the work that the committer's thread does for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import count
from resumable_tasks.errors import StoreError
from resumable_tasks.items.batch import Batch, Part
from resumable_tasks.items.keys import split
from resumable_tasks.items.plan import Planner
from resumable_tasks.items.submission import Submission, Transition
from resumable_tasks.runners.outcome import Rest

_LOOK_SECONDS = 0.2
_MOST_TOLD = 3


@dataclass(slots=True)
class Recording:
    """A transition in the queue of outcomes; its thread waits until it is durable."""

    transition: Transition
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def carry_out(self, record: Callable[[Transition], None]) -> None:
        """Make the transition durable. An error of ``record`` is raised in both threads."""
        try:
            record(self.transition)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.done.set()

    def wait(self, broken: Callable[[], BaseException | None]) -> None:
        """Wait until the transition is durable. Raises `StoreError` if that failed."""
        while not self.done.wait(_LOOK_SECONDS):
            if (why := broken()) is not None and not self.done.is_set():
                raise _unrecorded(why) from why
        if self.error is not None:
            raise _unrecorded(self.error) from self.error


def _unrecorded(error: BaseException) -> StoreError:
    return StoreError(
        f"a submission could not be recorded: {error}",
        safe="Nothing more was sent",
        remedy="Run the same command again",
    )


@frozen
class Rests:
    """A message in the queue of outcomes: this run need not wait for the batch.

    ``why``: the reason if the batch cannot go on without a person; empty if it is only waiting.
    """

    batch: Batch
    again_at: float
    why: str


class AtRest:
    """The batches that this run need not wait for."""

    def __init__(self) -> None:
        self._batches: dict[int, Rests] = {}

    def add(self, found: Rests) -> None:
        self._batches[found.batch.number] = found

    def remove(self, number: int) -> None:
        self._batches.pop(number, None)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def again_at(self) -> float | None:
        """When to look at the batches again; None if all of them need a person to act."""
        at = (each.again_at for each in self._batches.values() if not each.why)
        return min(at, default=None)

    @property
    def why(self) -> str:
        """The reason why the run ends, as text."""
        stuck = [each.why for each in self._batches.values() if each.why]
        told = [*dict.fromkeys(stuck)][:_MOST_TOLD]
        if len(stuck) < len(self):
            told.append(f"{count(len(self) - len(stuck), 'submission')} with the service")
        return "; ".join(told)


class ToSendAgain:
    """Submissions of earlier runs that are sent again under their tokens, with their items."""

    def __init__(self, planner: Planner, submissions: Sequence[Submission]) -> None:
        self._planner = planner
        self._waiting = list(submissions)

    def whole(self) -> list[Batch]:
        """Return the batches of the submissions whose items have all been read by now."""
        found = []
        for submission in list(self._waiting):
            items = self._planner.sent(submission.lines)
            if items is not None:
                self._waiting.remove(submission)
                found.append(replace(left_behind(self._planner, submission), items=items))
        return found

    def others(self) -> list[Batch]:
        """Return the batches of the other submissions, without items."""
        left, self._waiting = self._waiting, []
        return [left_behind(self._planner, submission) for submission in left]


def left_behind(planner: Planner, submission: Submission) -> Batch:
    """Return the batch of a submission that an earlier run left with the service."""
    from resumable_tasks.items import fingerprints, keys

    lines = submission.pending
    found = keys.parse_lines(lines)
    taken: list[int] = []
    if submission.fingerprints:
        texts = submission.fingerprints.split(b"\n")
        by_line = dict(zip(split(submission.lines), texts, strict=True))
        taken = [fingerprints.from_text(by_line[line]) for line in split(lines)]
    return Batch(
        planner.next_number(),
        found,
        lines,
        [None] * len(found),
        fingerprints=taken,
        submission=submission,
    )


def batches_of(rest: Rest, planner: Planner) -> list[Batch]:
    """Return batches of the items that a service left undone, as far as they have been read."""
    batch = rest.batch
    if batch.submission is not None:
        again = planner.again(list(rest.lines))
        return [] if again is None else [again]
    wanted = set(rest.lines)
    chosen = [at for at, line in enumerate(split(batch.lines)) if line in wanted]
    root = batch.number if batch.part_of is None else batch.part_of.root
    size = -(-len(chosen) // rest.parts)
    return [
        batch.choose(chosen[at : at + size], planner.next_number(), Part(root, None, rest.rounds))
        for at in range(0, len(chosen), size)
    ]
