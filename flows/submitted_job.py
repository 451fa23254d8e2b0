"""A job on a Dask cluster that is submitted, left alone, found again and collected.

    dask scheduler --port 8786 &
    dask worker tcp://127.0.0.1:8786 &
    python -m flows.submitted_job tcp://127.0.0.1:8786 PATH…

Each batch of files is one task of the cluster, under its token as key. The task belongs to no
client (`fire_and_forget`), so that it goes on while nobody is there: kill this program at any
moment, and run it again. The folder ``--work`` is shared with the workers.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, fire_and_forget

from resumable_tasks import Ended, NotAccepted, Pending, RunResult, resumable_task

START_SECONDS = 30.0


def count_lines(start: str, out: str) -> None:
    """On a worker: the lines of each file, once ``start`` is there, into ``out``."""
    deadline = time.monotonic() + START_SECONDS
    while not os.path.exists(start):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody has started {start}")
        time.sleep(0.02)
    rows = []
    for path in pq.read_table(start).column("path").to_pylist():
        with open(path, "rb") as file:
            rows.append({"path": path, "lines": sum(1 for _ in file)})
    pq.write_table(pa.Table.from_pylist(rows), f"{out}.part")
    os.replace(f"{out}.part", out)


class DaskJob:
    """A function of Parquet in and Parquet out, as a task of a Dask cluster.

    The task waits for its input to have its name. So one rename starts it, and whoever has removed
    the input before that has made sure that nothing starts.
    """

    patience = 1.0
    request_timeout = 30.0

    def __init__(self, scheduler: str, work: Path, function: Any = count_lines) -> None:
        self._scheduler, self._work, self._function = scheduler, work.absolute(), function

    def prepare(self, items: list[dict[str, Any]], token: str) -> str:
        self._work.mkdir(parents=True, exist_ok=True)
        written = f"{self._start(token)}.part"
        pq.write_table(pa.Table.from_pylist(items), written)
        return written

    def submit(self, items: list[dict[str, Any]], token: str, prepared: str) -> str:
        with self._client() as client:
            start, out = self._start(token), self._out(token)
            task = client.submit(self._function, start, out, key=token, pure=False)
            fire_and_forget(task)  # type: ignore[no-untyped-call]
            while not self._is_known(client, token):
                time.sleep(0.02)
            os.rename(prepared, start)
        return token

    def find(self, token: str) -> str | None:
        return token if os.path.exists(self._start(token)) else None

    def fence(self, token: str, prepared: str) -> None:
        Path(prepared).unlink(missing_ok=True)

    def poll(self, handle: str) -> Pending | Ended:
        with self._client() as client:
            known = self._is_known(client, handle)
        # In this order: a task that ends in between has written its results.
        if os.path.exists(self._out(handle)):
            return Ended()
        if not known:
            raise NotAccepted(f"the cluster lost task {handle}", again=True)
        return Pending(again_in=1.0)

    def collect(self, handle: str) -> pa.Table:
        return pq.read_table(self._out(handle))

    @contextmanager
    def _client(self) -> Iterator[Any]:
        made: Any = Client  # it has no types
        with made(self._scheduler, timeout=10, set_as_default=False) as client:
            yield client

    @staticmethod
    def _is_known(client: Any, token: str) -> bool:
        known: bool = client.run_on_scheduler(_knows, token=token)
        return known

    def _start(self, token: str) -> str:
        return str(self._work / f"{token}.in.parquet")

    def _out(self, token: str) -> str:
        return str(self._work / f"{token}.out.parquet")


def _knows(token: str, dask_scheduler: Any) -> bool:
    return token in dask_scheduler.tasks


def count_all(
    scheduler: str, paths: list[str], work: str, checkpoint: str, batch_size: int = 100
) -> RunResult:
    """Count the lines of these files on the cluster; killed, it is taken up by the next run."""
    job = resumable_task(
        DaskJob(scheduler, Path(work)), name="lines", key="path", batch_size=batch_size
    )
    return job.run([{"path": os.path.abspath(path)} for path in paths], checkpoint=checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count the lines of files on a Dask cluster.")
    parser.add_argument("scheduler", help="the scheduler's address, such as tcp://127.0.0.1:8786")
    parser.add_argument("paths", nargs="+", help="files that the workers see too")
    parser.add_argument(
        "--work", default=".resumable/lines-work", help="a folder that all workers share"
    )
    parser.add_argument("--checkpoint", default=".resumable/lines")
    parser.add_argument("--batch-size", type=int, default=100)
    given = vars(parser.parse_args())
    print(count_all(**given).summary)
