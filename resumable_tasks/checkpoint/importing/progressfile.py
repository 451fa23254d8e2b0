"""Progress files that were written by hand, read exactly: JSON, lists of ids, CSV.

No key is guessed: ``1`` and ``"1"`` are different keys and leading zeros stay. A last line without
its end is torn and left out where it may be a part of another key: an item that is done once more
costs little, one that is wrongly taken for done is lost. If nothing is left then, that is an error.
Any other line that cannot be read is one too, with its number, and nothing is taken. So is one that
says that its item has failed, or is not done yet.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from json.scanner import make_scanner
from typing import Any, Literal, NoReturn

from resumable_tasks.checkpoint.importing import cells, progresstext
from resumable_tasks.checkpoint.importing.progresstext import Format
from resumable_tasks.errors import InvalidItems, InvalidKey
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key, KeyScheme

KeyType = Literal["string", "int"]

# What the field with the key is called where the job has no name for it; `keys` writes the first.
_USUAL = ("key", "id")
# So many ids of one length are no accident.
_MANY = 20
# So many keys are short enough to be looked at together.
_AT_ONCE = 1_000


@dataclass(slots=True)
class Progress:
    """The items of a file, in its order: their keys, those as canonical text, and their fields.

    ``rows`` may still hold the ``key_fields``; it is empty if there are only keys.
    ``torn`` is the number of a last line that was left out; None if it was whole. ``fields`` are
    all that any row has, ``failed`` the lines that were left out since their item is not done.
    """

    keys: list[Key]
    lines: list[bytes]
    rows: list[dict[str, Any]] = field(default_factory=list)
    key_fields: tuple[str, ...] = ()
    torn: int | None = None
    fields: frozenset[str] = frozenset()
    failed: int = 0
    _file: str = ""
    _numbers: Sequence[int] = ()

    def place(self, at: int) -> str:
        """Where an item stands, as messages have it: ``done.jsonl:3``."""
        return f"{self._file}{self._numbers[at]}"


def read(
    path: str | os.PathLike[str],
    scheme: KeyScheme,
    *,
    format: Format | None = None,
    key_type: KeyType | None = None,
    else_type: Callable[[], KeyType | None] = lambda: None,
    failed_too: bool = False,
    skip_failed: bool = False,
    complete: bool = False,
) -> Progress:
    """The items of a progress file. Raises `InvalidItems` with the line that is wrong.

    ``scheme`` is that of the job's key. ``format`` is told by the file's name and its first line
    if it is not given; ``key_type`` is what all keys are to be. ``else_type`` is asked where it is
    not given and a number that stands as text does not show it. ``failed_too``: lines that say
    that their item has failed are taken as well. ``skip_failed``: they are left out, with all
    others of an item whose last line is such. ``complete``: the file was written to its end, so
    that a last line without an end is one as all others.
    """
    reader = _Reader(os.fspath(path), scheme, key_type, else_type, complete)
    return reader.read(format, failed_too=failed_too, skip_failed=skip_failed)


class _Reader:
    def __init__(
        self,
        path: str,
        scheme: KeyScheme,
        key_type: KeyType | None,
        else_type: Callable[[], KeyType | None],
        complete: bool,
    ) -> None:
        self._path = path
        # What stands before the number of an item in messages.
        self._file = f"{path}:"
        self._fields = scheme.fields
        self._composite = scheme.composite
        self._key_type = key_type
        self._else_type = else_type
        self._complete = complete
        self._torn: int | None = None
        self._key_fields: tuple[str, ...] = ()
        # The number in the file of each item's line.
        self._numbers: Sequence[int] = ()

    def read(self, format: Format | None, *, failed_too: bool, skip_failed: bool) -> Progress:
        text, self._torn = progresstext.read(self._path, complete=self._complete)
        format = format or progresstext.format_of(self._path, text)
        if format in ("csv", "tsv"):
            found, rows = self._csv(text, "\t" if format == "tsv" else ",")
        elif format == "jsonl":
            found, rows = self._jsonl(text)
        else:
            found, rows = self._plain(text), []
        if self._torn is not None and not found:
            # Most often a file that was joined without an end, and not one that a crash tore.
            self._wrong(
                self._torn,
                "it has no end and may be torn, and no other line has an item: if the file was "
                "written to its end, say --complete (in Python complete=True)",
            )
        # Before the keys: a line that has failed need not have one.
        fields = frozenset(itertools.chain.from_iterable(rows))
        failed = 0
        if not failed_too and fields & cells.SIGNS:
            before = len(found)
            found, rows = self._done(found, rows, skip_failed)
            failed = before - len(found)
        many, lines = self._canonical(found)
        numbers = self._numbers
        return Progress(
            many, lines, rows, self._key_fields, self._torn, fields, failed, self._file, numbers
        )

    def _done(
        self, found: list[Any], rows: list[dict[str, Any]], skip_failed: bool
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        """The keys and rows of items that are done. Raises if others are not to be left out."""
        signs = cells.signs_of_failure(rows)
        if not signs:
            return found, rows
        first = min(signs)
        if not skip_failed:
            self._wrong(
                self._numbers[first],
                f"it says {signs[first]}, and what the file names counts as completed: leave such "
                "lines out by --skip-failed, or take them by --failed-too",
            )
        kept = cells.done_by_the_last(found, signs)
        self._numbers = [self._numbers[at] for at in kept]
        return [found[at] for at in kept], [rows[at] for at in kept]

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
        items = self._array(text)
        if items is None:
            items = self._json_lines(text)
        kinds = set(map(type, items))
        if dict not in kinds:
            if list in kinds and self._fields and not self._composite:
                number = self._numbers[[type(item) for item in items].index(list)]
                self._wrong(number, f"it is a list, and the key is one field, {self._fields[0]!r}")
            return self._all_typed(items), []
        if kinds != {dict}:
            at = next(i for i, item in enumerate(items) if type(item) is not dict)
            self._wrong(self._numbers[at], "it is no JSON object, and others are")
        return self._all_typed(self._keys_of(items)), items

    def _array(self, text: str) -> list[Any] | None:
        """The elements of the one array that the whole file is; None if it is of lines."""
        start = len(text) - len(text.lstrip())
        if not text.startswith("[", start):
            return None
        try:
            found, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            number = getattr(error, "lineno", 1)
            raise self._error(number, f"it is no JSON, or a part of an array: {error}") from error
        if text[end:].strip():
            return None
        if found and self._composite and not {list, dict} & set(map(type, found)):
            return None  # one line with one key
        self._file = f"{self._path}: element "
        self._numbers = range(1, len(found) + 1)
        return list(found)

    def _json_lines(self, text: str) -> list[Any]:
        lines, rest = self._split(text)
        items = self._parsed(lines)
        if rest.strip():
            try:
                last = json.loads(rest) if self._torn is None else None
            except (ValueError, RecursionError):
                last = None
            if isinstance(last, (dict, list, str)):  # 12 may be the beginning of 123
                items.append(last)
                self._numbers = [*self._numbers, text.count("\n") + 1]
            else:
                self._tear(text)
        return items

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
                what = "if a crash tore it, take it out: its item is done again"
                self._wrong(number, f"it is no JSON: {error}; {what}")
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
        # Not "id" for a field that the job has: it may be another one.
        for name in _USUAL[:1] if self._fields else _USUAL:
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
        last = rest.removesuffix("\r")
        inner = last.strip("\0 \t\r")
        # Among many ids of one length, one that is torn is shorter. Among a few, the first that is
        # longer may be cut at just that length.
        of_one_length = len(lines) >= _MANY and set(map(len, lines)) == {len(last)}
        if inner == last and self._torn is None and of_one_length:
            lines.append(last)
            self._numbers = [*self._numbers, text.count("\n") + 1]
        elif inner:
            self._tear(text)
        for number, line in zip(self._numbers, lines, strict=True):
            if line[:1] in ('"', "{", "[") or "\0" in line:
                self._wrong(number, "it is no plain id; is it JSON? Then say --format jsonl")
            if line[:1] == "#":
                self._wrong(number, "it is a comment, or an id that only JSON can tell from one")
            if "\t" in line or line != line.strip():
                self._wrong(
                    number,
                    "it has a tab, or a blank at its edge: take that out, or say --format tsv if "
                    "it is a table; in JSON it may be part of an id",
                )
        return self._as_typed(lines)

    def _csv(self, text: str, delimiter: str) -> tuple[list[Any], list[dict[str, Any]]]:
        end = text.rfind("\n") + 1
        if text[end:].strip():
            self._tear(text)
        lines = io.StringIO(text[:end], newline="")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        table: list[list[str]] = []
        numbers: list[int] = []
        try:
            with cells.of_any_length():
                for row in filter(None, reader):
                    table.append(row)
                    numbers.append(reader.line_num)
        except csv.Error as error:
            if self._torn is None:
                self._wrong(reader.line_num, f"it is no CSV: {error}")
            self._torn = numbers[-1] + 1 if numbers else 1  # a row of several lines
        if not table:
            return [], []
        header, *table = table
        self._numbers = numbers[:1]
        names = self._key_fields = self._names(dict.fromkeys(header))
        self._numbers = numbers[1:]
        if len(set(header)) < len(header):
            self._wrong(numbers[0], "it names a column twice")
        for number, row in zip(self._numbers, table, strict=True):
            if len(row) != len(header):
                self._wrong(number, f"it has {len(row)} cells, and the first line {len(header)}")
        return self._columns(header, table, names) if table else ([], [])

    def _columns(
        self, header: list[str], table: list[list[str]], names: tuple[str, ...]
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        columns = dict(zip(header, map(list, zip(*table, strict=True)), strict=True))
        parts = [self._as_typed(self._stripped(columns.pop(name))) for name in names]
        composite = self._composite and names == self._fields
        found = list(zip(*parts, strict=True)) if composite else parts[0]
        others = {name: cells.values(column) for name, column in columns.items()}
        if not others:
            return found, [{} for _ in found]
        each = zip(*others.values(), strict=True)
        return found, [dict(zip(others, row, strict=True)) for row in each]

    def _stripped(self, found: list[str]) -> list[str]:
        """Cells of keys. One with a blank at its edge would be another key than the job's."""
        at = next((i for i, key in enumerate(found) if key != key.strip()), None)
        if at is not None:
            what = f"its key {keys.shorten(found[at])} has a blank at its edge: take that out"
            self._wrong(self._numbers[at], what)
        return found

    def _all_typed(self, found: list[Any]) -> list[Any]:
        """Keys of JSON, each part of the type that was said, if one was."""
        if self._key_type is None:
            return found
        return [self._typed(n, key) for n, key in zip(self._numbers, found, strict=True)]

    def _typed(self, number: int, key: Any) -> Any:
        if isinstance(key, (list, tuple)):
            return [self._typed(number, part) for part in key]
        if self._key_type == "string":
            return str(key) if type(key) is int else key
        if type(key) is str:
            if not cells.INTEGER.fullmatch(key):
                self._wrong(number, f"its key {keys.shorten(key)} is no integer")
            return int(key)
        return key

    def _as_typed(self, found: list[str]) -> list[Any]:
        """Keys that stand as text, of the type that was said; it has to be, where it may matter."""
        if self._key_type is None and found and all(map(cells.INTEGER.fullmatch, found)):
            self._key_type = self._else_type()
            if self._key_type is None:
                self._refuse_number(found[0])
        return self._all_typed(found) if self._key_type == "int" else list(found)

    def _refuse_number(self, text: str) -> NoReturn:
        self._wrong(
            self._numbers[0],
            f"its key {text} may be the number or the text, which are different keys: say "
            "which the job has, --key-type int or --key-type string",
        )

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
                    raise InvalidKey(f"{self._file}{number}: {error}") from None
            raise
        return many, lines

    def _wrong(self, number: int, what: str) -> NoReturn:
        raise self._error(number, what)

    def _error(self, number: int, what: str) -> InvalidItems:
        return InvalidItems(f"{self._file}{number}: {what}. Nothing was imported")
