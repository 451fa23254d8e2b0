"""Ctrl-C and SIGTERM, turned into a request to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from resumable_tasks.errors import Interrupted

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
                replace = self._event_loop and number == signal.SIGINT
                if replace or signal.getsignal(number) in defaults:
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
