"""Ends a process in order: Ctrl-C and SIGTERM ask it to stop, errors of ours give exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from resumable_tasks.errors import Interrupted, ResumableTasksError

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
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    raise SystemExit(128 + number)


_DEFAULTS = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL, _exit),  # a run in a snapshot's block stops in its own order
}


class Interrupts:
    """While entered, the first signal calls ``request`` with its name, a second stops at once.

    Only in the main thread, where alone Python can handle signals, and only where nobody else
    has: a handler that the program, or an orchestrator, has installed stays as it is.
    ``request`` is called inside a signal handler and must be safe there; its second argument
    says whether to stop at once. ``event_loop``: we are in one, whose own handler of SIGINT is
    to be replaced, and through which no exception may be thrown; elsewhere a second signal
    raises `Interrupted`, wherever the main thread is.
    """

    def __init__(self, request: Callable[[str, bool], None], *, event_loop: bool = False) -> None:
        self._request = request
        self._event_loop = event_loop
        self._before: dict[signal.Signals, Any] = {}
        self._signals = 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number, defaults in _DEFAULTS.items():
                now = signal.getsignal(number)
                # A shell that has switched Ctrl-C off for its background jobs means it.
                loops_own = self._event_loop and number == signal.SIGINT and now != signal.SIG_IGN
                if loops_own or now in defaults:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1 or self._event_loop:
            self._request(signal.Signals(number).name, self._signals > 1)
        else:
            raise Interrupted(
                "stopped at once, by a second signal; what was committed is safe, and the batches "
                "in flight are handled again. Run the same command again to resume"
            )


def use_exit_codes() -> None:
    """Let a script that does not catch our errors end with their exit codes (3, 4, 75 …).

    Python would end with 1 for all. An interrupt, which is no fault, is shown without its
    traceback. Where a program or a framework has a hook of its own, nothing is changed.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _end_with_exit_code


def _end_with_exit_code(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if isinstance(error, Interrupted):
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code)
    sys.__excepthook__(kind, error, trace)
    if isinstance(error, ResumableTasksError):
        raise SystemExit(error.exit_code)
