"""`flow.visualize()` draws a job as one node, and runs none of it."""

from __future__ import annotations

import asyncio
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import flow_state, resumable_task, scheduled_date

pytest.importorskip("prefect")
from prefect import flow, task

handled: list[Any] = []


@resumable_task(key="id")
def classify(items: list[Any]) -> list[Any]:
    handled.extend(items)
    return items


@task
def load() -> list[Any]:
    return [{"id": 1}]


@task
def report(run: Any) -> None:
    handled.append(run)


def whole(place: Path, published: Path) -> Any:
    run = classify.run(load(), checkpoint=place, partition=scheduled_date())
    assert (run.total, run.table().num_rows, run.dataset().count_rows()) == (0, 0, 0)
    assert run.publish(published, ordered=True).rows == 0
    report(run)
    return flow_state(run)


async def whole_async(place: Path, published: Path) -> Any:
    run = await classify.arun([{"id": 1}], checkpoint=place)
    run.publish(published)
    return run


def drawn_by(fn: Any, *given: Any) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn: Any = flow(fn, validate_parameters=False)
        drawing = drawn.generate_mermaid_graph(*given)
    return set(re.findall(r"^    (.*)", drawing, re.M))


def test_a_picture_of_a_flow_has_one_node_for_a_job_and_runs_nothing(tmp_path: Path) -> None:
    handled.clear()
    assert drawn_by(whole, tmp_path / "place", tmp_path / "published") == {
        'load_0["load-0"]',
        'classify_0["classify-0"]',
        'report_0["report-0"]',
        "load_0 --> classify_0",
        "classify_0 --> report_0",
    }
    assert drawn_by(whole_async, tmp_path / "place", tmp_path / "published") == {
        'classify_0["classify-0"]'
    }
    assert not handled
    assert not list(tmp_path.iterdir())
    assert asyncio.run(classify.arun([{"id": 1}], checkpoint=tmp_path / "c")).completed == 1
