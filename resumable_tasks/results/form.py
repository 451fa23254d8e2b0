"""The seam between `publish` and the form of what it writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
