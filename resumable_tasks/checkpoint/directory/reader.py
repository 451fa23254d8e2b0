"""Reads the progress and the rows of checkpoints, also while runs are active."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from resumable_tasks.base.text import command
from resumable_tasks.checkpoint.directory import (
    holder,
    keyless,
    layout,
    manifest,
    opening,
    shards,
    snapshots,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.keyless import Keyless
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.outstanding import Outstanding
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.records import record_number
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import (
    EXIT_BUDGET,
    EXIT_DAMAGED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_INTERRUPTED,
    CheckpointDamaged,
    CheckpointMismatch,
)

Status = Literal["done", "failed", "incomplete", "interrupted", "spent", "running", "damaged"]

EXIT_CODES: dict[Status, int] = {
    "done": EXIT_DONE,
    "failed": EXIT_FAILED,
    "incomplete": EXIT_INTERRUPTED,
    "interrupted": EXIT_INTERRUPTED,
    "spent": EXIT_BUDGET,
    "running": EXIT_HELD,
    "damaged": EXIT_DAMAGED,
}

_OF_A_RUN = ("how", "total", "completed", "skipped", "failed", "parked", "duplicates", "seconds")

# `follow` makes a listing once in this many looks, to find records folded into a segment meanwhile.
_LISTED = 16

P = ParamSpec("P")
R = TypeVar("R")

_ARCHIVED = re.compile(r"\.(archived|pruned)-\d{8}T\d{6}-[0-9a-f]+$")


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last run: its claim, the number of keys completed before it, and its close, if any."""

    claim: Commit
    found: int
    close: Commit | None = None


class Reader:
    """Reads a checkpoint, and afterwards only what is new. Writes nothing.

    ``holder`` describes the live run that holds the checkpoint (empty if it has not identified
    itself); None if there is none.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._manifest = read_manifest(store)
        self.state = State(place=store.url)
        self.holder: dict[str, Any] | None = None
        self.damage: CheckpointDamaged | None = None
        self._journal: Journal | None = None
        self._looks = 0
        self._watch = holder.Watch(store)

    @property
    def manifest(self) -> Manifest:
        """The manifest, with the fields that runs have set since it was written."""
        return self._manifest.named(self.state.names)

    @classmethod
    def at(cls, place: str) -> Reader:
        """A reader that has read the checkpoint. Raises `UsageError` or `CheckpointDamaged`."""
        reader = cls(open_store(place))
        reader.read_new()
        return reader

    def read_new(self) -> None:
        """Read the records that are new since the last look.

        Raises `CheckpointDamaged` after it has applied the records before the damage.
        """
        journal = self._journal
        self._read(self._first() if journal is None else journal.read_new())

    def _first(self) -> Iterator[Commit]:
        """Start from the newest snapshot, if there is one. Returns the records after it."""
        self.state, self._journal = snapshots.starting(self.store, self._manifest.id)
        return self._journal.read_new()

    def _read(self, commits: Iterator[Commit]) -> None:
        # The holder first: a run that ends meanwhile must not look as if it had died.
        self.holder = self._watch.holder()
        for commit in commits:
            if self.state.recalled[0] and snapshots.voids(commit):
                self.state, self._journal = (
                    State(place=self.store.url),
                    Journal(self.store, self._manifest.id),
                )
                self._read(self._journal.read_new())
                return
            self.state.apply(commit)
        if self.holder is None and not self.state.closed:
            self.holder = self._watch.holder()  # the run may have begun since the first look

    def follow(self) -> None:
        """Read what is new since the last look, with few requests and rarely a listing.

        For repeated looks; `examine` finds damage that this misses. Sets ``damage`` if it finds
        any.
        """
        try:
            journal = self._journal
            self._looks += 1
            if journal is not None and self._looks % _LISTED:
                self._read(journal.follow())
            else:
                self.read_new()
        except CheckpointDamaged as error:
            self.damage = error

    def examine(self) -> None:
        """`read_new`, and check that the shards exist. Sets ``damage`` if it finds any.

        Does not read the shards; ``verify`` does.
        """
        try:
            self.read_new()
            layout.check(self.store, self.state.records)
            try:
                shards.check_sizes(self.store, self.state.shards.values())
            except CheckpointDamaged:
                self.read_new()  # a repair may just have recorded that it moved them aside
                shards.check_sizes(self.store, self.state.shards.values())
        except CheckpointDamaged as error:
            self.damage = error

    @property
    def last(self) -> LastRun | None:
        """The last run; None if none has begun."""
        claim, ended = self.state.lately.claim, self.state.lately.ended
        if claim is None:
            return None
        over = ended is not None and ended.number > claim.number
        return LastRun(claim, self.state.lately.found, ended if over else None)

    @property
    def last_commit(self) -> str | None:
        """The time of the last commit; None if there is none."""
        return self.state.lately.committed

    @property
    def keyless(self) -> Keyless:
        """The items without a usable key in the last run that recorded its end."""
        ended = self.state.lately.ended
        return Keyless() if ended is None else keyless.read(ended.info, ended.time)

    @property
    def status(self) -> Status:
        """The state of the checkpoint in one word."""
        close = self.last.close if self.last else None
        if self.damage is not None:
            return "damaged"
        if self.holder is not None:
            return "running"
        if close is None or not self.state.closed or close.info.get("how") == "imported":
            return "incomplete"
        how = close.info.get("how")
        if how in ("interrupted", "spent"):
            return "spent" if how == "spent" else "interrupted"
        return "done" if how == "done" else "failed"

    @property
    def left(self) -> dict[str, int]:
        """The items that the last run has not completed: counts by reason, without zeros."""
        state = self.state
        counts = {
            "failed": len(state.failures),
            "parked": len(state.parked),
            "without a key": self.keyless.there,
        }
        return {what: items for what, items in counts.items() if items}

    @property
    def job(self) -> str:
        """The job's name for display; says so if an import has left it open."""
        return self.manifest.job or "imported; the first run names the job"

    @property
    def total(self) -> float | None:
        """The budget of all runs together, as of the last run; None if it had none."""
        return self.last.claim.info.get("budget") if self.last else None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    @property
    def next(self) -> str:
        """The next step for the user, in one sentence."""
        place = self.store.url
        if self.status == "running":
            return f"wait for the run to end; {command('watch', place)} follows it"
        if self.status == "damaged":
            return (
                f"{command('verify', place)} lists all damage, {command('repair', place)} moves it "
                "aside; then run the same command again: it redoes only those items"
            )
        if self.status == "failed" and self.state.parked and not self.state.failures:
            return (
                f"{command('failures', place, '--parked')} lists the results that do not fit the "
                "table. Give the job schema= or json_columns= that they fit and run the same "
                "command again. If the handler was wrong: fix it, and convert them with "
                f"{command('accept', place, '--convert', 'MODULE:FUNCTION')}. No call is repeated"
            )
        if self.status == "failed":
            return (
                f"{command('failures', place)} lists what failed; fix the cause and run the same "
                "command again: only items that are not completed are handled"
            )
        if self.status == "done":
            return (
                self._tolerated + f"{command('publish', place, 'DEST')} writes the rows for others"
            )
        if self.status == "spent" and self._all_spent:
            return "Budget(total=…) is used up: raise it, then run the same command again"
        if self.status == "spent":
            return "the budget is used up: raise it, or run the same command again to spend another"
        if len(self.state.out):
            return (
                "run the same command again: it collects the open submissions and does what is left"
            )
        close = self.last.close if self.last else None
        if close is not None and close.info.get("how") == "imported" and self.state.closed:
            return f"run the job with checkpoint={place!r}: it skips what was imported"
        return "run the same command again to resume"

    @property
    def _all_spent(self) -> bool:
        """True if the budget of all runs together does not allow one more item."""
        pace = self.state.pace
        return self.total is not None and pace.cost + (pace.cost_each or 0.0) > self.total

    @property
    def _tolerated(self) -> str:
        if not self.left:
            return "nothing; "
        parked = self.state.parked and not self.state.failures
        listed = command("failures", self.store.url, *(["--parked"] if parked else []))
        return f"nothing; the job tolerates what is left ({listed} lists it); "

    @property
    def since_the_end(self) -> str:
        """A sentence about the change since the last run ended; empty if there is none."""
        last, state = self.state.last, self.state
        if self.last is None or self.last.close is None or last is None or state.closed:
            return ""
        if last.kind == "release":
            return "failed items were released; the next run tries them again"
        if last.kind == "redo":
            return "completed items were taken back; the next run handles them again"
        if last.kind == "submitted":
            return "a submission was attached by hand; the next run collects it"
        if last.kind == "withdrawn":
            return "a submission was withdrawn by hand; the next run submits its items again"
        return "a repair removed damaged items; the next run handles them again"

    def errors(self) -> dict[str, int]:
        """Count the failed items by class of error, the most frequent first."""
        each = Counter(failure.error for failure in self.state.failures.values())
        return dict(each.most_common())

    def describe(self) -> dict[str, Any]:
        """The full status, as ``status --json`` prints it."""
        state = self.state
        return {
            "checkpoint": self.store.url,
            "job": self.manifest.job or None,
            "version": (state.version or self.manifest.version) or None,
            "key": self.manifest.key or None,
            "results": self.manifest.results or None,
            "created": self.manifest.created,
            "status": self.status,
            "exit_code": self.exit_code,
            "next": self.next,
            "completed": len(state.done),
            "rows": state.rows,
            "shards": len(state.shards),
            "bytes": state.bytes,
            "failed": len(state.failures),
            "errors": self.errors(),
            "without_key": self.keyless.there,
            "parked": len(state.parked),
            **described(state.out),
            "spent": state.pace.cost,
            "total": self.total,
            "records": state.records,
            "runs": state.runs,
            "last_commit": self.last_commit,
            "last_run": describe_run(self.last) if self.last else None,
            "holder": self.holder,
            "damage": None
            if self.damage is None
            else {
                "message": str(self.damage),
                **self.damage.parts,
                "files": list(self.damage.files),
            },
        }


def describe_run(run: LastRun) -> dict[str, Any]:
    """A run for JSON output; ``how`` is None if it is running or has died."""
    info = run.close.info if run.close else {}
    return {
        "run": run.claim.run,
        "host": run.claim.info.get("host"),
        "pid": run.claim.info.get("pid"),
        "began": run.claim.time,
        "ended": run.close.time if run.close else None,
        **{name: info.get(name) for name in _OF_A_RUN},
        "bound_by": info.get("bound_by"),
    }


def described(out: Outstanding) -> dict[str, Any]:
    """The submissions with a service, for JSON output."""
    counts = out.counts
    return {
        "out": counts.items,
        "submissions": counts.submissions,
        "out_since": counts.since or None,
        "out_cost": counts.cost,
    }


def is_checkpoint(store: Store) -> bool:
    """True if this place holds a checkpoint, damaged or not, and not only other files."""
    if any(record_number(name) is not None for name in disk.names(store, JOURNAL)):
        return True
    try:
        manifest.read(store)
    except FileNotFoundError:
        return False
    except CheckpointMismatch:
        return True  # a checkpoint of a later format
    except CheckpointDamaged:
        # Other programs have a job.json too.
        return not opening.foreign(store)
    return True


def is_archived(path: str) -> bool:
    """True for a path in or below a checkpoint that was archived or pruned."""
    return any(_ARCHIVED.search(part) for part in path.split("/"))


class _Swept(Exception):
    """Shards that were to be read have been replaced and swept meanwhile."""


@contextlib.contextmanager
def reading(store: Store) -> Iterator[tuple[Manifest, State]]:
    """Yield a checkpoint's manifest and state, for reading its rows.

    Use it in functions decorated with `retry_if_swept`.
    """
    found, state = read_checkpoint(store)
    try:
        yield found, state
    except CheckpointDamaged as error:
        if error.files and not set(error.files) & read_checkpoint(store)[1].shards.keys():
            raise _Swept from error
        raise


def retry_if_swept(function: Callable[P, R]) -> Callable[P, R]:
    """Restart the function if shards that it reads were superseded and swept meanwhile.

    That takes two newer runs: the first supersedes the shards, the second sweeps them.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            with contextlib.suppress(_Swept):
                return function(*args, **kwargs)

    return call
