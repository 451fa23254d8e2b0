"""A service in a folder holds the contract, with each of the ways in which work is paid once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from resumable_tasks.runners.submitted import life
from resumable_tasks.testing.submitted_suite import SubmittedSuite
from tests.proof.submitted.service import Knobs, Service


class OfAFolder(SubmittedSuite):
    knobs: ClassVar[Knobs]
    seconds = 5.0

    @pytest.fixture(autouse=True)
    def _short_lease(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is not listed yet when the next run looks is waited for as long as a lease."""
        monkeypatch.setattr(life, "LEASE_SECONDS", 0.5)

    def make_service(self, place: Path) -> Any:
        return Service(place / "service", self.knobs)

    def count_started(self, place: Path) -> int:
        return len(Service(place / "service", self.knobs).all())


class TestFenced(OfAFolder):
    knobs = Knobs(has=("prepare", "find", "fence", "cancel"), lag=0.1, takes=0.05)


class TestLeased(OfAFolder):
    knobs = Knobs(has=("find",), lag=0.1, takes=0.05, cannot_tell=True, not_ready=1)


class TestIdempotent(OfAFolder):
    knobs = Knobs(has=(), idempotent_for=60.0)


class TestCoroutines(OfAFolder):
    knobs = Knobs(has=("prepare", "find", "fence"), coroutines=True)


class TestUncounted(OfAFolder):
    knobs = Knobs(has=("find",))

    def count_started(self, place: Path) -> None:  # type: ignore[override]
        return None
