"""The handlers of a checkpoint's runs: their origins, and whether the last one was edited."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from resumable_tasks.base.frozen import changing
from resumable_tasks.checkpoint.form import Job, Origin
from resumable_tasks.errors import CheckpointMismatch

_Place = tuple[str | None, str | None]
"""The file and the qualified name of a function, each None if unknown."""


@changing
class Handlers:
    """The handlers named by the claims so far.

    ``origins`` are the files and functions of all runs since items are completed, ``last`` is that
    of the last run. ``edited``: its code differs from that of the run before, which had completed
    items. ``moved`` are the two functions, as text, if they differ.
    """

    origins: list[_Place] = field(default_factory=list)
    last: _Place = (None, None)
    code: str | None = None
    edited: bool = False
    moved: tuple[str, str] | None = None

    @classmethod
    def of_told(cls, told: Mapping[str, Any]) -> Handlers:
        """Restore from a snapshot's data."""
        file, function = told["last"]
        origins = [(origin[0], origin[1]) for origin in told["origins"]]
        moved = told["moved"] and (told["moved"][0], told["moved"][1])
        return cls(origins, (file, function), told["code"], told["edited"], moved)

    def follow(self, said: Mapping[str, Any] | None, *, completed: bool, told: bool) -> None:
        """Apply one more claim. ``told``: its new version announces that the handler differs."""
        self.edited, self.moved = False, None
        if not said:
            return
        code, last = self.code, self.last
        self.code, self.last = said.get("code"), (said.get("file"), said.get("function"))
        if completed and not told:
            self.edited = is_edited(code, self.code) or (
                code != self.code and not _may_be(_in_any_folder(last), _in_any_folder(self.last))
            )
            if self.edited and not _may_be(last, self.last):
                self.moved = _text(*last), _text(*self.last)
        if not completed:
            self.origins = [self.last]
        elif self.last not in self.origins:
            self.origins.append(self.last)


def is_edited(before: str | None, now: str | None) -> bool:
    """True if these digests are known to be of different code."""
    if not before or not now:
        return False
    # Digests of different Python versions cannot be compared.
    return before != now and before.partition(":")[0] == now.partition(":")[0]


def describe(origin: Origin) -> dict[str, Any]:
    """The origin as a claim records it."""
    return {"file": origin.file, "function": origin.function, "code": origin.code}


def argument(path: str) -> str:
    """The ``checkpoint=`` argument that, with the run's partition, names this default path."""
    folder, _, partition = path.rpartition("/")
    return f"checkpoint={(path if partition == 'default' else folder)!r}"


def check(place: str, known: Handlers, job: Job) -> None:
    """Raise `CheckpointMismatch` if this is the checkpoint of another handler of the same name.

    Two scripts may have functions of the same name. If the checkpoint's path follows from that name
    alone, a function elsewhere is another one. If the user has named the checkpoint, the script may
    have been edited, renamed or moved; but two functions that both exist are different.
    """
    origin = job.origin
    if origin is None or not known.origins:
        return
    this = origin.file, origin.function
    if any(_may_be(each, this) for each in known.origins):
        return
    if not origin.named:
        raise CheckpointMismatch(
            f"the checkpoint {place} has this job's name but was made by another function:\n  "
            f"checkpoint: {_text(*known.origins[-1])}\n  this run:   {_text(*this)}",
            safe="Nothing was handled",
            remedy="Options: if this is another job, give it its own name=…; if it is the same job "
            f"and has moved, name the checkpoint explicitly, once: {argument(place)}",
        )
    if job.on_version_change == "reuse" or not is_edited(known.code, origin.code):
        return
    last = known.last
    by_name_alone = all(_bare(place) == job.name for place in (last, this))
    if not by_name_alone or _may_be(_in_any_folder(last), _in_any_folder(this)):
        return
    if not _stands(last, origin):
        return
    raise CheckpointMismatch(
        f"the checkpoint {place} was made by another function of this name:\n  checkpoint: "
        f"{_text(*last)}, which is still there\n  this run:   {_text(*this)}",
        safe="Nothing was handled",
        remedy="Options: if this is another job, give it its own checkpoint=; if it continues the "
        'same job, confirm that once with on_version_change="reuse"',
    )


def _stands(place: _Place, origin: Origin) -> bool:
    """True if that function is still in its file: at its path, or beside the file of ``origin``."""
    from resumable_tasks.base.source import defines

    file, function = place
    if file is None or function is None:
        return False
    paths = [file]
    if origin.path is not None:
        paths.append(os.path.join(os.path.dirname(origin.path), os.path.basename(file)))
    return any(
        (path, function) != (origin.path, origin.function) and defines(path, function)
        for path in map(os.path.realpath, paths)
    )


def _in_any_folder(place: _Place) -> _Place:
    """The place without its folder, which depends on release, machine and working directory."""
    file, function = place
    return file and file.rpartition("/")[2], function


def _bare(place: _Place) -> str:
    return str(place[1]).rpartition(".")[2]


def _may_be(one: _Place, other: _Place) -> bool:
    return all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def _text(file: str | None, function: str | None) -> str:
    return f"{function} in {file}" if file else str(function)
