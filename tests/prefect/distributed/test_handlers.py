"""Which handlers and items cross to workers, and what is said of those that do not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import JobFailed, ResumableTask, UsageError, resumable_task
from tests.prefect.distributed import handlers, oracle
from tests.prefect.distributed.conftest import REPOSITORY, Engine
from tests.prefect.distributed.handlers import Multiplier

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

Job = ResumableTask[Any]


def closure(by: int) -> Callable[..., Any]:
    def multiply(rows: list[dict[str, Any]]) -> list[Any]:
        return [{"id": row["id"], "times": row["id"] * by} for row in rows]

    return multiply


KINDS: dict[str, Callable[..., Any]] = {
    "a closure": closure(3),
    "a lambda": lambda rows: [{"id": row["id"], "times": row["id"] * 3} for row in rows],
    "a method": Multiplier(3).method,
    "a callable object": Multiplier(3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_handlers_without_a_name_cross_by_their_code(dask: Engine, place: Path, kind: str) -> None:
    job = resumable_task(KINDS[kind], name="multiply", key="id", batch_size=5)
    dask.run(job, [{"id": n} for n in range(20)], checkpoint=place)
    oracle.each_once(place, set(range(20)))
    assert all(row["times"] == 3 * row["id"] for row in oracle.rows(place))


def test_a_coroutine_handler_has_one_event_loop_a_process(dask: Engine, place: Path) -> None:
    dask.run(handlers.coroutine, [{"id": n} for n in range(30)], checkpoint=place)
    oracle.each_once(place, set(range(30)))
    assert {row["loops"] for row in oracle.rows(place)} == {1}


def test_failed_items_many_rows_no_rows_and_callable_keys(
    dask: Engine, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobFailed, match="10 of 20 items") as caught:
        dask.run(handlers.fail_odd, [{"id": n} for n in range(20)], checkpoint=place / "failed")
    assert {failure.message for failure in caught.value.result.failures} == {"is odd"}
    oracle.each_once(place / "failed", set(range(0, 20, 2)))

    many = dask.run(handlers.repeat, [{"id": n} for n in range(7)], checkpoint=place / "many")
    assert many.completed == 7
    assert len(oracle.rows(place / "many")) == 21

    none = dask.run(handlers.touch, handlers.items(tmp_path, 9), checkpoint=place / "none")
    assert none.completed == 9
    assert oracle.shards(place / "none") == []

    pairs = [{"a": a, "b": b} for a in range(3) for b in range(3)]
    summed = dask.run(handlers.by_callable, pairs, checkpoint=place / "callable")
    assert summed.completed == 9
    assert sorted(map(tuple, oracle.keys(place / "callable"))) == [
        (pair["a"], pair["b"]) for pair in pairs
    ]
    assert sum(row["sum"] for row in oracle.rows(place / "callable")) == 18


def test_a_batch_of_a_table_crosses_without_the_table(dask: Engine, place: Path) -> None:
    count = 200_000
    table = pa.table({"id": range(count), "text": ["x" * 20] * count})
    job = handlers.arrow.with_options(batch_size=20)
    dask.run(job, table.slice(1_000, 100), checkpoint=place)
    oracle.each_once(place, set(range(1_000, 1_100)))
    assert max(row["buffers"] for row in oracle.rows(place)) < 10_000


def test_a_handler_that_cannot_cross_is_refused_before_anything_runs(
    dask: Engine, place: Path
) -> None:
    lock = threading.Lock()

    @resumable_task(key="id")
    def locked(rows: list[dict[str, Any]]) -> list[Any]:
        with lock:
            return rows

    with pytest.raises(UsageError, match=r"handler cannot be sent.*lock.*when called"):
        dask.run(locked, [{"id": 1}], checkpoint=place)
    assert oracle.keys(place) == []
    assert oracle.failed(place) == set()


def test_items_that_cannot_cross_fail_alone(dask: Engine, place: Path) -> None:
    items = [{"id": n, "data": b"" if n != 7 else threading.Lock()} for n in range(20)]
    with pytest.raises(JobFailed, match="cannot be sent to another process"):
        dask.run(handlers.four_lengths, items, checkpoint=place)
    assert oracle.failed(place) == {7}
    oracle.each_once(place, set(range(20)) - {7})


class Grudging:
    """Can be pickled, and not loaded."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> Any:
    raise ValueError("not today")


def test_items_that_cannot_be_loaded_fail_alone(dask: Engine, place: Path) -> None:
    items = [{"id": n, "data": b"" if n != 7 else Grudging()} for n in range(20)]
    with pytest.raises(JobFailed, match="not today"):
        dask.run(handlers.four_lengths, items, checkpoint=place)
    assert oracle.failed(place) == {7}
    oracle.each_once(place, set(range(20)) - {7})


SCRIPT = """
import dataclasses, os, sys
from prefect import flow
from resumable_tasks import resumable_task

@dataclasses.dataclass
class Word:
    id: str

@resumable_task(key="id", batch_size=2)
def shout(words):
    assert all(isinstance(word, Word) for word in words)
    return [{"id": word.id, "text": word.id.upper(), "pid": os.getpid()} for word in words]

everything = [Word(f"word-{n}") for n in range(10)]
unsendable = open(sys.argv[0])  # the flow refers to it, and so would drag it along

@flow(task_runner=eval(sys.argv[2]))
def job():
    assert unsendable
    return shout.run(everything, checkpoint=sys.argv[1])

if __name__ == "__main__":
    result = job()
    assert os.getpid() not in result.table()["pid"].to_pylist()
    print("done:", result.completed)
"""


def test_a_script_may_hold_handler_items_and_flow(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(place), engine.elsewhere],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert "done: 10" in done.stdout, done.stdout + done.stderr
    oracle.each_once(place, {f"word-{n}" for n in range(10)})


def test_a_file_that_prefect_has_loaded_by_its_path_may_hold_them_too(
    dask: Engine, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.utilities.importtools import load_script_as_module

    # Such a module has a name of Prefect's making where its own is taken.
    monkeypatch.setitem(sys.modules, "shouting", ModuleType("shouting"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shouting.py").write_text(
        "import dataclasses\n"
        "from resumable_tasks import resumable_task\n"
        "@dataclasses.dataclass\n"
        "class Word:\n"
        "    id: str\n"
        "@resumable_task(key='id')\n"
        "def shout(words):\n"
        "    assert all(isinstance(word, Word) for word in words)\n"
        "    return [{'id': word.id} for word in words]\n"
    )
    loaded = load_script_as_module(str(tmp_path / "shouting.py"))
    assert loaded.__name__.startswith("__prefect_loader_")
    dask.run(loaded.shout, [loaded.Word("a"), loaded.Word("b")], checkpoint=place)
    oracle.each_once(place, {"a", "b"})


def test_large_batches_are_gone_from_the_driver_once_they_are_done(
    dask: Engine, place: Path
) -> None:
    """Batches of 10 MB, two at a time, each made when it is wanted: 600 MB in all."""

    def source() -> Any:
        for n in range(60):
            yield {"id": n, "data": os.urandom(10_000_000)}

    _most_memory()
    before = _most_memory()
    dask.run(handlers.length, source(), checkpoint=place)
    assert {row["length"] for row in oracle.rows(place)} == {10_000_000}
    # Four are out. Some stand here twice while they are sent, and again in Dask's scheduler, which
    # is in this process too.
    assert _most_memory() - before < 400


def _most_memory() -> float:
    """The largest size of this process since the last call, in MB."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3
