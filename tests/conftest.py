from __future__ import annotations

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from shutil import disk_usage
from typing import Any
from uuid import uuid4

import pytest

# A shell starts what it puts in the background with Ctrl-C switched off, nohup with SIGHUP, and
# everything started from there inherits that. The tests, and all that they start, are to be as in
# a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A flush to a disk is most of what many tests wait for, and none of them takes the power away: what
# is lost then, tests/proof/crash/powerloss.py works out. TMPDIR=/tmp is a disk again.
MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and MEMORY.is_dir() and disk_usage(MEMORY).free > 4 << 30:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# Workers of the test runner are given the width of its terminal.
os.environ.pop("COLUMNS", None)

# Images say PYTHONDONTWRITEBYTECODE, and then each process of a test compiles the library: three
# times as long as the rest of its start. What this process imports is kept compiled, for all.
sys.dont_write_bytecode = False

# Before any of them is imported: their asserts are to say what they have compared.
for _suite in ("store", "journal", "runner", "form", "submitted"):
    pytest.register_assert_rewrite(f"resumable_tasks.testing.{_suite}_suite")

from resumable_tasks import ResumableTask, resumable_task  # noqa: E402
from resumable_tasks.testing.s3server import S3Server  # noqa: E402


def pytest_xdist_auto_num_workers() -> int:
    """Three times as many as there are cores: much of the suite waits for servers and clocks."""
    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    return int(given) if given else 3 * (os.cpu_count() or 1)


# What these look for may be rare: they are never tried twice.
STRICT = (
    "proof/",
    "checkpoint/",
    "items/",
    "results/",
    "package/",
)


# Whether a suite is worth anything: it is run on code with a fault seeded, once for each fault.
# Every sixteenth shows with each change that the suites still look; the rest are for
# `make test-long`.
PROOFS_OF_PROOFS = ("test_a_mistake_is_found", "test_the_suite_finds")
ONE_IN = 16


def proofs_of_proofs(items: list[pytest.Item]) -> None:
    """Mark as long all but every sixteenth of a file, counted without what is long anyway."""
    counts: Counter[str] = Counter()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name.endswith(PROOFS_OF_PROOFS) and not item.get_closest_marker("long"):
            if counts[name] % ONE_IN:
                item.add_marker(pytest.mark.long)
            counts[name] += 1


# Each test there is one of several parameters' product: on every database, in every form.
PRODUCTS = ("tests/checkpoint/sql/",)


def in_product(item: pytest.Item) -> bool:
    return item.nodeid.startswith(PRODUCTS)


def samples(items: list[pytest.Item]) -> None:
    """Mark as long what a sample of a test's parametrizations can do without.

    The sample is of the tests that are marked so, the same at each run, and has each value of each
    parameter, with ``pairs=True`` each two values of any two parameters together: of a product that
    is to be tried as a whole only now and then. With ``kinds=True`` points of one name count as one
    value, whichever passing they mean; ``one_in=3`` takes every third test. With ``only="sqlite"``
    it is taken from those that have this value, and no other.
    """
    products: dict[str, list[pytest.Item]] = {}
    for item in items:
        wanted = item.get_closest_marker("sample") or in_product(item)
        if wanted and hasattr(item, "callspec") and not item.get_closest_marker("long"):
            products.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for name, left in products.items():
        marked = left[0].get_closest_marker("sample")
        if marked is not None and "only" in marked.kwargs:
            for item in left:
                if marked.kwargs["only"] not in item.callspec.params.values():  # type: ignore[attr-defined]
                    item.add_marker(pytest.mark.long)
            left = [item for item in left if not item.get_closest_marker("long")]
        if marked is not None and (one_in := marked.kwargs.get("one_in")):
            for at, item in enumerate(left):
                if at % one_in != min(one_in // 2, len(left) - 1):
                    item.add_marker(pytest.mark.long)
            continue
        Random(name).shuffle(left)
        seen: set[Any] = set()
        while left:
            chosen = max(left, key=lambda item: len(tried_by(item) - seen))
            left.remove(chosen)
            if tried_by(chosen) <= seen:
                chosen.add_marker(pytest.mark.long)
            seen |= tried_by(chosen)


def tried_by(item: pytest.Item) -> set[Any]:
    """The values that a test has for its parameters, or all two of them."""
    marked = item.get_closest_marker("sample")
    more = marked.kwargs if marked is not None else {}
    params = item.callspec.params  # type: ignore[attr-defined]
    values = sorted((name, repr(value)) for name, value in params.items())
    if more.get("kinds"):
        values = [(name, re.sub(r":\d+'$", "'", value)) for name, value in values]
    return set(combinations(values, 2) if more.get("pairs") else values)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage among modules and tests, of which nearly all stays.

    Nor is it frozen after: Hypothesis asks who refers to what, and what is frozen is not found.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m "not long"` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares clocks fails where other work holds it up; what is wrong fails each time."""
    proofs_of_proofs(items)
    samples(items)
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
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What OpenTelemetry is told, whose providers are set while the test runs."""
    from tests.telemetry import providers

    with providers(monkeypatch) as found:
        yield found


@dataclass(frozen=True)
class Bucket:
    """A place in a bucket that nobody else uses, and the server that has it."""

    server: S3Server
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://test/{self.prefix}"

    @property
    def google_url(self) -> str:
        """The same place, in the words of Google's storage."""
        return f"gs://test/{self.prefix}"

    def stored(self) -> dict[str, bytes]:
        """What is there, by names below the place, read past the network."""
        found = self.server.stored("test").items()
        start = f"{self.prefix}/"
        return {name.removeprefix(start): data for name, data in found if name.startswith(start)}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A server of this test's own, which clients find by the environment; children as well."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_")):
            monkeypatch.delenv(name)
    with S3Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield Bucket(server, f"of-a-test/{uuid4().hex[:8]}")


@pytest.fixture
def handled() -> list[Any]:
    """The keys that the ``double`` job's handler was called for, in order, over all runs."""
    return []


@pytest.fixture
def double(handled: list[Any]) -> ResumableTask[Any]:
    """A job that doubles ``n``, and says what it handled."""

    @resumable_task(key="id", batch_size=10)
    def double(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        handled.extend(row["id"] for row in rows)
        return [{"id": row["id"], "value": row["n"] * 2} for row in rows]

    return double


@pytest.fixture
def numbered() -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [{"id": f"item-{i}", "n": i} for i in range(count)]


@pytest.fixture(scope="session", autouse=True)
def warm_workers() -> Iterator[None]:
    """The workers of runs in this process are forked from a warm parent, and not fresh."""
    from resumable_tasks.runners import worker
    from tests import warm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "subprocess", warm.Workers())
        yield


@pytest.fixture
def fresh_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is about how workers begin."""
    from resumable_tasks.runners import worker

    monkeypatch.setattr(worker, "subprocess", subprocess)


@pytest.fixture(autouse=True)
def quiet_about_temporary_folders(caplog: pytest.LogCaptureFixture) -> None:
    """Every test's checkpoint lies in a temporary folder, and the library is right to warn."""
    caplog.set_level(logging.INFO, logger="resumable_tasks")
