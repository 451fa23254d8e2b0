"""Prunes a place, and dies at one of its calls: ``PLACE NUMBER before|after``.

The calls are those by which a disk or a bucket is changed. Without a number it prints how many.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from resumable_tasks import prune
from resumable_tasks.checkpoint.store.requests import Requests
from resumable_tasks.testing import faults

_ON_DISK = ("fsync", "link", "mkdir", "open", "rename", "replace", "rmdir", "unlink")
_IN_BUCKET = ("_put_new", "ask")


class Calls:
    """Counts calls, and ends the process at one of them."""

    def __init__(self, at: int, when: str) -> None:
        self.count = 0
        self._at, self._when = at, when

    def watch(self, owner: Any, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            mine = self.count == self._at
            if mine and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, watched)


def main(place: str, at: str = "0", when: str = "after") -> None:
    faults.install_from_env()
    calls = Calls(int(at), when)
    owner: Any = Requests if "://" in place else os
    for name in _IN_BUCKET if owner is Requests else _ON_DISK:
        calls.watch(owner, name)
    prune(place, keep=1)
    print(calls.count)


if __name__ == "__main__":
    main(*sys.argv[1:])
