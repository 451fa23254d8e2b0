"""The contract of a store. `resumable_tasks.testing.store_suite` holds every store to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from resumable_tasks.errors import StoreError


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
    serve at all raises `CheckpointUnusable`. Every method may be called from several threads, and
    a store survives a pickle.
    """

    url: str
    """The place, as a person would write it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes under this name.

        Raises ``FileNotFoundError``, and `CheckpointDamaged` where something else has the name.
        """

    @abstractmethod
    def list(self, folder: str) -> dict[str, int]:
        """Names (``folder/file``) in this folder with their sizes in bytes, unordered.

        Empty if there is no such folder. ``""`` lists the top. Unfinished writes are left out.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Put if absent. True: the bytes are durable, and no other caller ever gets True.

        False means that the name is taken. Raises `CreateUnknown` if neither is certain.
        """

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> None:
        """Durable on return; replaces what was under the name, in one step."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a name; no error if it is not there."""

    def is_empty(self, folders: Iterable[str]) -> bool:
        """True if nothing is here: at the top, and in these folders. One request where it can be.

        May say False for what is in other folders.
        """
        return not any(map(self.list, ("", *folders)))

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes under each of these names, in their order, read ahead where reads are slow.

        Raises what `read` does, in the place of the name that it is about.
        """
        return map(self.read, names)

    def delete_all(self, names: Iterable[str]) -> None:
        """Remove names, many at once where that is faster; no error for those not there."""
        for name in names:
            self.delete(name)
