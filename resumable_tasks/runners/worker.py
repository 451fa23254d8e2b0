"""A worker process of this machine: how the driver starts it, and the code that runs in it.

A worker is started as a separate program, not by ``multiprocessing``: a daemonic process (one of
Celery's, for example) may not have such children, and a worker that fails to import the program
could not report that. It imports the same modules as with ``multiprocessing``'s "spawn" method.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection, spawn
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from resumable_tasks.base import log, signals
from resumable_tasks.base.steps import drive
from resumable_tasks.base.stopping import NEVER
from resumable_tasks.errors import UsageError, WorkerLost
from resumable_tasks.runners.handle import (
    Answer,
    Call,
    Enter,
    Pause,
    Raised,
    Step,
    Work,
    call_handler,
    calls,
    enter,
    failed_whole,
)
from resumable_tasks.runners.outcome import Dropped, Fatal, Outcome
from resumable_tasks.runners.pickling import contain

_POLL_SECONDS = 0.5
# How long a worker may take to end, so that threads left by the handler can flush their data.
_ENDING_SECONDS = 10.0
_MOST_WORDS = 3_000
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
# Uses only the standard library until the path of this package is known.
_PROGRAM = """
import signal, sys, traceback
signal.signal(signal.SIGINT, signal.SIG_IGN)
from multiprocessing.connection import Connection
pipe = Connection({pipe})
try:
    sys.path[:] = pipe.recv()
    from resumable_tasks.runners import worker
    work = worker.prepare(pipe, {driver})
except BaseException as error:
    usage = type(error).__name__ == "UsageError"
    pipe.send(("broken", (usage, str(error) if usage else traceback.format_exc())))
    sys.exit(1)
worker.serve(pipe, work)
"""


class Worker:
    """One worker process, and the pipe to it."""

    def __init__(self, work: bytes) -> None:
        """Start the process. Raises `WorkerLost` if the system cannot."""
        try:
            self.pipe, theirs = multiprocessing.Pipe()
            # This end stays open until the driver ends, in whatever way.
            driver, self._alive = os.pipe()
            program = _PROGRAM.format(pipe=theirs.fileno(), driver=driver)
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and our program
                [os.fsdecode(spawn.get_executable()), *flags, "-c", program],
                pass_fds=[theirs.fileno(), driver],
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            raise WorkerLost(f"no worker process can be started: {error}") from error
        theirs.close()
        os.close(driver)
        data = spawn.get_preparation_data("resumable-worker")
        data.pop("authkey", None)  # can be pickled only for children of ``multiprocessing``
        with contextlib.suppress(OSError):  # it has ended already; `wait_until_ready` reports that
            self.pipe.send(sys.path)
            self.pipe.send(data)
            self.pipe.send_bytes(work)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self, stopping: Callable[[], bool]) -> bool:
        """Wait until the process can handle batches; return False if the run stops first.

        Raises `WorkerLost` or `UsageError` with the worker's own message if it cannot start.
        """
        while not stopping():
            if not self.pipe.poll(_POLL_SECONDS):
                if self.is_alive:
                    continue
                raise WorkerLost(f"a worker process {self.how_it_ended} before it could start")
            try:
                kind, words = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._process.wait()
                raise WorkerLost(
                    f"a worker process {self.how_it_ended} before it could start"
                ) from None
            if kind == "ready":
                return True
            usage, text = words
            if usage:
                raise UsageError(text)
            raise WorkerLost(
                "the worker processes cannot start (not because of the items); one of them "
                f"reports:\n{text.strip()[-_MOST_WORDS:]}"
            )
        return False

    @property
    def how_it_ended(self) -> str:
        code = self._process.poll()
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def receive(self, seconds: float) -> Any:
        """Return the next message, or None after this time. Raises ``EOFError`` if it has died."""
        if connection.wait([self.pipe], seconds):
            return self.pipe.recv()
        if not self.is_alive:  # while a child of the process holds its end of the pipe open
            raise EOFError
        return None

    def kill(self, patience: float = 0.0) -> str:
        """Kill the process unless it ends within ``patience`` seconds; return how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        how = self.how_it_ended
        self._process.kill()
        self._process.wait()
        self._close()
        return how

    def end(self) -> None:
        """Close the pipe so that the process ends by itself; kill it if it takes too long.

        At its end, Python waits for threads and processes that the handler left, maybe for ever.
        """
        self.pipe.close()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning(
                "killed an idle worker process that did not end within %g s: the handler left "
                "threads or processes running in it. Completed work is safe; make the handler stop "
                "what it starts",
                _ENDING_SECONDS,
            )
            self.abandon()
            self._process.wait()
        self._close()

    def abandon(self) -> None:
        """Kill the process without waiting. Safe in any thread."""
        self._process.kill()

    def _close(self) -> None:
        self.pipe.close()
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1


starting = False
"""True while this process is a worker that imports the program."""


def prepare(pipe: Connection, driver: int) -> Work:
    """Import the program and receive the work. Runs in the worker process."""
    global starting
    # Ignore signals to the whole process group: the driver handles them. Not by SIG_IGN, which
    # programs started by the handler would inherit.
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    # Forked children must end at SIGTERM, as those of a ``multiprocessing.Pool`` do.
    signals.in_forked_child.append(_end_by_signals)
    threading.Thread(target=_die_with, args=(driver,), daemon=True).start()
    data = pipe.recv()
    starting = True
    try:
        spawn.prepare(data)
    finally:
        starting = False
    work: Work = ForkingPickler.loads(pipe.recv_bytes())
    pipe.send(("ready", None))
    return work


def _end_by_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _in_no_flow_run(call: Call, answer: Outcome | Raised) -> Outcome | Raised:
    """Return the answer; replace Prefect's error about a missing run by one that explains it."""
    if not isinstance(answer, Raised) or type(answer.error).__name__ != "MissingContextError":
        return answer
    why = UsageError(
        f'runner="processes": the handler asked for Prefect\'s run context ({answer.error}), '
        "which a separate process does not have. Use logging.getLogger(__name__) there, or leave "
        'runner= out: threads, and "prefect" with a process pool, have the context'
    )
    return Fatal(call.batch, why)


def serve(pipe: Connection, work: Work) -> None:
    """Handle batches as they come. Runs in the worker process."""

    def ended() -> None:
        if work.timeout is not None:
            pipe.send(("ended", None))

    def do(step: Step) -> Answer:
        # Tell the driver when a call begins and ends, so that its timeout counts only the call.
        match step:
            case Call():
                pipe.send(("call", step.number))
                return _in_no_flow_run(step, call_handler(step, ended=ended))
            case Pause():
                pipe.send(("pause", step.spent))
                time.sleep(step.seconds)
                return None
            case Enter():
                return enter(work, step, NEVER)

    while True:
        try:
            batch, first, spent = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        except Exception:  # noqa: BLE001 - concerns these items alone
            pipe.send(("unreadable", traceback.format_exc(limit=-3)))
            continue
        outcome = drive(calls(work, batch, first, spent), do)
        if not isinstance(outcome, Dropped):
            outcome = contain(work, outcome)
        _send_back(pipe, work, outcome, first)


def _send_back(pipe: Connection, work: Work, outcome: Outcome, first: int) -> None:
    # The driver has the items already.
    batch = replace(outcome.batch, items=None)
    try:
        data = ForkingPickler.dumps(("outcome", replace(outcome, batch=batch)))
    except Exception as error:  # noqa: BLE001 - an outcome that cannot be pickled has failed
        data = ForkingPickler.dumps(("outcome", failed_whole(work, batch, error, first)))
    pipe.send_bytes(data)


def _die_with(driver: int) -> None:
    """End this worker when its driver dies, so that it makes no more paid calls."""
    with contextlib.suppress(OSError):
        os.read(driver, 1)
    os._exit(1)
