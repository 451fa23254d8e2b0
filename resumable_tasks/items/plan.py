"""Items → keyed → missing → batches: lazy, in bounded memory, in the order of the items.

To detect duplicate keys, every item seen is remembered: by a mark beside its completed key, or else
by its key and position, in about 30 bytes.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Protocol

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.signals import read
from resumable_tasks.errors import ChangedItem, DuplicateKey, InvalidItems, InvalidKey
from resumable_tasks.items import ahead, fingerprints, keys
from resumable_tasks.items.ahead import Ahead, Listed, Take, slices
from resumable_tasks.items.batch import Batch, Chunk
from resumable_tasks.items.cutting import Filling, MaxWeight
from resumable_tasks.items.fingerprints import Changes, Fingerprinter, OnChange
from resumable_tasks.items.keys import Key, KeyScheme, KeySpec
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.out import ItemsOut
from resumable_tasks.items.reading import is_arrow, made_ahead, record_batches, rows
from resumable_tasks.items.sameness import Look, OfAnotherType, sample_of
from resumable_tasks.items.sources import Fed
from resumable_tasks.items.suspects import Suspected, SuspectsApart
from resumable_tasks.items.walk import Match, Seen, Walk
from resumable_tasks.items.weights import Weigher, too_heavy

if TYPE_CHECKING:
    import pyarrow as pa

OnDuplicate = Literal["error", "skip"]
OnBadItem = Literal["error", "fail"]
BatchFormat = Literal["auto", "rows", "arrow"]


# If the first items, this many, have no usable key, key= is wrong.
_MOST_BAD = 100
# Keys are processed faster in groups of this size.
_AT_ONCE = 1_000


@frozen
class Planning:
    """Options for turning items into batches; see `resumable_task` for the meaning of each."""

    key: KeySpec = None
    batch_size: int = 50
    batch_format: BatchFormat = "auto"
    on_duplicate: OnDuplicate = "error"
    changes: Changes | None = None
    linger: float | None = None
    on_bad_item: OnBadItem | None = "error"
    weigher: Weigher | None = None
    max_weight: MaxWeight | None = None

    @property
    def scheme(self) -> KeyScheme:
        return KeyScheme(self.key)

    @property
    def fingerprinter(self) -> Fingerprinter | None:
        """The maker of fingerprints; None if there are none."""
        return None if self.changes is None else Fingerprinter(self.changes.by)

    @property
    def on_change(self) -> OnChange:
        """The response to a completed item that has changed."""
        return "redo" if self.changes is None else self.changes.then

    def planner(
        self,
        done: KeyTable,
        set_aside: Set[bytes] = frozenset(),
        failed: Mapping[bytes, FailedBefore] | None = None,
    ) -> Planner:
        """Return the planner of one run; see `Planner`."""
        return Planner(self, done, set_aside, failed)


class Waiting:
    """Stands among the batches (`WAITING`) when no item is available now."""


WAITING = Waiting()


class Adopted:
    """Completed keys and the fingerprints that they get, as compact as in the journal."""

    def __init__(self) -> None:
        self.lines = bytearray()
        self.fingerprints = bytearray()
        self.count = 0

    def add(self, line: bytes, fingerprint: int) -> None:
        """Add a key. ``fingerprint``: -1 to leave the stored one unchanged."""
        if fingerprint >= 0:
            self.count += 1
        between = b"\n" if self.lines else b""
        self.lines += between + line
        self.fingerprints += between + fingerprints.to_text(fingerprint)


class FailedBefore(Protocol):
    """An item that failed in an earlier run."""

    @property
    def attempts(self) -> int:
        """How many times the item was tried alone."""


class Planner:
    """Makes the batches of one run, in the order of the items.

    Items that failed alone in an earlier run come in separate batches.

    ``done``: the completed keys, with fingerprints if the job detects changes. ``set_aside``: the
    keys of failed items that are not tried again; ``set_aside_lines``: those of them seen in this
    run. ``failed``: the items that failed in earlier runs. ``total`` counts the items seen so far,
    ``skipped`` those already completed, ``changed`` the completed items with a new fingerprint.
    ``seen`` maps each key of this run to its item's position. ``adopted``: completed keys that get
    their first fingerprint, and completed keys whose redo had failed and is no longer needed.
    ``bad``: the items that fail without being handled because of their keys, with their positions.
    """

    def __init__(
        self,
        planning: Planning,
        done: KeyTable,
        set_aside: Set[bytes] = frozenset(),
        failed: Mapping[bytes, FailedBefore] | None = None,
    ) -> None:
        self._planning = planning
        self._done = done
        self._set_aside = set_aside
        self.set_aside_lines: list[bytes] = []
        self._failed = failed if failed is not None else {}
        self.seen = Seen(Walk(done))
        self.adopted = Adopted()
        self.total = 0
        self.skipped = 0
        self.duplicates = 0
        self.changed = 0
        self.bad: list[tuple[int, InvalidItems]] = []
        # True if the run stopped reading the items before their end.
        self.cut_short = False
        self._numbers = count()
        self._looks: list[Look] = [OfAnotherType(done)] if len(done) else []

    def look_with(self, look: Look) -> None:
        """Register a check of the first items, made before any item is planned."""
        self._looks.append(look)

    @cached_property
    def out(self) -> ItemsOut:
        """The items that a service has had since an earlier run."""
        return ItemsOut()

    @cached_property
    def _standing(self) -> Set[bytes]:
        """The keys of completed items whose redo failed; their earlier results stand."""
        return {line for line in self._failed if line in self._done}

    @cached_property
    def _scheme(self) -> KeyScheme:
        return self._planning.scheme

    def next_number(self) -> int:
        """Return the number of the next new batch of this run. Safe in any thread."""
        return next(self._numbers)

    def batches(self, items: Any) -> Iterator[Batch | Waiting]:
        """Yield the batches of the items that are not completed.

        Raises `InvalidItems`, `InvalidKey`, `DuplicateKey` or `ChangedItem` with the item's
        position, counted from 0. If items are read one by one, the batches before that item have
        already been yielded.
        """
        arrow = is_arrow(items)
        extract = self._arrow_keys() if arrow else self._scheme.extract_all
        self._look_at_sample(items, extract)
        if arrow:
            found = self._record_batches(items, extract)
            take = self._ahead(slices(found), extract, ahead.MOST_OF_ARROW)
            return self._gathered(take, extract, several=made_ahead(items))
        return self._row_batches(rows(items))

    def _look_at_sample(self, items: Any, extract: Callable[[Any], list[Any]]) -> None:
        """Check items from all positions, so that new items at the start hide nothing."""
        if not self._looks:
            return
        sample = sample_of(items, max(look.sample for look in self._looks))
        if sample is None:
            return
        try:
            lines = keys.canonical_all(extract(sample))[1]
        except Exception:  # noqa: BLE001 - raised again with its position when the item is reached
            return
        self._look(lines)

    def _look(self, lines: list[bytes]) -> None:
        self._looks = [look for look in self._looks if not look.look(lines)]

    def _record_batches(
        self, items: Any, extract: Callable[[Any], list[Any]]
    ) -> Iterator[pa.RecordBatch]:
        from resumable_tasks.items import arrow

        fields = self._scheme.fields
        # A fingerprint may need any column; without one, the key columns are enough.
        keys_tell = len(self._done) > 0 and self._planning.fingerprinter is None
        if fields and keys_tell and arrow.in_parts(items):
            parts = arrow.of_parts(items, fields, lambda keyed: self._skip_part(keyed, extract))
            return arrow.record_batches(parts)
        return record_batches(items)

    def _row_batches(self, items: Iterable[Any]) -> Iterator[Batch]:
        extract = self._scheme.extract_all
        if isinstance(items, Fed):
            fed = items.take
            take: Take = lambda *how: read(partial(fed, *how))  # noqa: E731
            return self._gathered(take, extract, self._planning.linger)
        take = self._ahead(Listed(items).take, extract)
        return self._gathered(take, extract, several=made_ahead(items))

    def _ahead(
        self,
        take: Callable[[int], Any],
        extract: Callable[[Any], list[Any]],
        at_once: int = 0,
    ) -> Take:
        """Return a function that takes items for `_gathered`, skipping completed ones in bulk."""
        if not len(self._done):
            return lambda most, *_: read(partial(take, most))
        return Ahead(take, lambda items: self._skip(items, extract), at_once).take

    def _skip(self, items: Any, extract: Callable[[Any], list[Any]]) -> bool:
        """Count these consecutive items as skipped if all are completed; else change nothing."""
        return not self._looks and self._pass_over(items, extract)

    def _skip_part(self, keyed: pa.RecordBatch, extract: Callable[[Any], list[Any]]) -> bool:
        """`_skip` for items of which only the key columns were read."""
        if self._looks:
            try:
                lines = keys.canonical_all(extract(keyed))[1]
            except InvalidKey:  # raised again with its position when the item is reached
                return False
            self._look(lines)
        return self._pass_over(keyed, extract)

    def _pass_over(self, items: Any, extract: Callable[[Any], list[Any]]) -> bool:
        match = self._match(items, extract)
        if match is None or match.others or not self.seen.walk.take(match, self.total):
            return False
        self.total += len(items)
        self.skipped += len(items)
        return True

    def _match(self, items: Any, extract: Callable[[Any], list[Any]]) -> Match | None:
        """Match items with the completed keys; None if they must be checked one by one."""
        fingerprinter = self._planning.fingerprinter
        if self._standing:
            return None
        if fingerprinter is None and not isinstance(items, list):
            from resumable_tasks.items import arrow

            text = arrow.key_text(items, self._scheme.fields, composite=self._scheme.composite)
            if text is not None:
                following = self.seen.walk.follows(text, len(items))
                return following or self.seen.walk.match(text[:-1].split(b"\n"))
        try:
            lines = keys.canonical_all(extract(items))[1]
            taken = fingerprinter.of(items, self.total) if fingerprinter is not None else None
        except Exception:  # noqa: BLE001 - raised again with its position when the item is reached
            return None
        return self.seen.walk.match(lines, taken)

    def _gathered(
        self,
        take: Take,
        extract: Callable[[Any], list[Any]],
        linger: float | None = None,
        *,
        several: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of the items that ``take`` returns; an empty result ends the items.

        ``linger``: if ``take`` returns None or fewer items than asked for, the items so far have
        waited long enough. ``several``: take the items of several batches at once, because all
        batches are made before the first is handled.
        """
        size = self._planning.batch_size
        suspected, limit = self._suspected(), self._planning.max_weight
        # Suspects are yielded as soon as they fill a batch, so items are not taken in bulk then.
        at_once = _AT_ONCE if several and suspected is None and limit is None else 0
        apart, filling = SuspectsApart(suspected, size), Filling(limit)
        while True:
            most = max(at_once, size - filling.count)
            items = take(most, linger, bool(filling.count or apart.any))
            if items is not None and not len(items):
                break
            if items is not None:
                chunk = apart.take_out(self.out.take_out(self._chosen(items, extract)))
                for piece in chunk.pieces(size - filling.count, size):
                    for full in filling.add(piece):
                        yield self._batch(full)
                    if filling.count == size:
                        yield self._batch(filling.take())
            late = linger is not None and (items is None or len(items) < most)
            if late and filling.count:
                yield self._batch(filling.take())
            if (suspects := apart.next_chunk(all_there_are=late)) is not None:
                yield from self._apart(suspects)
        if filling.count:
            yield self._batch(filling.take())
        while (suspects := apart.next_chunk(all_there_are=True)) is not None:
            yield from self._apart(suspects)
        self.seen.rest()

    def _apart(self, chunk: Chunk) -> Iterator[Batch]:
        for piece in Filling(self._planning.max_weight).pieces(chunk):
            yield self._batch(piece, suspects=True)

    def _chosen(self, items: Any, extract: Callable[[Any], list[Any]]) -> Chunk:
        """Choose the items to handle among these consecutive ones; count all of them."""
        try:
            return self._chosen_of(items, extract)
        except InvalidKey:
            if self._planning.on_bad_item == "error":
                raise
        each = [self._chosen_one(items[at : at + 1], extract) for at in range(len(items))]
        return Chunk.joined([chunk for chunk in each if len(chunk)] or each[:1])

    def _chosen_one(self, item: Any, extract: Callable[[Any], list[Any]]) -> Chunk:
        """`_chosen` for one item, which fails if it has no usable key."""
        try:
            return self._chosen_of(item, extract)
        except InvalidKey as error:
            self.bad.append((self.total, error))
            self.total += 1
            if self.total == len(self.bad) == _MOST_BAD:
                raise self.bad[0][1] from None  # key= is at fault, not the items
            return Chunk([], [], (), item[:0])

    def _chosen_of(self, items: Any, extract: Callable[[Any], list[Any]]) -> Chunk:
        found, lines = self._keyed(items, extract)
        if self._looks:
            self._look(lines)
        fingerprinter = self._planning.fingerprinter
        taken = fingerprinter.of(items, self.total) if fingerprinter is not None else None
        first = self.total
        admitted = self._admit(lines, taken)
        chosen = Chunk(found, lines, taken or (), items).choose(admitted)
        weigher = self._planning.weigher
        if weigher is None or not len(chosen):
            return chosen
        return replace(chosen, weights=weigher.of(chosen.items, [first + at for at in admitted]))

    def check_bad(self) -> None:
        """Raise `InvalidKey` if at least half of the items have no usable key: key= is wrong."""
        unusable = [error for _, error in self.bad if isinstance(error, InvalidKey)]
        if unusable and 2 * len(unusable) >= self.total:
            raise unusable[0]

    def _suspected(self) -> Suspected | None:
        """Return the test for items that failed alone before; None if none did."""
        failed = self._failed
        if not failed:
            return None
        return lambda line: (found := failed.get(line)) is not None and found.attempts > 0

    def _keyed(
        self, chunk: Any, extract: Callable[[Any], list[Any]]
    ) -> tuple[list[Key], list[bytes]]:
        """Return the keys of consecutive items, and their canonical forms."""
        extract = _contained(extract)
        try:
            return keys.canonical_all(extract(chunk))
        except InvalidKey:
            for at in range(len(chunk)):  # find the item at fault
                try:
                    keys.canonical_all(extract(chunk[at : at + 1]))
                except InvalidKey as error:
                    raise InvalidKey(
                        f"item {self.total + at:,}: {error.what}", remedy=error.remedy
                    ) from None
            raise

    def _arrow_keys(self) -> Callable[[pa.RecordBatch], list[Any]]:
        scheme = self._scheme
        if not scheme.fields:
            if scheme.spec is None:
                raise InvalidItems(
                    "Arrow items need a key",
                    remedy="Give key= the column or columns that hold it",
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

    def _admit(self, lines: list[bytes], taken: list[int] | None) -> Sequence[int]:
        """Return the indexes of the keys to handle among these consecutive ones.

        Counts all of them.
        """
        first, self.total = self.total, self.total + len(lines)
        if not len(self._done):
            return self._admit_new(lines, first)
        walk = self.seen.walk
        match = walk.match(lines, taken)
        twice = walk.take_each(match, first, lines)
        new = [at for at, place in match.others if not place]
        positions = [first + at for at in new]
        twice += [new[at] for at in self.seen.add([lines[at] for at in new], positions)]
        for at in sorted(twice):
            self._take_duplicate(lines[at], first + at)
        again = set(twice)
        changed = [at for at, place in match.others if place and at not in again]
        chosen = [at for at in new if at not in again]
        if taken is not None:
            chosen += [at for at in changed if self._is_wanted(lines[at], taken[at], first + at)]
            again.update(changed)
        self._adopt_standing(lines, again.union(new))
        self.skipped += len(lines) - len(chosen) - len(twice)
        chosen.sort()
        return self._without_set_aside(lines, chosen) if self._set_aside else chosen

    def _admit_new(self, lines: list[bytes], first: int) -> Sequence[int]:
        """`_admit` if no key is completed."""
        chosen: Sequence[int] = range(len(lines))
        twice = self.seen.add(lines, range(first, self.total))
        if twice:
            for at in twice:
                self._take_duplicate(lines[at], first + at)
            chosen = sorted(set(chosen).difference(twice))
        return self._without_set_aside(lines, chosen) if self._set_aside else chosen

    def _adopt_standing(self, lines: list[bytes], but: Set[int]) -> None:
        """Adopt the completed items whose redo had failed and is no longer needed.

        ``but``: the indexes of items to leave out.
        """
        for at, line in enumerate(lines) if self._standing else ():
            if line in self._standing and at not in but:
                self.adopted.add(line, -1)

    def _take_duplicate(self, line: bytes, position: int) -> None:
        if self._planning.on_duplicate == "skip":
            self.duplicates += 1
        elif self._planning.on_bad_item == "fail":
            self.bad.append((position, self._duplicate(line, position)))
        else:
            raise self._duplicate(line, position)

    def _without_set_aside(self, lines: list[bytes], chosen: Sequence[int]) -> Sequence[int]:
        """Leave out, and remember, the failed items that are not tried again."""
        self.set_aside_lines += [lines[at] for at in chosen if lines[at] in self._set_aside]
        return [at for at in chosen if lines[at] not in self._set_aside]

    def _is_wanted(self, line: bytes, fingerprint: int, position: int) -> bool:
        """True if this completed item, whose fingerprint differs, is to be handled again."""
        stored = self._done.get(line)
        assert stored is not None
        if stored < 0:
            self.adopted.add(line, fingerprint)
            return False
        if self._planning.on_change == "error":
            raise self._has_changed(line, stored, fingerprint, position)
        self.changed += 1
        if self._planning.on_change == "redo":
            return True
        if line in self._failed:
            self.adopted.add(line, -1)
        return False

    def _has_changed(self, line: bytes, before: int, now: int, position: int) -> ChangedItem:
        return ChangedItem(
            f"item {position:,} with key {keys.shown(keys.parse(line))} has changed since it was "
            f"completed: its fingerprint was {fingerprints.to_text(before).decode()} and is "
            f"{fingerprints.to_text(now).decode()}. Restore the item; or set Changes(…, "
            'then="redo") to handle it again, or then="keep" to keep its results'
        )

    def _duplicate(self, line: bytes, position: int) -> DuplicateKey:
        return DuplicateKey(
            f"items {self.seen.get(line):,} and {position:,} have the same key "
            f"{keys.shown(keys.parse(line))}. A key names one item: fix the items, name more "
            'fields in key=, or set on_duplicate="skip" to keep the first'
        )

    def again(self, lines: list[bytes]) -> Batch | None:
        """Return a batch of these items, which a service has left undone.

        None if none of them has been read yet; items read later are planned then. Safe in any
        thread.
        """
        chunk = self.out.release(lines)
        return None if chunk is None else self._batch(chunk)

    def sent(self, lines: bytes) -> Any:
        """Return the items of these keys as they were sent to a service; None if any is unread."""
        chunk = self.out.all_of(lines)
        return None if chunk is None else self._formatted(chunk.items)

    def _batch(self, chunk: Chunk, suspects: bool = False) -> Batch:
        lines = keys.join(chunk.lines)
        if b"[" in lines:
            why = self._scheme.clash(chunk.lines, self._done, self.seen)
            if why is not None:
                raise InvalidKey(why)
        self._refuse_heavy(chunk)
        return Batch(
            self.next_number(),
            chunk.keys,
            lines,
            self._formatted(chunk.items),
            suspects=suspects,
            fingerprints=chunk.fingerprints,
            weights=chunk.weights,
        )

    def _refuse_heavy(self, chunk: Chunk) -> None:
        """Raise `UsageError` for a batch too heavy for the limits, which would wait for ever."""
        weigher = self._planning.weigher
        if weigher is not None and (why := weigher.refuse(chunk.weights)):
            raise too_heavy(why, self.seen.get(chunk.lines[0]), len(chunk))

    def _formatted(self, items: Any) -> Any:
        """Return the items in the form that the handler takes."""
        if self._planning.batch_format == "rows" and not isinstance(items, list):
            return items.to_pylist()
        if self._planning.batch_format == "arrow" and isinstance(items, list):
            import pyarrow as pa

            try:
                return pa.RecordBatch.from_pylist(items)
            except (pa.ArrowException, TypeError, AttributeError) as error:
                raise InvalidItems(
                    f'batch_format="arrow" needs items that are dicts of Arrow types: {error}',
                    remedy="Give such items, or leave batch_format= out",
                ) from error
        return items


def _contained(extract: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """Return the same function; any error becomes `InvalidKey`."""

    def contained(items: Any) -> list[Any]:
        try:
            return extract(items)
        except InvalidKey:
            raise
        except Exception as error:
            raise InvalidKey(
                f"key= raised {type(error).__name__}: {error}",
                remedy="Fix the callable, or the item",
            ) from error

    return contained
