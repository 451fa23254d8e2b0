"""The options of a job, checked when they are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resumable_tasks.errors import UsageError
from resumable_tasks.fingerprints import Fingerprinter, FingerprintSpec
from resumable_tasks.keys import KeyScheme, KeySpec
from resumable_tasks.model import ResultsMode
from resumable_tasks.plan import BatchFormat, OnChange, OnDuplicate

RunnerName = Literal["auto", "local", "processes", "prefect"]
OnVersionChange = Literal["error", "reuse", "restart"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LEAST = {"batch_size": 1, "concurrency": 1, "retries": 0, "task_runs": 1}
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
    concurrency: int = 4
    retries: int = 0
    retry_delay: float | Sequence[float] | None = None
    timeout: float | None = None
    results: ResultsMode = "one"
    version: str | int = "1"
    runner: RunnerName = "auto"
    batch_format: BatchFormat = "auto"
    on_duplicate: OnDuplicate = "error"
    on_version_change: OnVersionChange = "error"
    tolerated_failures: int | float = 0
    fail_fast: bool = False
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
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"timeout={self.timeout!r} is no number of seconds above 0")
        delays = self.retry_delay if isinstance(self.retry_delay, Sequence) else [self.retry_delay]
        if isinstance(self.retry_delay, str) or not all(_is_delay(delay) for delay in delays):
            raise UsageError(
                f"retry_delay={self.retry_delay!r} is no number of seconds and no list of them"
            )
        if isinstance(self.tags, str) or not all(isinstance(tag, str) for tag in self.tags):
            raise UsageError(f"tags={self.tags!r} is no list of strings")

    def fingerprinter(self) -> Fingerprinter | None:
        """How fingerprints of items are had; None if there are none. Raises `UsageError`."""
        return None if self.fingerprint is None else Fingerprinter(self.fingerprint)

    def tolerates(self, failed: int, total: int) -> bool:
        tolerated = self.tolerated_failures
        return failed <= (tolerated * total if isinstance(tolerated, float) else tolerated)


def _is_delay(value: object) -> bool:
    return value is None or (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value < float("inf")
    )
