"""A directory or a bucket's prefix as the place of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from resumable_tasks.base.clock import now
from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.directory import manifest, notes
from resumable_tasks.checkpoint.directory.driver import (
    DirectoryCheckpoint,
    read_checkpoint,
)
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.notes import Note
from resumable_tasks.checkpoint.directory.outstanding import held_back
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.directory.versions import is_for_another
from resumable_tasks.checkpoint.form import (
    Checkpoint,
    CommittedRows,
    Job,
    Opening,
    Place,
    Preview,
    Reader,
)
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import is_url, open_store
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import Key

if TYPE_CHECKING:
    import pyarrow.dataset as pads

    from resumable_tasks.checkpoint.choice import Choice

T = TypeVar("T")


@frozen
class Directory(Place):
    """A checkpoint with a journal and shards, at this path or URL."""

    path: str

    def store(self) -> Store:
        """The store of its files."""
        return open_store(self.path)

    def local_path(self) -> str | None:
        store = self.store()
        if not isinstance(store, LocalStore):
            return None
        return store.url if is_url(self.path) else self.path

    def may_hang(self) -> bool:
        return self.local_path() is None

    def keeps_spending(self) -> bool:
        return True

    def keeps_submissions(self) -> bool:
        return True

    def partition(self, name: str) -> Directory:
        return Directory(f"{self.path.rstrip('/') or '/'}/{name}")

    def check(self, job: Job, items: Any) -> Job:
        return job

    def preview(self, job: Job, items: Any) -> Preview:
        store, state = self.store(), State()
        if manifest.NAME in store.list(""):
            found, state = read_checkpoint(store)
            if is_for_another(store, found, _manifest(job), state, job):
                state = State()
        fingerprinter = job.planning.fingerprinter
        state.follow_scheme(fingerprinter.describe() if fingerprinter is not None else None)
        aside = state.set_aside(job.max_attempts, job.retry_failed)
        planner = job.planning.planner(state.done, aside, state.failures)
        submissions = held_back(state, planner)
        batches = again = handled = 0
        for batch in planner.batches(items):
            assert isinstance(batch, Batch)
            batches += 1
            handled += len(batch)
            if state.failures:
                again += sum(line in state.failures for line in batch.lines.split(b"\n"))
        return Preview(
            store.url,
            planner.total,
            planner.skipped,
            state.pace.estimate(handled),
            again,
            len(planner.set_aside_lines),
            planner.duplicates,
            planner.changed,
            batches,
            planner.seen,
            planner.out.came,
            len(submissions),
        )

    def open(self, job: Job, opening: Opening) -> Checkpoint:
        return DirectoryCheckpoint.open(self.store(), _manifest(job), job, opening)

    def reader(self) -> Reader:
        return DirectoryReader(self.store())

    def redo(self, choice: Choice, *, dry_run: bool = False) -> list[Key]:

        from resumable_tasks.checkpoint.directory.redo import redo

        return redo(self.store(), choice, dry_run=dry_run)


def _manifest(job: Job) -> Manifest:
    return Manifest(job.name, job.version, job.planning.scheme.describe(), job.results)


@frozen
class DirectoryReader(Reader):
    """Reads the shards that count, each verified against its commit."""

    store: Store

    @property
    def files_at(self) -> str:
        return self.store.url

    def read(self, use: Callable[[CommittedRows], T]) -> T:
        from resumable_tasks.checkpoint.directory.rows import read

        return read(self.store, use)

    def dataset(self) -> pads.Dataset:
        from resumable_tasks.checkpoint.directory.rows import dataset

        return dataset(self.store)

    def note_published(self, rows: CommittedRows, dest: str, form: str, count: int) -> None:
        told = rows.identity
        notes.write(self.store, Note(told["checkpoint"], dest, form, told["records"], count, now()))

    def completed_keys(self) -> Iterator[Key]:
        from resumable_tasks.checkpoint.directory.completed import completed_lines

        for lines in completed_lines(self.store):
            yield from keys.parse_lines(lines)
