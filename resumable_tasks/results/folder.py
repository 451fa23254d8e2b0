"""Parquet files in a folder of this machine, replaced in one step."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.files import read_plain
from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.errors import StoreError
from resumable_tasks.results.files import write_files, write_parquet
from resumable_tasks.results.form import Form, Held, Published, held
from resumable_tasks.results.rows import Wanted
from resumable_tasks.results.swap import (
    MARKER,
    MOST_BYTES,
    ONE_FILE,
    alone,
    flush_folder,
    make_parents,
    new_stage,
    put_in_place,
    refuse_foreign,
    remove_published,
)

if TYPE_CHECKING:
    import pyarrow as pa


class Folder(Form):
    """A folder of Parquet files.

    A reader sees either the old or the new dataset as a whole: the new one is written beside the
    folder, flushed, and put in its place in one step. A dataset of one file keeps the file's name,
    so even a reader in the middle continues undisturbed. If the old or the new dataset has several
    files, a reader in the middle finds none of the old ones: it gets an error or no rows, never
    some of them.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self.dest = str(target)

    def check(self, wanted: Wanted) -> None:
        with self._io_errors():
            refuse_foreign(self._target)

    def write(self, rows: CommittedRows, wanted: Wanted) -> Published:
        with self._io_errors():
            make_parents(self._target)
            stage = new_stage(self._target)
            try:
                files, count, size = _stage(stage, wanted.tables(rows), rows.schema, wanted)
                result = Published(self.dest, count, tuple(files), size)
                _write_marker(stage, rows, result)
                flush_folder(stage)
                fault_point("publish.staged")
                with alone(self._target):
                    # Another publisher or program may have written there meanwhile.
                    refuse_foreign(self._target)
                    put_in_place(stage, self._target)
            except BaseException:
                remove_published(stage)
                raise
        return result

    def held(self, checkpoint: str) -> Held | None:
        with self._io_errors("look at"):
            try:
                marker = read_plain(self._target / MARKER, MOST_BYTES)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return held(marker, checkpoint, lambda name: (self._target / name).stat().st_size)

    @contextlib.contextmanager
    def _io_errors(self, verb: str = "publish to") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {verb} {self.dest}: {error}",
                safe="The existing dataset is unchanged",
                remedy="Fix the cause and publish again",
            ) from error


def _stage(
    stage: Path, rows: Iterator[pa.Table], schema: pa.Schema, wanted: Wanted
) -> tuple[list[str], int, int]:
    """Write the Parquet files of a dataset. Returns their names, rows and bytes."""
    paths: list[Path] = []

    def write_one(rows: pa.Table) -> int:
        paths.append(stage / f"{len(paths)}.parquet")
        with open(paths[-1], "xb") as file:
            write_parquet(rows, file)
            file.flush()
            os.fsync(file.fileno())
        return paths[-1].stat().st_size

    count, size = write_files(rows, schema, wanted.target_bytes, write_one)
    # Several files get names unique to this dataset, so that a reader that listed the folder
    # before the exchange finds none of its files afterwards, rather than some.
    stamp = secrets.token_hex(4)
    names = [f"part-{stamp}-{i:05d}.parquet" for i in range(len(paths))]
    if len(paths) == 1:
        names = [ONE_FILE]
    for path, name in zip(paths, names, strict=True):
        path.rename(stage / name)
    return names, count, size


def _write_marker(stage: Path, rows: CommittedRows, result: Published) -> None:
    """Write the marker, which names our files, so that `publish` may replace the folder later."""
    record = {**rows.identity, "published": now(), **asdict(result)}
    with open(stage / MARKER, "x", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
