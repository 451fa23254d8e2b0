from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before any of them is imported: their asserts are to say what they have compared.
for _suite in ("store", "journal", "runner", "form"):
    pytest.register_assert_rewrite(f"resumable_tasks.testing.{_suite}_suite")

from resumable_tasks import ResumableTask, resumable_task  # noqa: E402

# What these look for may be rare: they are never tried twice.
STRICT = (
    "proof/",
    "checkpoint/",
    "items/",
    "results/",
    "package/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares clocks fails where other work holds it up; what is wrong fails each time."""
    for item in items:
        if item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.flaky(reruns=2))
        elif item.nodeid.removeprefix("tests/").startswith(STRICT):
            item.add_marker(pytest.mark.flaky(reruns=0))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a test's checkpoint goes; it does not exist yet."""
    return tmp_path / "checkpoint"


@pytest.fixture
def handled() -> list[Any]:
    """The keys that the ``double`` job's handler was called for, in order, over all runs."""
    return []


@pytest.fixture
def double(handled: list[Any]) -> ResumableTask[..., Any]:
    """A job that doubles ``n``, and says what it handled."""

    @resumable_task(key="id", batch_size=10)
    def double(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        handled.extend(row["id"] for row in rows)
        return [{"id": row["id"], "value": row["n"] * 2} for row in rows]

    return double


@pytest.fixture
def numbered() -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [{"id": f"item-{i}", "n": i} for i in range(count)]


@pytest.fixture(autouse=True)
def quiet_about_temporary_folders(caplog: pytest.LogCaptureFixture) -> None:
    """Every test's checkpoint lies in a temporary folder, and the library is right to warn."""
    caplog.set_level(logging.INFO, logger="resumable_tasks")
