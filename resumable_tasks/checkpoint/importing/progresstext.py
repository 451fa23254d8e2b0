"""The text of a progress file: unpacked, decoded, where a crash has torn it, and what it is."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

from resumable_tasks.errors import InvalidItems, UsageError

Format = Literal["jsonl", "lines", "csv", "tsv"]

_BY_NAME: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_GZIP = b"\x1f\x8b"


def read(path: str, *, complete: bool) -> tuple[str, int | None]:
    """The text, and the number of its last line if that ends within a character.

    ``complete``: the file was written to its end, so that its last line gets one if it has none.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidItems(
                f"{path}: it is no whole gzip file: {error}. Nothing was imported"
            ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        if error.reason == "unexpected end of data" and not complete:
            return error.object[: error.start].decode(), number
        raise InvalidItems(
            f"{path}:{number}: it is no UTF-8 ({error.reason}). Nothing was imported"
        ) from None
    return (text + "\n" if complete and not text.endswith("\n") else text), None


def format_of(path: str, text: str) -> Format:
    """What a file is, by its name, else by how it begins."""
    known = _BY_NAME.get(Path(path.lower().removesuffix(".gz")).suffix)
    return known or ("jsonl" if text.lstrip()[:1] in ("{", "[", '"') else "lines")
