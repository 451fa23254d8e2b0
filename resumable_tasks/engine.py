"""The only loop: batches out to the runner, outcomes in, one committer.

::

    caller's thread    plan → wait for room → submit
    runner's threads   handler → rows matched to keys → outcome
    committer thread   all outcomes that wait → one shard, one record → events

Group commit comes by itself: while one commit is flushed, finished batches queue, and the next
commit takes them all. How many batches may be out at once (submitted and not yet committed) is
bounded, which bounds both memory and what a crash costs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextvars import copy_context
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from resumable_tasks import failures, keys, log
from resumable_tasks.checkpoint import Checkpoint
from resumable_tasks.errors import CommitStateUnknown, ResultConflict
from resumable_tasks.events import Committed, Listeners, Progress, Stopping
from resumable_tasks.model import Commit, Failure, Outcome
from resumable_tasks.plan import Planner
from resumable_tasks.runners.base import Runner, Work

if TYPE_CHECKING:
    import pyarrow as pa

# How many batches are out beyond 2 × concurrency if they cost almost nothing: as many as are
# handled in this time, about that of two commits, so that handlers need not wait for the disk;
# and no more than these many, or this many bytes of shards.
_CHEAP_SECONDS = 0.008
_CHEAP_BATCHES = 256
_CHEAP_BYTES = 16_000_000
_POLL_SECONDS = 0.05
_ABANDON_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _StopRequest:
    """In the queue of outcomes, whose ``put`` may be called in a signal handler."""

    reason: str
    at_once: bool


class Engine:
    """One run: counts, the window, the committer. ``run`` is called once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        planner: Planner,
        runner: Runner,
        work: Work,
        listeners: Listeners,
        *,
        expected: int | None,
        fail_fast: bool,
        grace_seconds: float,
    ) -> None:
        self._checkpoint = checkpoint
        self._planner = planner
        self._runner = runner
        self._work = work
        self._listeners = listeners
        self._expected = expected
        self._fail_fast = fail_fast
        self._grace_seconds = grace_seconds
        self._queue: SimpleQueue[Outcome | _StopRequest | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._room = threading.Condition()
        self._out = 0
        self._limit = runner.window
        self._began = time.monotonic()
        self._deadline: float | None = None
        self._broken: BaseException | None = None
        self._handled = 0
        self._handler_seconds = 0.0
        self._shard_bytes = 0
        self.completed = 0
        self.failures: list[Failure] = []
        self.interrupted: str | None = None
        self.failed_fast = False
        self.abandoned = 0

    def run(self, items: Iterable[Any]) -> None:
        """Handle and commit all batches of these items, or as many as there is time for.

        Raises what the items raise, what a commit raises, and what is fatal in a handler; all
        that had finished by then is committed first, as far as it can be.
        """
        self._began = time.monotonic()
        committer = threading.Thread(
            target=copy_context().run,
            args=(self._commit_all,),
            name="resumable-commit",
            daemon=True,
        )
        self._runner.start(self._work, self._queue.put, self._stopping)
        committer.start()
        drained = False
        try:
            for batch in self._planner.batches(items):
                if not self._wait_for_room():
                    break
                self._runner.submit(batch)
            drained = self._drain()
        except Exception:  # the items' own, or what is wrong with them
            drained = self._drain()
            raise
        finally:
            self.abandoned = 0 if drained else self._out
            self._stopping.set()
            self._runner.close(abandon=not drained)
            self._queue.put(None)
            committer.join(None if drained else _ABANDON_SECONDS)
        if committer.is_alive():
            raise CommitStateUnknown(
                f"the disk of {self._checkpoint.store.url} does not answer; whether the last "
                "commit has landed, the next run finds out. Run the same command again"
            )
        if self._broken is not None:
            raise self._broken

    @property
    def stopping(self) -> bool:
        """Whether the run takes no more items."""
        return self._stopping.is_set()

    def request_stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the run to stop: soon, or at once, which leaves running batches alone.

        Safe in a signal handler and in any thread.
        """
        self._queue.put(_StopRequest(reason, at_once))

    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(
            self.completed,
            len(self.failures),
            self._planner.skipped,
            self._expected,
            time.monotonic() - self._began,
        )

    def _wait_for_room(self) -> bool:
        """Wait until one more batch may be out; False if none may any more."""
        with self._room:
            while self._out >= self._limit:
                if self._stopping.is_set():
                    return False
                self._room.wait(_POLL_SECONDS)
            if self._stopping.is_set():
                return False
            self._out += 1
            return True

    def _drain(self) -> bool:
        """Wait until nothing is out; False if the grace is over before, or commits have failed."""
        with self._room:
            while self._out and self._broken is None:
                if self._deadline is not None and time.monotonic() > self._deadline:
                    return False
                self._room.wait(_POLL_SECONDS)
        return self._broken is None

    def _commit_all(self) -> None:
        """The committer's thread."""
        try:
            while (group := self._next_group()) is not None:
                self._commit(group)
                with self._room:
                    self._out -= len(group)
                    self._room.notify()
        except BaseException as error:  # noqa: BLE001 - raised by run(), in the caller's thread
            self._broken = error
            self._stopping.set()
            with self._room:
                self._room.notify()

    def _next_group(self) -> list[Outcome] | None:
        """The outcomes that wait, at least one; None at the end of the run."""
        group: list[Outcome] = []
        while True:
            try:
                found = self._queue.get(block=not group)
            except Empty:
                return group
            if isinstance(found, Outcome):
                group.append(found)
            elif isinstance(found, _StopRequest):
                self._stop(found.reason, 0.0 if found.at_once else self._grace_seconds)
            elif group:
                self._queue.put(None)  # again, for the next call
                return group
            else:
                return None

    def _stop(self, reason: str, grace_seconds: float) -> None:
        self.interrupted = reason
        self._deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        log.warning(
            "%s: stopping; batches that run have %g seconds to finish (again: stop at once)",
            reason,
            grace_seconds,
        )
        self.tell(Stopping, reason=reason, running=self._out)

    def _commit(self, group: list[Outcome]) -> None:
        schema = None
        accepted: list[Outcome] = []
        fatal: BaseException | None = None
        for outcome in group:
            fatal = fatal or outcome.fatal
            if outcome.dropped and not self._stopping.is_set():
                # Nobody here has asked for it; but a batch that was not handled is not done.
                self._stop("the orchestrator", self._grace_seconds)
            if not outcome.dropped and outcome.fatal is None:
                outcome, schema = self._accept(outcome, schema, accepted)
                accepted.append(outcome)
        if accepted:
            prints = self._planner.fingerprints
            commit = self._checkpoint.commit(accepted, schema, prints)
            # Not all that is in the record: items done anew bring others with them.
            completed = sum(outcome.completed for outcome in accepted)
            failed = tuple(failure for outcome in accepted for failure in outcome.failures)
            for outcome in accepted if prints else ():
                for line in keys.split(outcome.done):
                    prints.pop(line, None)
            self.completed += completed
            self.failures.extend(failed)
            self._widen(accepted, commit)
            if failed and self._fail_fast:
                self.failed_fast = True
                self._stopping.set()
            self.tell(
                Committed,
                number=commit.number,
                completed=completed,
                rows=sum(shard.rows for shard in commit.shards),
                bytes=sum(shard.bytes for shard in commit.shards),
                failures=failed,
                progress=self.progress(),
            )
        if fatal is not None:
            raise fatal

    def _accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: list[Outcome]
    ) -> tuple[Outcome, pa.Schema | None]:
        """The outcome as it can be committed: a conflict of types makes it a failed one."""
        try:
            schema = self._checkpoint.accept(outcome, schema, pending)
        except ResultConflict as error:
            failed = failures.whole_batch(outcome.batch, error, 1)
            outcome = Outcome(outcome.batch, failures=failed, seconds=outcome.seconds)
        if outcome.failures:
            earlier = self._checkpoint.state.failures
            counted = failures.add_earlier_attempts(outcome.failures, earlier)
            outcome = replace(outcome, failures=counted)
        return outcome, schema

    def _widen(self, outcomes: list[Outcome], commit: Commit) -> None:
        """Let more batches be out while they cost next to nothing: commits are then the cost."""
        self._handled += len(outcomes)
        self._handler_seconds += sum(outcome.seconds for outcome in outcomes)
        self._shard_bytes += sum(shard.bytes for shard in commit.shards)
        cheap = min(
            _CHEAP_BATCHES,
            self._runner.concurrency
            * _CHEAP_SECONDS
            * self._handled
            / max(self._handler_seconds, 1e-9),
            _CHEAP_BYTES * self._handled / max(self._shard_bytes, 1),
        )
        self._limit = max(self._runner.window, int(cheap))

    def tell(self, kind: Any, **fields: Any) -> None:
        """Tell the listeners an event of this run."""
        checkpoint = self._checkpoint
        self._listeners.tell(
            kind(
                job=checkpoint.manifest.job,
                checkpoint=checkpoint.store.url,
                run=checkpoint.run,
                **fields,
            )
        )
