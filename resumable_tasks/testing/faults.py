"""Make a process die, stop or fail at a named point of the library.

For tests of the state after a crash::

    with crash_at("commit.shard_written", nth=3):
        job.run(items, checkpoint=place)      # in a child process, which is killed there

or call ``install_from_env()`` in a process that is started with
``RESUMABLE_TASKS_FAULTS="commit.shard_written:3:kill"`` in its environment.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from resumable_tasks.base import faults

How = Literal["kill", "raise", "exit", "stop"]

VARIABLE = "RESUMABLE_TASKS_FAULTS"
EXIT_CODE = 86
"""The exit code of a process that ``exit`` has ended."""

POINTS: dict[str, str] = {
    "checkpoint.claimed": "the claim is durable, nothing has been swept",
    "commit.done": "the record is durable, nobody has been told",
    "commit.shard_written": "the rows are durable, no record names them",
    "journal.before_create": "a record is about to be created",
    "journal.created": "a record is durable, the journal in memory does not know it",
    "segment.before_create": "records are about to be folded into a segment",
    "segment.created": "a segment is durable, the records have their own files still",
    "segment.deleted": "the files of records that are in segments are deleted",
    "merge.done": "many small shards are one, the old files are still there",
    "merge.shard_written": "a merged shard is durable, no record names it",
    "object.unsettled": "a create in a bucket was not answered by success",
    "prune.deleted": "some names of a pruned checkpoint are deleted",
    "prune.ended": "the record that ends a checkpoint for good is durable",
    "publish.exchanged": "the new dataset is in place, not all of the old one is removed",
    "publish.looked": "a Delta table was looked at, nothing is written to it",
    "publish.staged": "the new dataset lies beside the old one, durable, or all of it is read",
    "shard.before_put": "the rows are encoded, nothing is written",
    "shard.written": "the shard is durable",
    "snapshot.before_keys": "the keys of a snapshot of the journal are about to be written",
    "snapshot.keys_written": "the keys of a snapshot are there, the snapshot is not",
    "snapshot.written": "a snapshot is there, older ones are not removed",
    "sql.behind": "the rows are committed in shards, the column does not say so",
    "sql.claimed": "rows are claimed, none of them is handled",
    "sql.committed": "rows and their column are committed, nobody has been told",
    "sql.written": "rows and their column are written, the transaction is not committed",
    "submission.submitting": "an intent is durable, nothing is prepared or sent",
    "submission.prepared": "what was prepared is durable, nothing is sent",
    "submission.sending": "a submission is about to be sent",
    "submission.sent": "the service has answered, its handle is not durable",
    "submission.submitted": "the handle is durable, nobody has polled",
    "submission.ended": "the service's work has ended, nothing is collected",
    "submission.collected": "the results are here, nothing of them is durable",
    "submission.withdrawn": "a withdrawal is durable, its items are not planned again",
    "store.created": "a new name is durable",
    "store.linked": "a new name stands, its folder is not flushed",
    "store.set_aside": "a place has another name, or its next incarnation has begun",
    "store.renamed": "a name was replaced, its folder is not flushed",
    "store.temp_written": "the bytes are durable under a temporary name",
}
"""Every fault point of the library, with the state at that point."""


class FaultInjected(Exception):
    """Raised at a fault point armed with ``how="raise"``."""


@dataclass(slots=True)
class Fault:
    """A fault ``how`` at the ``nth`` time, from 1, that this process passes ``point``.

    ``kill`` sends SIGKILL, ``stop`` SIGSTOP (SIGCONT continues the process), ``exit`` ends the
    process without any cleanup, ``raise`` raises `FaultInjected`. Raises ``ValueError`` for a point
    that does not exist, so that a test cannot pass because of a misspelt name.
    """

    point: str
    nth: int = 1
    how: How = "kill"
    _passed: int = field(default=0, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise ValueError(f"there is no fault point {self.point!r}; there are {sorted(POINTS)}")
        if self.nth < 1:
            raise ValueError(f"nth={self.nth!r}: passings are counted from 1")
        if self.how not in get_args(How):
            raise ValueError(f"how={self.how!r} is none of {get_args(How)}")

    def due(self) -> bool:
        """Count one passing. Returns whether the fault is due."""
        self._passed += 1
        return self._passed == self.nth

    def act(self) -> None:
        """Carry out the fault."""
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "stop":
            # Sent to this thread, which might otherwise run on until all threads are stopped.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        elif self.how == "exit":
            os._exit(EXIT_CODE)
        else:
            raise FaultInjected(f"at {self.point}, passing {self.nth}")


_armed: list[Fault] = []
_lock = threading.Lock()


def _pass(name: str) -> None:
    with _lock:
        due = [fault for fault in _armed if fault.point == name and fault.due()]
    for fault in due:
        fault.act()


def parse(text: str) -> list[Fault]:
    """Parse faults from ``point:nth:how,…``; ``nth`` and ``how`` are optional."""
    found = []
    for entry in filter(None, text.split(",")):
        point, _, rest = entry.strip().partition(":")
        nth, _, how = rest.partition(":")
        found.append(Fault(point, int(nth or 1), how or "kill"))  # type: ignore[arg-type]
    return found


def install(wanted: Iterable[Fault]) -> None:
    """Arm these faults for the rest of the process."""
    with _lock:
        _armed.extend(wanted)
    faults.arm(_pass if _armed else None)


def install_from_env(variable: str = VARIABLE) -> None:
    """Arm the faults in the environment variable, if it is set."""
    install(parse(os.environ.get(variable, "")))


@contextmanager
def crash_at(point: str, nth: int = 1, how: How = "kill") -> Iterator[None]:
    """Within this block, arm a fault ``how`` at the ``nth`` passing of ``point``; see `Fault`."""
    fault = Fault(point, nth, how)
    install([fault])
    try:
        yield
    finally:
        with _lock:
            _armed[:] = [each for each in _armed if each is not fault]
        faults.arm(_pass if _armed else None)
