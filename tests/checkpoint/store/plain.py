"""A store of no more than the contract: no locks, no folders, as a bucket is. Counts its calls."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore


class Plain(Store):
    """Files of a directory. ``calls`` are the calls so far: method, name.

    ``latency`` is slept at each call, and once for names that are read together. ``before`` is
    called with each call, and may raise.
    """

    def __init__(self, root: str | Path) -> None:
        self.inner = LocalStore(root)
        self.url = self.inner.url
        self.calls: list[tuple[str, str]] = []
        self.latency = 0.0
        self.before: Callable[[str, str], None] = lambda method, name: None
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Plain], tuple[str]]:
        return Plain, (self.url,)

    def called(self, method: str, name: str) -> None:
        with self.lock:
            self.calls.append((method, name))
        self.before(method, name)
        time.sleep(self.latency)

    def counted(self) -> Counter[str]:
        """The calls since the last count: ``method folder`` or ``method name`` at the top."""
        with self.lock:
            calls, self.calls = self.calls, []
        return Counter(f"{method} {name.partition('/')[0] or '.'}" for method, name in calls)

    def read(self, name: str) -> bytes:
        self.called("read", name)
        return self.inner.read(name)

    def list(self, folder: str) -> dict[str, int]:
        self.called("list", folder)
        return self.inner.list(folder)

    def is_empty(self, folders: Iterable[str]) -> bool:
        self.called("is_empty", "")
        return self.inner.is_empty(folders)

    def create(self, name: str, data: bytes) -> bool:
        self.called("create", name)
        self.inner.prepare((name.rpartition("/")[0],) if "/" in name else ())
        return self.inner.create(name, data)

    def put(self, name: str, data: bytes | memoryview) -> None:
        self.called("put", name)
        self.inner.prepare((name.rpartition("/")[0],) if "/" in name else ())
        self.inner.put(name, data)

    def delete(self, name: str) -> None:
        self.called("delete", name)
        self.inner.delete(name)

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        latency, wanted = self.latency, list(names)
        time.sleep(latency if wanted else 0)
        for name in wanted:
            self.called("read ahead", name)
            yield self.inner.read(name)


@frozen
class AtPlain(Directory):
    """The place of a checkpoint in such a store."""

    plain: Plain

    def store(self) -> Store:
        return self.plain


def at(root: str | Path) -> AtPlain:
    """The place in a new store at this directory."""
    return AtPlain(str(root), Plain(root))
