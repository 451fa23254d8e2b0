"""Every night: take stock of Python source files, one row a file, resumable, in Parquet.

    python -m flows.nightly_ingest [SOURCE…]

A SOURCE is a file, a folder or a glob; by default the standard library and the installed packages
of the interpreter that runs this. Each date has its own checkpoint and its own folder, so that

* a run that was killed goes on where it was, by the same command;
* a second run of the same date finds all done, and handles nothing;
* the folders of all dates together are one dataset: ``dataset(out, partitioning="hive")``.

Exit codes: 0 done · 1 items failed · 2 usage · 3 held by another run · 4 damaged checkpoint ·
75 interrupted, run again to resume.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import glob
import hashlib
import logging
import os
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from resumable_tasks import (
    Interrupted,
    ItemFailure,
    ResumableTasksError,
    RunResult,
    UsageError,
    resumable_task,
)

CHECKPOINT = ".resumable/nightly_ingest"
OUT = "published/nightly_ingest"

# The columns after `path`, which is the key. Types are given, not inferred: a column that is null
# in all rows of one date would otherwise have no type there, and the dates no common schema.
COLUMNS = {
    "package": pa.string(),
    "bytes": pa.int64(),
    "lines": pa.int64(),
    "sha256": pa.string(),
    "functions": pa.int64(),
    "classes": pa.int64(),
    "imports": pa.int64(),
    "syntax_error": pa.string(),
}

# Compiled files; and, below a source, packages installed there: name their folder to have them.
PASSED_OVER = {"__pycache__", "site-packages", "dist-packages"}

# The parser warns of bad escapes in the files that it is given. They are theirs, not ours.
warnings.filterwarnings("ignore", module="<unknown>")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to take stock of.

    ``path`` is the key: absolute, so that one file is one item from whichever folder this is
    started and however many sources name it. ``file`` is the same path as the system knows it.
    """

    path: str
    package: str
    file: str


@resumable_task(name="nightly_ingest", key="path", on_duplicate="skip")
def ingest(files: list[SourceFile]) -> list[dict[str, Any] | ItemFailure]:
    """The handler: a batch of files in, a row or a failure for each of them out."""
    return [describe(file) for file in files]


def describe(file: SourceFile) -> dict[str, Any] | ItemFailure:
    """The row of one file. Whatever stands in the file is data, and never an exception."""
    found: dict[str, Any] = {"package": file.package}
    try:
        with open(file.file, "rb") as opened:
            found |= measure(opened.read())
    except FileNotFoundError:
        pass  # it was there when the folder was listed: a row with the path and no content
    except OSError as error:
        return ItemFailure(file.path, error)  # recorded, and tried again by the next run
    row = {name: pa.scalar(found.get(name), kind) for name, kind in COLUMNS.items()}
    return {"path": file.path, **row}


def measure(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bytes": len(data),
        "lines": len(data.splitlines()),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        kinds = Counter(map(type, ast.walk(ast.parse(data))))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
        return found | {"syntax_error": text.encode("utf-8", "backslashreplace").decode()}
    return found | {
        "functions": kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        "classes": kinds[ast.ClassDef],
        "imports": kinds[ast.Import] + kinds[ast.ImportFrom],
    }


def default_sources() -> list[str]:
    """Real files that every machine has: the standard library and the installed packages."""
    return [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]


def expand(sources: Iterable[str]) -> list[str]:
    """The files and folders that the sources name. Raises `UsageError` for one that names none."""
    found: list[str] = []
    for source in sources:
        paths = [source] if os.path.exists(source) else sorted(glob.glob(source, recursive=True))
        if not paths:
            raise UsageError(f"source {source!r} is no file or folder, and no glob that finds any")
        found += map(os.path.abspath, paths)
    return list(dict.fromkeys(found))


def source_files(paths: Sequence[str]) -> Iterator[SourceFile]:
    """All Python files below these paths, lazily, in the same order every time."""
    for path in paths:
        if os.path.isfile(path):
            yield source_file(path, os.path.dirname(path))
        unlisted: list[OSError] = []
        for folder, folders, names in os.walk(path, onerror=unlisted.append):
            folders[:] = sorted(name for name in folders if name not in PASSED_OVER)
            for name in sorted(names):
                file = os.path.join(folder, name)
                # Neither a pipe, which would block, nor a link to nowhere.
                if name.endswith(".py") and os.path.isfile(file):
                    yield source_file(file, path)
        for error in unlisted:
            # A folder that cannot be listed must not pass in silence: it fails as an item.
            if not isinstance(error, FileNotFoundError):
                yield source_file(str(error.filename), path)


def source_file(file: str, root: str) -> SourceFile:
    while os.path.isfile(os.path.join(root, "__init__.py")):
        root = os.path.dirname(root)  # from inside a package up to where it is imported from
    package = os.path.relpath(file, root).split(os.sep)[0].removesuffix(".py")
    return SourceFile(as_text(file), as_text(package), file)


def as_text(path: str) -> str:
    r"""A path as text: bytes that are no UTF-8 as ``\xNN``; no two paths give the same text."""
    return os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def partition_folder(out: str, date: datetime.date) -> Path:
    return Path(out) / f"date={date}"


def nightly_ingest(
    sources: Sequence[str],
    date: datetime.date,
    *,
    checkpoint: str = CHECKPOINT,
    out: str = OUT,
    limit: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> RunResult:
    """Take stock of the sources for one date, and publish the rows when all are there.

    ``options`` are any of `resumable_task`'s. Raises what `ResumableTask.run` raises; nothing is
    published then, and what was done is kept for the next run.
    """
    files = islice(source_files(expand(sources)), limit)
    task = ingest.with_options(**options)
    result = task.run(files, checkpoint=checkpoint, partition=date, progress=progress)
    result.publish(partition_folder(out, date))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        result = nightly_ingest(
            args.sources or default_sources(),
            args.date,
            checkpoint=args.checkpoint,
            out=args.out,
            limit=args.limit,
            progress=args.progress,
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            runner="processes" if args.processes else "auto",
        )
    except (ResumableTasksError, Interrupted) as error:
        logging.error("%s", error)  # noqa: TRY400 - the message says what to do; no traceback
        return error.exit_code
    print(
        f"{result.total:,} files on {args.date}: {result.completed:,} handled now, "
        f"{result.skipped:,} resumed, {result.failed:,} failed, in {result.seconds:.1f} s\n"
        f"published in {partition_folder(args.out, args.date)}"
    )
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.nightly_ingest",
        description="Take stock of Python source files: one row a file, resumable, in Parquet.",
        epilog="Exit codes: 0 done, 1 items failed, 2 usage, 3 held by another run, 4 damaged "
        "checkpoint, 75 interrupted: run the same command again.",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="file, folder or glob (default: the standard library and the installed packages)",
    )
    add = parser.add_argument
    add("--date", type=day, default=datetime.date.today(), help="partition (default: today)")
    add("--checkpoint", default=CHECKPOINT, help="default: %(default)s; a folder a date below it")
    add("--out", default=OUT, help="default: %(default)s; a folder date=… below it")
    add("--batch-size", type=int, default=50, help="files a batch (default: %(default)s)")
    add("--concurrency", type=int, default=4, help="batches at once (default: %(default)s)")
    add("--processes", action="store_true", help="in processes, not threads: parsing computes")
    add("--limit", type=count, help="only the first so many files")
    add("--no-progress", dest="progress", action="store_false", default=None, help="no bar")
    return parser.parse_args(argv)


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
