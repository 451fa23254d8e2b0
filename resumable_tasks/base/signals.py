"""Ends a process in order: Ctrl-C, SIGTERM and a scheduler's signals ask every run to stop.

Only the main thread can handle signals in Python. A run in the main thread handles them itself; a
run in another thread is told of them by `resumable_tasks.base.thread_signals`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, TypeVar

from resumable_tasks.errors import Interrupted

T = TypeVar("T")

# How long a run may take to end after its grace, before something in it is taken to block.
BLOCKED_SECONDS = 5.0

# The process in which `exit_at_sigterm` holds.
_exiting = 0


def exit_at_sigterm() -> bool:
    """Let SIGTERM raise `SystemExit` of 143 instead of ending the process, until `end_at_sigterm`.

    False, and nothing is changed, outside the main thread, and where somebody handles it already.
    """
    global _exiting
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGTERM)
    inherited = handler is _exit and _exiting != os.getpid()
    if handler is not signal.SIG_DFL and not inherited:
        return False
    _exiting = os.getpid()
    signal.signal(signal.SIGTERM, _exit)
    return True


def end_at_sigterm() -> None:
    """Undo `exit_at_sigterm`; a handler that was installed since stays."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGTERM) is _exit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _exiting:  # forked since: it has nothing open, and ends as any process does
        _end_by(number)
        return
    raise SystemExit(128 + number)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# What a terminal and schedulers send before they kill, and who handles it where nobody does.
DEFAULTS: dict[signal.Signals, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL, _exit),  # a run in a snapshot's block stops in its own order
    signal.SIGHUP: (signal.SIG_DFL,),
    signal.SIGQUIT: (signal.SIG_DFL,),
    signal.SIGUSR1: (signal.SIG_DFL,),
}


class ItemsLeft(KeyboardInterrupt):
    """Raised in the main thread, while it is in the code of the items, by a signal to stop."""


class Interrupts:
    """While entered, the first signal calls ``request`` with its name, a second stops at once.

    In any thread; and only where nobody else handles the signal: a handler that the program, or an
    orchestrator, has installed stays as it is. ``request`` may be called inside a signal handler
    and must be safe there; its second argument says whether to stop at once. ``event_loop``: this
    thread runs one, whose own handler of SIGINT is to be replaced, and through which no exception
    may be thrown; elsewhere in the main thread a second signal raises `Interrupted`. What still
    blocks some seconds after ``grace_seconds`` is ended: in the main thread by `Interrupted`, in
    another one with the process, if that is to end. A signal to the main thread that comes too late
    to stop the run is not lost: it raises `Interrupted`, or stops the next run if there is an error
    already.
    """

    def __init__(
        self,
        request: Callable[[str, bool], None],
        *,
        event_loop: bool = False,
        grace_seconds: float = math.inf,
    ) -> None:
        self._request = request
        self._grace_seconds = grace_seconds
        self._asked_at = math.inf
        self._asked_by = ""
        self.event_loop = event_loop
        self.signals = 0
        self.in_main_thread = False

    def __enter__(self) -> Interrupts:
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        active.append(self)
        if self.in_main_thread:
            _take_signals(event_loop=self.event_loop)
            if _late:
                self.ask(_late.pop())
        else:
            _thread_signals().begin()
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        active.remove(self)
        # Other runs of the main thread were asked by the same signal.
        if not self.in_main_thread or any(each.in_main_thread for each in active):
            return
        _give_signals_back()
        if active:
            _thread_signals().begin()
        if self.signals:
            self._too_late(error)

    def _too_late(self, error: BaseException | None) -> None:
        """Heed a signal of which nothing has come: the program may go on to its next run."""
        if error is None:
            raise Interrupted(
                f"interrupted by {self._asked_by}, which came when the run was at its end",
                safe="All that it has done is committed",
                remedy="Run the same command again to resume",
            )
        if isinstance(error, Exception) or getattr(error, "by_itself", False):
            _late[:] = [self._asked_by]

    def ask(self, name: str) -> None:
        """Ask the run to stop. Safe in a signal handler."""
        self.signals += 1
        self._asked_by = self._asked_by or name
        self._asked_at = min(self._asked_at, time.monotonic())
        self._request(name, self.signals > 1)

    @property
    def seconds_left(self) -> float:
        """Seconds until a run that was asked to stop should have ended; below 0 after that."""
        grace = self._grace_seconds if self.signals < 2 else 0.0
        return self._asked_at + grace + BLOCKED_SECONDS - time.monotonic()


active: list[Interrupts] = []
"""The runs of this process that are to be asked to stop."""
interrupted: set[str] = set()
"""The signals that have stopped runs off the main thread."""
overheard: set[int] = set()
"""The signals that runs off the main thread are told of in another way."""
_before: dict[signal.Signals, Any] = {}
# The signal for which the next run of the main thread is to stop.
_late: list[str] = []
_reading = False


def read(take: Callable[[], T]) -> T:
    """Call what runs the items' own code; in the main thread a signal to stop ends it.

    A generator may wait for its source for hours. Raises `ItemsLeft`.
    """
    global _reading
    if threading.current_thread() is not threading.main_thread():
        return take()
    try:
        _reading = True
        return take()
    finally:
        _reading = False


def _thread_signals() -> ModuleType:
    """The module, which a program whose runs are in its main thread has no use for."""
    from resumable_tasks.base import thread_signals

    return thread_signals


def _take_signals(*, event_loop: bool) -> None:
    caught = caught_in_c() - overheard
    for number, defaults in DEFAULTS.items():
        now = signal.getsignal(number)
        # A shell that has switched Ctrl-C off for its background jobs means it.
        loops_own = event_loop and number == signal.SIGINT and now != signal.SIG_IGN
        free = now in defaults and not (now is signal.SIG_DFL and number in caught)
        if now is not _handle and (loops_own or free):
            _before[number] = signal.signal(number, _handle)


def _give_signals_back() -> None:
    for number in list(_before):
        handler = _before.pop(number)
        if signal.getsignal(number) is _handle:
            signal.signal(number, handler)
    if signal.getsignal(signal.SIGALRM) is _end_what_blocks:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _handle(number: int, frame: FrameType | None) -> None:
    runs = list(active)
    if not runs:  # forked since: it ends as any process does
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        _end_by(number)
        return
    for run in runs:
        run.ask(signal.Signals(number).name)
    if not all(run.in_main_thread for run in runs):
        _thread_signals().told(number)
    _set_alarm(min(run.seconds_left for run in runs))
    here = [run for run in runs if run.in_main_thread and not run.event_loop]
    if any(run.signals > 1 for run in here):
        raise _stopped("at once, by a second signal")
    if here and _reading:
        raise ItemsLeft


def _set_alarm(seconds: float) -> None:
    """Have what blocks the main thread ended after so long, unless the program has alarms."""
    if signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, _end_what_blocks):
        signal.signal(signal.SIGALRM, _end_what_blocks)
        with contextlib.suppress(OverflowError, ValueError):  # a grace without end
            # Again after a while: what blocks may take the exception for its own.
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), BLOCKED_SECONDS)


def _end_what_blocks(number: int, frame: FrameType | None) -> None:
    if any(run.in_main_thread for run in active):
        raise _stopped("while something in the main thread blocked, after its grace")


def _stopped(how: str) -> Interrupted:
    return Interrupted(
        f"stopped {how}; what was committed is safe, and the batches in flight are handled again. "
        "Run the same command again to resume"
    )


def caught_in_c() -> set[int]:
    """The signals that have a handler which Python knows nothing of, such as faulthandler's.

    Those that Python handles are among them; empty where the system does not tell.
    """
    try:
        with open("/proc/self/status", "rb") as status:
            masks = [line.split()[1] for line in status if line.startswith(b"SigCgt:")]
    except OSError:
        return set()
    mask = int(masks[0], 16) if masks else 0
    return {number for number in DEFAULTS if mask >> (number - 1) & 1}


_handlers: set[object] = set()


def by_a_signal(error: BaseException) -> bool:
    """True if this was raised by a handler of a signal, such as a host's that wants to end.

    Celery, Dagster, Luigi and Prefect do so; some raise an ``Exception``.
    """
    for number in DEFAULTS:
        handler = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # a partial
        code = getattr(handler, "__code__", None)
        if code is not None and handler is not _handle:
            _handlers.add(code)
    return any(frame.f_code in _handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def ends_the_program(error: BaseException) -> bool:
    """True for what ends a program, and is no error in it: a signal, Ctrl-C, ``sys.exit``."""
    return isinstance(error, (KeyboardInterrupt, SystemExit)) or by_a_signal(error)


in_forked_child: list[Callable[[], None]] = [active.clear]
"""What a forked child does before a signal reaches it."""
_masks = threading.local()


def _before_fork() -> None:
    # A signal that is sent to a child at once finds the handlers of its parent there: it would be
    # lost, or be heard by the runs of the parent.
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, DEFAULTS)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child() -> None:
    try:
        for each in in_forked_child:
            each()
    finally:
        _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
