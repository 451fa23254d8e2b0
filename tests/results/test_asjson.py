"""Results through JSON, as ``@flow(result_serializer="json")`` keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import ItemFailure, RunResult, UsageError, resumable_task
from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.results.shown import Failures
from resumable_tasks.runners.outcome import Failure

pydantic = pytest.importorskip("pydantic")


def through_json(result: RunResult) -> RunResult:
    import pydantic_core

    # As Prefect does it: a plain call to encode, the class to decode.
    found = pydantic.TypeAdapter(RunResult).validate_json(pydantic_core.to_json(result))
    assert isinstance(found, RunResult)
    return found


def test_a_result_comes_through_json_with_its_failures_and_its_rows(tmp_path: Path) -> None:
    def refuse_three(rows: list[Any]) -> list[Any]:
        return [ItemFailure((r["a"], r["b"]), "no") if r["b"] == 3 else r for r in rows]

    job = resumable_task(refuse_three, name="job", key=("a", "b"), tolerated_failures=1)
    result = job.run([{"a": "x", "b": n} for n in range(5)], checkpoint=tmp_path / "c")
    found = through_json(result)
    assert replace(found, positions=result.positions, reader=result.reader) == result
    assert found.failures[0].key == ("x", 3)
    assert found.table() == result.table()
    assert (repr(found), found._repr_html_()) == (repr(result), result._repr_html_())
    with pytest.raises(UsageError, match="in the process of the run"):
        found.table(only_given=True)


def test_a_result_without_files_comes_through_json_and_says_that_it_reads_no_rows() -> None:
    failure = Failure(1, "ValueError", "no", item={"id": 1}, rows=({"v": [1]},))
    counts = dict.fromkeys(("total", "completed", "skipped", "failed", "duplicates"), 1)
    result = RunResult(
        **{"job": "job", "checkpoint": "table", "run": "r", "seconds": 0.5, **counts},
        parked_items=Failures([failure]),
        remaining=Estimate(5, cost=0.5),
    )
    found = through_json(result)
    assert found == result
    with pytest.raises(UsageError, match="the rows of table are not in files"):
        found.table()
