"""The worker's side of batches as task runs in other processes; see `remote`, the driver's side."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from contextvars import copy_context
from dataclasses import replace
from hashlib import blake2b
from types import FrameType

import cloudpickle
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed

from resumable_tasks.base import log, signals
from resumable_tasks.checkpoint.directory.manifest import NAME as MANIFEST
from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.errors import UsageError, WorkerLost
from resumable_tasks.items.batch import Batch
from resumable_tasks.prefect.silence import beating
from resumable_tasks.prefect.task_runs import Tally, begin
from resumable_tasks.prefect.workorder import WorkOrder
from resumable_tasks.runners.base import is_coroutine_function
from resumable_tasks.runners.eventloop import EventLoop, aexecute
from resumable_tasks.runners.handle import Work, execute, failed_whole
from resumable_tasks.runners.outcome import Dropped, Outcome
from resumable_tasks.runners.pickling import HandlerReference, contain

_POLL_SECONDS = 1.0


class Withdrawn:
    """A `Stopping` signal, set once the driver no longer wants this task run."""

    def __init__(self, outbox: Outbox, task_run: int) -> None:
        self._outbox = outbox
        self._task_run = task_run

    def is_set(self) -> bool:
        """True if the outbox says that the driver no longer wants this task run."""
        return not self._outbox.expects(self._task_run)

    def wait(self, seconds: float, /) -> bool:
        """Wait for this long, or until it is set. Returns whether it is."""
        until = time.monotonic() + seconds
        while not self.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _POLL_SECONDS))
        return True


def handle_group(order: WorkOrder) -> State[None]:
    """The task's function.

    Begins each batch only while the driver wants it, and makes its outcome durable before the next.
    Only one worker begins a task run. If a scheduler reruns it because the worker has died, it does
    nothing: the driver decides which batches are handled again, and how.
    """
    begin()
    _leave_signals_to_the_driver()
    outbox: Outbox = cloudpickle.loads(order.outbox)
    number = order.name[1]
    withdrawn = Withdrawn(outbox, number)
    held = None if withdrawn.is_set() else _by_handle(order)
    if held is None:
        return _not_begun(outbox)
    if not held.begin(number):
        if {sent[0] for sent in order.batches} <= held.numbers():
            return Completed(message="already done by a worker that was lost")
        raise WorkerLost("the worker that had started this task run was lost")
    with beating(held, number):
        return _handle_all(order, held, withdrawn)


_asked = 0


def _leave_signals_to_the_driver() -> None:
    """In a process of a pool, leave a task run's first signal to the driver, and end at a second.

    A terminal sends Ctrl-C to all processes, as does Prefect's worker (3.9) the SIGTERM of a
    cancel. It would end the batch; and a ``KeyboardInterrupt`` from a process would end Prefect's
    thread for the pool, so that the program would wait for its processes forever.
    """
    global _asked
    of_pool = multiprocessing.parent_process() is not None
    if not of_pool or threading.current_thread() is not threading.main_thread():
        return
    _asked = 0
    for number, defaults in signals.DEFAULTS.items():
        if signal.getsignal(number) in defaults:
            signal.signal(number, _leave_to_the_driver)
    # Processes forked from here, such as those of a ``multiprocessing.Pool``, have another driver.
    if _use_defaults not in signals.in_forked_child:
        signals.in_forked_child.append(_use_defaults)


def _leave_to_the_driver(_number: int, _frame: FrameType | None) -> None:
    global _asked
    _asked += 1
    driver = multiprocessing.parent_process()
    if _asked > 1 or driver is None or not driver.is_alive():
        os._exit(1)


def _use_defaults() -> None:
    for number, defaults in signals.DEFAULTS.items():
        if signal.getsignal(number) is _leave_to_the_driver:
            signal.signal(number, defaults[0])


def _handle_all(order: WorkOrder, outbox: Outbox, withdrawn: Withdrawn) -> State[None]:
    work = _work(order.work)
    if isinstance(work.writer, ShardWriter):
        work = replace(work, writer=replace(work.writer, store=outbox.store))
    tally = Tally(work.isolate)
    while order.batches:
        if withdrawn.is_set():
            log.warning("the run has been stopped or taken over; batches not yet started are left")
            break
        # Removed from the order, so that nothing keeps it in memory once it is done.
        of, keys, lines, items, part, trace = order.batches.pop(0)
        part_of, weights = cloudpickle.loads(part)
        batch = Batch(of, keys, lines, items, part_of, trace=trace, weights=weights)
        outcome = contain(work, _handle(work, batch, withdrawn))
        if isinstance(outcome, Dropped):
            break
        outbox.put(outcome)
        tally.add(outcome)
    order.empty()
    return tally.state()


def _by_handle(order: WorkOrder) -> Outbox | None:
    """The outbox through a handle of its checkpoint; None if its path has another one by now.

    A reset, restart or move may give the path to another checkpoint during a batch. Through the
    handle, this task run still writes to its own checkpoint. `Withdrawn` uses the path.
    """
    held: Outbox = cloudpickle.loads(order.outbox)
    disk.prepare(held.store, ())
    return held if held.is_open() else None


def _not_begun(outbox: Outbox) -> State[None]:
    if MANIFEST not in outbox.store.list(""):
        raise UsageError(
            f"the checkpoint {outbox.store.url} does not exist on host {os.uname().nodename}: it "
            "must be on a path that the driver and all workers share",
            remedy="Name a folder that is mounted on all of them, or a bucket",
        )
    return Cancelled(
        message=f"Nothing was started: as seen from host {os.uname().nodename}, the run of "
        f"{outbox.store.url} has been stopped, or another run has taken over"
    )


def _handle(work: Work, sent: Batch, withdrawn: Withdrawn) -> Outcome:
    try:
        batch = replace(sent, items=cloudpickle.loads(sent.items))
    except (ImportError, AttributeError) as error:
        raise _not_loaded("items", error) from error
    except Exception as error:  # noqa: BLE001 - an error of these items only
        return failed_whole(work, sent, error, 1)
    return _execute(work, batch, withdrawn)


_loop: EventLoop | None = None
_last: tuple[bytes, Work] | None = None
_lock = threading.Lock()


def _work(data: bytes) -> Work:
    """Load the work that the driver has sent. Loads the same work only once."""
    global _last
    digest = blake2b(data).digest()
    with _lock:
        if _last is not None and _last[0] == digest:
            return _last[1]
    try:
        found: Work = cloudpickle.loads(data)
    except Exception as error:
        raise _not_loaded("handler", error) from error
    if isinstance(found.handler, HandlerReference):
        found = replace(found, handler=found.handler.handler)
    with _lock:
        _last = digest, found
    return found


def _not_loaded(what: str, error: Exception) -> UsageError:
    return UsageError(
        f"the {what} sent by the driver cannot be loaded on host {os.uname().nodename}: {error!r}. "
        "The workers need the same code and packages as the driver",
        remedy="Install the same versions on both, and run again",
    )


def _execute(work: Work, batch: Batch, withdrawn: Withdrawn) -> Outcome:
    global _loop
    if not is_coroutine_function(work.handler):
        return copy_context().run(execute, work, batch, withdrawn)
    with _lock:
        if _loop is None:
            _loop = EventLoop()  # one per process, so that clients can be shared
    call = functools.partial(aexecute, work, batch, withdrawn)
    return _loop.spawn(call, copy_context()).result()
