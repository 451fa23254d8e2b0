"""Windows that all processes of one host share, in a file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.token import token
from resumable_tasks.runners.windows import Slot, Window

_WAITED_SECONDS = 60.0


class SharedWindow:
    """A `Window` in a file of JSON, under its lock: read and written once a call.

    Times are those of the monotonic clock, which all processes of a host share. A file that cannot
    be read, such as after a full disk, counts as a window that is full.
    """

    def __init__(self, path: str, name: str, most: int, seconds: float) -> None:
        """Raises ``OSError`` where there is no such file and none can be made."""
        self.most = most
        self._path = path
        self._name = name
        self._seconds = seconds
        os.close(self._open())

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @contextmanager
    def _held(self, now: float) -> Iterator[Window]:
        """The window as all processes know it; what is changed in it is written."""
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = os.pread(file, os.fstat(file).st_size, 0)
            windows = self._windows(before, now)
            entries = windows.get(self._name, [])
            # Much later than now is of before the host was started last, when its clock began anew;
            # a little later, of a process that looked at the clock while this one waited.
            there = [entry for entry in entries if entry[0] <= now + _WAITED_SECONDS]
            window = Window(self.most, self._seconds, there)
            yield window
            windows[self._name] = list(window.entries)
            after = json.dumps(windows, separators=(",", ":")).encode()
            if after != before:
                os.pwrite(file, after, 0)
                os.ftruncate(file, len(after))
        finally:
            os.close(file)

    def _windows(self, text: bytes, now: float) -> dict[str, list[list[Any]]]:
        try:
            return dict(json.loads(text)) if text else {}
        except (ValueError, TypeError):
            log.warning("share=%s is no file of this library, or damaged: begun anew", self._path)
            return {self._name: [[now, self.most, ""]]}

    def put(self, weight: int, now: float) -> tuple[Slot, float]:
        """Enter a call: its entry, and 0; or None, and the seconds after which to try again."""
        with self._held(now) as window:
            entry, wait = window.put(weight, now)
            if entry is None:
                return None, wait
            entry.append(token(6))
            return (entry[2], now), 0.0

    def correct(self, slot: Slot, weight: int) -> None:
        """Give the entry of a call another weight, as long as it is there."""
        name, at = slot
        with self._held(float("inf")) as window:
            for entry in window.entries:
                if entry[0] == at and entry[2] == name:
                    window.correct(entry, weight)

    def left(self, now: float) -> int:
        """What it lets through now."""
        with self._held(now) as window:
            return window.left(now)
