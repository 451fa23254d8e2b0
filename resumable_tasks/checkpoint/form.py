"""What a run asks of a checkpoint, whatever keeps it: a directory, or columns of a database table.

A form promises: what `commit` has returned for is durable, and each item's results stand in it
exactly once. The engine and the run know nothing else of it.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planner
from resumable_tasks.runners.outcome import Failure, Outcome
from resumable_tasks.task.options import JobOptions

if TYPE_CHECKING:
    import pyarrow as pa


class CheckpointForm(ABC):
    """A checkpoint that this process drives. Its committer calls it from one thread at a time.

    ``state`` is what is known of earlier runs and kept in memory; a form that can ask for it
    leaves it empty. ``store`` is where its files are, if it has any. ``source`` reads the rows of
    all runs, where they are not in shards.
    """

    job: str
    url: str
    run: str
    state: State
    store: Store | None = None
    before: Commit | None = None
    source: Any = None

    @property
    def found(self) -> int:
        """How many items were completed before this run."""
        return len(self.state.done)

    @property
    def failed_before(self) -> int:
        """How many items had failed before this run."""
        return len(self.state.failures)

    @property
    def expected(self) -> int | None:
        """How many items there are, where the checkpoint itself has them."""
        return None

    @property
    def failures_listed(self) -> str:
        """What lists the failures: a command, or a query."""
        return f"`resumable failures {shlex.quote(self.url)}`"

    @property
    def json_columns(self) -> frozenset[str]:
        """The fields of the rows that are kept as JSON, whatever structure they have."""
        return frozenset()

    @property
    def quarantine_hint(self) -> str:
        """What lists the quarantined items, and what releases them."""
        return (
            f"`resumable failures {shlex.quote(self.url)} --quarantined` lists them, "
            "`resumable retry` releases them"
        )

    def planner(self, scheme: KeyScheme, options: JobOptions) -> Planner:
        """What makes the batches of this run."""
        return Planner(
            scheme,
            options.batch_size,
            self.state.done,
            on_duplicate=options.on_duplicate,
            batch_format=options.batch_format,
            set_aside=self.state.set_aside(options.max_attempts, options.retry_failed),
            fingerprinter=options.fingerprinter(),
            on_change=options.on_change,
            failed=self.state.failures,
        )

    def set_aside(self, planner: Planner) -> list[Failure]:
        """The failed items of earlier runs that came and were not tried again."""
        return [self.state.failures[line] for line in planner.set_aside_lines]

    def stop_when(self, stop: Callable[[], bool]) -> None:  # noqa: B027 - most never wait
        """Where planning waits for something: end, rather than wait on, once this is true."""

    def shard_writer(self) -> ShardWriter | None:
        """What a remote worker writes its shards with; None: it sends its rows back."""
        return None

    @abstractmethod
    def accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: Sequence[Outcome]
    ) -> tuple[Outcome, pa.Schema | None]:
        """The outcome as it can be committed, and the schema of the results with it.

        ``pending`` are the outcomes accepted before it and not yet committed, ``schema`` is what
        the last of them gave (None if there are none). Nothing is durable before `commit`. Raises
        `ResultConflict` where the rows as a whole do not fit.
        """

    @abstractmethod
    def commit(
        self, outcomes: Sequence[Outcome], schema: pa.Schema | None, prints: Mapping[bytes, int]
    ) -> Commit:
        """Make these outcomes durable in one step; what was committed of them.

        ``prints`` are the fingerprints of the items that are out, by key, where there are any.

        Raises `Fenced`, `StoreError` or `CommitStateUnknown`; the object is of no more use then.
        """

    @abstractmethod
    def end(self, counts: dict[str, Any], adopted: bytes = b"", prints: bytes = b"") -> None:
        """Record the end of this run, with its counts.

        ``adopted`` are completed keys that stand as they are, ``prints`` their new fingerprints.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the checkpoint. Commits nothing; may be called more than once."""
