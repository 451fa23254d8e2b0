"""The result of a run: counts, failures, and access to all committed rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import clean, count
from resumable_tasks.checkpoint.form import CommittedRows, Reader
from resumable_tasks.errors import JobFailed, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.walk import Seen
from resumable_tasks.results import asjson
from resumable_tasks.results.files import TARGET_BYTES
from resumable_tasks.results.shown import as_html, brief, kinds
from resumable_tasks.runners import hints
from resumable_tasks.runners.bound import BoundBy
from resumable_tasks.runners.outcome import Failure

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.dataset as pads
    from pydantic_core import CoreSchema

    from resumable_tasks.checkpoint.estimate import Estimate
    from resumable_tasks.results.form import Published
    from resumable_tasks.results.publish import PublishForm


@frozen
class RunResult:
    """The counts of one run, in items, and its checkpoint.

    Of ``total`` items seen, ``skipped`` were completed by earlier runs, ``completed`` by this one,
    and ``failed`` failed. ``duplicates`` were skipped by ``on_duplicate="skip"``, ``quarantined``
    because they had failed ``max_attempts`` times; ``changed`` had another fingerprint than when
    they were completed. ``retried`` batches needed more than one call: they were retried, told to
    wait, or handled again after an outage. ``failures`` are those of this run. ``cost`` is what
    this run spent, if the job reports it. ``parked`` items have a result that is kept but does not
    fit the table, from this run or an earlier one; ``parked_items`` hold the reason and the rows.
    ``remaining`` estimates what a stopped run has left, or what a dry run would handle. ``out``
    items are with a service, in ``submissions`` submissions, and the next run collects them.
    ``bound_by`` is what this run waited for most of the time; None if it handled nothing. `table`,
    `dataset` and `publish` return the rows of *all* runs of the checkpoint.
    """

    job: str
    checkpoint: str
    run: str
    total: int
    completed: int
    skipped: int
    failed: int
    duplicates: int
    seconds: float
    failures: tuple[Failure, ...] = field(repr=False, default=())
    quarantined: int = 0
    cost: float | None = None
    remaining: Estimate | None = None
    # Reads the rows of all runs.
    reader: Reader | None = field(repr=False, default=None)
    # The command or query that lists the failures.
    failures_listed: str = field(repr=False, default="")
    # Key → position among this run's items, for ordered rows.
    positions: Seen | None = field(repr=False, default=None)
    changed: int = 0
    retried: int = 0
    parked: int = 0
    parked_items: tuple[Failure, ...] = field(repr=False, default=())
    # False where a run was stopped before it had read all items.
    read_all: bool = field(repr=False, default=True)
    bound_by: BoundBy | None = None
    out: int = 0
    submissions: int = 0

    # Called with the place and the number of its rows.
    when_published: Callable[[str, int], None] | None = field(
        repr=False, compare=False, default=None
    )

    def __reduce__(self) -> tuple[Callable[[], RunResult], tuple[()]]:
        # These are of use in this process only.
        stay = ("positions", "when_published")
        values = {name: getattr(self, name) for name in self.__match_args__ if name not in stay}
        return functools.partial(RunResult, **values), ()

    __pydantic_serializer__ = asjson.Serializer()

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> CoreSchema:
        return asjson.schema(cls)

    def __repr__(self) -> str:
        return brief(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    @property
    def summary(self) -> str:
        """``1,710 of 1,713 items done (600 before, 1,110 now), 3 failed``, as in the log."""
        parts = f" ({self.skipped:,} before, {self.completed:,} now)" if self.skipped else ""
        more = "".join(
            [
                f", {self.parked:,} parked" if self.parked else "",
                f", {self.quarantined:,} quarantined" if self.quarantined else "",
                f", {count(self.duplicates, 'duplicate')}" if self.duplicates else "",
            ]
        )
        done = self.completed + self.skipped
        # Submissions of earlier runs count as done, even if their items did not come again.
        text = f"{done:,} of {max(self.total, done):,} items done{parts}"
        if self.submissions:
            text += f", {self.out:,} out in {count(self.submissions, 'submission')}"
            text += f", {self.remaining.items:,} to do" if self.remaining is not None else ""
        return f"{text}, {self.failed:,} failed{more}"

    def table(self, *, ordered: bool = False, only_given: bool = False) -> pa.Table:
        """Return all committed rows, verified against their commits, in memory.

        ``ordered``: in the order of this run's items; otherwise in the order of commits.
        ``only_given``: only the rows of items that this run was given. Raises `CheckpointDamaged`,
        which names the file, and `UsageError` if it is unknown which items were given.
        """
        from resumable_tasks.results.rows import Wanted, ordered_table, table

        given = self._given if only_given else None

        def whole(rows: CommittedRows) -> pa.Table:
            rows = Wanted(given=given).of(rows)
            return ordered_table(rows, self.positions) if ordered else table(rows)

        return self._reader.read(whole)

    def dataset(self) -> pads.Dataset:
        """Return a ``pyarrow.dataset.Dataset`` over committed shards only.

        Each file is verified against its commit once, now; rows are read on demand. If a later run
        or `resumable compact` has replaced and deleted files by then, reading raises
        ``FileNotFoundError`` (in a bucket perhaps another ``OSError``); a new dataset has the same
        rows and any newer ones. Raises `CheckpointDamaged`, which names the file.
        """
        return self._reader.dataset()

    def publish(
        self,
        dest: str | Path,
        *,
        form: PublishForm = "parquet",
        ordered: bool = False,
        only_given: bool = False,
        target_bytes: int = TARGET_BYTES,
    ) -> Published:
        """Write all committed rows to ``dest``: Parquet files in a folder, or a Delta table.

        A reader of ``dest`` sees the old dataset or the new one, never a mixture. ``form="delta"``
        maintains a Delta table there (extra ``delta``). ``ordered`` and ``only_given`` as for
        `table`. See `resumable_tasks.results.publish.publish`.
        """
        from resumable_tasks.results.publish import publish

        published = publish(
            self._reader,
            dest,
            form=form,
            ordered=ordered,
            positions=self.positions,
            given=self._given if only_given else None,
            target_bytes=target_bytes,
        )
        if self.when_published is not None:
            self.when_published(published.dest, published.rows)
        return published

    def completed_keys(self) -> Iterator[keys.Key]:
        """Iterate over the keys of all completed items, in the order of commits."""
        return self._reader.completed_keys()

    @property
    def _given(self) -> Seen:
        """The keys of this run's items. Raises `UsageError` if not all of them are known."""
        if self.positions is None or (self.total and not len(self.positions)):
            raise UsageError(
                "only_given=True: which items were given is known only in the process of the run, "
                "and not if the items are the rows of a table",
                remedy="Leave only_given out, or read the rows from the database",
            )
        if not self.read_all:
            raise UsageError(
                "only_given=True: this run was stopped before it had read all items; run it again "
                "to the end"
            )
        return self.positions

    @property
    def _reader(self) -> Reader:
        if self.reader is None:
            raise UsageError(
                f"the rows of {self.checkpoint} are not in files, and this result was loaded from "
                "JSON and cannot read them",
                remedy="Read them from the database, or store the result with the pickle "
                "serializer",
            )
        return self.reader

    def raise_for_failures(self) -> None:
        """Raise `JobFailed`, which carries this result, if any item failed or is parked."""
        if self.failed or self.parked:
            raise JobFailed(describe_failures(self), result=self)


def describe_failures(result: RunResult, ended_early: str | None = None) -> str:
    """The message of `JobFailed`: how many, of which kinds, with an example each."""
    done = f"{result.completed + result.skipped:,} are done and safe in {result.checkpoint}"
    of_all = f" of {result.total:,} items of {result.job}"
    parked = "parked: their results are kept in the checkpoint but do not fit the table"
    if result.failed or not result.parked:
        parts = [f"{result.failed:,}{of_all} failed; {done}:", *_kinds(result.failures)]
        parts += [f"{result.parked:,} items are {parked}:"] if result.parked else []
    else:
        parts = [f"{result.parked:,}{of_all} are {parked}; {done}:"]
    parts += _kinds(result.parked_items)
    if result.quarantined and not result.failed:
        parts.append(
            f"{result.quarantined:,} are quarantined and were not tried: `resumable retry "
            f"{result.checkpoint} --quarantined` releases them"
        )
    if ended_early:
        parts.append(f"The run ended before all items were handled: {ended_early}.")
    listed = result.failures_listed or f"`resumable failures {result.checkpoint}`"
    if result.failed:
        parts.append(
            "Fix the cause and run the same command again: only the failed items are handled. "
            f"{listed} lists them"
        )
    elif ended_early:
        parts.append(
            "Fix the cause and run the same command again: only the remaining items are handled"
        )
    if result.parked:
        parts.append(
            "Parked items are not paid for again. Give schema= or json_columns= that they fit (in "
            "a database, change its columns or constraints) and run the same command again: they "
            "are taken over without a call. If the handler was wrong: fix it, and convert them "
            "with `resumable accept --convert` (for a table `resumable sql accept --convert`)"
        )
    return "\n".join(parts)


def _kinds(failures: Iterable[Failure]) -> list[str]:
    """A line for each of the most frequent kinds of error, with an example."""
    return [
        f"  {number:,} × {clean(error, 80)}{': ' if first.message else ''}"
        f"{clean(first.message, 300)} (e.g. key {keys.shown(first.key)}"
        f"{clean(hints.at(first.traceback), 80)}){hints.hint(error, first.message)}"
        for error, number, first in kinds(failures)
    ]
