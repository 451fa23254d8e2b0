"""Exit codes that cannot lie: an error of ours that nobody catches ends the process with its."""

from __future__ import annotations

import sys
from types import TracebackType

from resumable_tasks.errors import Interrupted, ResumableTasksError


def use_exit_codes() -> None:
    """Let a script that does not catch our errors end with their exit codes (3, 4, 75 …).

    Python would end with 1 for all. What is shown of an error is still up to whatever hook was
    there before; only an interrupt, which is no fault, is shown without its traceback.
    """
    if getattr(sys.excepthook, "__module__", None) == __name__:
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Interrupted):
            sys.stderr.write(f"{error}\n")
            raise SystemExit(error.exit_code)
        before(kind, error, trace)
        if isinstance(error, ResumableTasksError):
            raise SystemExit(error.exit_code)

    sys.excepthook = hook
