"""Batches in processes of this machine: for handlers that compute. Workers write their shards."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler

from resumable_tasks import failures, log
from resumable_tasks.errors import WorkerLost
from resumable_tasks.model import Batch, Outcome
from resumable_tasks.runners.base import Runner, Work, execute
from resumable_tasks.runners.crossing import HandlerReference, contain, shippable


class ProcessRunner(Runner):
    """Plain functions in ``concurrency`` processes.

    A worker that dies takes the whole pool with it. Every batch that was in the pool then is
    handled again, alone, in a process of its own: the one that kills it again has failed with
    `WorkerLost`, its neighbours have not.
    """

    remote = True

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        self._work = shippable(work, HandlerReference(work.handler))
        ForkingPickler.dumps(self._work)  # what cannot cross is said now, before anything has run
        self._done, self._stopping = done, stopping
        # "fork" would copy our threads' locks in whatever state they are, "forkserver" would keep
        # the environment of its own start; "spawn" means the same on every system.
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._waiting: deque[Batch] = deque()
        self._running = 0
        self._pool = self._new_pool(self.concurrency)

    def submit(self, batch: Batch) -> None:
        with self._lock:
            self._waiting.append(batch)
        self._start_next()

    def close(self, *, abandon: bool) -> None:
        with self._lock:
            self._waiting.clear()
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=not abandon, cancel_futures=True)
        if abandon:
            for process in processes:
                process.terminate()

    def _start_next(self) -> None:
        """Give the pool what it has a free process for: what waits there can't be held back."""
        while True:
            with self._lock:
                if not self._waiting or self._running >= self.concurrency:
                    return
                batch = self._waiting.popleft()
                pool = self._pool
                stopping = self._stopping.is_set()
                self._running += not stopping
            if stopping:
                self._done(Outcome(batch, dropped=True))
                continue
            try:
                future = pool.submit(_handle, batch)
            except BrokenProcessPool as error:
                future = Future()
                future.set_exception(error)
            finished = functools.partial(self._finished, batch, pool)
            future.add_done_callback(finished)

    def _come_back(self, outcome: Outcome) -> None:
        with self._lock:
            self._running -= 1
        self._done(outcome)
        self._start_next()

    def _new_pool(self, size: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(size, self._context, initializer=_begin, initargs=(self._work,))

    def _finished(self, batch: Batch, pool: ProcessPoolExecutor, future: Future[Outcome]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._come_back(future.result())
        elif isinstance(error, BrokenProcessPool):
            with self._lock:
                if self._pool is pool:
                    log.warning("a worker process has died; its batches are handled again")
                    self._pool = self._new_pool(self.concurrency)
            threading.Thread(target=self._retry_alone, args=(batch,), daemon=True).start()
        else:  # the batch or its outcome could not cross between the processes
            self._come_back(Outcome(batch, failures=failures.whole_batch(batch, error, 1)))

    def _retry_alone(self, batch: Batch) -> None:
        with self._alone:
            if self._stopping.is_set():
                outcome = Outcome(batch, dropped=True)
            else:
                outcome = self._execute_alone(batch)
        self._come_back(outcome)

    def _execute_alone(self, batch: Batch) -> Outcome:
        with self._new_pool(1) as pool:
            try:
                return pool.submit(_handle, batch).result()
            except BrokenProcessPool:
                error = WorkerLost(
                    "the worker process died while it handled this batch, twice; the kernel "
                    "kills a process that takes too much memory: try a smaller batch_size"
                )
                return Outcome(batch, failures=failures.whole_batch(batch, error, 2))


_work: Work | None = None


def _begin(work: Work) -> None:
    """In a new worker process."""
    global _work
    _work = work
    # Ctrl-C goes to the whole process group; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        watch = threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True)
        watch.start()


def _die_with(sentinel: int) -> None:
    """A worker whose driver was killed must not go on spending."""
    connection.wait([sentinel])
    os._exit(1)


def _handle(batch: Batch) -> Outcome:
    assert _work is not None
    return contain(execute(_work, batch))
