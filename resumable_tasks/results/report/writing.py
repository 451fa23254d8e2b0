"""Writes the report of a checkpoint to a file or to a bucket."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from resumable_tasks.base.files import open_plain
from resumable_tasks.base.text import without_secrets
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import expanded, is_url, open_store
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.results.report import facts, page

ENDING = ".html"


def destination(to: str | os.PathLike[str], name: str) -> str:
    """The file or URL of a report: ``to`` itself, or ``<name>.html`` in the folder that it names.

    Raises `UsageError` if it is neither.
    """
    named = os.fspath(to)
    if not named:
        raise UsageError("report='' is empty", remedy="Give a path or URL, or leave it out")
    if named.lower().endswith((ENDING, ".htm")):
        return named
    return f"{named.rstrip('/') or '/'}/{name}{ENDING}"


def refuse_within(to: str, place: str) -> None:
    """Raise `UsageError` for a report inside a checkpoint, which may hold only its own files."""
    if is_url(to) or is_url(place):
        within = to.startswith(place.rstrip("/") + "/")
    else:
        folder = Path(expanded(place)).resolve()
        within = Path(expanded(to)).resolve().is_relative_to(folder)
    if within:
        raise UsageError(
            f"the report {without_secrets(to)} would be inside the checkpoint",
            remedy="Name a file outside it",
        )


def write_report(store: Store, to: str) -> None:
    """Write the report of the checkpoint in this store; replaces an earlier one in one step.

    Raises `UsageError` without Jinja2 or a checkpoint, `CheckpointDamaged` if nothing of it can be
    read, `StoreError` if the report cannot be written.
    """
    put(page.render(facts.read(store)), to)


def put(text: str, to: str) -> None:
    """Write a page to a file or URL, whole or not at all. Raises `StoreError` or `UsageError`."""
    data = text.encode("utf-8", "backslashreplace")
    if is_url(to):
        folder, _, name = to.rpartition("/")
        open_store(folder, "report").put(name, data)
        return
    path = Path(expanded(to))
    if not path.name:
        raise UsageError(
            f"report {to!r} does not name a file", remedy="Give a path or URL that does"
        )
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readable only by its owner, as the checkpoint is, since it quotes errors and rows.
        with os.fdopen(open_plain(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)
        temp.replace(path)
    except OSError as error:
        raise StoreError(
            f"the report {without_secrets(to)} could not be written: {error.strerror or error}",
            remedy="Name a file in a writable folder with free space",
        ) from error
    finally:
        temp.unlink(missing_ok=True)
