"""The life of one submission: intended, prepared, submitted, collected. Uses no threads.

`Life.steps` yields its pauses and receives whether the run stops meanwhile. It calls the service
and the journal directly. Their order is what makes it safe:

* nothing is sent before the intent is durable, and nothing is polled before the handle is durable;
* if a request was sent without an answer, by this run or an earlier one, the service is *searched*
  for it before the items are sent again, for as long as the service may hide it (``patience``);
* an earlier run may be suspended just before it sends. Either the service is told to refuse that
  (``fence``), or nobody sends under an intent older than `LEASE_SECONDS` and the search lasts
  longer than that. This compares no clocks of two machines.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from resumable_tasks.base import log
from resumable_tasks.base.boottime import boottime
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.base.text import clean, command, count, duration
from resumable_tasks.base.token import token
from resumable_tasks.items import fingerprints, keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.submission import Submission, Transition, TransitionKind
from resumable_tasks.runners.bound import Trail
from resumable_tasks.runners.groups import message_of, name_of
from resumable_tasks.runners.handle import Work, failed_whole
from resumable_tasks.runners.http_signs import is_throttling, looks_like_an_outage, seconds_told
from resumable_tasks.runners.outcome import SERVICE, Done, Dropped, Fatal, Outcome, Rest
from resumable_tasks.runners.submitted.calls import Calls
from resumable_tasks.runners.submitted.check import as_json, check_pending
from resumable_tasks.runners.submitted.protocol import (
    CannotTell,
    Ended,
    NotAccepted,
    NotReady,
    QueueFull,
)
from resumable_tasks.runners.submitted.results import answer_of
from resumable_tasks.runners.usage import Load

T = TypeVar("T")

LEASE_SECONDS = 60.0
PATIENCE_SECONDS, REQUEST_SECONDS = 120.0, 600.0
# The pauses between two polls grow from the first to the last.
_FIRST_PAUSE, _LAST_PAUSE, _GROWTH = 1.0, 300.0, 1.5
_LONGEST_LOOK = 15.0
# A run that does not wait should look again after this part of the submission's age.
_SHARE_OF_AGE, _FIRST_LOOK, _LAST_LOOK = 0.2, 60.0, 1_800.0
# How long a service may not know a submission, and how long its results may be missing.
_UNKNOWN_SECONDS, _NOT_READY_SECONDS = 900.0, 3_600.0
# How often items are submitted in one run; how many submissions in a row may return nothing.
ROUNDS, FRUITLESS = 3, 2


@dataclass(frozen=True, slots=True)
class Pause:
    """A life waits for ``seconds``.

    ``look_in``: set if it waits for the service and everything is in the journal, so that the
    process may end; another run should look again after so many seconds. ``why``: set if it cannot
    go on and waits for the end of the run.
    """

    seconds: float
    look_in: float | None = None
    why: str = ""


@dataclass
class Shared:
    """The state that the submissions of one run share.

    ``record`` makes a transition durable. ``price`` returns the expected cost of a batch. ``ask``:
    if a submission's fate is unknown and the service cannot be searched, a person decides.
    ``place``: the checkpoint's URL. ``fruitless`` counts the submissions in a row that returned
    nothing. ``out``: since when the service has each submission, by token.
    """

    work: Work
    calls: Calls
    record: Callable[[Transition], None]
    price: Callable[[Batch], float | None]
    ask: bool
    stopping: Stopping
    place: str
    fruitless: int = 0
    out: dict[str, float] = field(default_factory=dict)


class Stopped(Exception):
    """The run gives up a submission and leaves it as it is. ``why``: the reason, "" for a stop."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


class Pauses:
    """Growing pauses."""

    def __init__(self, longest: float = _LAST_PAUSE) -> None:
        self._longest = longest
        self._next = _FIRST_PAUSE
        self.began = boottime()

    def next(self) -> float:
        """Return the next pause in seconds."""
        pause, self._next = self._next, min(self._longest, self._next * _GROWTH)
        return pause

    @property
    def seconds(self) -> float:
        """How long ago these pauses began."""
        return boottime() - self.began


Steps = Generator[Pause, bool, T]
"""A generator that yields pauses and receives whether the run stops."""


class Life:
    """The life of one batch with a service, continued from where an earlier run left it."""

    def __init__(self, shared: Shared, batch: Batch) -> None:
        self._shared = shared
        self._batch = batch
        self._calls = shared.calls
        self._trail = Trail()
        # How often these items were submitted in this run.
        self._rounds = 0 if batch.part_of is None else batch.part_of.rounds
        # The time just before the intent was made by this run, or just after it was read.
        self._since = boottime()
        # When it was made. For an earlier run's, by that process's wall clock, so this time is used
        # for pauses only.
        self._intended = self._since - _age(batch.submission)
        # Since when nothing works, and since when nothing is accepted.
        self._trouble: Pauses | None = None
        self._refusals: Pauses | None = None

    def steps(self) -> Steps[Outcome]:
        """Carry out all steps; return the outcome. Raises the errors of ``record``."""
        if self._shared.work.trails is not None:
            self._shared.work.trails[self._batch.number] = self._trail
        return self._trail.told_in((yield from self._steps()))

    def _steps(self) -> Steps[Outcome]:
        found = self._batch.submission
        try:
            while True:
                result = yield from self._submission(found)
                if isinstance(result, Submission):
                    result = yield from self._answer(result)
                if result is not None:
                    return result
                if found is not None:  # its items may not have been read yet
                    return self._rest(tuple(keys.split(self._batch.lines)))
        except Stopped as stopped:
            if stopped.why:  # other submissions can go on
                log.warning("%s", stopped.why)
                while not (yield Pause(_LAST_PAUSE, why=stopped.why)):
                    pass
            return Dropped(self._batch)

    def _submission(self, found: Submission | None) -> Steps[Submission | Outcome | None]:
        if found is None:
            return (yield from self._send())
        return found if found.handle is not None else (yield from self._look_for(found, None))

    # --- sending

    def _send(self) -> Steps[Submission | Outcome | None]:
        """Submit the batch; return None to begin again from the start."""
        self._check_worth_it()
        self._enter_limits()
        self._since = self._intended = boottime()
        submission = self._intend()
        if submission.prepares:
            made, batch = submission.token, self._batch
            try:
                prepared = self._calls.call("prepare", batch.items, made, batch=batch)
            except NotAccepted as refused:
                return (yield from self._refused(submission, refused))
            except Exception as error:  # noqa: BLE001 - nothing was started
                return (yield from self._failed_before(submission, error))
            submission = self._prepared(submission, prepared)
        return (yield from self._submit(submission))

    def _submit(self, submission: Submission) -> Steps[Submission | Outcome | None]:
        fault_point("submission.sending")
        if boottime() - self._since > self._lease:
            self._withdraw(submission, "prepared too long ago to be sent safely")
            return None
        items, token_ = self._batch.items, submission.token
        try:
            handle = self._calls.call(
                "submit", items, token_, maybe=submission.prepared, batch=self._batch
            )
        except NotAccepted as refused:
            return (yield from self._refused(submission, refused))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service may have begun
            log.warning(
                "submission %s: %s; checking whether the service has it", token_, _told(error)
            )
            found = yield from self._look_for(submission, error)
            if found is None and not is_of_the_service(error):
                return failed_whole(self._shared.work, self._batch, error, 1)
            return found
        fault_point("submission.sent")
        return self._has(submission, handle, "sent")

    @property
    def _lease(self) -> float:
        known = LEASE_SECONDS if self._calls.has("find") else self._calls.idempotent_for
        return min(LEASE_SECONDS, known or LEASE_SECONDS)

    def _check_worth_it(self) -> None:
        shared = self._shared
        if shared.fruitless >= FRUITLESS:
            raise Stopped(f"{FRUITLESS} submissions in a row returned no results")
        if self._rounds >= max(ROUNDS, 1 + shared.work.retry.times):
            raise Stopped(f"some items are still not done after {self._rounds} submissions")
        self._rounds += 1

    def _enter_limits(self) -> None:
        limits, batch = self._shared.work.limits, self._batch
        if limits is None:
            return
        entry = limits.enter(Load.of(batch), self._shared.stopping, {})
        if entry is None:
            raise Stopped
        limits.leave(entry, None)

    def _intend(self) -> Submission:
        batch, made = self._batch, token(8)
        cost = self._shared.price(batch)
        taken = b"\n".join(map(fingerprints.to_text, batch.fingerprints))
        prepares = self._calls.has("prepare")
        info = {"expected_cost": cost, "prepares": prepares or None}
        self._record("submitting", made, info, batch.lines, taken)
        fault_point("submission.submitting")
        return Submission(made, batch.lines, len(batch), taken, cost=cost, prepares=prepares)

    def _prepared(self, submission: Submission, prepared: Any) -> Submission:
        prepared = as_json("prepare", prepared)
        # Nothing is sent without this record; with it, the submission may have been sent. So the
        # lease begins here.
        self._since = boottime()
        self._record("prepared", submission.token, {"prepared": prepared})
        fault_point("submission.prepared")
        return replace(submission, prepared=prepared)

    def _has(self, submission: Submission, handle: Any, by: str) -> Submission:
        """Record that the service has the submission, under this handle."""
        handle = as_json("find" if by == "found" else "submit", handle)
        self._record("submitted", submission.token, {"handle": handle, "by": by})
        fault_point("submission.submitted")
        self._trouble = None
        return replace(submission, handle=handle, by=by)

    def _refused(self, submission: Submission, refused: NotAccepted) -> Steps[Outcome | None]:
        """Withdraw a submission that was certainly refused: retry it later, halve it, or fail."""
        batch, shared = self._batch, self._shared
        self._withdraw(submission, _told(refused))
        self._rounds -= 1
        if batch.submission is not None:
            return None  # the batch has no items here
        if not refused.again:
            return failed_whole(shared.work, batch, refused, 1)
        if isinstance(refused, QueueFull) and shared.out:
            pause = refused.retry_after or _LONGEST_LOOK
            yield from self._pause(pause, refused.retry_after or _FIRST_LOOK)
            return None
        if isinstance(refused, QueueFull) and len(batch) > 1:
            log.warning("%s; submitting half as many items at once", _told(refused))
            return self._rest(tuple(keys.split(batch.lines)), 2)
        self._refusals = self._refusals or Pauses()
        yield from self._endured(self._refusals, refused, refused.retry_after)
        return None

    def _failed_before(self, submission: Submission, error: Exception) -> Steps[Outcome | None]:
        self._withdraw(submission, _told(error))
        self._rounds -= 1
        if not is_of_the_service(error):
            return failed_whole(self._shared.work, self._batch, error, 1)
        yield from self._wait_for_the_service(error)
        return None

    # --- looking for what may have been sent

    def _look_for(
        self, submission: Submission, error: Exception | None
    ) -> Steps[Submission | Outcome | None]:
        """Find out whether the service has the submission; return None if it was withdrawn.

        ``error``: how this run's own call failed; None for a submission of an earlier run.
        """
        calls = self._calls
        if error is None and submission.prepares and submission.prepared is None:
            self._withdraw(submission, "not prepared, so not sent")
            return None
        if not calls.has("find"):
            return (yield from self._without_looking(submission, error))
        found = yield from self._find(submission)
        if found is None:
            if calls.has("fence"):
                yield from self._of_the_service("fence", submission)
            elif error is None:
                timeout = calls.seconds("request_timeout", REQUEST_SECONDS)
                yield from self._pause(self._since + LEASE_SECONDS + timeout - boottime())
            found = yield from self._look_again(submission)
        if found is None:
            self._withdraw(submission, "the service does not have it")
            return None
        return self._has(submission, found, "found")

    def _look_again(self, submission: Submission) -> Steps[Any]:
        """Search for as long as the service may hide the submission."""
        pauses = Pauses(_LONGEST_LOOK)
        patience = self._calls.seconds("patience", PATIENCE_SECONDS)
        while (left := patience - pauses.seconds) > 0:
            yield from self._pause(min(left, pauses.next()))
            found = yield from self._find(submission)
            if found is not None:
                return found
        return None

    def _find(self, submission: Submission) -> Steps[Any]:
        """Return the handle of the submission; None if the service does not have it."""
        pauses = Pauses()
        while True:
            try:
                return (yield from self._of_the_service("find", submission))
            except CannotTell as undecided:
                log.info("submission %s: %s", submission.token, _told(undecided))
            yield from self._pause(pauses.next(), self._look_in)

    def _without_looking(
        self, submission: Submission, error: Exception | None
    ) -> Steps[Submission | Outcome | None]:
        """Settle a submission of a service without `find`.

        It is sent again under its token if the service recognises that; otherwise it is withdrawn,
        or a person must decide.
        """
        given = (self._batch.items, submission.token)
        while self._may_repeat(submission, error):
            try:
                handle = self._calls.call(
                    "submit", *given, maybe=submission.prepared, batch=self._batch
                )
            except NotAccepted as refused:  # of this request; the first may have been accepted
                log.warning("submission %s: %s", submission.token, _told(refused))
                if not refused.again:
                    break
                yield from self._wait_for_the_service(refused)
            except Exception as again:
                if not is_of_the_service(again):
                    raise
                yield from self._wait_for_the_service(again)
            else:
                return self._has(submission, handle, "sent")
        if self._shared.ask:
            raise Stopped(
                f"it is unknown whether the service has submission {submission.token}, and it "
                "cannot be looked up automatically. Check at the service: if it has it, run "
                f"{self._command('attach', submission, 'HANDLE')}; if not, "
                f"{self._command('withdraw', submission)}"
            )
        self._withdraw(submission, "state unknown; to be submitted again")
        return None

    def _may_repeat(self, submission: Submission, error: Exception | None) -> bool:
        """True if the service recognises a repeated `submit` under the same token."""
        if error is None:
            known = self._batch.items
            here = not isinstance(known, list) or (bool(known) and known[0] is not None)
            return here and may_be_sent_again(self._calls, submission)
        return boottime() - self._since < self._calls.idempotent_for

    def _of_the_service(self, method: str, submission: Submission) -> Steps[Any]:
        """Call a method with the token and ``prepared``; wait while the service is down."""
        while True:
            try:
                returned = self._calls.call(method, submission.token, maybe=submission.prepared)
            except (CannotTell, NotAccepted):
                raise
            except Exception as error:
                if not is_of_the_service(error):
                    raise
                yield from self._wait_for_the_service(error)
            else:
                self._trouble = None
                return returned

    # --- the answer

    def _answer(self, submission: Submission) -> Steps[Outcome | None]:
        """Wait for the end of the submission and collect it; return None to send it again."""
        out = self._shared.out
        out[submission.token] = self._intended
        self._trail.enter(SERVICE)
        try:
            try:
                yield from self._end_of(submission)
            finally:
                self._trail.leave()
            return (yield from self._collected(submission))
        except NotAccepted as refused:
            out.pop(submission.token, None)
            return (yield from self._refused(submission, refused))
        except (Stopped, GeneratorExit):
            raise
        except Exception as error:  # noqa: BLE001 - a bug; paid results stay with the service
            log.error(
                "submission %s stays with the service: %s. Its results can be collected later",
                *(submission.token, _told(error)),
            )
            return Fatal(self._batch, error)
        finally:
            out.pop(submission.token, None)

    def _end_of(self, submission: Submission) -> Steps[None]:
        pauses, unknown, cancelled = Pauses(), Pauses(), False
        while True:
            again_in = None
            try:
                state = self._calls.call("poll", submission.handle)
                unknown, self._trouble = Pauses(), None
                if isinstance(state, Ended):
                    return
                check_pending(state)
                again_in = state.again_in
                cancelled = cancelled or self._cancel_if_overdue(submission)
            except NotReady as error:
                if unknown.seconds > _UNKNOWN_SECONDS:
                    raise Stopped(
                        f"the service does not know submission {submission.token} "
                        f"({submission.handle}): {_told(error)}"
                    ) from error
                log.info("submission %s: %s", submission.token, _told(error))
            except Exception as error:
                if not is_of_the_service(error):
                    raise
                yield from self._wait_for_the_service(error)
                continue
            yield from self._pause(again_in or pauses.next(), again_in or self._look_in)

    def _cancel_if_overdue(self, submission: Submission) -> bool:
        """Cancel the submission after the job's timeout; return True if it was cancelled.

        Results that are finished by then are collected.
        """
        timeout = self._shared.work.timeout
        if timeout is None or self._age < timeout or not self._calls.has("cancel"):
            return False
        log.warning("submission %s: cancelled after timeout=%g s", submission.token, timeout)
        self._calls.call("cancel", submission.handle)
        return True

    def _collected(self, submission: Submission) -> Steps[Outcome]:
        shared, batch, pauses = self._shared, self._batch, Pauses()
        found = keys.parse_lines(submission.lines)

        def collect() -> Any:
            return self._calls.call("collect", submission.handle, maybe=found)

        while True:
            try:
                fault_point("submission.ended")
                asked = max(1, self._rounds)
                answer = answer_of(shared.work, batch, submission, collect, asked)
                fault_point("submission.collected")
                break
            except NotReady as error:
                if pauses.seconds > _NOT_READY_SECONDS:
                    raise Stopped(
                        f"submission {submission.token} ({submission.handle}) has ended, but its "
                        f"results are not there: {_told(error)}. To submit its items again, and "
                        f"pay again: {self._command('withdraw', submission, '--yes')}"
                    ) from error
                yield from self._pause(pauses.next(), self._look_in)
            except NotAccepted:
                raise
            except Exception as error:
                if not is_of_the_service(error):
                    raise
                yield from self._wait_for_the_service(error)
        self._trouble = self._refusals = None
        fruitless = bool(answer.again) and not answer.done.completed
        shared.fruitless = shared.fruitless + 1 if fruitless else 0
        if answer.again:
            log.warning(
                "submission %s: %s to be submitted again%s",
                submission.token,
                count(len(answer.again), "item"),
                f": {clean(answer.why, 200)}" if answer.why else "",
            )
        rest = Rest(batch, answer.again, rounds=self._rounds) if answer.again else None
        return replace(answer.done, settles=submission.token, rest=rest)

    # --- helpers

    def _rest(self, lines: tuple[bytes, ...], parts: int = 1) -> Done:
        return Done(self._batch, rest=Rest(self._batch, lines, parts, self._rounds))

    @property
    def _age(self) -> float:
        """Seconds since the intent."""
        return boottime() - self._intended

    @property
    def _look_in(self) -> float:
        """The seconds after which another process should look again."""
        return min(_LAST_LOOK, max(_FIRST_LOOK, _SHARE_OF_AGE * self._age))

    def _pause(self, seconds: float, look_in: float | None = None) -> Steps[None]:
        if (yield Pause(max(0.0, seconds), look_in)):
            raise Stopped

    def _wait_for_the_service(self, error: Exception) -> Steps[None]:
        self._trouble = self._trouble or Pauses()
        yield from self._endured(self._trouble, error, seconds_told(error))

    def _endured(self, pauses: Pauses, error: Exception, told: float | None) -> Steps[None]:
        """Pause, longer each time. Raises `Stopped` after the patience of the retry policy."""
        if pauses.seconds > self._shared.work.retry.patience:
            what = f"nothing has worked for {duration(pauses.seconds)} (last: {_told(error)})"
            raise Stopped(what)
        pause = told if told is not None else pauses.next()
        yield from self._pause(pause, max(pause, _FIRST_LOOK))

    def _record(
        self,
        kind: TransitionKind,
        made: str,
        info: dict[str, Any],
        lines: bytes = b"",
        taken: bytes = b"",
    ) -> None:
        info = {name: value for name, value in info.items() if value is not None}
        self._shared.record(Transition(kind, made, info, lines, taken))

    def _command(self, what: str, submission: Submission, *more: str) -> str:
        return command("submissions", self._shared.place, what, submission.token, *more)

    def _withdraw(self, submission: Submission, why: str) -> None:
        self._record("withdrawn", submission.token, {"why": clean(why, 300)})
        fault_point("submission.withdrawn")


def may_be_sent_again(calls: Calls, submission: Submission) -> bool:
    """True if a submission of an earlier run can simply be sent again, without `find`.

    The service counts from the sending, which was after the intent. The two times come from the
    clocks of two runs, so this is inexact by their difference.
    """
    if submission.handle is not None or calls.has("find") or not submission.time:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(submission.time)
    return abs(age.total_seconds()) < calls.idempotent_for


def is_of_the_service(error: BaseException) -> bool:
    """True if the same call may succeed later: the service was down, or called too often."""
    return looks_like_an_outage(error) or is_throttling(error)


def _age(submission: Submission | None) -> float:
    """Return the seconds since the intent of an earlier run's submission; 0 if unknown."""
    if submission is None:
        return 0.0
    try:
        made = datetime.fromisoformat(submission.time)
        return max(0.0, (datetime.now(UTC) - made).total_seconds())
    except (ValueError, TypeError):  # not a time, or one without an offset
        return 0.0


def _told(error: BaseException) -> str:
    return f"{name_of(error)}: {message_of(error)}"
