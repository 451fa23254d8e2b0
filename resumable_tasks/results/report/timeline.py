"""The commits of the last runs over the time of activity, summarised in few points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from resumable_tasks.checkpoint.directory.past import Past, PastRun

# A screen shows no more detail with more points or runs than these.
POINTS, FEWEST, RUNS, PAUSES = 160, 24, 40, 12
# The fewest commits per point, on average; fewer would only show the time of each commit.
_COMMITS = 3
# A stretch without a commit is a pause if it exceeds these seconds, this multiple of the usual
# distance, and this multiple of the slowest batch's duration.
_PAUSE_SECONDS, _USUAL, _SLOWEST = 3.0, 6.0, 1.5


@dataclass(frozen=True, slots=True)
class Span:
    """A run, from its claim to its last record; times are seconds since 1970."""

    number: int
    how: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Point:
    """The commits from ``start`` to ``end``, within one span.

    ``done`` and ``cost`` are the checkpoint's totals by then. ``latency`` and ``longest`` are the
    average and the longest seconds of a batch; None if no batch has ended.
    """

    span: int
    start: float
    end: float
    keys: float
    failures: float
    commits: int
    done: float
    cost: float
    latency: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """A stretch of a span in which nothing was committed."""

    span: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last runs. ``hidden`` earlier ones are left out; at their end ``before`` keys were done.

    ``by_hand`` are people's commands in between: the kind and the span before.
    """

    spans: Sequence[Span]
    points: Sequence[Point]
    pauses: Sequence[Pause]
    hidden: int
    before: float
    by_hand: Sequence[tuple[str, int]]

    def of_span(self, span: int) -> list[Point]:
        return [point for point in self.points if point.span == span]


def timeline(past: Past, hows: Sequence[str]) -> Timeline:
    """The timeline of the last runs. ``hows`` are the ends of all runs, in order."""
    hidden = max(0, len(past.runs) - RUNS)
    runs = past.runs[hidden:]
    spans = [
        Span(hidden + at + 1, hows[hidden + at], run.began, max(run.until, run.began))
        for at, run in enumerate(runs)
    ]
    first = runs[0].first if runs else 0
    before, cost = sum(past.commits["net"][:first]), sum(past.commits["cost"][:first])
    active = sum(span.end - span.start for span in spans) or 1.0
    count = runs[-1].last - first if runs else 0
    wanted = min(POINTS, max(count // _COMMITS, min(FEWEST, count)))
    points: list[Point] = []
    pauses: list[Pause] = []
    done = before
    for at, (run, span) in enumerate(zip(runs, spans, strict=True)):
        parts = max(1, round(wanted * (span.end - span.start) / active))
        for point in _points(past, run, at, span, parts, done, cost):
            done, cost = point.done, point.cost
            points.append(point)
        pauses += _pauses(past, run, at)
    pauses = sorted(sorted(pauses, key=lambda each: each.start - each.end)[:PAUSES], key=_start)
    by_hand = [
        (kind, sum(span.start <= time for span in spans) - 1)
        for kind, time in past.by_hand
        if spans and time >= spans[0].start
    ][-PAUSES:]
    return Timeline(spans, points, pauses, hidden, before, by_hand)


def _start(pause: Pause) -> float:
    return pause.start


def _points(
    past: Past, run: PastRun, at: int, span: Span, count: int, done: float, cost: float
) -> Iterator[Point]:
    """The span in ``count`` parts of equal length."""
    commits, index = past.commits, run.first
    each = (span.end - span.start) / count
    for part in range(count):
        end = span.end if part == count - 1 else span.start + (part + 1) * each
        to = index
        while to < run.last and (commits["time"][to] <= end or part == count - 1):
            to += 1
        some = slice(index, to)
        done += sum(commits["net"][some])
        cost += sum(commits["cost"][some])
        batches = sum(commits["batches"][some])
        yield Point(
            at,
            span.start + part * each,
            end,
            sum(commits["keys"][some]),
            sum(commits["failures"][some]),
            to - index,
            done,
            cost,
            sum(commits["seconds"][some]) / batches if batches else None,
            _longest(past, some) if batches else None,
        )
        index = to


def _longest(past: Past, some: slice) -> float:
    """The seconds of the slowest batch. A commit of one batch records only the sum."""
    found = past.commits
    each = zip(found["longest"][some], found["seconds"][some], found["batches"][some], strict=True)
    return max(longest or seconds / (batches or 1) for longest, seconds, batches in each)


def _pauses(past: Past, run: PastRun, at: int) -> Iterator[Pause]:
    moments = [run.began, *past.commits["time"][run.first : run.last], run.until]
    gaps = [after - before for before, after in pairwise(moments)]
    if len(gaps) < 4:
        return
    slowest = _longest(past, slice(run.first, run.last))
    least = max(_PAUSE_SECONDS, _USUAL * median(gaps), _SLOWEST * slowest)
    for before, gap in zip(moments, gaps, strict=False):
        if gap >= least:
            yield Pause(at, before, before + gap)
