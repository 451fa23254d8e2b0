"""Python source files as items: where they are found, and what is taken stock of in each."""

from __future__ import annotations

import ast
import glob
import hashlib
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from resumable_tasks import ItemFailure, UsageError, resumable_task

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
            raise UsageError(
                f"source {source!r} is not a file or folder, nor a glob that matches any"
            )
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
