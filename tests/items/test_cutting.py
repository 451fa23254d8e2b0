"""Batches by weight: none above it, none below half of it but the last."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import JobFailed, UsageError, resumable_task

MOST = 1_000


def items_of(seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    kinds = [
        lambda: chance.randint(0, MOST),
        lambda: int(MOST * chance.random() ** 4),
        lambda: chance.choice([1, 10, 400, 501, 999, 1_000]),
        lambda: chance.choice([MOST // 2, MOST // 2 + 1]),
    ]
    return [{"id": i, "n": kinds[seed % len(kinds)]()} for i in range(chance.randint(1, 300))]


def handled(
    items: Any, place: Path, begun: threading.Event | None = None, **options: Any
) -> list[list[dict[str, Any]]]:
    """The batches that a run hands out, each as rows; ``begun`` is set at the first."""
    batches: list[list[dict[str, Any]]] = []

    def handler(rows: Any) -> Any:
        batches.append(rows if isinstance(rows, list) else rows.to_pylist())
        if begun is not None:
            begun.set()
        return rows

    given = {"batch_size": 1_000, "concurrency": 1, **options}
    task: Any = resumable_task(handler, name="job", key="id", **given)
    task.run(items, checkpoint=place)
    return batches


def generated(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from items


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["list", "generator", "arrow"])
def test_no_batch_is_above_its_weight_nor_below_half_of_it_but_the_last(
    seed: int, kind: str, place: Path
) -> None:
    items = items_of(seed)
    given = {"list": items, "generator": generated(items), "arrow": pa.Table.from_pylist(items)}
    size = 1_000 if seed % 2 else 20
    batches = handled(given[kind], place, weight="n", max_weight=MOST, batch_size=size)
    weights = [sum(row["n"] for row in batch) for batch in batches]
    assert max(weights) <= MOST
    full = [w for w, batch in zip(weights, batches, strict=True) if len(batch) < size]
    assert all(2 * weight >= MOST for weight in full[:-1])
    assert max(map(len, batches)) <= size
    assert sorted(row["id"] for row in itertools.chain(*batches)) == [row["id"] for row in items]


def test_an_item_that_is_heavier_is_handled_alone_with_a_warning(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [{"id": i, "n": 5_000 if i in (3, 7) else 300} for i in range(10)]
    batches = handled(items, place, weight=lambda item: item["n"], max_weight=MOST)
    alone = [batch for batch in batches if any(row["n"] > MOST for row in batch)]
    assert [[row["id"] for row in batch] for batch in alone] == [[3], [7]]
    assert [len(batch) for batch in batches if batch not in alone] == [3, 3, 2]
    assert caplog.text.count("item 3 weighs 5,000, which is above max_weight=1000") == 1
    assert "item 7 weighs" not in caplog.text


@pytest.mark.parametrize("kind", ["list", "arrow"])
def test_bytes_are_those_of_the_items_json(kind: str, place: Path) -> None:
    items = [{"id": i, "text": "ä" * (i % 400)} for i in range(200)]
    given: Any = items if kind == "list" else pa.Table.from_pylist(items)
    batches = handled(given, place, max_weight="2 kB")
    sizes = [
        sum(len(json.dumps(row, ensure_ascii=False).encode()) for row in batch) for batch in batches
    ]
    assert max(sizes) <= 2_000
    assert all(size >= 1_000 for size in sizes[:-1])


def test_tokens_are_estimated_or_given(place: Path) -> None:
    items = [{"id": i, "text": "x" * 376} for i in range(20)]  # of 400 bytes, or 100 tokens
    assert [len(batch) for batch in handled(items, place, max_weight="500 tokens")] == [5] * 4
    given = handled(items, place / "given", max_weight="500 tokens", weight=lambda item: 250)
    assert [len(batch) for batch in given] == [2] * 10


def test_suspects_are_cut_too(place: Path) -> None:
    items = [{"id": i, "n": 400} for i in range(6)]

    def bad(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise ValueError

    failing: Any = resumable_task(
        bad, name="job", key="id", weight="n", max_weight=MOST, batch_size=50, concurrency=1
    )
    with pytest.raises(JobFailed):
        failing.run(items, checkpoint=place)
    again = handled(items, place, weight="n", max_weight=MOST, batch_size=4)
    assert [len(batch) for batch in again] == [2, 2, 2]


def test_a_batch_that_waits_long_enough_goes_before_it_is_full(place: Path) -> None:
    begun = threading.Event()

    def slow() -> Iterator[dict[str, Any]]:
        yield from ({"id": i, "n": 10} for i in range(2))
        assert begun.wait(60)
        yield from ({"id": i, "n": 10} for i in range(2, 4))

    batches = handled(slow(), place, begun, weight="n", max_weight=MOST, linger=0.2)
    assert sum(map(len, batches)) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_weight": 100}, "no unit"),
        ({"max_weight": 0, "weight": "n"}, "max_weight=0 is neither"),
        ({"max_weight": "10 items"}, "max_weight='10 items' is neither"),
        ({"max_weight": "10"}, "max_weight='10' is neither"),
        ({"max_weight": "1 MB", "weight": "n"}, "nothing is limited by it"),
    ],
)
def test_options_that_do_not_fit(options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resumable_task(lambda rows: rows, name="job", **options)
