"""Recognises errors that are the fault of the program's environment, not of an item."""

from __future__ import annotations

import errno
import os
import traceback

from resumable_tasks.runners.groups import chains

_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    errno.EAGAIN,
}
_LOOKS_UP_A_VARIABLE = type(os.environ).__getitem__.__code__


def of_the_environment(error: BaseException) -> bool:
    """True for a failed import, a missing environment variable, or a machine out of resources.

    Checks causes and the members of groups too.
    """
    return any(_is_of_it(each) for chain in chains(error) for each in chain)


def _is_of_it(error: BaseException) -> bool:
    if isinstance(error, ImportError):
        return True
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    if isinstance(error, RuntimeError):
        return str(error) == "can't start new thread"
    return isinstance(error, KeyError) and _raised_in_the_environment(error)


def _raised_in_the_environment(error: KeyError) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code is _LOOKS_UP_A_VARIABLE for frame, _ in frames)
