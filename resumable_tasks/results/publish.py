"""Publishes committed rows for others to read. The destination decides the form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast, get_args

from resumable_tasks.base import checks, log, text
from resumable_tasks.checkpoint.form import CommittedRows, Reader
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import is_url, open_store
from resumable_tasks.errors import ResumableTasksError, UsageError
from resumable_tasks.items.walk import Seen
from resumable_tasks.results.bucket import InBucket
from resumable_tasks.results.files import TARGET_BYTES
from resumable_tasks.results.folder import Folder
from resumable_tasks.results.form import Form, Held, Published
from resumable_tasks.results.rows import Wanted

PublishForm = Literal["parquet", "delta"]


def publish(
    reader: Reader,
    dest: str | Path,
    *,
    form: PublishForm = "parquet",
    ordered: bool = False,
    positions: Seen | None = None,
    given: Seen | None = None,
    target_bytes: int = TARGET_BYTES,
) -> Published:
    """Write all committed rows to ``dest``, in files of about ``target_bytes``.

    A reader of ``dest`` sees either the old or the new dataset as a whole (see `Folder`, `InBucket`
    and `Delta`). ``ordered`` holds all rows in memory; without it memory is bounded by a file's
    rows. ``given`` limits the rows to those of these items.

    Raises `UsageError` if ``dest`` holds anything that `publish` has not written there,
    `CheckpointDamaged` if a shard does not match its commit; ``dest`` is then unchanged.
    """
    checks.whole_number("target_bytes", target_bytes, 1)
    reader.check_publishable()
    destination = _destination(dest, form)
    if reader.files_at is not None and _is_within(destination.dest, reader.files_at):
        raise UsageError(f"{destination.dest} is inside the checkpoint; name a place outside it")
    wanted = Wanted(ordered, positions, given, target_bytes)
    destination.check(wanted)

    def write(rows: CommittedRows) -> tuple[CommittedRows, Published]:
        return rows, destination.write(wanted.of(rows), wanted)

    rows, result = reader.read(write)
    _note(reader, rows, result, form)
    published = text.count(result.rows, "row"), text.count(len(result.files), "file")
    log.info("published %s in %s to %s", *published, result.dest)
    return result


def held(dest: str, form: str, checkpoint: str) -> Held | None:
    """The published rows of the checkpoint with this id; None if they are not complete.

    Raises `UsageError` and `StoreError` if that cannot be found out.
    """
    return _destination(dest, cast(PublishForm, form)).held(checkpoint)


def _note(reader: Reader, rows: CommittedRows, result: Published, form: PublishForm) -> None:
    """Note the publication in the checkpoint. If that fails, the rows are published anyway."""
    try:
        reader.note_published(rows, result.dest, form, result.rows)
    except ResumableTasksError as error:
        log.warning(
            "published to %s, but could not record that in the checkpoint, so `resumable prune` "
            "treats it as unpublished: %s",
            *(result.dest, error),
        )


def _is_within(place: str, other: str) -> bool:
    """True if a path or URL is the same as another one, or below it."""
    if not is_url(other):
        other = os.path.realpath(other)
    return f"{place}/".startswith(f"{other.rstrip('/')}/")


def _destination(dest: str | Path, form: PublishForm) -> Form:
    """The form to publish at this place. Raises `UsageError` if there is none."""
    if form not in get_args(PublishForm):
        raise UsageError(
            f"form={form!r} is not one of {', '.join(map(repr, get_args(PublishForm)))}",
            remedy="Give form= one of them",
        )
    store = open_store(dest, "published dataset")
    folder = Path(os.path.realpath(store.root)) if isinstance(store, LocalStore) else None
    if form == "delta":
        from resumable_tasks.results.delta import Delta

        return Delta(store if folder is None else LocalStore(folder))
    if folder is not None:
        return Folder(folder)
    return InBucket(store)
