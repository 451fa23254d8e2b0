"""What OpenTelemetry was told in this process: the SDK's exporters that keep it in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Seen:
    """What the providers of this process were told."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()

    def of(self, what: str) -> list[ReadableSpan]:
        spans = self.spans.get_finished_spans()
        return [span for span in spans if span.name.partition(" ")[0] == what]

    def metrics(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        scopes = [scope for each in data.resource_metrics for scope in each.scope_metrics]
        return [metric for scope in scopes for metric in scope.metrics]

    def points(self) -> dict[str, list[Any]]:
        return {
            metric.name.removeprefix("resumable_tasks."): list(metric.data.data_points)
            for metric in self.metrics()
        }

    def sums(self, name: str, by: str = "resumable_tasks.outcome") -> dict[Any, float]:
        """The values of a counter by one of its attributes, or how often a histogram was told."""
        found: Counter[Any] = Counter()
        for point in self.points().get(name, ()):
            found[point.attributes.get(by)] += getattr(point, "value", getattr(point, "count", 0))
        return dict(found)


@contextmanager
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Providers as a program sets them; the API has no way to take them back."""
    found = Seen()
    provider = MeterProvider([found.reader])
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", found.tracer_provider)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", provider)
    yield found
    provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int]:
    assert span.parent is not None
    return span.parent.trace_id, span.parent.span_id
