"""Items → keyed → missing → batches: lazy, in bounded memory, in the order of the items.

What is kept of an item that has gone by is its key and position, at about 25 bytes, so that a
second item with the same key is found.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.errors import ChangedItem, DuplicateKey, InvalidItems, InvalidKey
from resumable_tasks.items import fingerprints, keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.fingerprints import Fingerprinter
from resumable_tasks.items.keys import Key, KeyScheme
from resumable_tasks.items.keytable import KeyTable

if TYPE_CHECKING:
    import pyarrow as pa

OnDuplicate = Literal["error", "skip"]
OnChange = Literal["redo", "keep", "error"]
BatchFormat = Literal["auto", "rows", "arrow"]


class Adopted:
    """Completed keys, and the fingerprints that they get; as small as they are in the journal."""

    def __init__(self) -> None:
        self.lines = bytearray()
        self.prints = bytearray()
        self.count = 0

    def add(self, line: bytes, fingerprint: int) -> None:
        """``fingerprint``: -1 if it stays what it is."""
        if fingerprint >= 0:
            self.count += 1
        between = b"\n" if self.lines else b""
        self.lines += between + line
        self.prints += between + fingerprints.to_text(fingerprint)


class Planner:
    """Makes the batches of one run. Counts as it goes: ``total`` items seen, ``skipped`` done.

    ``done`` holds the completed keys, with their fingerprints if there is a ``fingerprinter``,
    ``set_aside`` those of failed items that are not to be tried again; ``set_aside_lines`` are
    those of them that came. ``seen`` maps each key of this run to its item's position,
    ``fingerprints`` each key that was given out to its item's fingerprint, until whoever commits
    it takes it out. ``adopted`` are the completed keys whose items had no fingerprint and have
    one now, and those that had failed since (``failed``) and are not to be done anew any more.
    ``changed`` counts the completed items whose fingerprint is another than it was.
    """

    def __init__(
        self,
        scheme: KeyScheme,
        batch_size: int,
        done: KeyTable,
        *,
        on_duplicate: OnDuplicate = "error",
        batch_format: BatchFormat = "auto",
        set_aside: Set[bytes] = frozenset(),
        fingerprinter: Fingerprinter | None = None,
        on_change: OnChange = "redo",
        failed: Collection[bytes] = (),
    ) -> None:
        self._scheme = scheme
        self._batch_size = batch_size
        self._done = done
        self._on_duplicate = on_duplicate
        self._batch_format = batch_format
        self._set_aside = set_aside
        self.set_aside_lines: list[bytes] = []
        self._fingerprinter = fingerprinter
        self._on_change = on_change
        self._failed = failed
        self.seen = KeyTable()
        self.fingerprints: dict[bytes, int] = {}
        self.adopted = Adopted()
        self.total = 0
        self.skipped = 0
        self.duplicates = 0
        self.changed = 0
        # Whether the items were left before their end because the run stops.
        self.cut_short = False
        self._numbers = count()

    def next_number(self) -> int:
        """The number of one more batch of this run. Safe in any thread."""
        return next(self._numbers)

    def forget(self, done: Iterable[bytes]) -> None:
        """Take the fingerprints of keys that are committed out."""
        if self.fingerprints:
            for line in keys.split(keys.join(done)):
                self.fingerprints.pop(line, None)

    def batches(self, items: Any) -> Iterator[Batch]:
        """The batches of the items that are not completed.

        Raises `InvalidItems`, `InvalidKey`, `DuplicateKey` or `ChangedItem` with the item's
        position, counted from 0; the batches before it have been given out by then.
        """
        if _is_arrow(items):
            return self._arrow_batches(_record_batches(items))
        return self._row_batches(_rows(items))

    def _row_batches(self, items: Iterable[Any]) -> Iterator[Batch]:
        source, extract, size = iter(items), self._scheme.extract_all, self._batch_size
        kept_keys: list[Key] = []
        lines: list[bytes] = []
        kept: list[Any] = []
        while chunk := list(islice(source, size - len(kept))):
            found, chunk_lines = self._keyed(chunk, extract)
            chosen = self._admit(chunk_lines, chunk)
            if len(chosen) < len(chunk):
                found = [found[at] for at in chosen]
                chunk_lines = [chunk_lines[at] for at in chosen]
                chunk = [chunk[at] for at in chosen]
            kept_keys += found
            lines += chunk_lines
            kept += chunk
            if len(kept) == size:
                yield self._batch(kept_keys, lines, kept)
                kept_keys, lines, kept = [], [], []
        if kept:
            yield self._batch(kept_keys, lines, kept)

    def _arrow_batches(self, record_batches: Iterable[pa.RecordBatch]) -> Iterator[Batch]:
        extract, size = self._arrow_keys(), self._batch_size
        kept_keys: list[Key] = []
        lines: list[bytes] = []
        kept: list[pa.RecordBatch] = []
        for record_batch in record_batches:
            start = 0
            while start < record_batch.num_rows:
                chunk = record_batch.slice(start, size - len(lines))
                start += chunk.num_rows
                found, chunk_lines = self._keyed(chunk, extract)
                chosen = self._admit(chunk_lines, chunk)
                if chosen:
                    kept_keys += [found[at] for at in chosen]
                    lines += [chunk_lines[at] for at in chosen]
                    kept.append(chunk if len(chosen) == len(found) else chunk.take(list(chosen)))
                if len(lines) == size:
                    yield self._batch(kept_keys, lines, _as_one(kept))
                    kept_keys, lines, kept = [], [], []
        if lines:
            yield self._batch(kept_keys, lines, _as_one(kept))

    def _keyed(
        self, chunk: Any, extract: Callable[[Any], list[Any]]
    ) -> tuple[list[Key], list[bytes]]:
        """The keys of consecutive items, and their canonical forms."""
        try:
            return keys.canonical_all(extract(chunk))
        except InvalidKey:
            for at in range(len(chunk)):  # which of them was it?
                try:
                    keys.canonical_all(extract(chunk[at : at + 1]))
                except InvalidKey as error:
                    raise InvalidKey(f"item {self.total + at:,}: {error}") from None
            raise

    def _arrow_keys(self) -> Callable[[pa.RecordBatch], list[Any]]:
        scheme = self._scheme
        if not scheme.fields:
            if scheme.spec is None:
                raise InvalidItems(
                    "items from Arrow need key=: the column, or the columns, that hold the key"
                )
            extract = scheme.extractor()
            return lambda batch: [extract(row) for row in batch.to_pylist()]

        def columns(batch: pa.RecordBatch) -> list[Any]:
            missing = [name for name in scheme.fields if name not in batch.schema.names]
            if missing:
                raise InvalidKey(
                    f"the items have no column {missing[0]!r} (they have "
                    f"{keys.shorten(batch.schema.names, 200)}); "
                    "give key= the column that holds the key"
                )
            found = [batch.column(name).to_pylist() for name in scheme.fields]
            return list(zip(*found, strict=True)) if scheme.composite else list(found[0])

        return columns

    def _admit(self, lines: list[bytes], items: Any) -> Sequence[int]:
        """Which of these consecutive items are to be handled, by index; counts them all."""
        prints = self._fingerprinter.of(items, self.total) if self._fingerprinter else None
        first, self.total = self.total, self.total + len(lines)
        if self.seen.add_new(lines, first):
            chosen: Sequence[int]
            if prints is None and not self._failed:
                chosen = self._done.missing(lines)
            else:
                chosen = [
                    at
                    for at in self._candidates(lines, prints)
                    if self._wanted(lines[at], prints[at] if prints else None, first + at)
                ]
            self.skipped += len(lines) - len(chosen)
            return self._without_set_aside(lines, chosen) if self._set_aside else chosen
        each: list[int] = []
        for at, line in enumerate(lines):
            if not self.seen.add(line, first + at):
                if self._on_duplicate == "error":
                    raise self._duplicate(line, first + at)
                self.duplicates += 1
            elif self._wanted(line, prints[at] if prints else None, first + at):
                each.append(at)
            else:
                self.skipped += 1
        return self._without_set_aside(lines, each) if self._set_aside else each

    def _without_set_aside(self, lines: list[bytes], chosen: Sequence[int]) -> Sequence[int]:
        """Failed items that are not to be tried again are left out, and remembered."""
        left = [lines[at] for at in chosen if lines[at] in self._set_aside]
        self.set_aside_lines += left
        for line in left:
            self.fingerprints.pop(line, None)
        return [at for at in chosen if lines[at] not in self._set_aside]

    def _candidates(self, lines: list[bytes], prints: list[int] | None) -> Sequence[int]:
        """The indexes of those to look at more closely."""
        missing = self._done.missing(lines) if prints is None else self._done.unequal(lines, prints)
        if not self._failed:
            return missing
        failed = (at for at, line in enumerate(lines) if line in self._failed)
        return sorted({*missing, *failed})

    def _wanted(self, line: bytes, fingerprint: int | None, position: int) -> bool:
        """Whether this item is to be handled: it is missing, or has changed."""
        stored = self._done.get(line)
        if stored is not None and fingerprint not in (None, stored):
            assert fingerprint is not None
            if stored < 0:
                self.adopted.add(line, fingerprint)
                return False
            if self._on_change == "error":
                raise self._has_changed(line, stored, fingerprint, position)
            self.changed += 1
            wanted = self._on_change == "redo"
        else:
            wanted = stored is None
        if wanted and fingerprint is not None:
            self.fingerprints[line] = fingerprint
        if not wanted and line in self._failed:
            # It failed when it was to be done anew, which is not wanted any more.
            self.adopted.add(line, -1)
        return wanted

    def _has_changed(self, line: bytes, before: int, now: int, position: int) -> ChangedItem:
        return ChangedItem(
            f"item {position:,} with key {keys.shorten(keys.parse(line))} has changed since it was "
            f"completed: its fingerprint was {fingerprints.to_text(before).decode()} and is "
            f"{fingerprints.to_text(now).decode()}. Give the item as it was; or say "
            'on_change="redo" to have it handled again, on_change="keep" to keep its results'
        )

    def _duplicate(self, line: bytes, position: int) -> DuplicateKey:
        return DuplicateKey(
            f"items {self.seen.get(line):,} and {position:,} have the same key "
            f"{keys.shorten(keys.parse(line))}. A key names one item: mend the items, name more "
            'fields in key=, or say on_duplicate="skip" to keep the first'
        )

    def _batch(self, batch_keys: list[Key], lines: list[bytes], items: Any) -> Batch:
        return Batch(self.next_number(), batch_keys, keys.join(lines), self._formatted(items))

    def _formatted(self, items: Any) -> Any:
        """The items as the handler wants them."""
        if self._batch_format == "rows" and not isinstance(items, list):
            return items.to_pylist()
        if self._batch_format == "arrow" and isinstance(items, list):
            import pyarrow as pa

            try:
                return pa.RecordBatch.from_pylist(items)
            except (pa.ArrowException, TypeError, AttributeError) as error:
                raise InvalidItems(
                    f'batch_format="arrow" wants items that are dicts of Arrow\'s types: {error}'
                ) from error
        return items


def is_read_by_iteration(items: Any) -> bool:
    """Whether reading these items runs code of their own, item by item, such as a generator's."""
    return (
        isinstance(items, Iterable)
        and not isinstance(items, (str, bytes, bytearray, list, tuple, Mapping, Set, range))
        and not _is_arrow(items)
    )


def _is_arrow(items: Any) -> bool:
    # A dataset has no capsule; everything else of Arrow, and every data frame, has.
    return (
        hasattr(items, "__arrow_c_stream__")
        or hasattr(items, "__arrow_c_array__")
        or (hasattr(items, "to_batches") and hasattr(items, "scanner"))
    )


def _record_batches(items: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if hasattr(items, "scanner"):
        return iter(items.to_batches())
    if hasattr(items, "__arrow_c_stream__"):
        return iter(pa.RecordBatchReader.from_stream(items))
    return iter([pa.record_batch(items)])


def _rows(items: Any) -> Iterable[Any]:
    if isinstance(items, (str, bytes, bytearray)):
        raise InvalidItems(
            f"items is one {type(items).__name__}, which would be taken letter by letter; "
            "give a list of items"
        )
    if isinstance(items, Mapping):
        raise InvalidItems("items is a mapping; say which you mean: .values(), .items() or .keys()")
    if isinstance(items, AsyncIterable):
        raise InvalidItems("items is an async iterable; `await task.arun(items, …)` takes those")
    if not isinstance(items, Iterable):
        raise InvalidItems(f"items is a {type(items).__name__}, which cannot be iterated over")
    return items


def _as_one(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
