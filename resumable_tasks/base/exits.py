"""Exit codes of programs that do not catch this library's errors."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from resumable_tasks.errors import Interrupted, ResumableTasksError


def use_exit_codes() -> None:
    """Make a script that does not catch our errors end with their exit codes (2, 3, 4, 75 …).

    Python would end with 1 for all of them. An interrupt is not a fault, so it is shown without a
    traceback. If a program or a framework has its own hook, nothing is changed.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _end_with_exit_code


def _end_with_exit_code(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    code: int | None = None
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
        error = _of_other_threads() or error
    if isinstance(error, Interrupted):
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    else:
        sys.__excepthook__(kind, error, trace)
        if isinstance(error, ResumableTasksError):
            code = error.exit_code
    if code is not None and not _at_a_prompt():
        raise SystemExit(code)


def _of_other_threads() -> Interrupted | None:
    """Return the interrupt of runs off the main thread, which Python reports as Ctrl-C."""
    signals = sys.modules.get("resumable_tasks.base.signals")
    if signals is None or not signals.interrupted or _at_a_prompt():
        return None
    return Interrupted(
        "interrupted: the runs outside the main thread stopped cleanly. Run the same command again "
        "to resume"
    )


def _at_a_prompt() -> bool:
    """True at Python's interactive prompt, or if it follows the script (``-i``)."""
    return hasattr(sys, "ps1") or bool(sys.flags.inspect or os.environ.get("PYTHONINSPECT"))
