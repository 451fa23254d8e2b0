"""What the contracts of a disk's store share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from resumable_tasks.base import faults
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from tests import warm


class Died(BaseException):
    pass


@contextlib.contextmanager
def dying_at(point: str) -> Iterator[None]:
    def die(name: str) -> None:
        if name == point:
            raise Died(name)

    faults.arm(die)
    try:
        yield
    finally:
        faults.arm(None)


def raw_files(root: Path) -> dict[str, bytes]:
    found = {}
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder) / file
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


class OnDisk:
    processes = warm.Spawn()

    def make_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "new" / "place")

    def store_at(self, url: str) -> Store:
        return LocalStore(url)

    def oracle(self, store: Store) -> dict[str, bytes]:
        return raw_files(Path(store.url))

    def dying_writes(self, store: Store) -> contextlib.AbstractContextManager[None]:
        return dying_at("store.temp_written")
