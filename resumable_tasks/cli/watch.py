"""`watch`: a run followed from outside, by reading only what it adds to the journal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import click

from resumable_tasks.base.text import clean, duration
from resumable_tasks.base.text import rate as per_second
from resumable_tasks.checkpoint.directory.reader import Reader, described
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import output
from resumable_tasks.cli.look import checkpoint_argument
from resumable_tasks.cli.numbers import Number

# The rate is that of the last minute: it shows when a run has slowed down.
_RATE_SECONDS = 60.0
_DAY = 86_400.0


@click.command(
    epilog="\b\nExamples:\n  resumable watch checkpoints/classify"
    "\n  resumable watch checkpoints/classify --interval 30 --json >> progress.jsonl",
)
@checkpoint_argument
@click.option(
    "--interval",
    type=Number(0.05, _DAY),
    default=2.0,
    show_default=True,
    help="Seconds between updates.",
)
@click.option("--once", is_flag=True, help="Show the state once, and do not wait.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per update.")
@click.pass_context
def watch(
    context: click.Context, checkpoint: str, interval: float, once: bool, as_json: bool
) -> None:
    """Follow the run at work on CHECKPOINT until it ends.

    Ends at once if there is none. Exits with the codes of `status`: for how the run ended, or with
    --once for its current state. Ctrl-C ends the watching, not the run.
    """
    reader = Reader(open_store(checkpoint))
    rate = Rate()
    with _display(reader, as_json) as show:
        reader.examine()
        while True:
            rate.add(time.monotonic(), len(reader.state.done))
            going_on = show(rate.value) and reader.status == "running"
            if once or not going_on:
                break
            time.sleep(interval)
            reader.follow()
            if reader.status != "running":
                reader.examine()  # its end, with all that only a full look shows
    if reader.damage is not None:
        raise reader.damage
    if not as_json and reader.status != "running":
        output.lines([f"next: {clean(reader.next)}"])
    context.exit(reader.exit_code)


class Rate:
    """Completed items a second, over the last minute of watching; None while unknown."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, completed: int) -> None:
        self._seen.append((at, completed))
        while len(self._seen) > 2 and at - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()

    @property
    def value(self) -> float | None:
        (began, before), (at, now) = self._seen[0], self._seen[-1]
        return (now - before) / (at - began) if at > began else None


Show = Callable[[float | None], bool]


@contextlib.contextmanager
def _display(reader: Reader, as_json: bool) -> Iterator[Show]:
    """Return what shows one look; it returns False once nobody reads any more."""
    if as_json:

        def show_json(rate: float | None) -> bool:
            text = output.dumps(_fields(reader, rate)) + "\n"
            return output.write(text, utf8=True)

        yield show_json
    elif sys.stdout.isatty():
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        spinner = Spinner("dots")
        with Live(spinner, refresh_per_second=8) as live:

            def show_live(rate: float | None) -> bool:
                line = Text(_line(reader, rate))
                if reader.status == "running":
                    spinner.update(text=line)
                else:
                    live.update(line)
                return True

            yield show_live
    else:
        yield lambda rate: output.write(_line(reader, rate) + "\n")


def _fields(reader: Reader, rate: float | None) -> dict[str, Any]:
    return {
        "job": reader.manifest.job or None,
        "status": reader.status,
        "run": reader.last.claim.run if reader.last else None,
        "completed": len(reader.state.done),
        "completed_in_run": _in_run(reader),
        "expected": _expected(reader),
        "failed": len(reader.state.failures),
        "parked": len(reader.state.parked),
        **described(reader.state.out),
        "rows": reader.state.rows,
        "rate": None if rate is None else round(rate, 3),
        "last_commit": reader.last_commit,
    }


def _in_run(reader: Reader) -> int:
    return len(reader.state.done) - reader.last.found if reader.last else 0


def _expected(reader: Reader) -> int | None:
    """The number of items that the run expected when it began, if it knew."""
    expected = reader.last.claim.info.get("expected") if reader.last else None
    return expected if isinstance(expected, int) else None


def _line(reader: Reader, rate: float | None) -> str:
    """``classify: running, 1,713 completed (113 in this run), 3 failed, 42/s, last commit …``"""
    expected = _expected(reader)
    job = clean(reader.job)
    of = f"/{expected:,}" if expected is not None else ""
    text = (
        f"{job}: {reader.status}, {len(reader.state.done):,}{of} completed "
        f"({_in_run(reader):,} in this run), {len(reader.state.failures):,} failed"
    )
    if reader.state.parked:
        text += f", {len(reader.state.parked):,} parked"
    if len(reader.state.out):
        text += f", {reader.state.out.counts}"
    if reader.status == "running":
        if rate is not None:
            text += f", {per_second(rate)}"
            if rate and expected is not None and expected > len(reader.state.done):
                text += f", {duration((expected - len(reader.state.done)) / rate)} left"
        seconds = output.age(reader.last_commit) if reader.last_commit else None
        if seconds is not None and seconds > 0:
            text += f", last commit {duration(seconds)} ago"
    return text
