"""The texts of a file of JSON lines, CSV or Parquet, each checked as it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from resumable_tasks import InvalidItems, UsageError

_FORMATS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def read_texts(path: str) -> Iterator[dict[str, Any]]:
    """Each text as ``{"id": …, "text": …}``, in the order of the file, never all in memory.

    Other fields are left out. ``id`` is a string or an integer, the same for all; twice the same
    one is refused by the run. Raises `InvalidItems`, with the place, for what is no such text.
    """
    kind = _FORMATS.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise UsageError(f"{path}: its name must end in one of {', '.join(_FORMATS)}")
    if not os.path.isfile(path):
        raise UsageError(f"{path}: there is no such file")
    rows = _json_lines(path) if kind == "jsonl" else _table_rows(path, kind)
    return _checked(rows)


def _checked(rows: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    first: type | None = None
    for where, row in rows:
        if not isinstance(row, dict):
            raise InvalidItems(f"{where}: this is no JSON object")
        key, text = row.get("id"), row.get("text")
        if type(key) not in (str, int) or key == "":
            raise InvalidItems(f"{where}: 'id' is {key!r}; it has to be a string or an integer")
        first = first or type(key)
        if type(key) is not first:
            raise InvalidItems(
                f"{where}: 'id' is the {type(key).__name__} {key!r}, and those before are of type "
                f"{first.__name__}: the model could not tell 1 from '1'"
            )
        if not isinstance(text, str) or not text.strip():
            raise InvalidItems(f"{where}: 'text' of {key!r} is {text!r}; it has to be a text")
        try:
            f"{key}{text}".encode()
        except UnicodeEncodeError as error:
            raise InvalidItems(f"{where}: half a character in {key!r}: {error}") from None
        yield {"id": key, "text": text}


def _json_lines(path: str) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    raise InvalidItems(f"{path}, line {number}: no JSON: {error}") from None


def _table_rows(path: str, kind: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.dataset as pads

    as_they_stand = csv.ConvertOptions(column_types={"id": pa.string(), "text": pa.string()})
    formats = {
        "csv": pads.CsvFileFormat(
            csv.ParseOptions(newlines_in_values=True), convert_options=as_they_stand
        ),
        "parquet": pads.ParquetFileFormat(),
    }
    try:
        dataset = pads.dataset(path, format=formats[kind])
        number = 0
        for batch in dataset.to_batches(columns=["id", "text"]):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InvalidItems(f"{path}: {error}") from None
