"""The seam between `publish` and the form of what it writes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.results.rows import Wanted


@dataclass(frozen=True, slots=True)
class Published:
    """The result of `publish`. ``files`` are names in ``dest``, ``bytes`` their sum."""

    dest: str
    rows: int
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """The rows of one checkpoint that a destination has: so many, of its first ``records``."""

    records: int
    rows: int


def held(marker: bytes, checkpoint: str, size: Callable[[str], int]) -> Held | None:
    """What a marker tells of this checkpoint, if all files that it names are there; else None.

    ``size``: of a file there; raises ``KeyError`` or ``FileNotFoundError`` for one that is not.
    """
    try:
        record = json.loads(marker)
        if record["checkpoint"] != checkpoint or sum(map(size, record["files"])) != record["bytes"]:
            return None
        return Held(int(record["records"]), int(record["rows"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


class Form(ABC):
    """A destination: what is there is replaced or added to, and a reader never sees a part.

    ``dest`` is where it is, as a person would write it.
    """

    dest: str

    @abstractmethod
    def check(self, wanted: Wanted) -> None:
        """Look, before any row is read, whether this can be published here.

        Raises `UsageError` for what the form cannot do, and where others' files are.
        """

    @abstractmethod
    def write(self, rows: CommittedRows, wanted: Wanted) -> Published:
        """Write these rows. May be called again, where they were replaced while they were read.

        Raises what `check` does, and `StoreError`: what was there is then as it was.
        """

    @abstractmethod
    def held(self, checkpoint: str) -> Held | None:
        """What is there of the checkpoint with this id, whole; None if it is not.

        Reads no rows. Raises `UsageError` and `StoreError` where that cannot be seen.
        """
