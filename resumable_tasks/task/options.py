"""The options of a job, checked when they are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from resumable_tasks.errors import UsageError
from resumable_tasks.items.fingerprints import Fingerprinter, FingerprintSpec
from resumable_tasks.items.keys import KeyScheme, KeySpec
from resumable_tasks.items.plan import BatchFormat, OnChange, OnDuplicate
from resumable_tasks.runners.limits import Adaptive, parse_rates
from resumable_tasks.runners.outcome import Outcome, ResultsMode
from resumable_tasks.runners.retries import RetryDelay, RetryOn

RunnerName = Literal["auto", "local", "processes", "prefect"]
OnVersionChange = Literal["error", "reuse", "restart"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LEAST = {"batch_size": 1, "retries": 0, "task_runs": 1}
_LEAST_IF_ANY = {"pause_after": 1, "max_attempts": 1, "max_items": 1}
_ABOVE_0_IF_ANY = ("timeout", "max_seconds", "max_cost")
_CHOICES: dict[str, tuple[object, ...]] = {
    "results": ("one", "many", "none"),
    "runner": ("auto", "local", "processes", "prefect"),
    "batch_format": ("auto", "rows", "arrow"),
    "on_duplicate": ("error", "skip"),
    "on_change": ("redo", "keep", "error"),
    "on_version_change": ("error", "reuse", "restart"),
}


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of a job; see `resumable_task` for what each means."""

    name: str
    key: KeySpec = None
    batch_size: int = 50
    concurrency: int | Literal["adaptive"] | Adaptive = 4
    retries: int = 0
    retry_delay: RetryDelay = None
    retry_on: RetryOn | None = None
    timeout: float | None = None
    isolate: bool = True
    pause_after: int | None = 5
    give_up_after: float = 600.0
    rate_limit: str | Sequence[str] | None = None
    results: ResultsMode = "one"
    version: str | int = "1"
    runner: RunnerName = "auto"
    batch_format: BatchFormat = "auto"
    on_duplicate: OnDuplicate = "error"
    on_version_change: OnVersionChange = "error"
    tolerated_failures: int | float = 0
    fail_fast: bool = False
    retry_failed: bool = True
    max_attempts: int | None = None
    keep_failed_items: bool = False
    max_items: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None
    cost: str | Callable[[Outcome], float] | None = None
    grace_seconds: float = 25.0
    tags: Sequence[str] = ()
    task_runs: int = 1_000
    fingerprint: FingerprintSpec = None
    on_change: OnChange = "redo"

    def __post_init__(self) -> None:
        KeyScheme(self.key)
        self.fingerprinter()
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"name={self.name!r} cannot name a job, whose name is part of paths: give name= "
                "letters, digits, '_', '-' and '.'"
            )
        for option, choices in _CHOICES.items():
            if getattr(self, option) not in choices:
                raise UsageError(f"{option}={getattr(self, option)!r} is none of {choices}")
        for option, least in _LEAST.items():
            value = getattr(self, option)
            if type(value) is not int or value < least:
                raise UsageError(f"{option}={value!r} is not a whole number from {least}")
        for option, least in _LEAST_IF_ANY.items():
            value = getattr(self, option)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{option}={value!r} is not a whole number from {least}, or None")
        for option in _ABOVE_0_IF_ANY:
            value = getattr(self, option)
            if value is not None and not (_is_seconds(value) and value > 0):
                raise UsageError(f"{option}={value!r} is no number above 0")
        concurrency = self.concurrency
        adaptive = concurrency == "adaptive" or isinstance(concurrency, Adaptive)
        if not adaptive and (type(concurrency) is not int or concurrency < 1):
            raise UsageError(
                f"concurrency={concurrency!r} is neither a whole number from 1 nor "
                '"adaptive" nor an Adaptive(lowest, highest)'
            )
        self._check_failing()
        self._check_limits()
        tolerated = self.tolerated_failures
        if (
            isinstance(tolerated, bool)
            or tolerated < 0
            or (type(tolerated) is float and tolerated > 1)
        ):
            raise UsageError(
                f"tolerated_failures={tolerated!r} is neither a count of items nor a share of "
                "them between 0.0 and 1.0"
            )
        if self.grace_seconds < 0:
            raise UsageError(f"grace_seconds={self.grace_seconds!r} is negative")
        if isinstance(self.tags, str) or not all(isinstance(tag, str) for tag in self.tags):
            raise UsageError(f"tags={self.tags!r} is no list of strings")

    def _check_failing(self) -> None:
        delay, retry_on = self.retry_delay, self.retry_on
        delays = delay if isinstance(delay, Sequence) else [delay]
        known = delay is None or callable(delay) or all(_is_seconds(each) for each in delays)
        if isinstance(delay, str) or not known:
            raise UsageError(
                f"retry_delay={delay!r} is no number of seconds, no list of them, and no wait "
                "strategy of tenacity"
            )
        types = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        are_types = all(isinstance(t, type) and issubclass(t, BaseException) for t in types)
        are_types = are_types or (callable(retry_on) and not isinstance(retry_on, type))
        if retry_on is not None and not are_types:
            raise UsageError(
                f"retry_on={retry_on!r} is no class of exceptions, no tuple of them, and no "
                "callable that is given an exception"
            )
        if not _is_seconds(self.give_up_after):
            raise UsageError(f"give_up_after={self.give_up_after!r} is no number of seconds")

    def _check_limits(self) -> None:
        rates, _ = parse_rates(self.rate_limit)
        for rate in rates:
            if rate.of_items and rate.count < self.batch_size:
                raise UsageError(
                    f"rate_limit={self.rate_limit!r} allows {rate.count} items at once, and a "
                    f"batch has {self.batch_size}: give a smaller batch_size"
                )
        if self.cost is not None and not callable(self.cost) and not isinstance(self.cost, str):
            raise UsageError(f"cost={self.cost!r} is neither a field's name nor a callable")
        if isinstance(self.known_cost, str) and self.results == "none":
            raise UsageError(
                f'cost={self.known_cost!r} is a field of the results, and results="none": give '
                "cost= a callable of an outcome"
            )

    @property
    def known_cost(self) -> str | Callable[[Outcome], float] | None:
        """Where the cost of a call is found."""
        return "cost" if self.cost is None and self.max_cost is not None else self.cost

    @property
    def adaptive(self) -> Adaptive | None:
        """The bounds of an adaptive concurrency; None if it is fixed."""
        if isinstance(self.concurrency, Adaptive):
            return self.concurrency
        return Adaptive() if self.concurrency == "adaptive" else None

    @property
    def most_at_once(self) -> int:
        """How many calls there are at once, at most."""
        if isinstance(self.concurrency, int):
            return self.concurrency
        adaptive = self.adaptive
        assert adaptive is not None
        return adaptive.highest

    def fingerprinter(self) -> Fingerprinter | None:
        """How fingerprints of items are had; None if there are none. Raises `UsageError`."""
        return None if self.fingerprint is None else Fingerprinter(self.fingerprint)

    def tolerates(self, failed: int, total: int) -> bool:
        tolerated = self.tolerated_failures
        return failed <= (tolerated * total if isinstance(tolerated, float) else tolerated)


def _is_seconds(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value < float("inf")
    )
