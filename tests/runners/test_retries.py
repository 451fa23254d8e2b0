"""Which errors are retried, when, and what counts as being told to wait."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import tenacity

from resumable_tasks import BadResult, Budget, UsageError, resumable_task
from resumable_tasks.runners.http_signs import retry_after, seconds_told
from resumable_tasks.runners.rates import RateLimit, parse_rate
from resumable_tasks.runners.retries import (
    Attempts,
    GiveUp,
    RetryPolicy,
    delay_of,
)


def http_error(status: int, headers: Mapping[str, str]) -> Exception:
    httpx = pytest.importorskip("httpx")
    request = httpx.Request("POST", "http://localhost/")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


class Asked(Exception):
    def __init__(self, **attributes: Any) -> None:
        super().__init__("no")
        self.__dict__ |= attributes


class PlainResponse:
    status_code = 429

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers


def test_by_default_errors_of_programming_are_not_retried() -> None:
    policy = RetryPolicy(3)
    for error in (
        TypeError(),
        KeyError(),
        NameError(),
        AttributeError(),
        BadResult(),
        IndexError(),
    ):
        assert policy.pause(1, error) is None, error
    for error in (ValueError(), OSError(), RuntimeError(), TimeoutError(), Asked()):
        assert policy.pause(1, error) is not None, error
    assert policy.pause(3, OSError()) is not None
    assert policy.pause(4, OSError()) is None


def test_retry_on_decides_alone_where_it_is_given() -> None:
    by_type = RetryPolicy(1, 0.0, KeyError)
    assert by_type.pause(1, KeyError()) == 0.0
    assert by_type.pause(1, OSError()) is None
    assert RetryPolicy(1, 0.0, (KeyError, OSError)).pause(1, ConnectionError()) == 0.0
    by_text = RetryPolicy(1, 0.0, lambda error: "again" in str(error))
    assert by_text.pause(1, TypeError("again")) == 0.0
    assert by_text.pause(1, OSError("never")) is None


def test_a_predicate_that_raises_is_said_and_not_retried(caplog: pytest.LogCaptureFixture) -> None:
    policy = RetryPolicy(1, 0.0, lambda error: error.nonsense)  # type: ignore[attr-defined]
    assert policy.pause(1, OSError("x")) is None
    assert "Retry: on=" in caplog.text


def test_the_pause_grows_to_a_minute_and_half_of_it_is_random() -> None:
    random.seed(0)
    policy = RetryPolicy(20)
    for attempt in range(1, 12):
        most = min(60.0, 2.0 ** (attempt - 1))
        seen = [policy.pause(attempt, OSError()) for _ in range(50)]
        assert all(pause is not None and most / 2 <= pause <= most for pause in seen)
        assert len(set(seen)) > 40


@pytest.mark.parametrize(
    ("delay", "pauses"),
    [
        (2, [2.0, 2.0, 2.0]),
        ([1, 5], [1.0, 5.0, 5.0]),
        (tenacity.wait_exponential(multiplier=3), [3.0, 6.0, 12.0]),
        (tenacity.wait_fixed(1) + tenacity.wait_fixed(2), [3.0, 3.0, 3.0]),
    ],
)
def test_the_delay_is_a_number_a_list_or_a_strategy(delay: Any, pauses: list[float]) -> None:
    policy = pickle.loads(pickle.dumps(RetryPolicy(3, delay)))
    assert [policy.pause(attempt, OSError()) for attempt in (1, 2, 3)] == pauses


def test_the_delay_may_be_prefects_callable_of_the_number_of_retries() -> None:
    assert delay_of(lambda retries: [10.0 * n for n in range(retries)], 3) == (0.0, 10.0, 20.0)


def test_how_long_one_is_told_to_wait() -> None:
    assert seconds_told(Asked(retry_after=2.5)) == 2.5
    assert seconds_told(http_error(429, {"Retry-After": "2"})) == 2.0
    assert seconds_told(http_error(503, {"retry-after": "0"})) == 0.0
    assert seconds_told(Asked(response=PlainResponse({"RETRY-AFTER": "7"}))) == 7.0
    assert seconds_told(Asked(headers={"Retry-After": "3"}, code=429)) == 3.0
    wrapped = RuntimeError("while labelling")
    wrapped.__cause__ = http_error(429, {"Retry-After": "4"})
    assert seconds_told(wrapped) == 4.0
    for nothing in (
        OSError(),
        http_error(500, {}),
        Asked(retry_after="soon"),
        Asked(retry_after=-1),
    ):
        assert seconds_told(nothing) is None


def test_a_date_is_read_by_the_clock_of_the_server() -> None:
    far = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    headers = {
        "Retry-After": format_datetime(far + timedelta(seconds=90), usegmt=True),
        "Date": format_datetime(far, usegmt=True),
    }
    assert retry_after(headers) == 90.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 <= (retry_after({"Retry-After": soon}) or 0) <= 30
    assert retry_after({"Retry-After": headers["Retry-After"]}) == 0.0
    assert retry_after({"Retry-After": "tomorrow"}) is None


def test_to_be_told_to_wait_uses_no_retry_up_and_has_an_end() -> None:
    attempts = Attempts(RetryPolicy(0, patience=10))
    for _ in range(5):
        assert attempts.pause_after(http_error(429, {"Retry-After": "2"})) == 2.0
        assert attempts.number == 1
    with pytest.raises(GiveUp, match="told to wait for 12 s in total"):
        attempts.pause_after(http_error(429, {"Retry-After": "2"}))


def test_too_many_requests_without_a_time_is_waited_for_with_growing_pauses() -> None:
    attempts = Attempts(RetryPolicy(0))
    pauses = [attempts.pause_after(http_error(429, {})) for _ in range(4)]
    assert all(pause is not None for pause in pauses)
    assert 4.0 <= (pauses[3] or 0) <= 8.0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60/minute", RateLimit(60, 60)),
        ("10 per second", RateLimit(10, 1)),
        ("600 items/minute", RateLimit(600, 60, "items")),
        ("5 calls / 2 hours", RateLimit(5, 7_200)),
        ("1/s", RateLimit(1, 1)),
        ("3/min", RateLimit(3, 60)),
        ("1000/day", RateLimit(1_000, 86_400)),
    ],
)
def test_rates(text: str, rate: RateLimit) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "60", "0/minute", "60/fortnight", "-1/s", "60/0 s", "x/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError, match="60/minute"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": "many"}, "adaptive"),
        ({"rate_limit": 60}, "rate_limit"),
        ({"rate_limit": "prefect:"}, "prefect:"),
        ({"rate_limit": "10 items/s", "batch_size": 11}, "smaller batch_size"),
        ({"budget": Budget(cost=1), "results": "none"}, "results"),
        ({"cost": 3}, "cost"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resumable_task(lambda rows: rows, name="job", **options)
