"""Receives signals for runs off the main thread, where Python cannot handle them.

There are two ways, and neither needs the main thread's help:

* Ctrl-C, and signals without a handler, are received through ``faulthandler``, which writes to a
  pipe when a signal arrives, whatever the threads do. It then calls the previous handler of Ctrl-C.
* A host's handler, such as Prefect's for SIGTERM, raises an exception in the main thread. While the
  main thread unwinds, usually waiting for our threads, that exception can be observed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
from typing import Any

from resumable_tasks.base import log, signals
from resumable_tasks.errors import EXIT_INTERRUPTED, Interrupted

_POLL_SECONDS = 0.1
_MOST_CONTEXTS = 20
# The beginning of each report of ``faulthandler``.
_HEAD = b"(most recent call first)"

_lock = threading.Lock()
# The two ends of the pipe for a signal, and the Python handler that it had.
_pipes: dict[signal.Signals, tuple[int, int, Any]] = {}
# Signals whose handler was replaced since then: unregistering would remove the new handler.
_stale: set[signal.Signals] = set()
_listener: threading.Thread | None = None
_ended_by: str | None = None


def begin() -> None:
    """Pass signals on to runs off the main thread, until there are no such runs."""
    global _listener
    with _lock:
        _forget_all()
        _overhear()
        if _listener is None:
            _listener = threading.Thread(target=_listen, name="resumable-signals", daemon=True)
            _listener.start()
    _tell_of_the_end()  # a run that begins while the process ends must handle nothing


def told(number: int) -> None:
    """Record that a signal was handled for all runs. Safe in a signal handler."""
    global _ended_by
    signals.interrupted.add(signal.Signals(number).name)
    if number != signal.SIGINT:  # without our handling, it would have ended the process
        _ended_by = signal.Signals(number).name


def _others() -> list[signals.Interrupts]:
    return [run for run in list(signals.active) if not run.in_main_thread]


def _listen() -> None:
    global _listener
    while True:
        with _lock:
            if not _others():
                _forget_all()
                _listener = None
                return
            _overhear()
            ends = {ours: number for number, (ours, _, _) in _pipes.items()}
        for ours in select.select(list(ends), [], [], _POLL_SECONDS)[0]:
            for _ in range(_count(ours)):
                told(ends[ours])
                for run in _others():
                    run.ask(ends[ours].name)
        _tell_of_the_end()
        _end_what_blocks()


def _tell_of_the_end() -> None:
    if (why := _ended_by or _end_of_the_main_thread()) is not None:
        for run in _others():
            if not run.signals:
                run.ask(why)


def _end_what_blocks() -> None:
    """End the process if it is about to end and a blocked run keeps it alive.

    A thread that waits for the source of its items cannot be stopped. By then all finished batches
    are committed; without our handling, the signal would have ended the process earlier.
    """
    if any(run.seconds_left < 0 for run in _others()):
        why = _ended_by or _end_of_the_main_thread()
        if why is not None:
            log.error(
                "%s: something in a run, such as the source of the items, still blocks after "
                "grace_seconds; the process ends without it. Finished batches are committed. Run "
                "the same command again to resume",
                why,
            )
            logging.shutdown()
            os._exit(EXIT_INTERRUPTED)


def _count(pipe: int) -> int:
    """Return how many signals were written to a pipe; 0 if another thread has closed it."""
    found = b""
    with contextlib.suppress(OSError):
        while some := os.read(pipe, 65_536):
            found += some
    return found.count(_HEAD)


def _end_of_the_main_thread() -> str | None:
    """Return the name of the signal or exception that is ending the main thread, or None."""
    handler = signal.getsignal(signal.SIGINT)
    runner: Any = getattr(getattr(handler, "func", None), "__self__", None)
    if _is_of_asyncio(handler) and getattr(runner, "_interrupt_count", None):
        return "SIGINT"
    main = threading.main_thread()
    found: Any = sys._current_exceptions().get(main.ident or 0)
    error: BaseException | None = found[1] if isinstance(found, tuple) else found
    if not main.is_alive():
        error = getattr(sys, "last_value", None)
    for _ in range(_MOST_CONTEXTS):
        if error is None:
            return None
        if signals.ends_the_program(error) and not getattr(error, "by_itself", False):
            return "SIGINT" if isinstance(error, Interrupted) else type(error).__name__
        error = error.__context__
    return None


def _overhear() -> None:
    """Register pipes for Ctrl-C and for the signals without a handler."""
    for number, defaults in signals.DEFAULTS.items():
        handler: Any = signal.getsignal(number)
        if number in _pipes:
            if _pipes[number][2] == handler:
                continue
            _forget(number)
        if handler not in defaults and not _is_of_asyncio(handler):
            continue
        if number in _stale:
            _stale.discard(number)
            faulthandler.unregister(number)
        if handler is signal.SIG_DFL and number in signals.caught_in_c():
            continue
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        faulthandler.register(number, write_end, all_threads=False, chain=callable(handler))
        _pipes[number] = read_end, write_end, handler
        signals.overheard.add(number)


def _is_of_asyncio(handler: Any) -> bool:
    return getattr(getattr(handler, "func", None), "__name__", "") == "_on_sigint"


def _forget_all() -> None:
    for number in list(_pipes):
        _forget(number)


def _forget(number: signal.Signals) -> None:
    read_end, write_end, handler = _pipes.pop(number)
    if callable(handler) == callable(signal.getsignal(number)):
        faulthandler.unregister(number)
    else:
        _stale.add(number)
    signals.overheard.discard(number)
    os.close(read_end)
    os.close(write_end)


def _after_fork() -> None:
    """Forget everything in a forked child: it has no runs, and signals act there as by default."""
    global _lock, _listener, _ended_by
    _lock, _listener, _ended_by = threading.Lock(), None, None
    _forget_all()


signals.in_forked_child.append(_after_fork)
