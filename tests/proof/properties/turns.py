"""Actors that take turns at every call of a store, in an order that a seed decides.

The store is one in memory that keeps its contract and no more: a listing looks at each name at a
moment of its own, the answer to a create can be lost, a create can land late, and whoever calls can
die there. `World` knows at each moment what the journal is, by the rules of its docstring alone.
"""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet  # type: ignore[import-untyped]

from resumable_tasks.checkpoint.directory.records import record_number
from resumable_tasks.checkpoint.directory.segments import Segment, segment_of, unpacked
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import StoreError

_AHEAD = 3
_MOMENTS = 3
MOST_STEPS = 20_000


class World:
    """The store, its actors, and what they must not find.

    ``wrong`` is what was found wrong. ``truth`` are the nonces of the journal's records.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.segments: list[Segment] = []
        self.truth: list[str] = []
        self.wrong: list[str] = []
        self.in_flight: list[tuple[str, bytes]] = []
        self.last_nonce: dict[object, str] = {}
        # How often actors stay, sleep, die, and meet trouble differs between seeds.
        self._stays = self.random.choice([0, 0.3, 0.8])
        self._sleeps = self.random.choice([0, 0.02, 0.1])
        self._sleeps_long = self.random.choice([20, 100, 400])
        self._dies = self.random.choice([0, 0, 0.003, 0.02])
        self._trouble = self.random.choice([0, 0, 0.03, 0.15])
        self._asleep: dict[greenlet, int] = {}
        self._steps = 0
        self._hub: greenlet | None = None

    def run(self, actors: Iterable[Callable[[], None]]) -> None:
        """Let these take turns until all have ended, or something is wrong."""
        self._hub = getcurrent()
        alive = [greenlet(self._told(actor)) for actor in actors]
        now = alive[0]
        while alive and not self.wrong and self._steps < MOST_STEPS:
            self._steps += 1
            if now not in alive or self._asleep.get(now, 0) > self._steps or not self._stay():
                awake = [one for one in alive if self._asleep.get(one, 0) <= self._steps]
                awake = awake or [min(alive, key=self._asleep.__getitem__)]
                now = self.random.choice(awake)
            now.switch()
            if now.dead:
                alive.remove(now)
        for one in alive:
            one.throw(GreenletExit)
        self._hub = None

    def _told(self, actor: Callable[[], None]) -> Callable[[], None]:
        def told() -> None:
            try:
                actor()
            except Exception as error:
                self.wrong.append("".join(traceback.format_exception(error)[-6:]))

        return told

    def _stay(self) -> bool:
        return self.random.random() < self._stays

    def turn(self) -> None:
        """Let others go first, perhaps for long; die perhaps."""
        if self._hub is None:
            return
        if self.random.random() < self._sleeps:
            pause = self.random.expovariate(1 / self._sleeps_long)
            self._asleep[getcurrent()] = self._steps + int(pause)
        self._hub.switch()
        if self.random.random() < self._dies:
            raise GreenletExit

    def trouble(self) -> str:
        """The trouble that a create has, if any."""
        if self._hub is None or self.random.random() >= self._trouble:
            return ""
        return self.random.choice(["refused", "not landed", "landed", "late"])

    def land_late(self) -> None:
        """Let a create land whose answer was lost long ago."""
        if self.in_flight:
            at = self.random.randrange(len(self.in_flight))
            self.put_if_absent(*self.in_flight.pop(at))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if name in self.files:
            return False
        self.files[name] = data
        number, segment = record_number(name), segment_of(name)
        if number is not None:
            self._appended(number, _nonce(data))
        elif segment is not None:
            self._folded(segment, data)
        return True

    def _appended(self, number: int, nonce: str) -> None:
        if number == len(self.truth):
            self.truth.append(nonce)
        elif number > len(self.truth):
            self.wrong.append(f"record {number} came before record {len(self.truth)}")
        elif nonce != self.truth[number] and not self._in_segment(number):
            self.wrong.append(f"record {number} was rewritten")

    def _folded(self, segment: Segment, data: bytes) -> None:
        self.segments.append(segment)
        nonces = [_nonce(piece) for piece in unpacked(data, segment)]
        if nonces != self.truth[segment.first : segment.last + 1]:
            self.wrong.append(f"{segment.name} has other records than the journal")

    def _in_segment(self, number: int) -> bool:
        return any(number in segment.numbers for segment in self.segments)

    def remove(self, name: str) -> None:
        data, number = self.files.pop(name, None), record_number(name)
        if segment_of(name) is not None:
            self.wrong.append(f"{name} was deleted")
        if data is None or number is None or self._in_segment(number):
            return
        self.wrong.append(f"record {number} was deleted, and is in no segment")


def _nonce(data: bytes) -> str:
    found = json.loads(data[: data.index(b"\n")])["nonce"]
    assert isinstance(found, str)
    return found


class Turns(Store):
    """The store of such a world."""

    url = "memory:"

    def __init__(self, world: World) -> None:
        self._world = world

    def read(self, name: str) -> bytes:
        self._world.turn()
        try:
            return self._world.files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def list(self, folder: str) -> dict[str, int]:
        world, looked_at, found = self._world, dict[str, int](), dict[str, int]()
        for moment in range(_MOMENTS):
            world.turn()
            for name, data in world.files.items():
                if looked_at.setdefault(name, world.random.randrange(_MOMENTS)) == moment:
                    found[name] = len(data)
        return {name: size for name, size in found.items() if name.startswith(folder + "/")}

    def create(self, name: str, data: bytes) -> bool:
        world = self._world
        world.turn()
        if record_number(name) is not None:
            world.last_nonce[getcurrent()] = _nonce(data)
        trouble = world.trouble()
        if trouble == "refused":
            raise StoreError("refused")
        if trouble == "late":
            world.in_flight.append((name, data))
        if trouble == "landed":
            world.put_if_absent(name, data)
        if trouble:
            raise CreateUnknown(trouble)
        return world.put_if_absent(name, data)

    def put(self, name: str, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def delete(self, name: str) -> None:
        self._world.turn()
        self._world.remove(name)

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        left = iter(names)
        while ahead := [self._tried(name) for name in islice(left, _AHEAD)]:
            for found in ahead:
                if isinstance(found, Exception):
                    raise found
                yield found

    def _tried(self, name: str) -> Any:
        try:
            return self.read(name)
        except FileNotFoundError as error:
            return error
