"""The handlers of a checkpoint's runs: where they came from, and whether the last was edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from resumable_tasks.checkpoint.form import Origin
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointMismatch


@dataclass(slots=True)
class Handlers:
    """The fold of what claims say of handlers.

    ``origins`` are the files and functions of the runs since something was completed. ``edited``:
    the last run's code is another than that of the run before, by which items were completed.
    """

    origins: list[tuple[str | None, str | None]] = field(default_factory=list)
    code: str | None = None
    edited: bool = False

    def follow(self, said: Mapping[str, Any] | None, *, completed: bool, told: bool) -> None:
        """Take in one more claim. ``told``: its version says that the handler is another."""
        self.edited = False
        if not said:
            return
        before, self.code = self.code, said.get("code")
        self.edited = completed and not told and is_edited(before, self.code)
        origin = said.get("file"), said.get("function")
        if not completed:
            self.origins = [origin]
        elif origin not in self.origins:
            self.origins.append(origin)


def is_edited(before: str | None, now: str | None) -> bool:
    """True if these digests of code are known to be of two codes."""
    if not before or not now:
        return False
    # Those of two versions of Python say nothing of each other.
    return before != now and before.partition(":")[0] == now.partition(":")[0]


def describe(origin: Origin) -> dict[str, Any]:
    """The origin as a claim says it."""
    found = asdict(origin)
    del found["named"]
    return found


def argument(path: str) -> str:
    """The ``checkpoint=`` that, with the run's partition, leads to this default checkpoint."""
    folder, _, partition = path.rpartition("/")
    return f"checkpoint={(path if partition == 'default' else folder)!r}"


def check(store: Store, known: Handlers, origin: Origin | None) -> None:
    """Raise `CheckpointMismatch` where only the name of a function leads to this checkpoint.

    Two scripts in one folder may have functions of the same name.
    """
    if origin is None or origin.named or not known.origins:
        return
    if any(_may_be(each, (origin.file, origin.function)) for each in known.origins):
        return
    raise CheckpointMismatch(
        f"the checkpoint {store.url} has this job's name, and was made by another function:\n"
        f"  checkpoint: {_text(*known.origins[-1])}\n  this run:   "
        f"{_text(origin.file, origin.function)}",
        safe="Nothing was handled",
        remedy="Ways out: if this is another job, give it a name of its own, name=…; if it is the "
        f"same job and has moved, name the checkpoint outright, once: {argument(store.url)}",
    )


def _may_be(one: tuple[str | None, str | None], other: tuple[str | None, str | None]) -> bool:
    return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def _text(file: str | None, function: str | None) -> str:
    return f"{function} in {file}" if file else str(function)
