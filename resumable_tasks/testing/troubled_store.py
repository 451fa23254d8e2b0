"""A store whose creates fail according to a script, for `journal_suite`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from resumable_tasks.checkpoint.directory.records import record_number
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import StoreError

if TYPE_CHECKING:
    import pyarrow.fs


class TroubledStore(Store, disk.Disk):
    """A store whose next creations of records, once ``armed``, follow the script.

    ``ours``: created, then `CreateUnknown`. ``unknown``: `CreateUnknown`, nothing created.
    ``hidden``: created, then False. ``false``: False, nothing created. ``rival``: another's record
    is created first, then `CreateUnknown`. ``not durable``: created and readable, but not durable.
    ``error``: `StoreError`, nothing created.
    """

    def __init__(self, inner: Store, script: list[str]) -> None:
        self.inner = inner
        self.url = inner.url
        self.script = script
        self.armed = False
        self.broken = ""
        self.tried: list[bytes] = []
        self.rival: Callable[[], object] = lambda: None

    def create(self, name: str, data: bytes) -> bool:
        if not self.armed or record_number(name) is None:
            return self.inner.create(name, data)
        self.tried.append(data)
        if not self.script:
            return self.inner.create(name, data)
        how = self.script.pop(0)
        if how == "rival":
            self.rival()
        if how in ("ours", "hidden", "not durable", "rival"):
            self.inner.create(name, data)
        if how in ("hidden", "false"):
            return False
        if how == "error":
            raise StoreError("no space left")
        raise CreateUnknown("who knows", readable_is_durable=not how.startswith("not durable"))

    def sync(self, folder: str) -> None:
        if self.broken == "sync":
            raise StoreError("the folder cannot be flushed")
        disk.sync(self.inner, folder)

    def read(self, name: str) -> bytes:
        if self.broken == "read":
            raise StoreError("the record cannot be read")
        return self.inner.read(name)

    def list(self, folder: str) -> dict[str, int]:
        return self.inner.list(folder)

    def put(self, name: str, data: bytes | memoryview) -> None:
        self.inner.put(name, data)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def prepare(self, folders: tuple[str, ...]) -> None:
        disk.prepare(self.inner, folders)

    def let_go(self) -> None:
        disk.let_go(self.inner)

    def check_place(self, names: Iterable[str] = ()) -> None:
        disk.check_place(self.inner, names)

    def names(self, folder: str) -> set[str]:
        return disk.names(self.inner, folder)

    def odd(self, folder: str) -> dict[str, str]:
        return disk.odd(self.inner, folder)

    def read_within(self, name: str, limit: int) -> bytes:
        return self.read(name)

    def move(self, name: str, to: str) -> None:
        assert isinstance(self.inner, disk.Disk)
        self.inner.move(name, to)

    def sweep(self, folder: str, dead: Callable[[str], bool]) -> int:
        return disk.sweep(self.inner, folder, dead)

    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        return disk.lock(self.inner, name, steal=steal)

    def locked(self, name: str) -> bool:
        return disk.locked(self.inner, name)

    def archive(self) -> str:
        return disk.archive(self.inner)

    def discard(self) -> Store:
        return disk.discard(self.inner)

    @property
    def discarded(self) -> bool:
        return disk.discarded(self.inner)

    def remove(self, folders: Iterable[str]) -> bool:
        return disk.remove(self.inner, folders)

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        assert isinstance(self.inner, disk.Disk)
        return self.inner.filesystem()
