"""Reads a program's own record of its progress: JSON lines, a JSON array, or a list of ids.

Keys are not guessed: ``1`` and ``"1"`` are different keys, and leading zeros stay. A last line
without a line end may be torn, so it is left out: repeating an item costs little, but an item that
wrongly counts as done is lost. Any other unreadable line is an error that names its number, and so
is a line that says that its item has failed or is not done.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from resumable_tasks.base.text import shell_words
from resumable_tasks.checkpoint.importing.signs import Signs, as_text, describe
from resumable_tasks.errors import InvalidItems, InvalidKey, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key, KeyScheme

Format = Literal["jsonl", "lines"]
KeyType = Literal["string", "int"]

_DECODER = json.JSONDecoder()
# Usual names of the key's field, if the job has no name for it; `resumable keys` writes the first.
_USUAL = ("key", "id")
# Python refuses to parse an integer from a text that is much longer.
_LONGEST_INTEGER = 20


@dataclass(slots=True)
class Progress:
    """The items of a file, in order: their keys, canonical keys, and objects.

    ``rows`` is empty if the file has only keys. ``numbers`` are the line numbers. ``torn`` is the
    number of a last line that was left out. ``failed`` counts lines left out because their item is
    not done.
    """

    keys: list[Key]
    lines: list[bytes]
    rows: list[dict[str, Any]]
    key_fields: tuple[str, ...]
    numbers: Sequence[int]
    torn: int | None
    failed: int


class Reader:
    """Reads one file. `import_file` documents the arguments and errors."""

    def __init__(
        self,
        path: str,
        scheme: KeyScheme,
        key_type: KeyType | None,
        complete: bool,
        signs: Signs,
    ) -> None:
        self._path = path
        # The text before a line number in messages.
        self._place = f"{path}:"
        self._scheme = scheme
        self._key_type = key_type
        self._complete = complete
        self._signs = signs
        self._torn: int | None = None
        # The line numbers of the values read so far.
        self._numbers: Sequence[int] = ()

    def read(self, format: Format | None, *, failed_too: bool, skip_failed: bool) -> Progress:
        """Read the file. Its name and first character tell the format if it is not given."""
        suffix = Path(self._path).suffix.lower()
        if format is None and suffix in (".csv", ".tsv"):
            raise self._table()
        text = self._text()
        is_json = suffix in (".json", ".jsonl", ".ndjson") or text.lstrip()[:1] in ("{", "[", '"')
        found = self._values(text) if format == "jsonl" or (not format and is_json) else None
        rows = self._objects(found) if found is not None else []
        many = self._ids(text) if found is None else found
        if self._torn is not None and not many:
            # Usually a program joined lines without a final line end, and no crash tore the file.
            self.wrong(
                self._torn,
                "it has no newline and may be torn, and no other line has an item: if the file is "
                "complete, give --complete (in Python complete=True)",
            )
        names = self._names(rows[0]) if rows else ()
        failed = 0
        if rows:
            many = self._keys_of(rows, names)
            if not failed_too:  # before keys are checked, because failed lines may lack a key
                many, rows = self._done(many, rows, names, skip_failed)
                failed = len(found or ()) - len(rows)
        if self._key_type is not None:
            many = [self._typed(n, key) for n, key in zip(self._numbers, many, strict=True)]
        plain, lines = self._canonical([tuple(k) if type(k) is list else k for k in many])
        return Progress(plain, lines, rows, names, self._numbers, self._torn, failed)

    def wrong(self, number: int, what: str) -> NoReturn:
        """Raise the error for this line or element."""
        raise InvalidItems(
            f"{self._place}{number}: {what}. Nothing was imported",
            remedy="Correct it and import again",
        )

    def _table(self) -> UsageError:
        name = self._scheme.fields[0] if self._scheme.fields else "id"
        target = Path(self._path).with_suffix(".jsonl")
        return UsageError(
            f"{self._path}: CSV is not supported. DuckDB converts it to JSON lines, with the key "
            "as text (give --key-type int if the job's keys are integers): duckdb -c \"COPY (FROM "
            f"read_csv('{self._path}', types={{'{name}': 'VARCHAR'}})) TO '{target}' (FORMAT "
            'json)"',
            remedy="Run that command, and import the file it writes",
        )

    def _text(self) -> str:
        """The file's text, without a last character that a crash has cut."""
        try:
            data = Path(self._path).read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read {self._path}: {error.strerror}",
                remedy="Give the path of a file that this user can read",
            ) from error
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            number = error.object.count(b"\n", 0, error.start) + 1
            if error.reason != "unexpected end of data" or self._complete:
                self.wrong(number, f"it is not UTF-8 ({error.reason}); is the file compressed?")
            self._torn = number
            return error.object[: error.start].decode()
        return text + "\n" if self._complete and not text.endswith("\n") else text

    def _split(self, text: str) -> tuple[list[str], str]:
        """The non-empty lines that have a line end, and the rest after the last line end."""
        *lines, rest = text.split("\n")
        self._numbers = [n for n, line in enumerate(lines, 1) if line.strip()]
        return [lines[n - 1].removesuffix("\r") for n in self._numbers], rest

    def _values(self, text: str) -> list[Any]:
        """The elements, if the file is one JSON array, otherwise the value of each line."""
        start = len(text) - len(text.lstrip())
        if text.startswith("[", start):
            try:
                found, end = _DECODER.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                number = getattr(error, "lineno", 1)
                self.wrong(number, f"it is not JSON, or is part of an array: {error}")
            one_key = found and self._scheme.composite and not {list, dict} & set(map(type, found))
            if not text[end:].strip() and not one_key:
                self._place = f"{self._path}: element "
                self._numbers = range(1, len(found) + 1)
                return list(found)
        lines, rest = self._split(text)
        values = [self._parsed(n, line) for n, line in zip(self._numbers, lines, strict=True)]
        if rest.strip():
            try:
                last = json.loads(rest) if self._torn is None else None
            except (ValueError, RecursionError):
                last = None
            if isinstance(last, (dict, list, str)):  # a number may be cut: 12 of 123
                values.append(last)
                self._numbers = [*self._numbers, text.count("\n") + 1]
            else:
                self._torn = text.count("\n") + 1
        return values

    def _parsed(self, number: int, line: str) -> Any:
        try:
            return _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            what = "if a crash tore this line, remove it: its item is done again"
            self.wrong(number, f"it is not JSON: {error}; {what}")

    def _ids(self, text: str) -> list[Any]:
        lines, rest = self._split(text)
        if rest.strip("\0 \t\r"):
            self._torn = text.count("\n") + 1
        for number, line in zip(self._numbers, lines, strict=True):
            if line[:1] in ('"', "{", "[") or "\0" in line:
                self.wrong(number, "it is not a plain id; if it is JSON, give --format jsonl")
            if line[:1] == "#" or "\t" in line or line != line.strip():
                what = (
                    "it is a comment, contains a tab, or starts or ends with a space: remove that"
                )
                self.wrong(number, f"{what}; in JSON it may be part of an id")
        if self._key_type is None and lines and all(map(_is_integer, lines)):
            self.wrong(
                self._numbers[0],
                f"its key {lines[0]} may be the number or the text, which are different keys: give "
                "--key-type int or --key-type string, as the job has it",
            )
        return lines

    def _objects(self, values: list[Any]) -> list[dict[str, Any]]:
        """These values if they are objects; empty if they are keys."""
        kinds = list(map(type, values))
        fields = self._scheme.fields
        if dict in kinds:
            for number, kind in zip(self._numbers, kinds, strict=True):
                if kind is not dict:
                    self.wrong(number, "it is not a JSON object, but others are")
            return values
        if list in kinds and fields and not self._scheme.composite:
            number = self._numbers[kinds.index(list)]
            self.wrong(number, f"it is a list, but the key is one field, {fields[0]!r}")
        return []

    def _names(self, first: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields that make up the key, or the one field that holds it."""
        fields = self._scheme.fields
        # Not "id" if the job names the key's fields: "id" may be something else.
        for names in (fields, *((name,) for name in (_USUAL[:1] if fields else _USUAL))):
            if names and all(name in first for name in names):
                return names
        wanted = " and ".join(map(repr, fields)) or "'key' or 'id'"
        has = keys.shorten(list(first), 200)
        what = f"it has no field {wanted} (it has {has}); name the field that holds the key: --key"
        raise self.wrong(self._numbers[0], what)

    def _keys_of(self, rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[Any]:
        """The raw key of each object."""
        for name in names:
            for number, row in zip(self._numbers, rows, strict=True):
                if name not in row:
                    self.wrong(number, f"it has no field {name!r}, which is the key")
        found = list(map(operator.itemgetter(*names), rows))
        single = self._scheme.composite and names == self._scheme.fields and len(names) == 1
        return [(key,) for key in found] if single else found

    def _done(
        self,
        found: list[Any],
        rows: list[dict[str, Any]],
        names: tuple[str, ...],
        skip_failed: bool,
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        """The keys and rows of items whose last line reports no failure, without failed lines."""
        signs = self._signs_of(rows, self._signs.looked_at(rows, names), skip_failed)
        if not signs:
            return found, rows
        last = {repr(key): at for at, key in enumerate(found)}  # not all are valid keys yet
        kept = [
            n for n in range(len(found)) if n not in signs and last[repr(found[n])] not in signs
        ]
        self._numbers = [self._numbers[at] for at in kept]
        return [found[at] for at in kept], [rows[at] for at in kept]

    def _signs_of(
        self, rows: list[dict[str, Any]], names: Sequence[str], skip_failed: bool
    ) -> set[int]:
        """The indexes of the lines in which one of these fields says that the item is not done."""
        found = set()
        for at, row in enumerate(rows) if names else ():
            verdict, path, value = self._signs.judge(row, names)
            if verdict == "unclear":
                option = shell_words(f"{path}={as_text(value)}")
                self.wrong(
                    self._numbers[at],
                    f"it has {describe(path, value)}, which may mean success or failure: give "
                    f"--done-if {option} or --failed-if {option} ({path}=* matches any value)",
                )
            if verdict == "failed" and not skip_failed:
                self.wrong(
                    self._numbers[at],
                    f"it has {describe(path, value)}, but every item in the file counts as "
                    "completed: leave such lines out with --skip-failed, or include them with "
                    "--failed-too",
                )
            if verdict == "failed":
                found.add(at)
        return found

    def _typed(self, number: int, key: Any) -> Any:
        if isinstance(key, (list, tuple)):
            return tuple(self._typed(number, part) for part in key)
        if self._key_type == "string":
            return str(key) if type(key) is int else key
        if type(key) is str and not _is_integer(key):
            self.wrong(number, f"its key {keys.shorten(key)} is not an integer")
        return int(key) if type(key) is str else key

    def _canonical(self, many: list[Any]) -> tuple[list[Key], list[bytes]]:
        wanted = len(self._scheme.fields) if self._scheme.composite else 0
        for number, key in zip(self._numbers, many, strict=True) if wanted else ():
            if type(key) is not tuple or len(key) != wanted:
                self.wrong(number, f"its key {keys.shorten(key)} is not a list of {wanted}")
        lines = []
        for number, key in zip(self._numbers, many, strict=True):
            try:
                lines.append(keys.canonical(key))
            except InvalidKey as error:
                raise InvalidKey(
                    f"{self._place}{number}: {error.what}", remedy="Correct it and import again"
                ) from None
        return many, lines


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    plain = len(text) <= _LONGEST_INTEGER and digits.isascii() and digits.isdigit()
    return plain and str(int(text)) == text
