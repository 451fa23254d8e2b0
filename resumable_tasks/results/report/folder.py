"""The page of the checkpoints below a place, with a calendar for a job's daily partitions."""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from urllib.parse import quote

from resumable_tasks.base.clock import now
from resumable_tasks.base.text import clean, without_secrets
from resumable_tasks.checkpoint.directory import finding
from resumable_tasks.checkpoint.directory.finding import Found
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.store.ahead import in_order
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import is_url, open_store
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.results.report import page

# The most checkpoints of one folder to read, and the most months to show.
MOST, MONTHS = 400, 15
_CHARS = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint in a list. ``name`` is its name in the folder, ``link`` leads to its report.

    Counts are None if they cannot be read; ``why`` is the reason.
    """

    name: str
    link: str
    status: str
    archived: bool = False
    job: str = ""
    completed: int | None = None
    failed: int | None = None
    parked: int | None = None
    rows: int | None = None
    bytes: int = 0
    cost: float = 0.0
    last_commit: str = ""
    why: str = ""
    day: date | None = None


@dataclass(frozen=True, slots=True)
class Month:
    """A month of a calendar: its name and weeks. A day has its entry, None outside the month."""

    name: str
    days: Sequence[tuple[int, Entry | None] | None]


@dataclass(frozen=True, slots=True)
class Group:
    """The checkpoints directly in one folder; ``hidden`` older ones were not read."""

    name: str
    entries: Sequence[Entry]
    months: Sequence[Month]
    hidden: int


def render(
    place: str | None,
    found: Iterable[Found],
    *,
    link: Callable[[Found], str] = lambda _: "",
    refresh: int = 0,
) -> str:
    """The page of these checkpoints below a place, by folder. Raises `UsageError` without Jinja2.

    ``link`` returns the link to a checkpoint's report; without it there are no links.
    """
    groups = list(_groups(place, found, link))
    return page.page(
        "folder.html",
        place="the working directory" if place is None else clean(without_secrets(place)),
        groups=groups,
        count=sum(len(group.entries) + group.hidden for group in groups),
        failed=sum(each.status not in _WELL for group in groups for each in group.entries),
        at=now(),
        refresh=refresh,
    )


_WELL = ("done", "running")


def below(found: Found, place: str | None) -> str:
    """The checkpoint's path relative to the place; empty for the place itself."""
    return found.place.removeprefix((place or "").rstrip("/")).strip("/")


def _groups(
    place: str | None, found: Iterable[Found], link: Callable[[Found], str]
) -> Iterable[Group]:
    by_folder: dict[str, list[tuple[str, Found]]] = {}
    for each in found:
        folder, _, name = below(each, place).rpartition("/")
        by_folder.setdefault(folder, []).append((name or each.place, each))
    for folder, there in sorted(by_folder.items()):
        last = sorted(there, key=lambda one: one[0])[-MOST:]
        places = [each.place for _, each in last]
        far = place is not None and is_url(place)
        described = in_order(_described, places, finding.AHEAD) if far else map(_described, places)
        entries = [
            _entry(name, each, link(each), what)
            for (name, each), what in zip(last, described, strict=True)
        ]
        name = clean(folder, _CHARS) or "Right here"
        yield Group(name, entries[::-1], _months(entries), len(there) - len(last))


def _described(place: str) -> Reader | Exception:
    try:
        reader = Reader(open_store(place) if is_url(place) else LocalStore(place))
        reader.examine()
        return reader
    except Exception as error:  # noqa: BLE001 - shown in its entry, so that the others appear
        return error


def _entry(name: str, found: Found, link: str, read: Reader | Exception) -> Entry:
    shown, day = clean(name, _CHARS), _day(name)
    if isinstance(read, Exception):
        status = "damaged" if isinstance(read, CheckpointDamaged) else "unusable"
        why = clean(without_secrets(str(read)), 300)
        return Entry(shown, link, status, found.archived, why=why, day=day)
    state = read.state
    return Entry(
        name=shown,
        link=link,
        status=read.status,
        archived=found.archived,
        job=clean(read.job, _CHARS),
        completed=len(state.done),
        failed=len(state.failures),
        parked=len(state.parked),
        rows=state.rows,
        bytes=state.bytes,
        cost=state.pace.cost,
        last_commit=read.last_commit or "",
        why=clean(str(read.damage), 300) if read.damage else "",
        day=day,
    )


def _day(name: str) -> date | None:
    """The day in a partition's name, which may also have an hour; None for other names."""
    try:
        return date.fromisoformat(name[:10]) if name[4:5] == "-" and name[7:8] == "-" else None
    except ValueError:
        return None


def _months(entries: Sequence[Entry]) -> list[Month]:
    """The last months with an entry; each day shows its worst entry."""
    days: dict[date, Entry] = {}
    for each in entries:
        if each.day is not None and not each.archived:
            before = days.get(each.day)
            if before is None or before.status in _WELL:
                days[each.day] = each
    if len(days) < 2:
        return []
    first, last = min(days), max(days)
    count = (last.year - first.year) * 12 + last.month - first.month + 1
    found = []
    for ago in range(min(count, MONTHS)):
        year, month = divmod(last.year * 12 + last.month - 1 - ago, 12)
        numbers = calendar.Calendar().itermonthdays(year, month + 1)
        found.append(
            Month(
                f"{calendar.month_name[month + 1]} {year}",
                [(day, days.get(date(year, month + 1, day))) if day else None for day in numbers],
            )
        )
    return found[::-1]


def quoted(place: str) -> str:
    """A relative place as a part of a URL."""
    return quote(place, safe="/", errors="surrogateescape")
