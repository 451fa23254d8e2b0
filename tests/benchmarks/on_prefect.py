"""What Prefect costs, and what we add to it or take from it. All on one real server.

``python -m tests.benchmarks.on_prefect [--rounds N]``; part of ``make bench``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.__main__ import folder, row, table
from tests.ports import free_port
from tests.prefect.api import Api
from tests.prefect.server import Server, environment


class Bench:
    """A server, and flow runs against it, each in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.server = Server(home / "server", free_port())
        self.server.start()
        self.api = Api(self.server.port)
        self.env = environment(home / "server", self.server.port)
        self.env["PREFECT_LOGGING_LEVEL"] = "ERROR"

    def run(self, case: str, batches: int, size: int, seconds: float, place: Path) -> Any:
        command = [sys.executable, "-m", "tests.benchmarks.flow_cases", case]
        done = subprocess.run(
            [*command, str(batches), str(size), str(seconds), str(place)],
            env={**self.env, "PREFECT_LOCAL_STORAGE_PATH": str(place) + "-results"},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    def settled(self, flow_run: str) -> list[Any]:
        """The task runs of a flow run, once the server has taken in all that it was told."""
        before: list[Any] = []
        for _ in range(120):
            found = self.task_runs(flow_run)
            if found == before and all(each["state_type"] == "COMPLETED" for each in found):
                return found
            before = found
            time.sleep(1)
        return before

    def task_runs(self, flow_run: str) -> list[Any]:
        found: list[Any] = []
        while True:
            page = self.api.call(
                "POST",
                "task_runs/filter",
                {
                    "flow_runs": {"id": {"any_": [flow_run]}},
                    "sort": "ID_DESC",
                    "limit": 200,
                    "offset": len(found),
                },
            )
            found += page
            if len(page) < 200:
                return found


def per_batch(bench: Bench, rounds: int, place: Path) -> None:
    """The same batches as task runs of Prefect's, and as ours."""
    batches, seconds = 200, 0.05
    ways = {
        "empty": "an empty flow",
        "plain": "Prefect's own: a plain task run a batch",
        "ours_each": "ours, made to take a task run a batch",
        "ours": "ours, as it is: small batches share task runs",
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for at in range(rounds):
        for name in ways:
            found = bench.run(name, batches, 50, seconds, place / f"{name}{at}")
            times[name].append(found["seconds"])
            bench.settled(found["flow_run"])  # or the next one pays for it
    ground = batches * seconds / 4
    median = {name: statistics.median(each) for name, each in times.items()}
    table(
        f"{batches} batches of 50 items and {seconds * 1e3:g} ms, 4 at once",
        "s",
        "ms a batch above its work",
        "× Prefect's own",
    )
    for name, what in ways.items():
        above = (median[name] - ground - median["empty"]) / batches * 1e3
        row(
            what,
            f"{median[name]:.2f}",
            "–" if name == "empty" else f"{above:.1f}",
            "–" if name == "empty" else f"{median[name] / median['plain']:.2f}",
        )


def resumed(bench: Bench, rounds: int, place: Path) -> None:
    """10,000 items in 200 batches: clean, resumed at half, complete."""
    table(
        "10,000 items in 200 batches, no work in the handler",
        "ours, s above an empty flow",
        "Prefect's persisted results and cache, s",
        "ratio",
    )
    empty = statistics.median(bench.run("empty", 0, 1, 0, place)["seconds"] for _ in range(rounds))
    found: dict[str, dict[str, list[float]]] = {}
    for at in range(rounds):
        for name in ("ours", "cached"):
            whole, half = place / f"{name}-whole{at}", place / f"{name}-half{at}"
            steps = {
                "clean run": (200, whole),
                "complete, run again": (200, whole),
                "": (100, half),
                "resumed at half": (200, half),
            }
            for step, (batches, where) in steps.items():
                seconds = bench.run(name, batches, 50, 0, where)["seconds"] - empty
                found.setdefault(step, {}).setdefault(name, []).append(seconds)
    for step in ("clean run", "resumed at half", "complete, run again"):
        mine, theirs = (statistics.median(found[step][name]) for name in ("ours", "cached"))
        row(step, f"{mine:.2f}", f"{theirs:.2f}", f"{mine / theirs:.3f}")


def many(bench: Bench, place: Path) -> None:
    """Twenty thousand batches of a millisecond."""
    batches = 20_000
    found = bench.run("ours", batches, 5, 0.001, place / "many")
    runs = bench.settled(found["flow_run"])
    told = sum(
        int(match[1].replace(",", ""))
        if (match := re.search(r"\(([\d,]+) batches", r["name"]))
        else 1
        for r in runs
    )
    table(f"{batches:,} batches of 1 ms", "")
    row("seconds", f"{found['seconds']:.1f} (the work alone: {batches * 0.001 / 4:.1f})")
    row("task runs", f"{len(runs):,}")
    row("batches that the server knows of", f"{told:,}")
    row(
        "task runs that it knows the end of",
        f"{sum(r['state_type'] == 'COMPLETED' for r in runs):,}",
    )
    row("memory that the flow's process grew by", f"{found['grown'] / 1e6:.0f} MB")


def main(rounds: int) -> None:
    with folder() as place:
        place = place.resolve()
        bench = Bench(place)
        try:
            per_batch(bench, rounds, place)
            resumed(bench, rounds, place)
            many(bench, place)
        finally:
            bench.server.kill()
            shutil.rmtree(place / "server", ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args().rounds)
