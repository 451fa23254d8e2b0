"""Commands made of functions: a parameter is written once, in the signature, and told once.

The first parameter becomes the argument of the command, every other one an option; the help is
what the docstring says of it. A function with a parameter ``date`` also has ``--from`` and
``--to``, and is then called for one date after the other.
"""

from __future__ import annotations

import asyncio
import datetime
import inspect
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from flows import _prefect
from resumable_tasks import Interrupted, ResumableTasksError, scheduled_date

_EPILOG = (
    "Exit codes: 0 done, 1 items failed, 2 usage, 3 held by another run, 4 damaged checkpoint, "
    "5 budget used up, 75 interrupted: run the same command again to resume. "
    "Of several dates, the highest."
)
_NONE = type(None)
_WORDS = {int: "N", float: "NUMBER", str: "TEXT", datetime.date: "DATE"}
_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime.date: datetime.date.fromisoformat,
    list[str]: lambda text: text.split(","),
}
Given = dict[str, Any]


def partition_folder(out: str, date: datetime.date) -> str:
    """The folder that a date is published in: one partition of a dataset, named as Hive does."""
    return f"{out.rstrip('/')}/date={date}" if "://" in out else str(Path(out) / f"date={date}")


def command(
    fn: Callable[..., Any],
    flow: Callable[..., Any],
    *,
    unit: str = "items",
) -> click.Command:
    """Make the command that calls ``flow``, or with ``--local`` the plain ``fn``.

    Args:
        fn: returns a `RunResult`, perhaps as a coroutine.
        flow: what `as_flow` has made of it.
        unit: what an item is, for the report.
    """

    def main(local: bool, **given: Any) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
        for name in ("httpx", "httpx2", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)  # a line for each request
        in_flow = not local and _prefect.server() is not None
        call = _Call(flow if in_flow else fn, in_flow, unit)
        first, last = given.pop("first", None), given.pop("last", None)
        if first or last:
            sys.exit(_each_date(call, given, first, last))
        sys.exit(call(given)[0])

    parameters = _parameters(fn)
    parameters.append(_option("local", bool, False, "Without Prefect, even if a server is named."))
    if "date" in inspect.signature(fn).parameters:
        day = datetime.date
        parameters.append(
            _option("first", day, None, "First date of a range; with --to.", "--from")
        )
        parameters.append(
            _option("last", day, None, "Last date of a range; dates run one by one.", "--to")
        )
    text = (inspect.getdoc(fn) or "").partition("\nArgs:")[0]
    return click.Command("main", callback=main, params=parameters, help=text, epilog=_EPILOG)


@dataclass(frozen=True)
class _Call:
    """One call of the flow or the function, reported: its exit code, and a line about it."""

    fn: Callable[..., Any]
    in_flow: bool
    unit: str

    def __call__(self, given: Given) -> tuple[int, str]:
        try:
            if "date" in given:
                given["date"] = given["date"] or scheduled_date(tz=given["tz"])
            with _prefect.reached() if self.in_flow else nullcontext():
                result = self.fn(**given)
                if inspect.iscoroutine(result):
                    result = asyncio.run(result)
        except (ResumableTasksError, Interrupted) as error:
            logging.error("%s", error)  # noqa: TRY400 - the message says what to do; no traceback
            some = getattr(error, "result", None)
            if some is None:
                return error.exit_code, str(error).splitlines()[0]
            print(self._of(some, given), flush=True)
            return error.exit_code, _counts(some)
        if given.get("dry_run"):
            done = f"{result.skipped:,} are done; to do: {result.remaining}"
            print(f"{result.total:,} {self.unit}: {done}")
            return 0, done
        print(self._of(result, given))
        if "date" in given:
            print(f"published in {partition_folder(given['out'], given['date'])}", flush=True)
        elif "publish" in given:
            print(f"published in {given['publish']}", flush=True)
        return 0, _counts(result)

    def _of(self, result: Any, given: Given) -> str:
        date = f" on {given['date']}" if "date" in given else ""
        return f"{result.total:,} {self.unit}{date}: {_counts(result)}"


def _counts(result: Any) -> str:
    cost = f", for {result.cost:,.4g}" if result.cost is not None else ""
    return (
        f"{result.completed:,} handled now, {result.skipped:,} resumed, {result.failed:,} failed, "
        f"in {result.seconds:.1f} s{cost}"
    )


def _each_date(
    call: _Call, given: Given, first: datetime.date | None, last: datetime.date | None
) -> int:
    if given["date"] or not first or not last:
        raise click.UsageError("give a range of dates as --from DATE --to DATE, without --date")
    if last < first:
        raise click.UsageError(f"--from {first} is after --to {last}")
    table: list[tuple[datetime.date, int | None, str]] = []
    for day in range((last - first).days + 1):
        date = first + datetime.timedelta(days=day)
        # What makes a run end with "again later" (a signal, a full disk, an API that is down)
        # would meet the next date too. All else is this date's own.
        if table and table[-1][1] in (None, Interrupted.exit_code):
            table.append((date, None, "not started"))
        else:
            table.append((date, *call({**given, "date": date})))
    print("\ndate        exit  result")
    for date, code, text in table:
        print(f"{date}  {'–' if code is None else code:>4}  {text}")
    return max(code or 0 for _, code, _ in table)


def _parameters(fn: Callable[..., Any]) -> list[click.Parameter]:
    hints = typing.get_type_hints(fn)
    text = (inspect.getdoc(fn) or "").partition("Args:\n")[2]
    told = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.M))
    found: list[click.Parameter] = []
    for name, parameter in inspect.signature(fn).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        if found:
            words = " ".join(told.get(name, "").split())
            default = None if required else parameter.default
            found.append(_option(name, hints[name], default, words[:1].upper() + words[1:]))
            found[-1].required = required
        else:  # one that may be left out may also be given several times
            found.append(click.Argument([name], nargs=1 if required else -1, required=required))
    return found


def _option(name: str, hint: Any, default: Any, text: str, flag: str = "") -> click.Option:
    flag = flag or "--" + name.replace("_", "-")
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not _NONE]
    if kinds == [bool]:  # with a default of None the option says neither
        flags = flag if default is False else f"{flag}/--no-{flag[2:]}"
        return click.Option([flags, name], default=default, is_flag=True, help=text)
    return click.Option(
        [flag, name],
        type=_converter(kinds),
        default=default,
        show_default=default not in (None, ""),
        metavar="|".join(map(_metavar, kinds)),
        help=text,
    )


def _metavar(kind: Any) -> str:
    return "|".join(typing.get_args(kind)) if _is_literal(kind) else _WORDS.get(kind, "WORD,WORD")


def _converter(kinds: Sequence[Any]) -> Callable[[Any], Any]:
    """Converts to the first of the types that takes the text."""

    def convert(text: Any) -> Any:
        for kind in kinds:
            with suppress(ValueError):
                if _is_literal(kind):
                    return typing.get_args(kind)[typing.get_args(kind).index(text)]
                return _FROM_TEXT.get(kind, kind)(text)
        raise ValueError(text)

    return convert


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal
