"""A table of keys is a dict, whatever has been frozen in it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resumable_tasks.items import keys, keytable
from resumable_tasks.items.keytable import KeyTable
from tests.proof.properties import strategies

# Few, so that keys meet themselves; around the length from which a digest stands for a key.
POOL = [
    *(keys.canonical(n) for n in range(-2, 14)),
    *(keys.canonical(str(n)) for n in range(12)),
    *(keys.canonical("k" * n) for n in (77, 78, 79, 80, 500)),
    *(keys.canonical("k" * n + "!") for n in (77, 78, 79, 80, 500)),
    *map(keys.canonical, strategies.NASTY),
    keys.canonical(("a", 1)),
    keys.canonical(("a", "1")),
]
pool = strategies.one_of_these(POOL)


class Small(KeyTable):
    """Freezes all the time."""

    __slots__ = ()
    _HOT = 5


class Colliding(Small):
    """Has an index so full that keys look for theirs far."""

    __slots__ = ()
    _ROOM = 1.01


class KeyTableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table: KeyTable = Small()
        self.model: dict[bytes, int] = {}

    @initialize(kind=st.sampled_from([Small, Colliding]))
    def begin(self, kind: type[KeyTable]) -> None:
        self.table = kind()

    @rule(key=pool, position=st.integers(0, 10**12))
    def add(self, key: bytes, position: int) -> None:
        assert self.table.add(key, position) is (key not in self.model)
        self.model.setdefault(key, position)

    @rule(many=st.lists(pool, min_size=1, max_size=12), position=st.integers(0, 10**12))
    def add_new(self, many: list[bytes], position: int) -> None:
        new = len(set(many)) == len(many) and not self.model.keys() & set(many)
        assert self.table.add_new(many, range(position, position + len(many))) is new
        if new:
            self.model |= {key: position + at for at, key in enumerate(many)}

    @rule(many=st.sets(pool, max_size=12))
    def add_lines(self, many: set[bytes]) -> None:
        new = [key for key in many if key not in self.model]
        self.table.add_lines(keys.join(new))
        self.model |= dict.fromkeys(new, -1)

    @rule(many=st.sets(pool, max_size=12), position=st.integers(0, 2**64 - 1))
    def add_lines_with_positions(self, many: set[bytes], position: int) -> None:
        new = [key for key in many if key not in self.model]
        self.table.add_lines(keys.join(new), [position] * len(new))
        self.model |= dict.fromkeys(new, position)

    @rule()
    def loaded_later(self) -> None:
        """As from a snapshot: the same keys, whose block comes when it is needed."""
        kind, living = type(self.table), self.table.living()
        self.table = kind(len(self.model), lambda: bytearray(b"\n" + living))

    @rule(many=st.lists(pool, min_size=1, max_size=3))
    def has_any(self, many: list[bytes]) -> None:
        assert self.table.has_any(many) is any(key in self.model for key in many)

    @rule()
    def forget_positions(self) -> None:
        self.table.forget_positions()
        self.model = dict.fromkeys(self.model, -1)

    @rule(key=pool)
    def remove(self, key: bytes) -> None:
        assert self.table.remove(key) is (key in self.model)
        self.model.pop(key, None)

    @rule(many=st.lists(pool, min_size=1))
    def missing(self, many: list[bytes]) -> None:
        wanted = [at for at, key in enumerate(many) if key not in self.model]
        assert list(self.table.missing(many)) == wanted

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.table) == len(self.model)
        for key in POOL:
            assert (key in self.table) is (key in self.model)
            assert self.table.get(key) == self.model.get(key)


TestKeyTable = KeyTableMachine.TestCase
TestKeyTable.settings = settings(
    stateful_step_count=40, suppress_health_check=list(HealthCheck), deadline=None
)


def test_a_block_that_outgrows_the_numbers_of_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keytable, "_NARROW", "H")
    table, many = KeyTable(), [keys.canonical(f"{n:040}") for n in range(1_600)]
    for start in range(0, len(many), 100):
        table.add_lines(keys.join(many[start : start + 100]))
        table.freeze()
        assert many[start] in table
    assert len(table.block) > 1 << 16
    assert not table.missing(many)


def test_a_key_that_spells_a_digest_is_none() -> None:
    table = Small()
    long = keys.canonical("z" * 100)
    for number in range(20):
        table.add(keys.canonical(number), number)
    table.add(long, 7)
    assert table.get(long) == 7
    assert long[:40] not in table
    assert keys.canonical("z" * 99) not in table
