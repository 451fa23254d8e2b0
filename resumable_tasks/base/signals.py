"""Stops runs gracefully: Ctrl-C, SIGTERM and a scheduler's signals ask every run to stop.

In Python, only the main thread can handle signals. A run in the main thread handles them itself; a
run in another thread receives them through `resumable_tasks.base.thread_signals`.
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

# If a run has not ended this long after its grace period, something in it is assumed to block.
BLOCKED_SECONDS = 5.0

# The PID of the process in which `exit_at_sigterm` is active.
_exiting = 0


def exit_at_sigterm() -> bool:
    """Make SIGTERM raise `SystemExit(143)` until `end_at_sigterm`, instead of ending the process.

    Changes nothing and returns False outside the main thread, or if SIGTERM has another handler.
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
    """Undo `exit_at_sigterm`; a handler installed since then stays."""
    here = threading.current_thread() is threading.main_thread()
    if here and signal.getsignal(signal.SIGTERM) is _exit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _exiting:  # a forked child has nothing open, so it ends as by default
        _end_by(number)
        return
    raise SystemExit(128 + number)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# The signals that terminals and schedulers send before they kill, with the default handlers.
DEFAULTS: dict[signal.Signals, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL, _exit),  # a run in a snapshot's block stops gracefully
    signal.SIGHUP: (signal.SIG_DFL,),
    signal.SIGQUIT: (signal.SIG_DFL,),
    signal.SIGUSR1: (signal.SIG_DFL,),
}


class ItemsLeft(KeyboardInterrupt):
    """Raised by a signal to stop while the main thread runs the code of the items."""


class Interrupts:
    """While the context is active, a signal asks the run to stop; a second one stops it at once.

    Works in any thread. Handlers installed by the program or an orchestrator stay in place; only
    signals without such a handler are taken.

    ``request`` is called with the signal's name and whether to stop at once. It may be called
    inside a signal handler, so it must be safe there. In the main thread, a second signal raises
    `Interrupted`. ``event_loop``: this thread runs an event loop, whose handler of SIGINT is
    replaced, and through which no exception is raised.

    Code that still blocks some seconds after ``grace_seconds`` is ended: in the main thread by
    `Interrupted`; in another thread together with the process, if that is about to end. A signal
    to the main thread that comes too late to stop the run raises `Interrupted`, or stops the next
    run if there is already an error.
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
        """Act on a signal that came too late to stop this run: the program may begin another."""
        if error is None:
            raise Interrupted(
                f"interrupted by {self._asked_by}, which arrived when the run was ending",
                safe="All its work is committed",
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
        """Seconds until a run that was asked to stop must have ended; negative after that."""
        grace = self._grace_seconds if self.signals < 2 else 0.0
        return self._asked_at + grace + BLOCKED_SECONDS - time.monotonic()


active: list[Interrupts] = []
"""The active runs of this process, which signals ask to stop."""
interrupted: set[str] = set()
"""The signals that have stopped runs off the main thread."""
overheard: set[int] = set()
"""The signals that `thread_signals` receives for runs off the main thread."""
_before: dict[signal.Signals, Any] = {}
# The signal that must stop the next run of the main thread.
_late: list[str] = []
_reading = False


def read(take: Callable[[], T]) -> T:
    """Call a function that runs the items' own code, so that a signal to stop can interrupt it.

    In the main thread, such a signal raises `ItemsLeft`: a generator may wait for its source for
    hours.
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
    """Import the module only when needed: runs in the main thread do not use it."""
    from resumable_tasks.base import thread_signals

    return thread_signals


def _take_signals(*, event_loop: bool) -> None:
    caught = caught_in_c() - overheard
    for number, defaults in DEFAULTS.items():
        now = signal.getsignal(number)
        # If a shell ignores Ctrl-C for a background job, keep it ignored.
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
    if not runs:  # in a forked child: do what the signal does by default
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
    """End code that blocks the main thread after ``seconds``, unless the program uses alarms."""
    if signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, _end_what_blocks):
        signal.signal(signal.SIGALRM, _end_what_blocks)
        with contextlib.suppress(OverflowError, ValueError):  # an infinite grace period
            # Repeated, because the blocking code may catch the exception.
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), BLOCKED_SECONDS)


def _end_what_blocks(number: int, frame: FrameType | None) -> None:
    if any(run.in_main_thread for run in active):
        raise _stopped("because something in the main thread still blocked after grace_seconds")


def _stopped(how: str) -> Interrupted:
    return Interrupted(
        f"stopped {how}; committed results are safe, and the batches in flight will be handled "
        "again. Run the same command again to resume"
    )


def caught_in_c() -> set[int]:
    """Return the signals with a handler at the level of C, such as faulthandler's.

    Includes the signals that Python handles; empty if the system does not tell.
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
    """True if the error was raised by a signal handler, such as that of a host that shuts down.

    Celery, Dagster, Luigi and Prefect have such handlers; some raise an ``Exception``.
    """
    for number in DEFAULTS:
        handler = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # a partial
        code = getattr(handler, "__code__", None)
        if code is not None and handler is not _handle:
            _handlers.add(code)
    return any(frame.f_code in _handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def ends_the_program(error: BaseException) -> bool:
    """True if this ends the program without being a fault: a signal, Ctrl-C, ``sys.exit``."""
    return isinstance(error, (KeyboardInterrupt, SystemExit)) or by_a_signal(error)


in_forked_child: list[Callable[[], None]] = [active.clear]
"""The functions that a forked child calls before a signal can reach it."""
_masks = threading.local()


def _before_fork() -> None:
    # Block signals during the fork. A signal sent to the child at once would meet its parent's
    # handlers there: it would be lost, or reach the parent's runs.
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
