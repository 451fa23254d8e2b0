"""Jobs on the batch APIs, killed at any moment: every row once, every text paid once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.dataset as pads
import pytest

from tests import warm
from tests.batch_apis.driver import READY
from tests.batch_apis.server import BatchServer

ROOT = Path(__file__).parents[2]
PROVIDERS = ("openai", "anthropic")
KILLED, FENCED = -9, 3


class Driver:
    """A job as a process, started again and again on one checkpoint."""

    def __init__(self, provider: str, server: BatchServer, folder: Path, *more: object) -> None:
        self._published, self._log = folder / "published", folder / "log"
        self._command = [
            *(sys.executable, "-m", "tests.batch_apis.driver", provider, server.url),
            *(str(folder / "checkpoint"), str(self._published), *map(str, more)),
        ]

    def ends(self, seconds: float = 200.0) -> int:
        """Start it, and kill it so long after the job began, unless it ends before; exit code."""
        with (
            open(self._log, "ab") as log,
            warm.start(
                self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, also=warm.SDKS
            ) as process,
        ):
            assert process.stdout is not None
            assert process.stdout.readline().decode().strip() == READY, self.log()
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    @contextmanager
    def stopped_at(self, point: str) -> Iterator[warm.Program]:
        """A process that has stopped itself at a fault point."""
        command = [*self._command, "--stop-at", point]
        with (
            open(self._log, "ab") as log,
            warm.start(command, cwd=ROOT, stderr=log, also=warm.SDKS) as one,
        ):
            try:
                deadline = time.monotonic() + 60
                while ") T " not in Path(f"/proc/{one.pid}/stat").read_text():
                    assert time.monotonic() < deadline, self.log()
                    time.sleep(0.02)
                yield one
            finally:
                one.kill()

    def log(self) -> str:
        return self._log.read_text()[-6000:]

    def rows(self) -> list[int]:
        table = pads.dataset(self._published, format="parquet").to_table()
        return sorted(table.column("id").to_pylist())


def holds(server: BatchServer, driver: Driver, items: int) -> None:
    """Every row once, every text paid once."""
    assert driver.rows() == list(range(items))
    paid = server.paid()
    assert {text: n for text, n in paid.items() if n != 1} == {}
    assert len(paid) == items


@pytest.mark.parametrize(
    ("provider", "items", "size", "kills"),
    [
        ("openai", 120, 23, 5),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [
                ("anthropic", 120, 23, 5),
                ("openai", 681, 69, 12),
                ("anthropic", 681, 69, 12),
            ]
        ),
    ],
)
def test_random_kills(
    provider: str, items: int, size: int, kills: int, server: BatchServer, tmp_path: Path
) -> None:
    """One batch expires at 30 %, and every fourth `create` loses its answer, too.

    Every other batch is held until the job was killed twice more, so that it does not end before.
    """
    held: list[Any] = [{"takes": None}, None] * 6
    held[3] = {"fate": "expired", "done": 0.3}
    server.script(takes=0.6, next=held)
    server.trouble("create", "lose", every=4)
    driver = Driver(provider, server, tmp_path, "--items", items, "--batch-size", size)
    moments = Random(f"{provider}{items}")
    for killed in range(kills):
        assert driver.ends(moments.uniform(0.0, 1.5)) == KILLED, driver.log()
        if killed % 2:
            server.finish(oldest=True)
    server.script(next=[], takes=0.1)
    server.finish()
    assert driver.ends() == 0, driver.log()
    holds(server, driver, items)
    assert len(server.batches()) == -(-items // size) + 1


@pytest.mark.sample
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("operation", "what"),
    [
        *(("create", "kill_before"), ("create", "kill"), ("retrieve", "kill")),
        *(("content", "kill_before"), ("content", "kill"), ("list", "kill"), ("upload", "kill")),
    ],
)
def test_killed_by_the_server(
    provider: str, operation: str, what: str, server: BatchServer, tmp_path: Path
) -> None:
    """Inside of the request: the server has carried it out, or has not."""
    if provider == "anthropic" and operation == "upload":
        pytest.skip("nothing is uploaded there")
    server.script(takes=0.3)
    driver = Driver(provider, server, tmp_path, "--items", 40, "--batch-size", 10)
    skip = 1
    if operation == "list":  # looked for only if something is unknown
        server.trouble("create", "lose", times=1)
        skip = 0 if provider == "openai" else 4  # there each is preceded by one
    server.trouble(operation, what, skip=skip, times=1)
    assert driver.ends() == KILLED, driver.log()
    assert driver.ends() == 0, driver.log()
    holds(server, driver, 40)
    assert len(server.batches()) == 4


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("point", ["submitting", "prepared", "sending", "sent", "collected"])
def test_a_zombie_pays_nothing(
    provider: str, point: str, server: BatchServer, tmp_path: Path
) -> None:
    """Stopped there, overtaken, and woken up when the other has done it all.

    OpenAI's is held off by the fence alone, Anthropic's by the lease. One submission at a time:
    another thread could be inside the writing of a request to Anthropic, the window that stays.
    """
    server.script(takes=0.3)
    lease = 1000.0 if provider == "openai" else 2.0
    more = ("--items", 20, "--batch-size", 10, "--lease", lease, "--concurrency", 1)
    zombie = Driver(provider, server, tmp_path, *more)
    other = Driver(provider, server, tmp_path, *more, "--takeover")
    with zombie.stopped_at(f"submission.{point}") as process:
        assert other.ends() == 0, other.log()
        holds(server, other, 20)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == FENCED, other.log()
    holds(server, other, 20)
