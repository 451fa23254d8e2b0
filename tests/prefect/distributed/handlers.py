"""Handlers at the top level of a module, which do what their items say and note each call."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resumable_tasks import ItemFailure, current_batch, resumable_task

PATIENCE = 40.0


def items(folder: Path, count: int, run: int = 1, **special: Any) -> list[dict[str, Any]]:
    """Items 0 … count-1. ``special``: what some of them do, as in ``die=[7], seconds=0.1``."""
    each = {name: value for name, value in special.items() if not isinstance(value, list)}
    found = [{"id": n, "run": run, "folder": str(folder), **each} for n in range(count)]
    for do, numbers in special.items():
        if isinstance(numbers, list):
            for n in numbers:
                found[n]["do"] = do
    return found


def note(folder: str, rows: list[dict[str, Any]], kind: str = "begun") -> None:
    """One line, in one write: what is written survives the death of the writer."""
    line = " ".join([kind, str(os.getpid()), str(rows[0]["run"]), str(time.time())])
    line += " " + ",".join(str(row["id"]) for row in rows) + "\n"
    handle = os.open(Path(folder) / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, line.encode())
    os.close(handle)


class Call:
    """One call of a handler, as it was noted."""

    def __init__(self, line: str) -> None:
        self.kind, pid, run, time_, ids = line.split()
        self.pid, self.run, self.time = int(pid), int(run), float(time_)
        self.ids = tuple(map(int, ids.split(",")))


def calls(folder: Path, kind: str = "begun") -> list[Call]:
    path = folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [call for call in map(Call, lines) if call.kind == kind]


def times_handled(folder: Path) -> Counter[tuple[int, ...]]:
    """How often each batch was begun."""
    return Counter(call.ids for call in calls(folder))


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path.name} did not come")
        time.sleep(0.02)


@resumable_task(key="id", batch_size=2, concurrency=2)
def work(rows: list[dict[str, Any]]) -> list[Any]:
    """Do what the items say; a row for each with the process that did it."""
    folder = Path(rows[0]["folder"])
    note(str(folder), rows)
    time.sleep(max(row.get("seconds", 0.0) for row in rows))
    for row in rows:
        do = row.get("do")
        if do == "die_once" and not (folder / "died").exists():
            (folder / "died").touch()
            do = "die"
        if do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif do == "bad":
            raise RuntimeError(f"cannot do {row['id']}")
        elif do == "wait":
            wait_for(folder / "go")
        elif do == "exit":
            raise SystemExit(3)
    note(str(folder), rows, "ended")
    return [
        {"id": row["id"], "pid": "no number" if row.get("do") == "misfit" else os.getpid()}
        for row in rows
    ]


@resumable_task(key="id", batch_size=8, concurrency=2)
def one_by_one(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row as soon as its item was worked on; bad ones end the call."""
    for row in rows:
        note(row["folder"], [row])
        if row.get("do") == "bad":
            raise RuntimeError(f"cannot do {row['id']}")
        yield {"id": row["id"], "pid": os.getpid()}


@resumable_task(key="id", batch_size=2, concurrency=2)
def fail_odd(rows: list[dict[str, Any]]) -> list[Any]:
    return [
        ItemFailure(row["id"], "is odd") if row["id"] % 2 else {"id": row["id"]} for row in rows
    ]


@resumable_task(key="id", batch_size=2, concurrency=2, results="many")
def repeat(rows: list[dict[str, Any]]) -> list[Any]:
    return [{"id": row["id"], "n": n} for row in rows for n in range(row["id"])]


@resumable_task(key="id", batch_size=2, concurrency=2, results="none")
def touch(rows: list[dict[str, Any]]) -> None:
    note(rows[0]["folder"], rows)


@resumable_task(key="id", batch_size=2, concurrency=2)
def traced(rows: list[dict[str, Any]]) -> list[Any]:
    """Say which span of OpenTelemetry a call is in, where the handler would open its own."""
    from opentelemetry import trace

    around = trace.get_current_span().get_span_context()
    return [
        {"id": row["id"], "trace": hex(around.trace_id), "span": hex(around.span_id)}
        for row in rows
    ]


@resumable_task(key=lambda item: (item["a"], item["b"]), batch_size=2, concurrency=2)
def by_callable(rows: list[dict[str, Any]]) -> list[Any]:
    return [{"sum": row["a"] + row["b"]} for row in rows]


_loops: set[int] = set()


@resumable_task(key="id", batch_size=1, concurrency=2)
async def coroutine(rows: list[dict[str, Any]]) -> list[Any]:
    await asyncio.sleep(0.01)
    _loops.add(id(asyncio.get_running_loop()))
    return [{"id": row["id"], "pid": os.getpid(), "loops": len(_loops)} for row in rows]


@resumable_task(key="id", batch_size=5, concurrency=2)
def arrow(rows: Any) -> Any:
    """A record batch comes as one, and without the table that it is a slice of."""
    assert type(rows).__name__ == "RecordBatch"
    return rows.select(["id"]).append_column("buffers", _whole(rows))


def _whole(rows: Any) -> Any:
    import pyarrow as pa

    return pa.array(
        [sum(buffer.size for column in rows.columns for buffer in column.buffers() if buffer)]
        * len(rows)
    )


@resumable_task(key="id", batch_size=1, concurrency=2)
def known(rows: list[dict[str, Any]]) -> list[Any]:
    batch = current_batch()
    return [{"id": row["id"], "batch": batch.id, "attempt": batch.attempt} for row in rows]


@resumable_task(key="id", batch_size=1, concurrency=2)
def length(rows: list[dict[str, Any]]) -> list[Any]:
    time.sleep(0.05)  # of batches that cost nothing the engine lets many out
    return [{"id": row["id"], "length": len(row["data"])} for row in rows]


@resumable_task(key="id", batch_size=4, concurrency=2)
def four_lengths(rows: list[dict[str, Any]]) -> list[Any]:
    return [{"id": row["id"], "length": len(row["data"])} for row in rows]


class Multiplier:
    """An object whose method is a handler, and which is one itself."""

    def __init__(self, by: int) -> None:
        self.by = by

    def method(self, rows: list[dict[str, Any]]) -> list[Any]:
        return [{"id": row["id"], "times": row["id"] * self.by} for row in rows]

    def __call__(self, rows: list[dict[str, Any]]) -> list[Any]:
        return self.method(rows)
