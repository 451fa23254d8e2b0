"""The text of rates, and what calls weigh."""

from __future__ import annotations

import json
import pickle
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import UsageError
from resumable_tasks.errors import InvalidItems
from resumable_tasks.items.weights import Weigher, Weight, json_bytes
from resumable_tasks.runners.rates import RateLimit, parse_rate, parse_rates
from resumable_tasks.runners.usage import Learnt, Load, Used


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("200k tokens/minute", RateLimit(200_000, 60, "tokens")),
        ("2M input tokens/minute", RateLimit(2_000_000, 60, "input tokens")),
        ("1.5m Tokens per 2 hours", RateLimit(1_500_000, 7_200, "tokens")),
        ("400 output tokens/s", RateLimit(400, 1, "output tokens")),
        ("80 MB/minute", RateLimit(80_000_000, 60, "bytes")),
        ("500 bytes/second", RateLimit(500, 1, "bytes")),
        ("10 kB/s", RateLimit(10_000, 1, "bytes")),
        ("1 token/s", RateLimit(1, 1, "tokens")),
        ("10k/day", RateLimit(10_000, 86_400)),
        ("3k items/m", RateLimit(3_000, 60, "items")),
    ],
)
def test_units(text: str, rate: RateLimit) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["0k tokens/minute", "200 tokns/minute", "200k tokens", "MB/minute", "-5 MB/s", "0.1/s"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError, match="200k tokens/minute"):
        parse_rate(text)


def test_rates_of_quotas() -> None:
    rates = parse_rates({"small": ["200k tokens/minute", "500/minute"], "large": "30k tokens/m"})
    assert rates.quotas == ("small", "large")
    assert [(each.quota, each.unit) for each in rates.each] == [
        ("small", "tokens"),
        ("small", "calls"),
        ("large", "tokens"),
    ]
    assert str(rates.each[0]) == "200000 tokens of small in 60 s"
    wrong: list[Any] = [{}, {"": "1/s"}, {1: "1/s"}, {"a": "auto"}, {"a": "prefect:x"}, {"a": 3}]
    for given in wrong:
        with pytest.raises(UsageError, match="rate_limit="):
            parse_rates(given)


class Text:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


def test_the_weights_of_items_of_any_kind() -> None:
    rows = [{"id": "ä", "tokens": 7, "model": "a"}, {"id": "漢字", "tokens": 0, "model": "b"}]
    sizes = [len(json.dumps(row, ensure_ascii=False).encode()) for row in rows]
    whole = Weigher("tokens", "model", in_bytes=True)
    expected = [Weight(sizes[0], 7, "a"), Weight(sizes[1], 0, "b")]
    assert whole.of(rows, [0, 1]) == expected
    assert whole.of(pa.RecordBatch.from_pylist(rows), [0, 1]) == expected
    assert Weigher("tokens").of([Text(3)], [0]) == [Weight(0, 3)]
    assert Weigher(lambda item: len(item)).of(["four"], [0]) == [Weight(0, 4)]


@pytest.mark.parametrize("value", [-1, 1.5, "many", None, True])
def test_an_item_without_a_weight_is_named_by_its_position(value: Any) -> None:
    with pytest.raises(InvalidItems, match=r"item 1,007: weight='tokens'"):
        Weigher("tokens").of([{"tokens": 1}, {"tokens": value}], [3, 1_007])
    with pytest.raises(InvalidItems, match=r"item 5: quota='model'.*KeyError"):
        Weigher(quota="model").of([{}], [5])


def test_the_bytes_of_what_json_does_not_know() -> None:
    assert json_bytes({"at": date(2026, 1, 1), "much": Decimal("1.5")}) > 20
    assert json_bytes({("no", "text"): 1}) > 10
    assert json_bytes("\ud800") > 0
    loop: list[Any] = []
    loop.append(loop)
    assert json_bytes(loop) > 0


def test_tokens_are_estimated_by_what_was_reported() -> None:
    learnt, load = Learnt(), Load(10, 4_000)
    assert learnt.weight("tokens", load) == 1_000  # a quarter of the bytes
    for _ in range(20):
        learnt.add(load, Used(tokens=3_500, input_tokens=3_000))
    assert learnt.weight("input tokens", load) == 3_000
    assert learnt.weight("tokens", load) == 3_500
    assert learnt.weight("output tokens", Load(2)) == 100
    assert learnt.weight("tokens", Load(1, 0, own=77)) == 77
    again = Learnt()
    again.resume(json.loads(json.dumps(learnt.told())))
    assert again.weight("tokens", load) in (3_500, 3_501)
    for _ in range(400):
        learnt.add(load, Used(tokens=500))  # what drifts is followed
    assert learnt.weight("tokens", load) < 700
    assert Learnt().told() == {}
    assert pickle.loads(pickle.dumps(learnt)) == learnt


def test_reports_add_up_and_nonsense_is_refused() -> None:
    used = Used()
    used.add(tokens=None, input_tokens=None)
    assert used.of("tokens") is None
    used.add(tokens=10, input_tokens=4)
    used.add(tokens=5, input_tokens=3)
    assert (used.of("tokens"), used.of("input tokens"), used.of("output tokens")) == (15, 7, 8)
    wrong: list[Any] = [-1, "7", True, float("nan")]
    for value in wrong:
        with pytest.raises(UsageError, match="not a number from 0"):
            used.add(tokens=value)
