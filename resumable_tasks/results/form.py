"""The seam between `publish` and the forms in which it writes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.results.rows import Wanted


@dataclass(frozen=True, slots=True)
class Published:
    """The result of `publish`. ``files`` are names in ``dest``, ``bytes`` is their total size."""

    dest: str
    rows: int
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """The rows of one checkpoint at a destination: ``rows`` rows of its first ``records``."""

    records: int
    rows: int


def held(marker: bytes, checkpoint: str, size: Callable[[str], int]) -> Held | None:
    """The rows that a marker records; None if it is another checkpoint's or a file is missing.

    ``size`` returns the size of a file there, and raises ``KeyError`` or ``FileNotFoundError`` for
    a missing one.
    """
    try:
        record = json.loads(marker)
        if record["checkpoint"] != checkpoint or sum(map(size, record["files"])) != record["bytes"]:
            return None
        return Held(int(record["records"]), int(record["rows"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


class Form(ABC):
    """A destination, whose contents are replaced or extended; a reader never sees a part.

    ``dest`` is its address, as a person would write it.
    """

    dest: str

    @abstractmethod
    def check(self, wanted: Wanted) -> None:
        """Check, before any row is read, that this can be published here.

        Raises `UsageError` if the form cannot do it, or if there are foreign files.
        """

    @abstractmethod
    def write(self, rows: CommittedRows, wanted: Wanted) -> Published:
        """Write these rows. May be called again if they were replaced while they were read.

        Raises what `check` raises, and `StoreError`; the destination is then unchanged.
        """

    @abstractmethod
    def held(self, checkpoint: str) -> Held | None:
        """The published rows of the checkpoint with this id; None if they are not complete.

        Reads no rows. Raises `UsageError` and `StoreError` if that cannot be found out.
        """
