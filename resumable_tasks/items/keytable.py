"""Many keys in memory: an exact map from canonical keys to numbers, small and quick."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b


class KeyTable:
    """An exact map from canonical keys to positions (or fingerprints), small and quick.

    The last 200,000 keys or so are in a dict. Older ones lie end to end in byte arrays, chosen
    by Python's own hash and searched by ``find``: a key of 15 bytes then takes about 25, where a
    dict of ``bytes`` takes 140. Exact: no digest stands for a key of up to 80 bytes, a 128-bit
    one for a longer. ``docs/design/0003-keys-in-memory.md`` has the measurements.
    """

    __slots__ = ("_buckets", "_frozen", "_hot", "_mask")

    _HOT = 200_000
    _PER_BUCKET = 64

    def __init__(self) -> None:
        self._hot: dict[bytes, int] = {}
        self._buckets: list[bytearray] = []
        self._mask = 0
        self._frozen = 0

    def __len__(self) -> int:
        return len(self._hot) + self._frozen

    def __contains__(self, key: bytes) -> bool:
        if len(key) > 80:
            key = _digest(key)
        if key in self._hot:
            return True
        return self._frozen > 0 and b"\n" + key + b"\t" in self._buckets[hash(key) & self._mask]

    def get(self, key: bytes) -> int | None:
        """The position stored for this key, or None."""
        if len(key) > 80:
            key = _digest(key)
        position = self._hot.get(key)
        if position is not None or not self._frozen:
            return position
        bucket = self._buckets[hash(key) & self._mask]
        entry = b"\n" + key + b"\t"
        at = bucket.find(entry)
        if at < 0:
            return None
        at += len(entry)
        return int(bucket[at : bucket.index(b"\n", at)])

    def add(self, key: bytes, position: int) -> bool:
        """Store a key that is not there yet; False, and nothing is changed, if it is."""
        if key in self:
            return False
        self._hot[_digest(key) if len(key) > 80 else key] = position
        if len(self._hot) >= self._HOT:
            self._freeze()
        return True

    def add_new(self, many: Sequence[bytes], position: int) -> bool:
        """`add` for keys at consecutive positions, all or none: False if any is not new."""
        many, hot = _shortened(many), self._hot
        if not hot.keys().isdisjoint(many) or len(self._not_frozen(many)) < len(many):
            return False
        before = len(hot)
        hot.update(zip(many, range(position, position + len(many)), strict=True))
        if len(hot) < before + len(many):  # one of them came twice
            for key in many:
                hot.pop(key, None)
            return False
        if len(hot) >= self._HOT:
            self._freeze()
        return True

    def missing(self, many: Sequence[bytes]) -> Sequence[int]:
        """The indexes of those of these keys that are not there."""
        if not len(self):
            return range(len(many))
        many, hot = _shortened(many), self._hot
        return [at for at in self._not_frozen(many) if many[at] not in hot]

    def _not_frozen(self, many: Sequence[bytes]) -> Sequence[int]:
        """The indexes of those of these (short) keys that are not in the byte arrays."""
        if not self._frozen:
            return range(len(many))
        buckets, mask = self._buckets, self._mask
        return [
            at
            for at, key in enumerate(many)
            if b"\n" + key + b"\t" not in buckets[hash(key) & mask]
        ]

    def unequal(self, many: Sequence[bytes], positions: Sequence[int]) -> Sequence[int]:
        """The indexes of those of these keys that are not there with just this position."""
        many, hot = _shortened(many), self._hot
        found = [
            at
            for at, (key, position) in enumerate(zip(many, positions, strict=True))
            if hot.get(key) != position
        ]
        if not self._frozen:
            return found
        buckets, mask = self._buckets, self._mask
        return [
            at
            for at in found
            if b"\n%b\t%d\n" % (many[at], positions[at]) not in buckets[hash(many[at]) & mask]
        ]

    def add_lines(self, lines: bytes, positions: Sequence[int] | None = None) -> None:
        """Store newline-joined keys, known not to be there; without positions they have -1."""
        if lines:
            many = _shortened(lines.split(b"\n"))
            self._hot.update(
                dict.fromkeys(many, -1) if positions is None else zip(many, positions, strict=True)
            )
            if len(self._hot) >= self._HOT:
                self._freeze()

    def forget_positions(self) -> None:
        """Give every key the position -1."""
        self._hot = dict.fromkeys(self._hot, -1)
        for at, bucket in enumerate(self._buckets):
            self._buckets[at] = bytearray(re.sub(rb"\t-?[0-9]+\n", b"\t-1\n", bucket))

    def remove(self, key: bytes) -> bool:
        """Take a key out; False if it was not there."""
        if len(key) > 80:
            key = _digest(key)
        if self._hot.pop(key, None) is not None:
            return True
        if not self._frozen:
            return False
        bucket = self._buckets[hash(key) & self._mask]
        at = bucket.find(b"\n" + key + b"\t")
        if at < 0:
            return False
        del bucket[at : bucket.index(b"\n", at + 1)]
        self._frozen -= 1
        return True

    def _freeze(self) -> None:
        """Move the dict's keys into the byte arrays."""
        self._frozen += len(self._hot)
        if self._frozen > self._PER_BUCKET * len(self._buckets):
            self._spread(1 << (2 * self._frozen // self._PER_BUCKET).bit_length())
        buckets, mask = self._buckets, self._mask
        for key, position in self._hot.items():
            buckets[hash(key) & mask] += b"%b\t%d\n" % (key, position)
        self._hot = {}

    def _spread(self, count: int) -> None:
        old = self._buckets
        self._buckets = [bytearray(b"\n") for _ in range(count)]
        self._mask = mask = count - 1
        buckets = self._buckets
        while old:
            for entry in bytes(old.pop()).split(b"\n"):
                if entry:
                    buckets[hash(entry[: entry.index(b"\t")]) & mask] += entry + b"\n"


def _shortened(many: Sequence[bytes]) -> Sequence[bytes]:
    if max(map(len, many)) <= 80:
        return many
    return [key if len(key) <= 80 else _digest(key) for key in many]


def _digest(key: bytes) -> bytes:
    # "#" begins no canonical key, so a digest is never mistaken for one.
    return b"#" + blake2b(key, digest_size=16).hexdigest().encode()
