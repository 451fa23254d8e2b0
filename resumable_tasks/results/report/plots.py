"""Plots of a timeline as inline SVG. Classes refer to colours of the page's style.

The axis shows the time in which runs were active; the time between two runs is a narrow gap. Texts
are numbers and times; anything else is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from math import ceil, floor, log10

from resumable_tasks.base.text import duration
from resumable_tasks.results.report.timeline import Point, Timeline

WIDE, NARROW = 1000, 340
_MILLISECOND = 0.001
_GAP, _LEAST, _FOOT, _TICK = 16.0, 4.0, 30.0, 64.0
# The possible distances of two ticks, in seconds.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200)
_DAY = 86_400
_MARKS = {
    "died": "died",
    "interrupted": "stopped",
    "spent": "budget spent",
    "error": "ended by an error",
}
_NICE = (1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 5.0, 6.0, 8.0, 10.0)
_HANDS = {
    "redo": "redo",
    "repair": "repair",
    "release": "retry",
    "submitted": "attach",
    "withdrawn": "withdraw",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps times to positions: the start of each span, and the width of a second in it."""

    left: float
    right: float
    starts: Sequence[tuple[float, float, float]]

    def at(self, span: int, time: float) -> float:
        left, began, scale = self.starts[span]
        return left + (time - began) * scale

    def edges(self, timeline: Timeline, span: int) -> tuple[float, float]:
        left, began, scale = self.starts[span]
        return left, left + max(_LEAST, (timeline.spans[span].end - began) * scale)


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot above the common axis: its title, its height, and its drawing function."""

    title: str
    height: float
    draw: Callable[[Timeline, Axis, Scale], Iterator[str]]
    top: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to heights: from 0 at ``bottom`` to ``most`` at ``top``."""

    top: float
    bottom: float
    most: float

    def at(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, value / self.most))


def plot(timeline: Timeline, panels: Sequence[Panel], width: int = WIDE) -> str:
    """Draw all panels above one axis, as one SVG of this width."""
    axis = _axis(timeline, width)
    parts, y, named = [], 0.0, width == WIDE
    for panel in panels:
        top = y + (26 if y else 42)  # the first panel has labels above it
        scale = Scale(top, top + panel.height, _nice(panel.top))
        parts += [
            *_bands(timeline, axis, scale),
            *_lines(axis, scale, panel.unit),
            f'<text class="title" x="0" y="{y + 14:.0f}">{escape(panel.title)}</text>',
            *panel.draw(timeline, axis, scale),
            *_ends(timeline, axis, scale),
            *(() if y else _words(timeline, axis, scale, named=named)),
        ]
        y = scale.bottom + 12
    height = y + _FOOT + (14 if named else 0)
    label = escape(", ".join(panel.title for panel in panels), quote=True)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{label}">'
        + "".join([*parts, *_ticks(timeline, axis, y, named=named)])
        + "</svg>"
    )


def panels(
    timeline: Timeline, expected: int | None, budget: float | None, *, latency: bool
) -> list[Panel]:
    """The panels for this timeline, without those that have nothing to show."""
    points = timeline.points
    most = max([point.done for point in points], default=0.0)
    rate = max(map(_rate, points), default=0.0)
    found = [
        Panel("Items completed", 150, _done(expected), max(most, expected or 0)),
        Panel("Items a second (red: failed)", 90, _throughput, rate, "/s"),
        Panel("Commits a minute", 56, _commits, max(map(_commit_rate, points), default=0.0)),
    ]
    slow = max([point.longest or 0.0 for point in points], default=0.0)
    if latency and slow >= _MILLISECOND:
        title = "Seconds a batch: on average, and the slowest"
        found.append(Panel(title, 72, _latency, slow, " s"))
    cost = max([point.cost for point in points], default=0.0)
    if cost:
        found.append(Panel("Cost", 72, _cost(budget), max(cost, budget or 0.0)))
    return found


def _axis(timeline: Timeline, width: int) -> Axis:
    left, right = (52.0, width - 8.0) if width > 500 else (44.0, width - 4.0)
    count = len(timeline.spans)
    gap = min(_GAP, 0.25 * (right - left) / max(1, count - 1))
    room = max(10.0, right - left - gap * (count - 1) - _LEAST * count)
    active = sum(span.end - span.start for span in timeline.spans) or 1.0
    at, starts = left, []
    for span in timeline.spans:
        seconds = span.end - span.start
        wide = _LEAST + room * seconds / active
        starts.append((at, span.start, wide / seconds if seconds else 0.0))
        at += wide + gap
    return Axis(left, right, starts)


def _bands(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
    high = scale.bottom - scale.top
    for at in range(len(timeline.spans)):
        left, right = axis.edges(timeline, at)
        yield _box("band", left, scale.top, right - left, high)
    for pause in timeline.pauses:
        left, right = axis.at(pause.span, pause.start), axis.at(pause.span, pause.end)
        tip = f"nothing was committed for {duration(pause.end - pause.start)}"
        yield _box("pause", left, scale.top, right - left, high, tip)


def _lines(axis: Axis, scale: Scale, unit: str) -> Iterator[str]:
    """Horizontal lines, with their values at the left."""
    steps = 4 if scale.bottom - scale.top > 120 else 2
    for part in range(steps + 1):
        value = scale.most * part / steps
        y = scale.at(value)
        line = "base" if not part else "grid"
        yield f'<path class="{line}" d="M{axis.left:.1f} {y:.1f}H{axis.right:.1f}"/>'
        text = short(value) + (unit if value else "")
        yield _text("tick", axis.left - 6, y + 4, "end", text)


def _ends(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
    """Vertical lines where runs ended badly, and where people changed the work to do."""
    for at, span in enumerate(timeline.spans):
        if span.how in _MARKS:
            tip = f"run {span.number} {_MARKS[span.how]} at {clock(span.end, 1)}"
            yield _line("end", axis.edges(timeline, at)[1], scale, tip)
    for kind, at in timeline.by_hand:
        yield _line("hand", axis.edges(timeline, at)[1] + 4, scale, _HANDS[kind])


def _line(kind: str, x: float, scale: Scale, tip: str) -> str:
    drawn = f"M{x:.1f} {scale.top:.1f}V{scale.bottom:.1f}"
    return f'<path class="{kind}" d="{drawn}"><title>{escape(tip)}</title></path>'


def _words(timeline: Timeline, axis: Axis, scale: Scale, *, named: bool) -> Iterator[str]:
    """Labels of the lines and the hatched areas, above and in the first panel."""
    free = 0.0
    for at, span in enumerate(timeline.spans):
        word = _MARKS.get(span.how)
        if word is None:
            continue
        x, y = axis.edges(timeline, at)[1], scale.top - 9
        yield f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'
        if named and x - 12 - 7 * len(word) > free:
            yield _text("bad", x - 9, y + 4, "end", word)
            free = x + 4
    for pause in timeline.pauses:
        left, right = axis.at(pause.span, pause.start), axis.at(pause.span, pause.end)
        text = ("paused " if named else "") + duration(pause.end - pause.start)
        if right - left > 7 * len(text):
            yield _text("soft", (left + right) / 2, scale.bottom - 10, "middle", text)


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _ticks(timeline: Timeline, axis: Axis, y: float, *, named: bool) -> Iterator[str]:
    """Times below the axis, as many as fit, and the numbers of the runs."""
    scale = max((scale for _, _, scale in axis.starts), default=1.0) or 1.0
    each = [*_STEPS, *(_DAY * n for n in (1, 2, 5, 10, 30, 90, 365))]
    step = next((step for step in each if step * scale >= _TICK), each[-1])
    free, before = -1e9, ""
    for at, span in enumerate(timeline.spans):
        left, right = axis.edges(timeline, at)
        label = f"run {span.number}, resumed" if _resumes(timeline, at) else f"run {span.number}"
        label = label if right - left > 7 * len(label) else f"run {span.number}"
        if named and right - left > 44:
            yield _text("soft", (left + right) / 2, y + 34, "middle", label)
        for time in (span.start, *_between(span.start, span.end, step)):
            x = axis.at(at, time) if time > span.start else left
            text, day = clock(time, step), clock(time, _DAY)
            text = f"{day} {text}" if time == span.start and day != before and step < _DAY else text
            wide = 6.6 * len(text)
            # The first label is to the right of its position, so that it is not cut off.
            anchor, begin = ("start", x) if time == span.start else ("middle", x - wide / 2)
            if begin < free or begin + wide > axis.right + 4:
                continue
            yield f'<path class="base" d="M{x:.1f} {y - 12:.1f}v5"/>'
            yield _text("tick", x, y + 8, anchor, text)
            free, before = begin + wide + 10, day


def _resumes(timeline: Timeline, at: int) -> bool:
    """True for a run that resumes the one before it."""
    return at > 0 and timeline.spans[at - 1].how in _MARKS


def _between(start: float, end: float, step: int) -> list[float]:
    first = ceil(start / step + 0.2) * step
    return [first + step * n for n in range(min(60, max(0, floor((end - first) / step) + 1)))]


def clock(time: float, step: float) -> str:
    """A time in UTC, as precise as ticks ``step`` seconds apart need."""
    form = "%H:%M:%S" if step < 60 else "%H:%M" if step < _DAY else "%d %b"
    try:
        return datetime.fromtimestamp(time, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return "?"


def _done(expected: int | None) -> Callable[[Timeline, Axis, Scale], Iterator[str]]:
    def draw(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
        yield from _area(timeline, axis, scale, timeline.before, lambda point: point.done)
        if expected:
            yield _limit(axis, scale, expected, f"of {expected:,} items")

    return draw


def _cost(budget: float | None) -> Callable[[Timeline, Axis, Scale], Iterator[str]]:
    def draw(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
        before = timeline.points[0].cost if timeline.hidden and timeline.points else 0.0
        yield from _area(timeline, axis, scale, before, lambda point: point.cost)
        if budget:
            yield _limit(axis, scale, budget, f"budget {budget:,.4g}")

    return draw


def _limit(axis: Axis, scale: Scale, value: float, text: str) -> str:
    y = scale.at(value)
    return f'<path class="limit" d="M{axis.left:.1f} {y:.1f}H{axis.right:.1f}"/>' + (
        _text("soft", axis.right - 6, y - 5, "end", text)
        if y > scale.top + 16
        # There is no room above, and cumulative curves are low at the left.
        else _text("soft", axis.left + 6, y + 14, "start", text)
    )


def _area(
    timeline: Timeline,
    axis: Axis,
    scale: Scale,
    before: float,
    value: Callable[[Point], float],
) -> Iterator[str]:
    """The cumulative value at each point, run after run."""
    last = before
    for at in range(len(timeline.spans)):
        left, right = axis.edges(timeline, at)
        line = [f"M{left:.1f} {scale.at(last):.1f}"]
        for point in timeline.of_span(at):
            last = value(point)
            line.append(f"L{min(right, axis.at(at, point.end)):.1f} {scale.at(last):.1f}")
        line.append(f"L{right:.1f} {scale.at(last):.1f}")
        drawn = "".join(line)
        yield f'<path class="area" d="{drawn}V{scale.bottom:.1f}H{left:.1f}Z"/>'
        yield f'<path class="line" d="{drawn}"/>'


def _throughput(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
    for point, left, wide in _placed(timeline, axis):
        seconds = point.end - point.start or 1.0
        good, bad = point.keys / seconds, point.failures / seconds
        tip = (
            f"{clock(point.start, 1)}: {point.keys:,.0f} completed, {point.failures:,.0f} failed, "
            f"{short(good + bad)}/s"
        )
        top = scale.at(good)
        yield _box("bar", left, top, wide, scale.bottom - top, tip)
        if bad:
            over = scale.at(good + bad)
            yield _box("failed", left, over, wide, max(1.0, top - over), tip)


def _commits(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
    for point, left, wide in _placed(timeline, axis):
        top = scale.at(_commit_rate(point))
        tip = f"{clock(point.start, 1)}: {point.commits:,} commits"
        yield _box("plain", left, top, wide, scale.bottom - top, tip)


def _latency(timeline: Timeline, axis: Axis, scale: Scale) -> Iterator[str]:
    for point, left, wide in _placed(timeline, axis):
        if point.latency is None or point.longest is None:
            continue
        top, mean = scale.at(point.longest), scale.at(point.latency)
        both = f"{short(point.latency)} s on average, {short(point.longest)} s at most"
        tip = f"{clock(point.start, 1)}: {both}"
        yield _box("range", left, top, wide, max(1.0, scale.bottom - top), tip)
        yield _box("mean", left, mean - 1, wide, 2.0, tip)


def _placed(timeline: Timeline, axis: Axis) -> Iterator[tuple[Point, float, float]]:
    """The points with commits, each with its left edge and width."""
    for point in timeline.points:
        if point.commits:
            left, right = axis.at(point.span, point.start), axis.at(point.span, point.end)
            wide = max(right - left, _LEAST if right == left else 0.0)
            yield point, left, max(0.8, wide - min(1.0, wide / 4))


def _box(kind: str, x: float, y: float, width: float, height: float, tip: str = "") -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
        f"{inner}</rect>"
    )


def _rate(point: Point) -> float:
    return (point.keys + point.failures) / (point.end - point.start or 1.0)


def _commit_rate(point: Point) -> float:
    return 60 * point.commits / (point.end - point.start or 1.0)


def _nice(most: float) -> float:
    """The next higher value whose half and quarter are round."""
    if not 0 < most < float("inf"):
        return 1.0
    power: float = 10.0 ** floor(log10(most))
    return next(n for n in _NICE if n * power >= most * 0.9999) * power


def short(value: float) -> str:
    """``0.25``, ``17``, ``4.2k``, ``1.5M``"""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
