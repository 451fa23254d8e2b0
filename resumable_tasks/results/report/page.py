"""Renders facts as HTML by Jinja2, with every value escaped and without any script."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.text import clean, duration, shell_words, size
from resumable_tasks.errors import UsageError
from resumable_tasks.results.report import plots
from resumable_tasks.results.report.facts import OF_LANES, Facts

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

PIP = 'pip install "resumable-tasks[report]"'
_SAID = {
    "failed": "items failed",
    "spent": "budget used up",
    "error": "ended by an error",
    "incomplete": "incomplete",
}


def render(facts: Facts, *, refresh: int = 0, back: str = "") -> str:
    """The report of one checkpoint as a self-contained page.

    ``refresh``: seconds after which a browser loads it again. ``back``: a link to a list. Raises
    `UsageError` without Jinja2.
    """
    check()
    from markupsafe import Markup

    drawn = plots.panels(
        facts.timeline,
        facts.expected,
        facts.budget,
        latency=any(point.latency is not None for point in facts.timeline.points),
    )
    bounds = [run for run in facts.runs if run.bound or run.shares]
    there = {name for run in bounds for name, _ in run.shares}
    colours = {name: at for at, name in enumerate(OF_LANES.values()) if name in there}
    return page(
        "report.html",
        f=facts,
        at=facts.at,
        wide=Markup(plots.plot(facts.timeline, drawn, plots.WIDE)),  # noqa: S704 - escaped there
        narrow=Markup(plots.plot(facts.timeline, drawn, plots.NARROW)),  # noqa: S704
        died=any(span.how == "died" for span in facts.timeline.spans),
        bounds=bounds,
        colours=colours,
        refresh=refresh,
        back=back,
    )


def check() -> None:
    """Raise `UsageError`, with the pip command, if Jinja2 is missing."""
    _environment()


def page(name: str, **values: Any) -> str:
    """Render the template of this name. Raises `UsageError` without Jinja2."""
    return str(_environment().get_template(name).render(**values))


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UsageError(
            f"a report needs Jinja2, which is not installed: {error}", remedy=f"Run: {PIP}"
        ) from error
    from markupsafe import Markup

    found = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["style"] = Markup(_text("style.css"))  # noqa: S704 - our own file
    found.filters |= {
        "clean": lambda text: clean(str(text), 300),
        "command": lambda url, *words: shell_words("resumable", words[0], url, *words[1:]),
        "commands": _commands,
        "duration": lambda seconds: duration(seconds).replace(" ", "\u00a0"),
        "kind": lambda word: re.sub(r"[^a-z]+", "-", word.lower()),
        "moment": _moment,
        "money": lambda value: f"{value:,.4g}",
        "part": lambda value, whole: f"{min(100.0, 100 * value / whole):.2f}" if whole else "0",
        "percent": lambda share: f"{100 * share:.0f} %",
        "said": lambda word: _SAID.get(word, word),
        "seconds_moment": _seconds_moment,
        "size": size,
    }
    return found


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _commands(text: str) -> Markup:
    """A sentence as HTML, with backquoted parts as code."""
    from markupsafe import Markup

    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts)
    )


def _moment(time: str) -> str:
    """``2026-11-28 21:36:18`` for an ISO 8601 time; any other text unchanged."""
    try:
        return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, TypeError, OverflowError):
        return clean(str(time), 40)


def _seconds_moment(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"
