"""The history of a checkpoint from its journal: its runs, and people's commands between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from resumable_tasks.checkpoint.directory.record import OF_WORK, Commit, is_by_hand

# The commands that people give between two runs, by the kind of their record.
_BETWEEN = {
    "release": "retry",
    "redo": "redo",
    "repair": "repair",
    "submitted": "attach",
    "withdrawn": "withdraw",
}
_COUNTS = ("completed", "skipped", "failed", "parked", "out")


@dataclass(slots=True)
class Run:
    """One run, or one command between two runs.

    ``number`` counts the runs from 1; None for a command. ``how`` the run ended is ``done``,
    ``failed``, ``interrupted``, ``spent``, ``error``, ``imported``, ``accepted``, or ``died`` if it
    recorded no end. For a command, ``how`` is its name and ``items`` the number of its items.
    Counts are those that the run recorded at its end. For a run without an end they come from its
    commits: an item that failed and was completed later counts in both. ``out`` items were with a
    service at the end. ``close`` holds the other fields that the run recorded at its end.
    """

    number: int | None
    run: str
    began: str
    last: str
    how: str = "died"
    ended: str | None = None
    completed: int = 0
    skipped: int | None = None
    failed: int = 0
    parked: int = 0
    out: int = 0
    items: int | None = None
    commits: int = 0
    cost: float | None = None
    host: str | None = None
    pid: int | None = None
    close: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Seconds from its first to its last record; None if its times cannot be read."""
        try:
            until = datetime.fromisoformat(self.ended or self.last)
            return max(0.0, (until - datetime.fromisoformat(self.began)).total_seconds())
        except (ValueError, TypeError):
            return None

    def follow(self, commit: Commit) -> None:
        """Apply a record of this run."""
        self.last, info = commit.time, commit.info
        if commit.kind == "commit":
            self.commits += 1
            self.completed += commit.key_count - info.get("copied", 0)
            self.parked += sum(failure.parked for failure in commit.failures)
            self.failed += sum(not failure.parked for failure in commit.failures)
            if "cost" in info:
                self.cost = (self.cost or 0.0) + info["cost"]
        elif commit.kind == "close":
            self.ended, self.close = commit.time, info
            self.how = "accepted" if "accepted" in info else str(info.get("how"))
            for name in _COUNTS if self.how != "accepted" else ():
                if isinstance(info.get(name), int):
                    setattr(self, name, info[name])


def runs(commits: Iterable[Commit]) -> list[Run]:
    """The runs and the commands between them, in order, from these records."""
    found: list[Run] = []
    current: Run | None = None
    for commit in commits:
        if is_by_hand(commit.kind, commit.info):
            found.append(_between(commit))
        elif commit.kind in ("claim", "close", *OF_WORK):
            # A run begins without a claim if that record was lost.
            if commit.kind == "claim" or current is None or commit.run != current.run:
                number = 1 + sum(run.number is not None for run in found)
                current = _new(commit, number)
                found.append(current)
            current.follow(commit)
    return found


def _between(commit: Commit) -> Run:
    what, ended = _new(commit, None), commit.time
    retracted = commit.retracted.count(b"\n") + 1 if commit.retracted else 0
    if commit.kind == "release":
        items = len(commit.failures)
    elif commit.kind in OF_WORK:
        items = int(commit.info.get("items", 0))
    else:
        items = retracted - commit.key_count
    return replace(what, how=_BETWEEN[commit.kind], ended=ended, items=items)


def _new(commit: Commit, number: int | None) -> Run:
    host, pid = commit.info.get("host"), commit.info.get("pid")
    return Run(
        number,
        commit.run,
        commit.time,
        commit.time,
        host=None if host is None else str(host),
        pid=pid if isinstance(pid, int) else None,
    )
