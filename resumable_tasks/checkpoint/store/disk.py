"""Optional services of a store, most of them for disks: folders to flush, locks, files.

A store may lack all of them. The functions below use a service if the store has it, and otherwise
do what is right without.
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
    """A service of stores whose files Arrow can read by itself."""

    @abstractmethod
    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """A pyarrow file system, and the path in it below which the names are."""


class Incarnations(ABC):
    """A service of stores that cannot move a place; a reset begins the next incarnation instead."""

    @abstractmethod
    def archive(self) -> str:
        """Begin the next incarnation. Returns the url under which this one remains readable."""

    @abstractmethod
    def discard(self) -> Store:
        """Begin the next incarnation, as `archive` does. Returns this one, marked for removal.

        Only marks an incarnation that is archived already. May be called again. Raises `Fenced` if
        another process has archived this one meanwhile.
        """

    @property
    @abstractmethod
    def discarded(self) -> bool:
        """True for an incarnation that is marked for removal."""

    @abstractmethod
    def way_back(self, archived: str) -> str:
        """Instructions for restoring what was archived under this url."""

    @abstractmethod
    def check_current(self) -> None:
        """Raise `Fenced` if another incarnation has begun since this one was found."""


class Patient(ABC):
    """A service of stores that may be unavailable for a while."""

    @abstractmethod
    def patient(self) -> Store:
        """The same place for an active run: retries longer, since results wait to be stored."""


class Disk(Files):
    """The second, optional half of a store's contract."""

    @abstractmethod
    def prepare(self, folders: tuple[str, ...]) -> None:
        """Make the place ready for writing, durably. Raises `CheckpointUnusable` if impossible.

        Until `let_go`, every method works on the directory found now, even if it is moved or
        another one gets its path.
        """

    @abstractmethod
    def let_go(self) -> None:
        """Release the directory; methods use the path again."""

    @abstractmethod
    def check_place(self, names: Iterable[str] = ()) -> None:
        """Check that the prepared directory still has its path, and contains these names.

        Raises:
            Fenced: it was moved away.
            CheckpointDamaged: it was removed or emptied.
        """

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """All names in this folder: those of `list`, and those of other things than plain files."""

    @abstractmethod
    def odd(self, folder: str) -> dict[str, str]:
        """The names in this folder that are not plain files, with what they are."""

    @abstractmethod
    def read_within(self, name: str, limit: int) -> bytes:
        """Read at most ``limit`` bytes. Raises `CheckpointDamaged` for a longer file."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Rename a file or anything else. Raises ``FileNotFoundError``."""

    @abstractmethod
    def sync(self, folder: str) -> None:
        """Make everything durable that `list` shows of this folder."""

    @abstractmethod
    def sweep(self, folder: str, dead: Callable[[str], bool]) -> int:
        """Remove unfinished writes whose intended name satisfies ``dead``. Returns their number."""

    @abstractmethod
    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        """Try to take an advisory lock that ends with this process.

        Returns a function that releases it; None if another process holds it. ``steal`` takes it
        anyway; the other's lock no longer counts then. Raises `NotImplementedError` where there are
        no locks; only the heartbeat shows an active run there.
        """

    @abstractmethod
    def locked(self, name: str) -> bool:
        """True if somebody holds this lock. Writes nothing. Raises as `lock` does."""

    @abstractmethod
    def archive(self) -> str:
        """Move the whole place to a new name. Returns its new url."""

    @abstractmethod
    def discard(self) -> Store:
        """Move the whole place to a name that marks it for removal. Returns its store.

        A place with such a name keeps it.
        """

    @property
    @abstractmethod
    def discarded(self) -> bool:
        """True for a place with such a name."""

    @abstractmethod
    def remove(self, folders: Iterable[str]) -> bool:
        """Remove these folders and the place itself; False if one of them is not empty."""


def patient(store: Store) -> Store:
    """The store for an active run; see `Patient.patient`."""
    return store.patient() if isinstance(store, Patient) else store


def prepare(store: Store, folders: tuple[str, ...]) -> None:
    """Make the place ready for writing. Raises `CheckpointUnusable`."""
    if isinstance(store, Disk):
        store.prepare(folders)


def let_go(store: Store) -> None:
    """Release the directory; see `Disk.prepare`."""
    if isinstance(store, Disk):
        store.let_go()


def check_place(store: Store, names: Iterable[str] = ()) -> None:
    """Check that the place is where it was; see `Disk.check_place`."""
    if isinstance(store, Disk):
        store.check_place(names)


def odd(store: Store, folder: str) -> dict[str, str]:
    """The names in a folder that are not plain files, with what they are."""
    return store.odd(folder) if isinstance(store, Disk) else {}


def names(store: Store, folder: str) -> set[str]:
    """All names in a folder, also of other things than plain files."""
    return store.names(folder) if isinstance(store, Disk) else set(store.list(folder))


def read(store: Store, name: str, limit: int) -> bytes:
    """The bytes under a name, on a disk no more than ``limit``; see `Disk.read_within`."""
    return store.read_within(name, limit) if isinstance(store, Disk) else store.read(name)


def read_all(store: Store, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """`read` each name and limit in order, ahead of their use where reads are slow.

    Raises what `read` raises, when it comes to that name.
    """
    if isinstance(store, Disk):
        return starmap(store.read_within, wanted)
    return store.read_all(name for name, _ in wanted)


def read_each(
    store: Store, wanted: Sequence[tuple[str, int]]
) -> Iterator[bytes | FileNotFoundError | CheckpointDamaged]:
    """`read_all`, but yields the error in place of a missing or damaged file."""
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
    """Make these calls, concurrently except on a disk. Returns their results in order.

    Raises the error of the first call, in this order, that failed, once all started calls ended.
    """
    if isinstance(store, Disk):
        return [call() for call in calls]
    from resumable_tasks.checkpoint.store.ahead import at_once

    return at_once(calls)


def sync(store: Store, folder: str) -> None:
    """Make everything durable that `list` shows of this folder; a bucket shows nothing else."""
    if isinstance(store, Disk):
        store.sync(folder)


def sweep(store: Store, folder: str, dead: Callable[[str], bool]) -> int:
    """Remove unfinished writes whose intended name satisfies ``dead``. Returns their number."""
    return store.sweep(folder, dead) if isinstance(store, Disk) else 0


def lock(store: Store, name: str, *, steal: bool = False) -> Callable[[], None] | None:
    """Try to take an advisory lock; see `Disk.lock`. Raises `NotImplementedError`."""
    if not isinstance(store, Disk):
        raise NotImplementedError(f"there are no locks at {store.url}")
    return store.lock(name, steal=steal)


def locked(store: Store, name: str) -> bool:
    """True if somebody holds this lock. Raises `NotImplementedError`."""
    if not isinstance(store, Disk):
        raise NotImplementedError(f"there are no locks at {store.url}")
    return store.locked(name)


def archive(store: Store) -> str:
    """Archive the whole place. Returns its new url. Raises `CheckpointUnusable` if impossible."""
    if not isinstance(store, (Disk, Incarnations)):
        raise CheckpointUnusable(
            f"{store.url} cannot be moved aside: name another place for the new checkpoint"
        )
    return store.archive()


def discard(store: Store) -> Store:
    """Mark the whole place for removal, out of the way. Returns its store; see `Disk.discard`.

    Raises `CheckpointUnusable` if impossible.
    """
    if not isinstance(store, (Disk, Incarnations)):
        raise CheckpointUnusable(
            f"{store.url} cannot be set aside, so it cannot be removed",
            remedy="Delete what the store holds with its own tools",
        )
    return store.discard()


def discarded(store: Store) -> bool:
    """True for a place that `discard` has marked for removal."""
    return isinstance(store, (Disk, Incarnations)) and store.discarded


def remove(store: Store, folders: Iterable[str]) -> bool:
    """Remove an emptied place; False if it is not empty. See `Disk.remove`."""
    return store.remove(folders) if isinstance(store, Disk) else True


def way_back(store: Store, archived: str) -> str:
    """Instructions for restoring what was archived under this url."""
    if isinstance(store, Incarnations):
        return store.way_back(archived)
    return f"mv {shell_words(archived, store.url)}"


def check_current(store: Store) -> None:
    """Raise `Fenced` if a reset has archived the place. On a disk, each commit checks this."""
    if isinstance(store, Incarnations):
        store.check_current()
