"""Keys: their canonical form, and how an item's key is found.

A key is a non-empty string, an integer, or a tuple of those. Its canonical form is its JSON text
in UTF-8 (``"a"``, ``7``, ``["a",7]``). It contains no raw newline or tab, so canonical keys can be
joined by newlines and searched as bytes. ``1`` and ``"1"`` are different keys.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Protocol

from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import InvalidKey, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Key = str | int | tuple[str | int, ...]
KeySpec = str | tuple[str, ...] | Callable[[Any], Any] | None


class Lines(Protocol):
    """A container of canonical keys, such as a set or a `KeyTable`."""

    def __contains__(self, line: bytes, /) -> bool: ...


MAX_KEY_BYTES = 65_536
# The integers that an Arrow column can hold; results of wider keys could not be stored.
_INT_RANGE = range(-(2**63), 2**64)


def canonical(key: object) -> bytes:
    """Return the canonical form of this key.

    Raises `InvalidKey` for ``None``, booleans, floats, empty strings or tuples, nested tuples,
    integers wider than 64 bits, lone surrogates, and keys over 64 KiB.
    """
    if type(key) is str and key:
        try:
            text = encode_basestring(key).encode()
        except UnicodeEncodeError:
            raise InvalidKey(
                f"key {shorten(key)} contains a lone surrogate, which is not valid text; fix the "
                "text or use another key"
            ) from None
    elif type(key) is int and key in _INT_RANGE:
        text = b"%d" % key
    else:
        text = _canonical_slow(key)
    if len(text) > MAX_KEY_BYTES:
        raise InvalidKey(
            f"key {shorten(key)} is {len(text):,} bytes long; the limit is {MAX_KEY_BYTES:,}; use "
            "a digest of it"
        )
    return text


def _canonical_slow(key: object) -> bytes:
    if isinstance(key, tuple):
        if not key:
            raise InvalidKey(
                "a key cannot be an empty tuple", remedy="Name at least one field in key="
            )
        if any(isinstance(part, tuple) for part in key):
            raise InvalidKey(
                f"key {shorten(key)} nests tuples; a composite key is flat",
                remedy="Give key= a flat tuple",
            )
        return b"[" + b",".join(canonical(part) for part in key) + b"]"
    if isinstance(key, bool):
        raise InvalidKey(f"a key cannot be a boolean ({key}); use a string or an integer")
    if key is None:
        raise InvalidKey(
            "the key is None; every item needs a key of its own",
            remedy="Fix the item, or name another field in key=",
        )
    if isinstance(key, float):
        raise InvalidKey(
            f"a key cannot be a float ({key!r}), since equal floats can print differently; "
            "use str() or int()"
        )
    if isinstance(key, str):  # a subclass such as StrEnum or numpy.str_; or the empty string
        if not key:
            raise InvalidKey(
                "the key is an empty string; every item needs a key of its own",
                remedy="Fix the item, or name another field in key=",
            )
        return canonical(str.__str__(key))
    if hasattr(key, "__index__"):  # IntEnum, numpy integers
        try:
            number = operator.index(key)
        except TypeError:  # an array has the method but raises
            number = None
    else:
        number = None
    if number is not None:
        if number not in _INT_RANGE:
            raise InvalidKey(f"key {shorten(key)} does not fit in 64 bits; use str() of it")
        return canonical(number)
    raise InvalidKey(
        f"a key cannot be of type {type(key).__name__} ({shorten(key)}); "
        "use a string, an integer or a tuple of them, e.g. str() of it"
    )


def canonical_all(many: list[Any]) -> tuple[list[Key], list[bytes]]:
    """Return these keys as builtin types, and `canonical` of each. Fast for plain strings."""
    kinds = set(map(type, many))
    if kinds == {str}:
        whole = "".join(many)
        # Such text needs no escapes in JSON and contains no surrogates.
        if whole.isprintable() and '"' not in whole and "\\" not in whole:
            text = ('"' + '"\n"'.join(many) + '"').encode()
            short = len(text) <= MAX_KEY_BYTES or max(map(len, many)) < MAX_KEY_BYTES // 8
            if b'""' not in text and short:
                return many, text.split(b"\n")
    if kinds == {int} and min(many) in _INT_RANGE and max(many) in _INT_RANGE:
        return many, "\n".join(map(str, many)).encode().split(b"\n")
    lines = [canonical(key) for key in many]
    if not kinds <= {str, int}:  # convert the string and integer types of numpy and enums
        many = [parse(line) for line in lines]
    return many, lines


def parse(text: bytes) -> Key:
    """Return the key of a canonical form."""
    key = json.loads(text)
    return tuple(key) if isinstance(key, list) else key


def parse_lines(lines: bytes) -> list[Key]:
    """Return the keys of newline-joined canonical forms, in their order."""
    if not lines:
        return []
    found = json.loads(b"[" + lines.replace(b"\n", b",") + b"]")
    return [tuple(key) if isinstance(key, list) else key for key in found]


def twin(line: bytes) -> bytes | None:
    """Return the other key that is stored as the same text in a single column, or None.

    For a tuple, this is the string equal to its canonical form; for such a string, the tuple.
    """
    try:
        if line.startswith(b"["):
            return canonical(line.decode())
        if line.startswith(b'"['):
            text = json.loads(line)
            other = canonical(parse(text.encode()))
            return other if other == text.encode() else None
    except (InvalidKey, ValueError, RecursionError):
        pass  # the text is not a key, or too long for one
    return None


def sortable(key: Key) -> tuple[Any, ...]:
    """Return a sort key for a key; integers come before strings."""
    parts = key if isinstance(key, tuple) else (key,)
    return tuple((isinstance(part, str), part) for part in parts)


def shown(key: Any, limit: int = 60) -> str:
    """Return a key for display: its JSON text, escaped, and shortened in the middle.

    `resumable keys` prints this form and ``--key`` accepts it. It contains nothing that could
    control a terminal, or reverse or break a line. A value that is not a key is shown by `shorten`.
    """
    try:
        text = canonical(key).decode()
    except InvalidKey:
        return shorten(key, limit)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    tail = limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 1]}…{text[-tail:]}"


def shorten(value: object, limit: int = 80) -> str:
    """Return the ``repr`` of a value, escaped and shortened for a message or a log line."""
    try:
        text = ascii(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


@frozen
class KeyScheme:
    """The way to find an item's key, and the columns of the results that hold it.

    ``spec``: ``None`` (the item itself is the key), a field name, a tuple of field names, or a
    callable on the item. ``columns``: the result columns that hold the key, named after the fields,
    or ``("key",)`` if there are no fields.
    """

    spec: KeySpec

    def __post_init__(self) -> None:
        spec: Any = self.spec
        names = spec if isinstance(spec, tuple) else (spec,) if isinstance(spec, str) else ()
        if spec is not None and not callable(spec) and not names:
            from resumable_tasks.base.text import clean

            raise UsageError(
                f"key={clean(shorten(spec))} is neither a field name, a tuple of names, nor a "
                "callable",
                remedy=f"Give key= a tuple: key={shorten(tuple(spec))}"
                if isinstance(spec, (list, set))
                else f"Give key= the name of the field, such as {_named(spec)!r}",
            )
        if not all(isinstance(name, str) and name for name in names):
            raise UsageError(
                f"key={spec!r}: field names are non-empty strings",
                remedy='Give key= a field name, such as "id"',
            )
        if len(set(names)) != len(names):
            raise UsageError(f"key={spec!r} names a field twice", remedy="Name each field once")

    @classmethod
    def of(cls, described: Any) -> KeyScheme:
        """Return the scheme that `describe` described, as far as it concerns the rows.

        A callable cannot be restored; the scheme of whole items has the same columns.
        """
        described = described if isinstance(described, dict) else {}
        if "fields" in described:
            return cls(tuple(described["fields"]))
        return cls(described.get("field"))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that form the key; empty if it is not made of fields."""
        if isinstance(self.spec, str):
            return (self.spec,)
        return self.spec if isinstance(self.spec, tuple) else ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.fields or ("key",)

    @property
    def composite(self) -> bool:
        """True if the key is a tuple with one column for each part."""
        return isinstance(self.spec, tuple)

    def describe(self) -> Any:
        """Return the scheme as JSON for the manifest; equal if and only if the schemes are."""
        if self.spec is None:
            return "item"
        if callable(self.spec):
            return {"callable": getattr(self.spec, "__qualname__", type(self.spec).__name__)}
        # A single field and a tuple of one field are kept apart: their canonical forms differ.
        return {"field": self.spec} if isinstance(self.spec, str) else {"fields": list(self.fields)}

    def extractor(self) -> Callable[[Any], Any]:
        """Return a function from an item to its raw key; it raises `InvalidKey` without one."""
        spec = self.spec
        if spec is None:
            return _whole_item
        if callable(spec):
            return spec
        if isinstance(spec, str):
            return _field_getter(spec)
        getters = [_field_getter(name) for name in spec]
        return lambda item: tuple([get(item) for get in getters])

    def extract_all(self, items: list[Any]) -> list[Any]:
        """Apply `extractor` to each of these items; much faster if all are dicts."""
        if self.fields and set(map(type, items)) == {dict}:
            try:
                found = list(map(operator.itemgetter(*self.fields), items))
            except KeyError:
                pass  # the loop below finds the item at fault
            else:
                single = isinstance(self.spec, tuple) and len(self.spec) == 1
                return [(key,) for key in found] if single else found
        extract = self.extractor()
        return [extract(item) for item in items]

    def values(self, key: Key) -> tuple[Any, ...]:
        """Return the values of the key columns for this key."""
        if self.composite:
            assert isinstance(key, tuple)
            return key
        # In a single column, a tuple is stored as its canonical text.
        return (canonical(key).decode() if isinstance(key, tuple) else key,)

    def lines_of(
        self, rows: pa.Table | Sequence[Mapping[str, Any]], among: Lines = ()
    ) -> list[bytes]:
        """Return the canonical key of each row; the inverse of `values`.

        In a single column the text ``["a",1]`` may mean a tuple or a string: the string if that is
        ``among`` the keys that the rows can belong to, else the tuple. `clash` keeps both from
        being in one checkpoint. Raises `InvalidKey` if a row's key is not valid.
        """
        if isinstance(rows, Sequence):
            columns = [[row[name] for row in rows] for name in self.columns]
        else:
            columns = [rows.column(name).to_pylist() for name in self.columns]
        if self.composite:
            return canonical_all(list(zip(*columns, strict=True)))[1]
        # Rows from a handler may contain the tuple itself, which Arrow returns as a list.
        values = [tuple(value) if type(value) is list else value for value in columns[0]]
        lines = canonical_all(values)[1] if values else []
        return [
            line if not line.startswith(b'"[') or line in among else twin(line) or line
            for line in lines
        ]

    def clash(self, lines: Iterable[bytes], *known: Lines) -> str | None:
        """Return why one of these keys cannot be stored beside the known ones, or None.

        A tuple and a string of the same text are two keys; in a single result column, their rows
        could not be told apart.
        """
        if self.composite:
            return None
        for line in lines:
            other = twin(line)
            if other is not None and any(other in keys for keys in known):
                return (
                    f"keys {shown(parse(line))} and {shown(parse(other))} become the same text in "
                    f"column {self.columns[0]!r} of the results, so their rows could not be told "
                    "apart. Make both keys tuples, or both strings; or name the fields of the key, "
                    "key=(…), so that each gets a column"
                )
        return None


def _named(spec: Any) -> str:
    """Return the name of a column object that was given instead of its name."""
    name = getattr(spec, "name", None)
    return name if isinstance(name, str) else "id"


def _whole_item(item: Any) -> Any:
    if isinstance(item, dict):
        raise InvalidKey(
            "the item is a dict and no key= was given; name the field that holds the key, "
            'e.g. key="id"'
        )
    return item


def _field_getter(name: str) -> Callable[[Any], Any]:
    def get(item: Any) -> Any:
        try:
            return item[name]  # dicts, and rows of databases
        except (KeyError, IndexError, TypeError, AttributeError):
            pass
        try:
            return getattr(item, name)
        except AttributeError:
            from resumable_tasks.items.mistaken import instead_of_item, kind_of

            if remedy := instead_of_item(item):
                what = f"the item, {kind_of(item)}, has no field {name!r}"
                raise InvalidKey(what, remedy=remedy) from None
            found = list(item) if isinstance(item, dict) else type(item).__name__
            raise InvalidKey(
                f"the item has no field {name!r} (it has {shorten(found, 200)}); "
                "give key= the name of the field that holds the key"
            ) from None

    return get


def join(keys: Iterable[bytes]) -> bytes:
    """Join canonical keys by newlines, as batches and commits carry them."""
    return b"\n".join(keys)


def split(lines: bytes) -> Iterator[bytes]:
    """Iterate over newline-joined canonical keys."""
    return iter(lines.split(b"\n")) if lines else iter(())


def written(key: Key) -> str:
    """Return a key as people write it: a string unquoted, unless it parses as a JSON value."""
    line = canonical(key).decode()
    if not isinstance(key, str):
        return line
    try:
        json.loads(key)
    except (ValueError, RecursionError):
        return key if key.strip() == key else line
    return line
