"""Columns whose types change: every value is kept as it was, or the conflict is told in time."""

from __future__ import annotations

import datetime as dt
import math
import tempfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.store import local
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import BadResult, ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.results.rows import table as all_rows
from resumable_tasks.runners.match import match
from resumable_tasks.runners.outcome import Done

SCHEME = KeyScheme("id")
MANIFEST = Manifest("job", "1", SCHEME.describe(), "one")

scalars = [
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**24 + 1]),
    st.floats(allow_nan=False),
    st.sampled_from([0.5, 1e300, 2.0**53]),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.decimals(
        allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=2
    ),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-9, max_value=9, places=20),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.times(),
    st.timedeltas(dt.timedelta(-1000), dt.timedelta(1000)),
]
plain = st.one_of(scalars)
values = st.one_of(
    plain,
    st.lists(plain, max_size=3),
    st.dictionaries(st.sampled_from("abc"), plain, max_size=2),
    st.lists(st.dictionaries(st.sampled_from("ab"), plain, max_size=2), max_size=1),
)
KINDS = [
    (pa.int8(), 5),
    (pa.int32(), 2**31 - 1),
    (pa.uint8(), 255),
    (pa.uint64(), 2**64 - 1),
    (pa.int64(), -1),
    (pa.float16(), 0.5),
    (pa.float32(), 0.25),
    (pa.timestamp("s"), dt.datetime(9999, 1, 1)),
    (pa.timestamp("ns"), dt.datetime(2020, 1, 1)),
    (pa.timestamp("ms", "UTC"), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    (pa.date64(), dt.date(2020, 1, 1)),
    (pa.time32("s"), dt.time(1, 2, 3)),
    (pa.duration("s"), dt.timedelta(days=200_000)),
    (pa.duration("ns"), dt.timedelta(days=1)),
    (pa.decimal128(5, 2), Decimal("1.25")),
    (pa.decimal128(38, 0), Decimal(10**37)),
    (pa.decimal256(70, 0), Decimal(10**60)),
    (pa.large_string(), "large"),
    (pa.string_view(), "view"),
    (pa.large_binary(), b"large"),
    (pa.binary(2), b"ab"),
    (pa.dictionary(pa.int8(), pa.string()), "category"),
    (pa.list_(pa.int64(), 1), [1]),
    (pa.large_list(pa.float32()), [0.5]),
    (pa.struct([("a", pa.int8())]), {"a": 1}),
]
typed = st.sampled_from(KINDS)
cells = st.one_of(st.tuples(st.none(), values), typed)


def same(found, wanted) -> bool:
    """Equal as values, where a column's type may have become wider."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(same(found[name], wanted[name]) for name in wanted)
        )
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return False
        return all(map(same, found, wanted))
    if isinstance(wanted, bool) or isinstance(found, bool):
        return found is wanted
    if isinstance(wanted, float) and math.isnan(wanted):
        return math.isnan(found)
    return found == wanted


def outcome_of(number: int, kind: pa.DataType | None, value) -> Done:
    key = f"k{number}"
    batch = Batch(number, [key], keys.canonical(key), [])
    returned = [{"id": key, "v": value}]
    if kind is not None:
        returned = pa.table({"id": [key], "v": pa.array([value], kind)})
    matched = match(returned, batch, SCHEME, "one")
    return Done(batch, matched.done, matched.completed, matched.table, None, matched.table.schema)


def commit_all(cells, groups: list[int], remote: list[bool], root: Path) -> None:
    store = LocalStore(root / "checkpoint")
    checkpoint = DirectoryCheckpoint.open(store, MANIFEST)
    kept = {}
    try:
        unit, added = checkpoint.begin(), 0
        for number, (kind, value) in enumerate(cells):
            try:
                outcome = outcome_of(number, kind, value)
            except BadResult:
                continue  # it is told; see the tests of rows
            if remote[number % len(remote)]:
                shard = checkpoint.shard_writer()(outcome.table, 1)
                outcome = Done(outcome.batch, outcome.done, 1, None, shard, outcome.schema)
            try:
                unit.add(outcome)
            except ResultConflict as error:
                assert "'v'" in str(error)  # noqa: PT017
                continue
            added += 1
            kept[f"k{number}"] = value
            if groups[number % len(groups)]:
                unit.commit()
                unit, added = checkpoint.begin(), 0
        if added:
            unit.commit()
    finally:
        checkpoint.close()
    _, state = read_checkpoint(store)
    if not kept:
        assert state.shards == {}
        return
    rows = DirectoryReader(store).read(all_rows).to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(kept)
    for row in rows:
        wanted = kept[row["id"]]
        assert same(row["v"], wanted), f"{wanted!r} has become {row['v']!r}"


@given(
    st.lists(cells, min_size=1, max_size=5),
    st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=3),
)
def test_every_value_is_kept_or_its_conflict_is_told_before_the_commit(
    cells, groups, remote
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(local, "_flush", lambda handle: None)
        commit_all(cells, groups, remote, Path(folder))


CASES = {
    "an integer that no float holds, later": [(None, 0.5), (None, 2**53 + 1)],
    "an integer that no float holds, before": [(None, 2**53 + 1), (None, 0.5)],
    "in a list": [(None, [2**53 + 1]), (None, [0.5])],
    "in a list, later": [(None, [0.5]), (None, [2**53 + 1])],
    "in a struct": [(None, {"a": 2**53 + 1}), (None, {"a": 0.5})],
    "beyond the signed": [(pa.uint64(), 2**64 - 1), (pa.int64(), -1)],
    "beyond the signed, later": [(pa.int64(), -1), (pa.uint64(), 2**64 - 1)],
    "an integer and a decimal": [(None, 5), (None, Decimal("1.50"))],
    "a wide integer and a decimal": [(None, 2**63 - 1), (None, Decimal("1.5"))],
    "a decimal that no float holds": [(None, 0.1), (None, Decimal("123456789012345678901.5"))],
    "a decimal of tenths and a float": [(None, Decimal("0.1")), (None, 0.5)],
    "a decimal and a float of 32 bits": [(pa.float32(), 0.25), (None, Decimal("0.01"))],
    "a decimal and one of 32 bits, later": [(None, Decimal("0.01")), (pa.float32(), 0.25)],
    "a decimal that the cast to a float misses": [(None, 0.0), (None, Decimal("4.3E-19"))],
    "a year that nanoseconds cannot tell": [
        (pa.timestamp("s"), dt.datetime(9999, 1, 1)),
        (pa.timestamp("ns"), dt.datetime(2020, 1, 1)),
    ],
    "a span that nanoseconds cannot tell": [
        (pa.duration("s"), dt.timedelta(days=200_000)),
        (pa.duration("ns"), dt.timedelta(days=1)),
    ],
    "text and bytes": [(None, "text"), (None, b"\xff")],
    "bytes and text": [(None, b"\xff"), (None, "text")],
    "a struct without fields": [(None, {}), (None, {"a": 1})],
    "a list of structs without fields": [(None, [{}]), (None, [{"a": 1}])],
    "a category": [(pa.dictionary(pa.int8(), pa.string()), "a"), (None, "b")],
    "truth and number": [(None, True), (None, 1)],
    "a day and a moment": [(None, dt.date(2020, 1, 1)), (None, dt.datetime(2020, 1, 1, 5))],
}


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in one commit"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_found(case: str, grouped: bool, remote: bool, tmp_path: Path) -> None:
    """Each of these was accepted once, and then could not be committed, read, or was changed."""
    commit_all(CASES[case], [0 if grouped else 1], [remote], tmp_path)
