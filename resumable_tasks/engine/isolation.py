"""Finds the bad items of a failed batch, by halves, single items, and items left out.

All functions are pure: batches and outcomes in, batches and outcomes out. A failure record carries
the error of a call with its item alone, or has ``error_of="batch"``; only a call with the item
alone counts as an attempt. Without isolation, each call with the batch counts as an attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, replace

from resumable_tasks.base.frozen import changing
from resumable_tasks.items.batch import Batch, Cause, ErrorKind, Part
from resumable_tasks.runners.outcome import Done, Failed, Failure

# The fractional parts of its multiples are spread evenly between 0 and 1, for any number of them.
_GOLDEN = (math.sqrt(5) - 1) / 2

Number = Callable[[], int]
"""Returns the number of the next new batch."""


@changing
class Tries:
    """The single items tried: their ``count`` so far, and the numbers of those still ``out``."""

    count: int
    out: set[int] = field(default_factory=set)

    def place(self, size: int) -> int:
        """Return the position in a batch of the next item to try.

        Positions are spread out, because bad items often come in a row, also at the beginning.
        """
        self.count += 1
        return int(self.count * _GOLDEN % 1.0 * size)


def root_of(batch: Batch) -> int:
    """Return the number of the planned batch that this batch is, or is a part of."""
    return batch.number if batch.part_of is None else batch.part_of.root


def was_alone(failed: Failed) -> bool:
    """True if the failed call was made with one item alone.

    The last remaining item of a batch whose other items were tried alone was not itself alone.
    """
    return len(failed.batch) == 1 and failed.failures[0].error_of == "item"


def parts(failed: Failed, number: Number) -> list[Batch]:
    """Return the halves of a failed batch, or its single item if that was not called alone."""
    batch, part = failed.batch, _part(failed)
    half = len(batch) // 2
    ranges = [(0, half), (half, len(batch))] if half else [(0, 1)]
    return [batch.slice(start, stop, number(), part) for start, stop in ranges]


def again(failed: Failed, number: Number) -> Batch:
    """Return the batch unchanged, to be handled again, because its items were not at fault."""
    part = Part(root_of(failed.batch), None)
    return replace(failed.batch, number=number(), part_of=part)


def was_again(batch: Batch) -> bool:
    """True if the batch was made by `again`."""
    return batch.part_of is not None and batch.part_of.error is None


def to_try(failed: Failed, number: Number, at: int, size: int) -> tuple[Batch, Failed | None]:
    """Split off ``size`` items from ``at`` on as a batch; return it and the rest of the failure."""
    batch, part = failed.batch, _part(failed)
    some = batch.slice(at, at + size, number(), part)
    if size == len(batch):
        return some, None
    left = [*range(at), *range(at + size, len(batch))]
    rest = batch.choose(left, batch.number, part)
    failures = tuple(failed.failures[each] for each in left)
    return some, replace(failed, batch=rest, failures=_of_the_batch(failures))


def left_out(done: Done, number: Number) -> tuple[Batch, Done | None] | None:
    """Return a batch of the items that the handler left out, and the rest of the outcome.

    Returns None if there are none, or if this batch already was such a second call. The rest is
    None if it has nothing to commit.
    """
    batch = done.batch
    part = batch.part_of
    if not done.left_out or (part and part.error and part.error.cause is Cause.LEFT_OUT):
        return None
    missing = {batch.keys[at] for at in done.left_out}
    kind = ErrorKind("MissingResult", Cause.LEFT_OUT)
    again = batch.choose(done.left_out, number(), Part(root_of(batch), kind))
    failures = tuple(failure for failure in done.failures if failure.key not in missing)
    if not done.completed and not failures:
        return again, None
    return again, replace(done, failures=failures, left_out=())


def as_two(outcome: Done | Failed) -> list[Done | Failed]:
    """Return the outcome, split in two if the call failed after it had returned rows."""
    if isinstance(outcome, Failed) or outcome.left_by is None:
        return [outcome]
    batch = outcome.batch
    missing = {batch.keys[at] for at in outcome.left_out}
    left = batch.choose(outcome.left_out, batch.number, batch.part_of)
    others = tuple(each for each in outcome.failures if each.key not in missing)
    of_left = tuple(each for each in outcome.failures if each.key in missing)
    done = replace(outcome, failures=others, left_out=(), left_by=None)
    return [done, Failed(left, outcome.left_by, of_left, times=outcome.times)]


def final_failures(outcome: Done | Failed, *, isolate: bool) -> tuple[Failure, ...]:
    """Return the failures of an outcome that will not be handled again.

    Excludes batches that will be halved and items to be asked for once more. Includes failures
    during an outage, because only the engine recognises one.
    """
    if isinstance(outcome, Failed):
        open_yet = outcome.error.cause is Cause.STOPPED or (isolate and not was_alone(outcome))
        return () if open_yet else outcome.failures
    if (found := left_out(outcome, lambda: 0)) is None:
        return outcome.failures
    return found[1].failures if found[1] is not None else ()


def settled(failed: Failed, *, isolate: bool, counted: bool = True) -> Done:
    """Return the outcome to record for a failed batch: all its items have failed.

    ``counted``: the call counts as an attempt, because nothing but the items was at fault.
    """
    done = failed.settled()
    alone = was_alone(failed)
    if alone and counted:
        return done
    found = failed.failures if alone else _of_the_batch(failed.failures)
    if isolate or not counted:  # the items themselves were not tried
        found = tuple(replace(failure, attempts=0) for failure in found)
    return replace(done, failures=found)


def _part(failed: Failed) -> Part:
    return Part(root_of(failed.batch), failed.error)


def _of_the_batch(failures: tuple[Failure, ...]) -> tuple[Failure, ...]:
    return tuple(replace(failure, error_of="batch") for failure in failures)
