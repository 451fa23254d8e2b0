"""Limits in the headers of answers."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_tasks.base.stopping import NEVER
from resumable_tasks.runners.headroom import Told, told_by
from resumable_tasks.runners.http_signs import retry_after
from resumable_tasks.runners.limits import Entry, Limits
from resumable_tasks.runners.usage import Load
from tests.engine.simulation import VirtualClock

OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "200000",
    "x-ratelimit-remaining-tokens": "1000",
    "x-ratelimit-reset-tokens": "1m30.5s",
}
ANTHROPIC = {
    "Date": "Sat, 28 Nov 2026 10:00:00 GMT",
    "Anthropic-Ratelimit-Requests-Limit": "50",
    "Anthropic-Ratelimit-Requests-Remaining": "0",
    "Anthropic-Ratelimit-Requests-Reset": "2026-11-28T10:00:02Z",
    "Anthropic-Ratelimit-Input-Tokens-Limit": "40000",
    "Anthropic-Ratelimit-Input-Tokens-Remaining": "40000",
    "Anthropic-Ratelimit-Input-Tokens-Reset": "2026-11-28T10:00:00Z",
}


def test_headers_of_openai_and_anthropic() -> None:
    assert told_by(OPENAI) == [
        Told("calls", 500, 499, 0.12),
        Told("tokens", 200_000, 1_000, 90.5),
    ]
    assert told_by(ANTHROPIC) == [Told("calls", 50, 0, 2.0), Told("input tokens", 40_000)]
    # Without the server's own time a moment says nothing.
    assert told_by({k: v for k, v in ANTHROPIC.items() if k != "Date"})[0] == Told("calls", 50)


@pytest.mark.parametrize(
    "headers",
    [
        {"limit": "-1", "remaining": "-1", "reset": "1s"},
        {"limit": "0", "remaining": "0", "reset": "1s"},
        {"limit": "many", "remaining": "1", "reset": "1s"},
        {"remaining": "0", "reset": "60s"},
        {},
    ],
)
def test_a_limit_that_is_none_is_ignored(headers: dict[str, str]) -> None:
    assert told_by({f"x-ratelimit-{name}-tokens": text for name, text in headers.items()}) == []


@pytest.mark.parametrize(
    ("remaining", "reset"),
    [
        ("-1", "1s"),
        ("11", "1s"),
        ("0", "0s"),
        ("0", "-3"),
        ("0", "soon"),
        ("0", "9999999"),
        ("", ""),
    ],
)
def test_what_is_left_is_ignored_where_it_is_nonsense(remaining: str, reset: str) -> None:
    headers = {"limit": "10", "remaining": remaining, "reset": reset}
    found = told_by({f"x-ratelimit-{name}-tokens": text for name, text in headers.items()})
    assert found == [Told("tokens", 10)]


def test_retry_after_in_milliseconds() -> None:
    assert retry_after({"Retry-After-Ms": "1500", "Retry-After": "9"}) == 1.5
    assert retry_after({"retry-after-ms": "soon", "retry-after": "9"}) == 9.0


def limits_at(**options: Any) -> tuple[Limits, VirtualClock]:
    clock = VirtualClock()
    return Limits(clock=clock, **options), clock


def begun(limits: Limits, tokens: int = 1) -> Entry:
    entry = limits.enter(Load(1, own=tokens), NEVER)
    assert entry is not None
    return entry


def test_calls_wait_for_the_reset_only_if_too_little_is_left() -> None:
    limits, clock = limits_at()
    limits.report(begun(limits), {}, OPENAI)
    begun(limits, 600)
    heavy = Entry(Load(1, own=500))  # 400 are left, as far as is known here
    assert limits._admit(heavy) == 90.5
    assert heavy.by == "told"
    begun(limits, 300)
    clock.now = 90.5
    assert limits._admit(heavy) == 0.0


def test_a_good_answer_may_ask_to_wait_too() -> None:
    limits, _ = limits_at()
    limits.report(begun(limits), {}, {"retry-after-ms": "2500"})
    assert limits._admit(Entry(Load())) == 2.5


def test_auto_keeps_to_the_limits_of_the_first_answer() -> None:
    limits, clock = limits_at(auto=True)
    answer = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-limit-requests": "3"}
    first = begun(limits, 400)
    limits.report(first, {}, answer)
    second = Entry(Load(1, own=601))
    assert limits._admit(second) == 60.0  # counts as a call already, and not yet its tokens
    limits.report(first, {}, {"x-ratelimit-limit-tokens": "1001"})  # it may change
    assert limits._admit(second) == 0.0
    clock.now = 60.0
    begun(limits, 400)
    assert [(str(rate), left) for rate, left in limits.left()] == [
        ("3 calls in 60 s", 2),
        ("1001 tokens in 60 s", 601),
    ]
    begun(limits, 1)
    begun(limits, 1)
    assert limits._admit(Entry(Load(1, own=1))) == 60.0
    quiet, _ = limits_at()
    quiet.report(begun(quiet, 400), {}, answer)
    begun(quiet, 10_000)


def test_headers_of_one_quota_hold_back_no_other() -> None:
    limits, _ = limits_at()
    a, b = (Load(1, own=5_000, parts={name: Load(1, own=5_000)}) for name in "ab")
    entry = limits.enter(a, NEVER)
    assert entry is not None
    limits.report(entry, {}, OPENAI)
    assert limits._admit(Entry(a)) == 90.5
    assert limits._admit(Entry(b)) == 0.0
