"""Windows shared by processes: in a file for one host, in a Redis for several hosts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from resumable_tasks.base import log
from resumable_tasks.base.text import without_secrets
from resumable_tasks.base.token import token
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.runners.windows import Slot, Window

_WAITED_SECONDS = 60.0
_REDIS = ("redis://", "rediss://", "unix://")
# The lock of a process that died expires after the first. Windows are kept for longer than the
# longest rate, which covers a day.
_LOCK_SECONDS, _KEPT_SECONDS = 10, 2 * 86_400
REDIS = 'pip install "resumable-tasks[redis]"'


class _Text:
    """The shared text while it is locked: before and after the change, and the shared time."""

    def __init__(self, before: bytes, now: float) -> None:
        self.before = self.after = before
        self.now = now


class _Place(Protocol):
    """A place for a text that only one process at a time may change."""

    def held(self, now: float) -> Any:
        """Return a context that locks the `_Text`; ``now``: this host's monotonic clock."""


class _File:
    """A file on this host, locked by `flock`. All processes of a host share the monotonic clock."""

    def __init__(self, path: str) -> None:
        """Raises `StoreError` if the file does not exist and cannot be made."""
        self._path = path
        with self.held(0.0):
            pass

    @contextmanager
    def held(self, now: float) -> Iterator[_Text]:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                text = _Text(os.pread(file, os.fstat(file).st_size, 0), now)
                yield text
                if text.after != text.before:
                    os.pwrite(file, text.after, 0)
                    os.ftruncate(file, len(text.after))
            finally:
                os.close(file)
        except OSError as error:
            raise StoreError(
                f"share={self._path}: {error}",
                safe="Completed work is kept",
                remedy="Run the same command again once the file can be written",
            ) from error


class _Redis:
    """A key in a Redis, named by the URL's fragment, under a lock. Uses the server's clock."""

    def __init__(self, url: str) -> None:
        import redis

        self._errors, self._shown = redis.RedisError, without_secrets(url)
        address, _, name = url.partition("#")
        self._client = redis.Redis.from_url(address)
        self._key = f"resumable-tasks:{name or 'rates'}"

    @contextmanager
    def held(self, now: float) -> Iterator[_Text]:
        client: Any = self._client
        try:
            with client.lock(f"{self._key}:lock", timeout=_LOCK_SECONDS):
                seconds, microseconds = client.time()
                text = _Text(client.get(self._key) or b"", seconds + microseconds / 1e6)
                yield text
                if text.after != text.before:
                    client.set(self._key, text.after, ex=_KEPT_SECONDS)
        except self._errors as error:
            raise StoreError(
                f"share={self._shown}: {error}",
                safe="Completed work is kept",
                remedy="Run the same command again once Redis answers",
            ) from error


def is_redis(share: str) -> bool:
    """True for the URL of a Redis. Raises `UsageError` if the Redis client is not installed."""
    if not share.startswith(_REDIS):
        return False
    from importlib.util import find_spec

    if find_spec("redis") is None:
        raise UsageError(f"share={without_secrets(share)!r} needs the Redis client", remedy=REDIS)
    return True


class SharedWindow:
    """A `Window` that processes share as JSON; each call reads and writes it under a lock.

    ``share``: the path of a file, for processes of one host, or the URL of a Redis. Unreadable
    content (of a file after a full disk, for example) counts as a full window.
    """

    def __init__(self, share: str, name: str, most: int, seconds: float) -> None:
        self.most = most
        self._share = share
        self._place: _Place = _Redis(share) if is_redis(share) else _File(share)
        self._name = name
        self._seconds = seconds

    @contextmanager
    def _held(self, now: float) -> Iterator[tuple[Window, float]]:
        """Yield the shared window and the time; write the window back afterwards."""
        with self._place.held(now) as text:
            now = text.now
            windows = self._windows(text.before, now)
            entries = windows.get(self._name, [])
            # An entry from much later than now dates from before the host's last start, which reset
            # its clock. One from a little later was made by a process while this one waited.
            there = [entry for entry in entries if entry[0] <= now + _WAITED_SECONDS]
            window = Window(self.most, self._seconds, there)
            yield window, now
            windows[self._name] = list(window.entries)
            text.after = json.dumps(windows, separators=(",", ":")).encode()

    def _windows(self, text: bytes, now: float) -> dict[str, list[list[Any]]]:
        try:
            return dict(json.loads(text)) if text else {}
        except (ValueError, TypeError):
            log.warning(
                "share=%s is damaged, or not a file of this library; starting with a full window",
                without_secrets(self._share),
            )
            return {self._name: [[now, self.most, ""]]}

    def put(self, weight: int, now: float) -> tuple[Slot, float]:
        """Enter a call; return its slot and 0, or None and the seconds until the next try."""
        with self._held(now) as (window, now):
            entry, wait = window.put(weight, now)
            if entry is None:
                return None, wait
            entry.append(token(6))
            return (entry[2], now), 0.0

    def correct(self, slot: Slot, weight: int) -> None:
        """Change the weight of a call while it is in the window.

        Raises `StoreError` if the file or the Redis cannot be reached.
        """
        name, at = slot
        with self._held(float("inf")) as (window, _):
            for entry in window.entries:
                if entry[0] == at and entry[2] == name:
                    window.correct(entry, weight)

    def left(self, now: float) -> int:
        """Return how much the window lets through now."""
        with self._held(now) as (window, now):
            return window.left(now)
