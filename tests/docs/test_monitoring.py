"""The tables of docs/monitoring.md against what OpenTelemetry is told of a run of every kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.sdk.metrics.export import Histogram, Sum

from resumable_tasks import ItemFailure, JobFailed, Retry, events, resumable_task
from resumable_tasks.engine import monitoring
from resumable_tasks.runners.bound import BoundBy
from tests.docs.pages import REPOSITORY
from tests.telemetry import Seen

SCHEMA = pa.schema([("id", pa.int64()), ("n", pa.int64()), ("cost", pa.float64())])


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the table that begins with this column."""
    text = (REPOSITORY / "docs/monitoring.md").read_text("utf-8")
    table = text.split(f"\n| {heading} | ")[1].split("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", cell))


def short(name: str) -> str:
    """A name as the page has it: all but the standard's begin with ours."""
    assert name == "error.type" or name.startswith("resumable_tasks."), name
    return name.removeprefix("resumable_tasks.")


def kind_of(data: Any) -> str:
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "up-down counter"
    return "histogram" if isinstance(data, Histogram) else "gauge"


@pytest.fixture
def told(seen: Seen, place: Path) -> dict[tuple[str, str], tuple[str, set[str]]]:
    """What a run that meets everything tells: kind and name, unit and attributes."""
    found: dict[tuple[str, str], tuple[str, set[str]]] = {}

    def note_metrics() -> None:
        for metric in seen.metrics():
            attributes = {
                short(name) for point in metric.data.data_points for name in point.attributes
            }
            key = kind_of(metric.data), short(metric.name)
            found[key] = metric.unit, attributes | found.get(key, ("", set()))[1]

    def handler(rows: list[Any]) -> list[Any]:
        if len(rows) > 1 and rows[0]["id"] == 2:
            raise ConnectionError("not these together")
        note_metrics()
        return [
            ItemFailure(0, "bad") if row["id"] == 0 else {**row, "n": row.get("n"), "cost": 1.0}
            for row in rows
        ]

    job = resumable_task(
        *(handler,),
        name="job",
        key="id",
        batch_size=2,
        retries=Retry(1, delay=0),
        schema=SCHEMA,
        cost="cost",
    ).with_options(rate_limit="100/hour", concurrency=1)
    items: list[Any] = [{"id": number} for number in range(6)]
    job.with_options(tolerated_failures=9).run([items[5]], checkpoint=place)
    with pytest.raises(JobFailed):
        job.run([*items, {"id": 6, "n": "no number"}], checkpoint=place)
    observer = monitoring.Observer("job")
    observer(events.RunStarted("job", "c", "r", found=0, failed=0, expected=None, epoch=1))
    bound = BoundBy("latency", "latency: calls took 90 %", {"handler": 0.9})
    progress = events.Progress(0, 0, 0, None, 60.0, bound_by=bound)
    observer(events.Progressed("job", "c", "r", progress))
    note_metrics()
    observer(events.RunFinished("job", "c", "r", how="done", progress=progress))
    for span in seen.spans.get_finished_spans():
        assert span.name.endswith(" job")
        key = "span", span.name.removesuffix(" job")
        assert span.attributes is not None
        attributes = {short(name) for name in span.attributes}
        found[key] = "", attributes | found.get(key, ("", set()))[1]
    return found


def test_the_page_has_each_span_and_metric_with_its_attributes(told: Any) -> None:
    page = {
        (what, names(name).pop()): (unit.strip("`–"), names(attributes))
        for what, name, unit, attributes, *_ in rows_of("what")
    }
    assert page == told


def test_the_page_tells_each_attribute(told: Any) -> None:
    told_of = set().union(*(attributes for _, attributes in told.values()))
    assert set().union(*(names(cells[0]) for cells in rows_of("attribute"))) == told_of
