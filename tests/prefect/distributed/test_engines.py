"""The same flow on Dask, on Ray and in a process pool, by changing one argument.

`make test` runs each test where engines can differ in it, and all tests on some engine; the rest
are for `make test-distributed`. A process pool starts its workers for each flow run, with Prefect's
imports, and costs most.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from resumable_tasks import JobFailed, SqlCheckpoint, UsageError
from tests.prefect.api import Api, until
from tests.prefect.distributed import oracle
from tests.prefect.distributed.conftest import Engine
from tests.prefect.distributed.handlers import calls, items, one_by_one, times_handled, traced, work
from tests.telemetry import Seen, ids

pytestmark = [
    # Prefect's, Dask's and Ray's own are not ours to fix.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ENGINES = ("dask", "ray", "pool")


def on(*short: str, never: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Run on these engines in `make test`, and on the others in the long form."""
    found = [
        pytest.param(name, marks=() if name in short else pytest.mark.long)
        for name in ENGINES
        if name not in never
    ]
    return pytest.mark.parametrize("engine", found, indirect=True)


@on(*ENGINES)
def test_workers_write_shards_and_the_driver_commits(
    engine: Engine, place: Path, tmp_path: Path, api: Api
) -> None:
    job = work.with_options(name=f"in-{engine.name}")
    result = engine.run(job, items(tmp_path, 60), checkpoint=place)
    assert (result.completed, result.failed) == (60, 0)
    oracle.each_once(place, set(range(60)))
    pids = {row["pid"] for row in oracle.rows(place)}
    assert os.getpid() not in pids
    assert all(path.startswith("shards/e1-") for path in oracle.shards(place))
    assert len(oracle.shards(place)) == 30, "a worker writes a shard for each of its batches"
    assert oracle.outbox(place) == set()

    again = engine.run(job, items(tmp_path, 62), checkpoint=place)
    assert (again.completed, again.skipped) == (2, 60)
    assert set(times_handled(tmp_path).values()) == {1}

    def task_runs() -> list[str]:
        where = {"flows": {"name": {"any_": [job.name]}}, "limit": 200}
        return [found["state_type"] for found in api.call("POST", "task_runs/filter", where)]

    until(lambda: 3 <= task_runs().count("COMPLETED") == len(task_runs()) < 20)


@on("dask")
def test_what_batches_wait_for_comes_back_with_them(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    job = work.with_options(name="waits", batch_size=1, rate_limit="10/second")
    found = engine.run(job, items(tmp_path, 24), checkpoint=place).bound_by
    assert found is not None
    assert found.what == "rate", found


@on("dask", "ray")
def test_a_call_is_in_the_span_of_its_batch_on_whichever_machine(
    engine: Engine, place: Path, tmp_path: Path, seen: Seen
) -> None:
    engine.run(traced, items(tmp_path, 20), checkpoint=place)
    found = {(int(row["trace"], 16), int(row["span"], 16)) for row in oracle.rows(place)}
    assert found == {ids(span) for span in seen.of("batch")}
    assert len(found) == 10
    assert seen.sums("item.handled") == {"done": 20}
    assert seen.sums("call.duration") == {None: 10}


@on("dask", "ray")
def test_finished_batches_are_committed_while_their_task_run_goes_on(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    """The last batch waits until all others are committed: some share its task run."""
    one = work.with_options(concurrency=1, batch_size=1)
    kept: list[str] = []

    def look() -> None:
        until(lambda: (place / "journal").exists() and len(oracle.keys(place)) == 19, 35)
        kept.extend(name for name in oracle.outbox(place) if name.split("-")[1].isdigit())
        (tmp_path / "go").touch()

    thread = threading.Thread(target=look)
    thread.start()
    result = engine.run(one, items(tmp_path, 20, wait=[19]), checkpoint=place)
    thread.join()
    assert result.completed == 20
    # The task run of the last batch had others: their outcomes stay until it ends.
    assert kept


# Each has a way of its own to say that a worker has died. A pool starts all of its processes again,
# and each imports Prefect.
@on("dask", "ray")
def test_a_batch_that_kills_its_worker_costs_little_else(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    """One of them does so once, another whenever it is handled."""
    job, deadly = work.with_options(batch_size=2), 41
    with pytest.raises(JobFailed) as caught:
        engine.run(job, items(tmp_path, 80, die_once=[11], die=[41]), checkpoint=place)
    assert {failure.key for failure in caught.value.result.failures} == {deadly}
    assert {failure.error for failure in caught.value.result.failures} == {"WorkerLost"}
    oracle.each_once(place, set(range(80)) - {deadly})
    assert oracle.outbox(place) == set()

    handled = times_handled(tmp_path)
    # Three workers were lost with it. The other's death may be one of them, before it was called.
    assert handled.pop((40, 41)) in (2, 3)
    assert (handled.pop((40,)), handled.pop((41,))) == (1, 1)
    assert handled[(10, 11)] >= 2
    # Of five processes that died, each took along what its other threads were at, and no more.
    assert sum(times - 1 for times in handled.values()) <= 1 + 5 * (engine.together - 1)


@on("dask")
def test_a_bad_item_is_found_by_workers_elsewhere(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    job = work.with_options(batch_size=8)
    with pytest.raises(JobFailed) as caught:
        engine.run(job, items(tmp_path, 64, bad=[13, 40]), checkpoint=place)
    assert {failure.key for failure in caught.value.result.failures} == {13, 40}
    oracle.each_once(place, set(range(64)) - {13, 40})
    # 8 batches, and two bad items of 8.
    assert len(calls(tmp_path)) <= 8 + 2 * 6


@on("dask")
def test_what_a_generator_gave_before_it_failed_stands(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobFailed) as caught:
        engine.run(one_by_one, items(tmp_path, 64, bad=[13, 40]), checkpoint=place)
    assert {failure.key for failure in caught.value.result.failures} == {13, 40}
    oracle.each_once(place, set(range(64)) - {13, 40})
    times = times_handled(tmp_path)
    assert {ids for ids, count in times.items() if count > 1} == {(13,), (40,)}


@on("ray")
def test_results_that_do_not_fit_are_parked_wherever_they_were_made(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    """One has a neighbour in its batch that fits, two fill a shard that is refused as a whole."""
    engine.run(work, items(tmp_path, 10), checkpoint=place)
    with pytest.raises(JobFailed) as caught:
        engine.run(work, items(tmp_path, 40, misfit=[13, 20, 21]), checkpoint=place)
    result = caught.value.result
    assert (result.completed, result.parked, result.failed) == (27, 3, 0)
    assert {item.key: item.rows for item in result.parked_items} == {
        key: ({"id": key, "pid": "no number"},) for key in (13, 20, 21)
    }
    assert set(times_handled(tmp_path).values()) == {1}
    oracle.each_once(place, set(range(40)) - {13, 20, 21})
    result = engine.run(
        work.with_options(json_columns=["pid"]), items(tmp_path, 40), checkpoint=place
    )
    assert (result.skipped, result.completed, result.parked) == (40, 0, 0)
    assert sum(times_handled(tmp_path).values()) == 20
    table = result.table()
    assert sorted(table["id"].to_pylist()) == list(range(40))
    assert {row["id"] for row in table.to_pylist() if row["pid"] == '"no number"'} == {13, 20, 21}


@on("dask")
def test_rows_of_a_table_are_handled_elsewhere_and_their_column_follows(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute(
        "CREATE TABLE rows (id INTEGER PRIMARY KEY, folder TEXT, run INTEGER, seconds REAL, "
        "do TEXT, processed_at TIMESTAMP)"
    )
    made = [(n, str(tmp_path), 1, 0.0, "bad" if n == 13 else None) for n in range(60)]
    database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, NULL)", made)
    database.commit()
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    table = SqlCheckpoint(url, table="rows", key="id", shards=place)

    with pytest.raises(JobFailed) as caught:
        engine.run(work, None, checkpoint=table)
    assert (caught.value.result.completed, caught.value.result.failed) == (59, 1)
    oracle.each_once(place, set(range(60)) - {13})
    assert os.getpid() not in {row["pid"] for row in oracle.rows(place)}
    undone = "SELECT id FROM rows WHERE processed_at IS NULL"
    assert database.execute(undone).fetchall() == [(13,)]

    # As after a death between a commit and the column.
    database.execute("UPDATE rows SET processed_at = NULL WHERE id < 20")
    database.execute("UPDATE rows SET do = NULL")
    database.commit()
    again = engine.run(work, None, checkpoint=table)
    assert (again.completed, again.skipped) == (1, 59)
    oracle.each_once(place, set(range(60)))
    assert database.execute(undone).fetchall() == []
    database.close()

    with pytest.raises(UsageError, match="shards="):
        engine.run(work, None, checkpoint=SqlCheckpoint(url, table="rows", key="id"))


@on("dask", never=("ray",))
def test_nothing_begins_after_a_stop_and_what_has_finished_is_committed(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    stopped: list[float] = []

    def stop() -> None:
        until(lambda: len(calls(tmp_path)) >= 10, 60)
        stopped.append(time.time())
        os.kill(os.getpid(), signal.SIGINT)

    # More task runs than there are workers: some wait in the scheduler.
    many = work.with_options(concurrency=8)
    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        engine.run(many, items(tmp_path, 400, seconds=0.3), checkpoint=place)
    begun = calls(tmp_path)
    assert max(call.time for call in begun) < stopped[0] + 1.0
    assert len(oracle.keys(place)) == 2 * len(begun), "what has begun was waited for"
    assert oracle.failed(place) == set()
    time.sleep(1.5)
    assert len(calls(tmp_path)) == len(begun)
