"""The contract of a store. `resumable_tasks.testing.store_suite` holds every store to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from resumable_tasks.errors import StoreError

if TYPE_CHECKING:
    import pyarrow.fs


class CreateUnknown(StoreError):
    """A `create` whose outcome the store cannot tell.

    ``readable_is_durable``: whether finding the bytes under the name proves that they are safe.
    After a failed fsync of a folder it does not.
    """

    def __init__(self, message: str, *, readable_is_durable: bool = True) -> None:
        super().__init__(message)
        self.readable_is_durable = readable_is_durable


class Store(ABC):
    """A flat space of named, immutable byte strings, in folders of one level.

    A name is ``file`` or ``folder/file``. Nobody ever sees half a file under its name. Errors of
    the medium are raised as `StoreError`, and leave nothing under the name; a place that cannot
    serve at all raises `CheckpointUnusable`. Every method may be called from several threads.
    """

    url: str
    """The place, as a person would write it."""

    @abstractmethod
    def prepare(self, folders: tuple[str, ...]) -> None:
        """Make the place ready for writing, durably. Raises `CheckpointUnusable` if it can't be."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything at this place."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes under this name. Raises ``FileNotFoundError``."""

    @abstractmethod
    def list(self, folder: str) -> dict[str, int]:
        """Names (``folder/file``) in this folder with their sizes in bytes, unordered.

        Empty if there is no such folder. ``""`` lists the top. Unfinished writes are left out.
        """

    def names(self, folder: str) -> set[str]:
        """What `list` gives, and the names that are taken by what is no file and cannot be read."""
        return set(self.list(folder))

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Put-if-absent: True means durable, and that of all callers ever only this one has won.

        False means that the name is taken. Raises `CreateUnknown` if neither is certain.
        """

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> None:
        """Durable on return; replaces what was under the name, in one step."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a name; no error if it is not there."""

    @abstractmethod
    def sync(self, folder: str) -> None:
        """What `list` of this folder shows is durable once this returns."""

    @abstractmethod
    def sweep(self, folder: str, dead: Callable[[str], bool]) -> int:
        """Remove unfinished writes whose intended name ``dead`` approves; how many were removed."""

    @abstractmethod
    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        """Try to take an advisory lock that dies with this process.

        A function that releases it; None if another holds it. ``steal`` takes it all the same:
        whoever had it has a lock that no longer counts. Raises `NotImplementedError` where the
        medium has no locks: then only the heartbeat tells whether somebody is at work.
        """

    @abstractmethod
    def locked(self, name: str) -> bool:
        """Whether somebody has this lock. Writes nothing. Raises `NotImplementedError` like it."""

    @abstractmethod
    def archive(self) -> str:
        """Move the whole place aside under a new name, losing nothing; the new place's url."""

    @abstractmethod
    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """A file system of pyarrow and the path in it under which the names stand."""
