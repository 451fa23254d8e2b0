"""Rates of tokens and bytes: in virtual time against a service that refuses, and in real runs."""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Budget, Interrupted, Retry, UsageError, current_batch, resumable_task
from resumable_tasks.runners.limits import Entry, Limits
from resumable_tasks.runners.rates import RateLimit
from resumable_tasks.runners.usage import Load
from tests.engine.service import Answer, Service
from tests.engine.simulation import VirtualClock

# A run that its limits hold up has two seconds for what it may do.
pytestmark = pytest.mark.timing

QUOTA = 200_000  # tokens a minute, as the service counts them


@dataclass
class Bucket:
    """The service's side: a bucket that is refilled continuously, as the providers have it."""

    tokens: float = QUOTA
    at: float = 0.0
    used: int = 0
    refused: int = 0

    def takes(self, tokens: int, now: float) -> bool:
        self.tokens = min(QUOTA, self.tokens + (now - self.at) * QUOTA / 60)
        self.at = now
        if tokens > self.tokens:
            self.refused += 1
            return False
        self.tokens -= tokens
        self.used += tokens
        return True


@dataclass
class Simulated:
    """So many calls at once for so many seconds, in virtual time, through real `Limits`."""

    limits: Limits
    report: bool = False
    guess: Callable[[int], int] | None = None
    drift: float = 1.0
    lanes: int = 64
    seconds: float = 1_200.0
    service: Bucket = field(default_factory=Bucket)
    calls: int = 0

    def run(self) -> tuple[float, float]:
        """The share of the calls that was refused, and the share of the quota that was used."""
        chance = random.Random(1)
        clock = VirtualClock()
        self.limits.clock = clock
        # When, which lane, what: a call that would begin (a new one is drawn), or one that ends.
        events: list[tuple[float, int, Any]] = [(0.0, lane, None) for lane in range(self.lanes)]
        heapq.heapify(events)
        while events and events[0][0] < self.seconds:
            clock.now, lane, what = heapq.heappop(events)
            if isinstance(what, Entry):
                self.limits.leave(what, None)
                what = None
            if what is None:
                grown = self.drift ** (clock.now / self.seconds)
                size = int(grown * chance.lognormvariate(7.5, 0.8))  # bytes: 2,500 on average
                what = size, int(size * 0.4) + int(grown * chance.lognormvariate(5, 0.5))
            heapq.heappush(events, self._next(lane, what, clock.now, chance))
        return self.service.refused / self.calls, self.service.used / (QUOTA * self.seconds / 60)

    def _next(
        self, lane: int, what: tuple[int, int], now: float, chance: random.Random
    ) -> tuple[float, int, Any]:
        size, tokens = what
        entry = Entry(Load(1, size, self.guess(size) if self.guess else None))
        wait = self.limits._admit(entry)
        if wait > 0:
            return now + wait, lane, what
        self.calls += 1
        if not self.service.takes(tokens, now):
            self.limits.leave(entry, None)
            return now + 1.0, lane, what
        if self.report:
            self.limits.report(entry, {"tokens": tokens, "input_tokens": int(size * 0.4)})
        return now + chance.uniform(1.0, 4.0), lane, entry


def tokens_a_minute(**more: Any) -> Simulated:
    return Simulated(Limits([RateLimit(QUOTA, 60.0, "tokens")]), **more)


def test_a_service_that_refuses_refuses_nothing_where_calls_report(
    record_property: Callable[[str, object], None],
) -> None:
    """The table of `docs/design/0035-tokens-and-bytes.md`."""
    guessed = tokens_a_minute(guess=lambda size: size // 8 + 64)
    table = {
        "no limit": Simulated(Limits()).run(),
        "calls, at the true mean": Simulated(Limits([RateLimit(175, 60.0)])).run(),
        "tokens, guessed": guessed.run(),
        "tokens, reported": tokens_a_minute(report=True).run(),
        "tokens, reported, five times as large at the end": tokens_a_minute(
            report=True, drift=5.0
        ).run(),
        "calls, five times as large at the end": Simulated(
            Limits([RateLimit(175, 60.0)]), drift=5.0
        ).run(),
    }
    for name, (refused, used) in table.items():
        record_property(name, f"{refused:.1%} refused, {used:.0%} of the quota")
        print(f"{name}: {refused:.1%} refused, {used:.0%} of the quota")
    assert table["no limit"][0] > 0.3
    assert table["tokens, guessed"][0] > 0.2
    assert table["calls, five times as large at the end"][0] > 0.2
    for name in ("tokens, reported", "tokens, reported, five times as large at the end"):
        refused, used = table[name]
        assert refused < 0.01, name
        assert used > 0.95, name


# --- real runs: what is used up stays used up for an hour, so that nothing depends on the clock

ITEMS = [{"id": i, "tokens": 60, "model": "ab"[i % 2]} for i in range(6)]
SOON = Budget(seconds=2.0)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a first run loads is not to use up the time of a test."""
    job(lambda rows: rows, "1M tokens/hour").run(
        ITEMS, checkpoint=tmp_path_factory.mktemp("a") / "b"
    )


def reporting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    current_batch().report(tokens=int(os.environ["TOKENS"]))
    return rows


async def areporting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    await asyncio.sleep(0)
    return reporting(rows)


def job(handler: Any, rate: Any, **options: Any) -> Any:
    options = {"batch_size": 1, "concurrency": 1, **options}
    return resumable_task(handler, name="job", key="id", rate_limit=rate, **options)


def completed(task: Any, place: Path, items: Any = ITEMS, budget: Budget = SOON) -> int:
    """The number of items that a run completes before its limits let nothing more through."""
    try:
        return int(task.run(items, checkpoint=place, budget=budget).completed)
    except Interrupted as error:
        return int(error.result.completed)  # type: ignore[union-attr]


@pytest.mark.sample
@pytest.mark.parametrize(
    ("handler", "runner"),
    [(reporting, "local"), (areporting, "local"), (reporting, "processes")],
    ids=["threads", "asyncio", "processes"],
)
@pytest.mark.parametrize(
    ("tokens", "expected"),
    # 60 each by weight=: one goes into 100, and as many as were reported to be that light.
    [("10", 5), ("60", 1), ("1000", 1)],
)
def test_what_is_reported_counts(
    handler: Any,
    runner: Any,
    tokens: str,
    expected: int,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKENS", tokens)
    task = job(handler, "100 tokens/hour", weight="tokens", runner=runner)
    budget = Budget(seconds=6.0) if runner == "processes" else SOON
    assert completed(task, place, budget=budget) == expected


def test_reports_of_one_call_add_up_and_never_make_it_lighter_while_it_goes_on(
    place: Path,
) -> None:
    began = threading.Barrier(2)

    def twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        batch = current_batch()
        batch.report(tokens=5)
        began.wait(10)  # two calls are under way: 60 + 60 of 120
        time.sleep(0.2)
        batch.report(tokens=50)
        return rows

    task = job(twice, "120 tokens/hour", weight="tokens", concurrency=4)
    # Two of 55 leave 10. With 5 each, while they go on, all four would have gone at once.
    assert completed(task, place) == 2


def test_what_calls_have_taught_is_there_in_the_next_run(place: Path) -> None:
    def dense(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        size = sum(len(json.dumps(row)) for row in rows)
        current_batch().report(tokens=2 * size)
        return rows

    texts = [{"id": i, "text": "x" * 1_000} for i in range(8)]
    task = job(dense, "1M tokens/hour")
    assert task.run(texts[:4], checkpoint=place).completed == 4
    # 2,000 tokens each, and not 250: two go into 5,000.
    silent = job(lambda rows: rows, "5k tokens/hour")
    assert completed(silent, place, texts) == 2
    assert completed(job(lambda rows: rows, "5k tokens/hour"), place / "new", texts) == 8
    info = [
        json.loads(line)
        for path in sorted((place / "journal").iterdir())
        for line in path.read_text().splitlines()
        if '"learnt"' in line
    ]
    assert len(info) == 2  # the second run has learnt nothing, and passes it on


def test_a_run_that_was_killed_takes_nothing_away_of_what_was_learnt(place: Path) -> None:
    def dense(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        current_batch().report(tokens=4_000)
        return rows

    texts = [{"id": i, "text": "x" * 1_000} for i in range(2)]
    job(dense, "1M tokens/hour").run(texts[:1], checkpoint=place)
    with pytest.raises(KeyboardInterrupt):
        job(_killed, "1M tokens/hour").run(texts, checkpoint=place)
    assert completed(job(lambda rows: rows, "5k tokens/hour"), place, [*texts, *_more(2)]) == 1


def _killed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    raise KeyboardInterrupt


def _more(count: int) -> list[dict[str, Any]]:
    return [{"id": 100 + i, "text": "x" * 1_000} for i in range(count)]


@pytest.mark.parametrize(
    ("rate", "says"),
    [
        ("100 tokens/minute", r"item 3: a call with 5,000 tokens, .* 100 tokens in 60 s"),
        (["1M tokens/minute", "1 kB/minute"], r"item 4: a call with 2,0\d\d bytes"),
    ],
)
def test_a_call_heavier_than_its_limit_is_refused_before_the_first_call(
    rate: Any, says: str, place: Path
) -> None:
    called: list[Any] = []
    items = [{"id": i, "tokens": 1} for i in range(6)]
    items[3]["tokens"] = 5_000
    items[4]["text"] = "x" * 2_000  # type: ignore[assignment]
    task = job(called.append, rate, weight="tokens")
    with pytest.raises(UsageError, match=says) as error:
        task.run(items, checkpoint=place)
    assert "batch_size" in str(error.value)
    assert called == []


def test_a_batch_that_is_too_heavy_together_is_refused_too(place: Path) -> None:
    task = job(lambda rows: rows, "100 tokens/minute", weight="tokens", batch_size=4)
    with pytest.raises(UsageError, match="item 0 and the 3 in its batch: a call with 240 tokens"):
        task.run(ITEMS, checkpoint=place)


def test_a_call_that_only_seems_too_heavy_goes_alone_with_a_warning(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [{"id": i, "text": "x" * 4_000} for i in range(3)]
    assert completed(job(lambda rows: rows, "100 tokens/hour"), place, texts) == 1
    assert "a call of about 1,00" in caplog.text
    assert "max_weight=" in caplog.text


def test_quotas_are_apart(place: Path) -> None:
    rates = {"a": ["60 tokens/hour", "10/hour"], "b": ["180 tokens/hour"]}
    task = job(lambda rows: rows, rates, weight="tokens", quota="model", concurrency=4)
    assert completed(task, place) == 4  # one of a, all three of b
    again = job(lambda rows: rows, {"a": "9 calls/hour"}, quota=lambda row: row["model"])
    with pytest.raises(UsageError, match=r"item 1: quota= gives 'b', and rate_limit= has a"):
        again.run(ITEMS, checkpoint=place / "other")


def test_a_batch_of_several_quotas_counts_in_each(place: Path) -> None:
    def mixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        current_batch().report(tokens=40)  # 20 of each
        return rows

    rates = {"a": "100 tokens/hour", "b": "100 tokens/hour"}
    task = job(mixed, rates, weight="tokens", quota="model", batch_size=2)
    # 60 of each are let through while 40 or less are used.
    assert completed(task, place) == 6
    rates["b"] = "75 tokens/hour"
    task = job(mixed, rates, weight="tokens", quota="model", batch_size=2)
    assert completed(task, place / "other") == 2


def test_auto_takes_the_limits_from_the_first_answer(place: Path) -> None:
    def answered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        current_batch().report(tokens=60, headers={"X-RateLimit-Limit-Tokens": "130"})
        return rows

    assert completed(job(answered, "auto"), place) == 2
    assert completed(job(answered, "1M tokens/hour"), place / "other") == 6


def test_bytes_are_those_of_the_items_and_can_be_reported(place: Path) -> None:
    texts = [{"id": i, "text": "x" * 400} for i in range(6)]
    assert completed(job(lambda rows: rows, "1 kB/hour"), place, texts) == 2

    def small(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        current_batch().report(bytes=100)
        return rows

    assert completed(job(small, "1 kB/hour"), place / "other", texts) == 6


def test_a_report_without_a_rate_does_nothing(place: Path) -> None:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        current_batch().report(tokens=10**9, input_tokens=None, bytes=3)
        return rows

    for rate in (None, "1000/minute", "10M items/minute"):
        assert completed(job(handler, rate), place / str(rate)[:3]) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate_limit": "10/minute", "weight": "tokens"}, "nothing is limited by it"),
        ({"weight": 3, "rate_limit": "10 tokens/s"}, "weight=3 is neither"),
        ({"quota": "model"}, "quota= selects a quota"),
        ({"rate_limit": {"a": "1/s"}}, "quota= selects a quota"),
        ({"rate_limit": "3 items/s", "batch_size": 4}, "allows 3 items at once"),
    ],
)
def test_options_that_do_not_fit_together(options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resumable_task(lambda rows: rows, name="job", **options)


# --- a real server


def test_a_server_with_a_quota_of_tokens_refuses_almost_nothing(place: Path) -> None:
    """200,000 a minute, a tenth of it in three seconds; texts grow to five times their size."""
    quota, seconds = 10_000, 3.0
    chance = random.Random(2)
    items = [
        {"id": i, "text": "x" * int(5 ** (i / 160) * chance.lognormvariate(5.5, 0.6))}
        for i in range(160)
    ]
    tokens = [len(item["text"]) // 3 + 20 for item in items]
    lock, bucket = threading.Lock(), [float(quota), time.monotonic(), 0.0]

    def answer(number: int, ids: list[int]) -> Answer:
        now, cost = time.monotonic(), sum(tokens[i] for i in ids)
        with lock:
            # A tenth of a second of grace, since calls take a while to come here.
            most = quota * (1 + 0.1 / seconds)
            bucket[0] = min(most, bucket[0] + (now - bucket[1]) * quota / seconds)
            bucket[1] = now
            if cost > bucket[0]:
                return 429, {}
            bucket[0] -= cost
            bucket[2] += cost
            return 200, {"x-tokens": str(cost)}

    service = Service(answer, seconds=0.05)
    service.start()

    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        body = json.dumps([row["id"] for row in rows]).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{service.port}/", data=body)
        with urllib.request.urlopen(request, timeout=10) as found:
            current_batch().report(tokens=int(found.headers["x-tokens"]))
            return list(json.load(found))

    task = job(label, "10k tokens/3 seconds", concurrency=16, retries=Retry(9, delay=0.5))
    try:
        result = task.run(items, checkpoint=place)
    finally:
        service.stop()
    assert result.completed == len(items)
    refused = sum(status == 429 for _, _, status in service.calls)
    assert refused <= 0.01 * len(service.calls)
