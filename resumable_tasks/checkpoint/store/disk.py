"""Services that only some stores have, most of them a disk: folders to flush, locks, files.

A store need have none of this. The functions below ask a store that has it, and do without where a
store has not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, starmap
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.text import shell_words
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, CheckpointUnusable

if TYPE_CHECKING:
    import pyarrow.fs


class Files(ABC):
    """A service of stores whose names Arrow can read by itself."""

    @abstractmethod
    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """A file system of pyarrow and the path in it under which the names stand."""


class Incarnations(ABC):
    """A service of stores that cannot move a place aside: a reset begins its next incarnation."""

    @abstractmethod
    def archive(self) -> str:
        """Begin the next incarnation, losing nothing; the url by which this one can be read."""

    @abstractmethod
    def discard(self) -> Store:
        """Begin the next incarnation, as `archive`; this one, marked as to be removed.

        Of an archived incarnation: mark it. May be called again. Raises `Fenced` if others have
        archived this one meanwhile.
        """

    @property
    @abstractmethod
    def discarded(self) -> bool:
        """True for an incarnation that is marked as to be removed."""

    @abstractmethod
    def way_back(self, archived: str) -> str:
        """What a person does to have what was archived under this url again, as a text."""

    @abstractmethod
    def check_current(self) -> None:
        """Raises `Fenced` if another incarnation has begun since this one was found."""


class Patient(ABC):
    """A service of stores that may not answer for a while."""

    @abstractmethod
    def patient(self) -> Store:
        """The same place for a run at work: it tries long, since results wait to be kept."""


class Disk(Files):
    """The second, optional half of a store's contract."""

    @abstractmethod
    def prepare(self, folders: tuple[str, ...]) -> None:
        """Make the place ready for writing, durably. Raises `CheckpointUnusable` if it can't be.

        From here to `let_go` every method works on the place as it was found now, wherever it is
        moved and whatever comes under its path.
        """

    @abstractmethod
    def let_go(self) -> None:
        """Go by the path again."""

    @abstractmethod
    def check_place(self, names: Iterable[str] = ()) -> None:
        """Check that what was prepared is under its path, and these names in it.

        Raises:
            Fenced: it was moved away.
            CheckpointDamaged: it was removed or emptied.
        """

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """The names that `list` gives, and those of what is no plain file."""

    @abstractmethod
    def odd(self, folder: str) -> dict[str, str]:
        """The names in this folder of what is no plain file, and what that is."""

    @abstractmethod
    def read_within(self, name: str, limit: int) -> bytes:
        """Read at most so many bytes. Raises `CheckpointDamaged` for a longer file."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Give what has this name another one, whatever it is. Raises ``FileNotFoundError``."""

    @abstractmethod
    def sync(self, folder: str) -> None:
        """Make durable whatever `list` shows of this folder."""

    @abstractmethod
    def sweep(self, folder: str, dead: Callable[[str], bool]) -> int:
        """Remove unfinished writes whose intended name ``dead`` approves; how many were removed."""

    @abstractmethod
    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        """Try to take an advisory lock that dies with this process.

        A function that releases it; None if another holds it. ``steal`` takes it all the same:
        whoever had it has a lock that no longer counts. Raises `NotImplementedError` where there
        are no locks: then only the heartbeat tells whether somebody is at work.
        """

    @abstractmethod
    def locked(self, name: str) -> bool:
        """True if somebody has this lock. Writes nothing. Raises as `lock` does."""

    @abstractmethod
    def archive(self) -> str:
        """Move the whole place aside under a new name, losing nothing; the new place's url."""

    @abstractmethod
    def discard(self) -> Store:
        """Move the whole place aside under a name that says that it is to be removed.

        The store of what has that name. One that has such a name keeps it.
        """

    @property
    @abstractmethod
    def discarded(self) -> bool:
        """True for a place with such a name."""

    @abstractmethod
    def remove(self, folders: Iterable[str]) -> bool:
        """Remove these folders and the place itself, all emptied before; False if one is not."""


def patient(store: Store) -> Store:
    """The store for a run at work; see `Patient.patient`."""
    return store.patient() if isinstance(store, Patient) else store


def prepare(store: Store, folders: tuple[str, ...]) -> None:
    """Make the place ready for writing. Raises `CheckpointUnusable`."""
    if isinstance(store, Disk):
        store.prepare(folders)


def let_go(store: Store) -> None:
    """Go by the path again; see `Disk.prepare`."""
    if isinstance(store, Disk):
        store.let_go()


def check_place(store: Store, names: Iterable[str] = ()) -> None:
    """Check that the place is where it was; see `Disk.check_place`."""
    if isinstance(store, Disk):
        store.check_place(names)


def odd(store: Store, folder: str) -> dict[str, str]:
    """The names in a folder of what is no plain file, and what that is."""
    return store.odd(folder) if isinstance(store, Disk) else {}


def names(store: Store, folder: str) -> set[str]:
    """The names that are taken in a folder, whatever takes them."""
    return store.names(folder) if isinstance(store, Disk) else set(store.list(folder))


def read(store: Store, name: str, limit: int) -> bytes:
    """The bytes under a name, on a disk no more than ``limit``; see `Disk.read_within`."""
    return store.read_within(name, limit) if isinstance(store, Disk) else store.read(name)


def read_all(store: Store, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """`read` of each name and limit, in their order, read ahead where reads are slow.

    Raises what `read` does, in the place of the name that it is about.
    """
    if isinstance(store, Disk):
        return starmap(store.read_within, wanted)
    return store.read_all(name for name, _ in wanted)


def read_each(
    store: Store, wanted: Sequence[tuple[str, int]]
) -> Iterator[bytes | FileNotFoundError | CheckpointDamaged]:
    """`read_all`, with the error in the place of what is missing or damaged."""
    at = 0
    while at < len(wanted):
        try:
            for data in read_all(store, islice(wanted, at, None)):
                at += 1
                yield data
        except (FileNotFoundError, CheckpointDamaged) as error:
            at += 1
            yield error


def together(store: Store, *calls: Callable[[], Any]) -> list[Any]:
    """What these calls return, in their order: made at once, on a disk one after the other.

    Raises what the first of them in this order has raised, once all that were made have ended.
    """
    if isinstance(store, Disk):
        return [call() for call in calls]
    from resumable_tasks.checkpoint.store.ahead import at_once

    return at_once(calls)


def sync(store: Store, folder: str) -> None:
    """Make durable what `list` of this folder shows: elsewhere it is, once it is seen."""
    if isinstance(store, Disk):
        store.sync(folder)


def sweep(store: Store, folder: str, dead: Callable[[str], bool]) -> int:
    """Remove unfinished writes whose intended name ``dead`` approves; how many were removed."""
    return store.sweep(folder, dead) if isinstance(store, Disk) else 0


def lock(store: Store, name: str, *, steal: bool = False) -> Callable[[], None] | None:
    """Try to take an advisory lock; see `Disk.lock`. Raises `NotImplementedError`."""
    if not isinstance(store, Disk):
        raise NotImplementedError(f"there are no locks at {store.url}")
    return store.lock(name, steal=steal)


def locked(store: Store, name: str) -> bool:
    """True if somebody has this lock. Raises `NotImplementedError`."""
    if not isinstance(store, Disk):
        raise NotImplementedError(f"there are no locks at {store.url}")
    return store.locked(name)


def archive(store: Store) -> str:
    """Set the whole place aside; its url then. Raises `CheckpointUnusable` where that cannot be."""
    if not isinstance(store, (Disk, Incarnations)):
        raise CheckpointUnusable(
            f"{store.url} cannot be moved aside there: name another place for the new checkpoint"
        )
    return store.archive()


def discard(store: Store) -> Store:
    """Set the whole place aside, to be removed; what is to be removed. See `Disk.discard`.

    Raises `CheckpointUnusable` where that cannot be.
    """
    if not isinstance(store, (Disk, Incarnations)):
        raise CheckpointUnusable(
            f"{store.url} cannot be set aside there, and so not be removed",
            remedy="Delete what the store holds with its own tools",
        )
    return store.discard()


def discarded(store: Store) -> bool:
    """True for what `discard` has set aside."""
    return isinstance(store, (Disk, Incarnations)) and store.discarded


def remove(store: Store, folders: Iterable[str]) -> bool:
    """Remove an emptied place; False if something is left. See `Disk.remove`."""
    return store.remove(folders) if isinstance(store, Disk) else True


def way_back(store: Store, archived: str) -> str:
    """What a person does to have again what was archived under this url."""
    if isinstance(store, Incarnations):
        return store.way_back(archived)
    return f"mv {shell_words(archived, store.url)}"


def check_current(store: Store) -> None:
    """Raises `Fenced` if the place was set aside by a reset; a disk tells at each commit."""
    if isinstance(store, Incarnations):
        store.check_current()
