"""The contract of a store. `resumable_tasks.testing.store_suite` tests that a store keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from resumable_tasks.errors import StoreError


class CreateUnknown(StoreError):
    """`create` cannot tell whether the bytes were written.

    ``readable_is_durable``: whether finding the bytes under the name proves that they are durable.
    After a failed fsync of a folder it does not.
    """

    def __init__(self, message: str, *, readable_is_durable: bool = True) -> None:
        super().__init__(message)
        self.readable_is_durable = readable_is_durable


class Store(ABC):
    """A flat space of named, immutable byte strings, in folders of one level.

    A name is ``file`` or ``folder/file``. Nobody ever sees half a file under its name. A method
    raises `StoreError` for an error of the medium, and leaves nothing under the name then; it
    raises `CheckpointUnusable` if the place cannot be used at all. All methods are thread-safe, and
    a store can be pickled.
    """

    url: str
    """The place's address, as a person would write it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes under this name.

        Raises ``FileNotFoundError``, and `CheckpointDamaged` if the name is not that of a file.
        """

    @abstractmethod
    def list(self, folder: str) -> dict[str, int]:
        """The names (``folder/file``) in this folder with their sizes in bytes, unordered.

        Empty if there is no such folder. ``""`` lists the top. Omits unfinished writes.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Put if absent. Returns True if the bytes are durable; no other caller ever gets True.

        Returns False if the name is taken. Raises `CreateUnknown` if neither is certain.
        """

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write the bytes, durable on return. Replaces an existing file in one step."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file; no error if it does not exist."""

    def is_empty(self, folders: Iterable[str]) -> bool:
        """True if there is nothing at the top and in these folders, by one request if possible.

        May return False because of files in other folders.
        """
        return not any(map(self.list, ("", *folders)))

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """Yield the bytes under each of these names in order, reading ahead where reads are slow.

        Raises what `read` raises, when it comes to that name.
        """
        return map(self.read, names)

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete these files, many at once where that is faster; no error for missing ones."""
        for name in names:
            self.delete(name)
