"""Progress files that were written by hand, read exactly: JSON lines, lists of ids, CSV.

No key is guessed: ``1`` and ``"1"`` are different keys and leading zeros stay. A last line without
its end is torn and left out where it may be a part of another key: an item that is done once more
costs little, one that is wrongly taken for done is lost. Any other line that cannot be read is an
error with its number, and nothing is taken.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json.scanner import make_scanner
from pathlib import Path
from typing import Any, Literal, NoReturn

from resumable_tasks import keys
from resumable_tasks.errors import InvalidItems, InvalidKey, UsageError
from resumable_tasks.keys import Key, KeyScheme

Format = Literal["jsonl", "lines", "csv", "tsv"]
KeyType = Literal["string", "int"]

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
# What the key's field is called in such files, where it has not the name that the job has for it.
_USUAL = ("key", "id")
# So many keys are short enough to be looked at together.
_AT_ONCE = 1_000


@dataclass(slots=True)
class Progress:
    """The items of a file, in its order: their keys, those as canonical text, and their fields.

    ``rows`` may still hold the ``key_fields``; it is empty if there are only keys.
    ``torn`` is the number of a last line that was left out; None if it was whole.
    """

    keys: list[Key]
    lines: list[bytes]
    rows: list[dict[str, Any]] = field(default_factory=list)
    key_fields: tuple[str, ...] = ()
    torn: int | None = None


def read(
    path: str | os.PathLike[str],
    scheme: KeyScheme,
    *,
    format: Format | None = None,
    key_type: KeyType | None = None,
) -> Progress:
    """The items of a progress file. Raises `InvalidItems` with the line that is wrong.

    ``scheme`` is that of the job's key. ``format`` is told by the file's name and its first line
    if it is not given; ``key_type`` is for text, where a number's type does not show.
    """
    return _Reader(os.fspath(path), scheme, key_type).read(format)


class _Reader:
    def __init__(self, path: str, scheme: KeyScheme, key_type: KeyType | None) -> None:
        self._path = path
        self._fields = scheme.fields
        self._composite = scheme.composite
        self._key_type = key_type
        self._torn: int | None = None
        self._key_fields: tuple[str, ...] = ()
        # The number in the file of each item's line.
        self._numbers: Sequence[int] = ()

    def read(self, format: Format | None) -> Progress:
        text = self._text()
        format = format or self._format(text)
        if format in ("csv", "tsv"):
            found, rows = self._csv(text, "\t" if format == "tsv" else ",")
        elif format == "jsonl":
            found, rows = self._jsonl(text)
        else:
            found, rows = self._plain(text), []
        many, lines = self._canonical(found)
        return Progress(many, lines, rows, self._key_fields, self._torn)

    def _text(self) -> str:
        try:
            data = Path(self._path).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror}") from error
        end = data.rfind(b"\n") + 1
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if error.start >= end:  # the last line ends within a character
                self._torn = data.count(b"\n") + 1
                return data[:end].decode("utf-8-sig")
            self._wrong(data.count(b"\n", 0, error.start) + 1, f"it is no UTF-8 ({error.reason})")

    def _format(self, text: str) -> Format:
        suffix = Path(self._path).suffix.lower()
        if suffix in (".csv", ".tsv"):
            return "csv" if suffix == ".csv" else "tsv"
        return "jsonl" if text.lstrip()[:1] in ("{", "[", '"') else "lines"

    def _split(self, text: str) -> tuple[list[str], str]:
        """The lines that have an end and something in them, and what comes after the last."""
        lines = text.split("\n")
        rest = lines.pop()
        numbers: Sequence[int] = range(1, len(lines) + 1)
        if not all(lines) or "\r" in text:
            numbers = [at for at in numbers if lines[at - 1].strip()]
            lines = [lines[at - 1].removesuffix("\r") for at in numbers]
        self._numbers = numbers
        return lines, rest

    def _tear(self, text: str) -> None:
        self._torn = text.count("\n") + 1

    def _jsonl(self, text: str) -> tuple[list[Any], list[dict[str, Any]]]:
        lines, rest = self._split(text)
        items = self._parsed(lines)
        if rest.strip():
            try:
                last = json.loads(rest)
            except (ValueError, RecursionError):
                last = None
            if isinstance(last, (dict, list, str)):  # 12 may be the beginning of 123
                items.append(last)
                self._numbers = [*self._numbers, text.count("\n") + 1]
            else:
                self._tear(text)
        kinds = set(map(type, items))
        if dict not in kinds:
            return items, []
        if kinds != {dict}:
            at = next(i for i, item in enumerate(items) if type(item) is not dict)
            self._wrong(self._numbers[at], "it is no JSON object, and others are")
        return self._keys_of(items), items

    def _parsed(self, lines: list[str]) -> list[Any]:
        """The JSON value of each line, at half the cost of `json.loads` where all is well."""
        scan: Any = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]
        with contextlib.suppress(ValueError, RecursionError):
            # One that stops the iteration, an empty value, ends the list early.
            scanned = list(map(scan, lines, itertools.repeat(0)))
            if [end for _, end in scanned] == list(map(len, lines)):
                return [value for value, _ in scanned]
        found = []
        for number, line in zip(self._numbers, lines, strict=True):
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                self._wrong(number, f"it is no JSON: {error}")
        return found

    def _keys_of(self, items: list[dict[str, Any]]) -> list[Any]:
        """The raw key of each object."""
        names = self._key_fields = self._names(items[0])
        try:
            found = list(map(operator.itemgetter(*names), items))
        except KeyError:
            at, name = next((i, n) for i, each in enumerate(items) for n in names if n not in each)
            raise self._error(
                self._numbers[at], f"it has no field {name!r}, which is the key"
            ) from None
        single = self._composite and names == self._fields and len(names) == 1
        return [(key,) for key in found] if single else found

    def _names(self, first: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields that make the key, or the one that holds it whole."""
        if self._fields and all(name in first for name in self._fields):
            return self._fields
        for name in _USUAL:
            if name in first:
                return (name,)
        wanted = " and ".join(map(repr, self._fields)) or "'key' or 'id'"
        raise self._error(
            self._numbers[0],
            f"it has no field {wanted} (it has {keys.shorten(list(first), 200)}); name the field "
            "that holds the key: --key",
        )

    def _plain(self, text: str) -> list[Any]:
        lines, rest = self._split(text)
        if rest.strip("\0 \t\r"):
            self._tear(text)
        for number, line in zip(self._numbers, lines, strict=True):
            if line[:1] == '"' or "\0" in line:
                self._wrong(number, "it is no plain id; is it JSON? Then say --format jsonl")
        return self._as_typed(lines)

    def _csv(self, text: str, delimiter: str) -> tuple[list[Any], list[dict[str, Any]]]:
        end = text.rfind("\n") + 1
        if text[end:].strip():
            self._tear(text)
        lines = io.StringIO(text[:end], newline="")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        cells: list[list[str]] = []
        numbers: list[int] = []
        try:
            for row in reader:
                if row:
                    cells.append(row)
                    numbers.append(reader.line_num)
        except csv.Error as error:
            if self._torn is None:
                self._wrong(reader.line_num, f"it is no CSV: {error}")
            self._torn = numbers[-1] + 1 if numbers else 1  # a row of several lines
        if not cells:
            return [], []
        header, *cells = cells
        self._numbers = numbers[1:]
        if len(set(header)) < len(header):
            self._wrong(numbers[0], "it names a column twice")
        for number, row in zip(self._numbers, cells, strict=True):
            if len(row) != len(header):
                self._wrong(number, f"it has {len(row)} cells, and the first line {len(header)}")
        return self._columns(header, cells)

    def _columns(
        self, header: list[str], cells: list[list[str]]
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        if not cells:
            return [], []
        self._numbers, numbers = [1], self._numbers
        names = (header[0],) if len(header) == 1 else self._names(dict.fromkeys(header))
        self._numbers = numbers
        self._key_fields = names
        columns = dict(zip(header, map(list, zip(*cells, strict=True)), strict=True))
        parts = [self._as_typed(columns.pop(name)) for name in names]
        composite = self._composite and names == self._fields
        found = list(zip(*parts, strict=True)) if composite else parts[0]
        others = {name: _values(column) for name, column in columns.items()}
        if not others:
            return found, [{} for _ in found]
        each = zip(*others.values(), strict=True)
        return found, [dict(zip(others, row, strict=True)) for row in each]

    def _as_typed(self, found: list[str]) -> list[Any]:
        """Keys that stand as text, of the type that was said; it has to be, where it may matter."""
        numbers = all(map(_INTEGER.fullmatch, found))
        if self._key_type == "int":
            if not numbers:
                at = next(i for i, text in enumerate(found) if not _INTEGER.fullmatch(text))
                self._wrong(self._numbers[at], f"its key {keys.shorten(found[at])} is no integer")
            return list(map(int, found))
        if self._key_type is None and numbers and found:
            self._wrong(
                self._numbers[0],
                f"its key {found[0]} may be the number or the text, which are different keys: say "
                "which the job has, --key-type int or --key-type string",
            )
        return list(found)

    def _canonical(self, found: list[Any]) -> tuple[list[Key], list[bytes]]:
        if list in set(map(type, found)):
            found = [tuple(key) if type(key) is list else key for key in found]
        if self._composite:
            wanted = len(self._fields)
            for number, key in zip(self._numbers, found, strict=True):
                if type(key) is not tuple or len(key) != wanted:
                    self._wrong(number, f"its key {keys.shorten(key)} is no list of {wanted}")
        try:
            many: list[Key] = []
            lines: list[bytes] = []
            for at in range(0, len(found), _AT_ONCE):
                some = keys.canonical_all(found[at : at + _AT_ONCE])
                many += some[0]
                lines += some[1]
        except InvalidKey:
            for number, key in zip(self._numbers, found, strict=True):
                try:
                    keys.canonical(key)
                except InvalidKey as error:
                    raise InvalidKey(f"{self._path}:{number}: {error}") from None
            raise
        return many, lines

    def _wrong(self, number: int, what: str) -> NoReturn:
        raise self._error(number, what)

    def _error(self, number: int, what: str) -> InvalidItems:
        return InvalidItems(f"{self._path}:{number}: {what}. Nothing was imported")


def _values(column: list[str]) -> list[Any]:
    """The cells of a column as numbers where every one of them is one, digit by digit; as text."""
    filled = [cell for cell in column if cell]
    if filled and all(map(_INTEGER.fullmatch, filled)) and max(map(len, filled)) < 19:
        return [int(cell) if cell else None for cell in column]
    try:
        if filled and all(repr(float(cell)) == cell for cell in filled):
            return [float(cell) if cell else None for cell in column]
    except ValueError:
        pass
    return column
