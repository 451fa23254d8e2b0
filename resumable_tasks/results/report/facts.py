"""The facts of one checkpoint that its report shows, also while runs are active."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resumable_tasks.base.clock import now
from resumable_tasks.base.text import clean, without_secrets
from resumable_tasks.checkpoint.directory import (
    notes,
    outstanding,
    past,
    schemas,
    shards,
    snapshots,
)
from resumable_tasks.checkpoint.directory.notes import Note
from resumable_tasks.checkpoint.directory.past import Past, PastRun
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.items import keys
from resumable_tasks.items.submission import Submission
from resumable_tasks.results.report.timeline import Timeline, timeline
from resumable_tasks.runners.outcome import Failure

# The most of each to show; the rest is counted.
EXAMPLES, KINDS, PARKED, ROWS, COLUMNS, RUNS, OUT = 3, 12, 8, 5, 40, 50, 50
KEY_CHARS, MESSAGE_CHARS, CELL_CHARS, TRACE_CHARS = 80, 300, 120, 4_000
# A larger shard is not read for a few rows.
_SHARD_BYTES = 64 << 20
# A smaller share of a run's time is not shown.
_SHARE = 0.005
OF_LANES = {
    "handler": "in the handler",
    "service": "with the service",
    "told": "told to wait",
    "rate": "held back by rate_limit=",
    "adaptive": "fewer calls at once",
    "retries": "before retries",
    "write": "writing rows",
    "idle": "idle",
}
_OF_RUN = {
    "source": "reading items",
    "commit": "commits",
    "down": "the service was down",
    "spare": "idle at the end, with no items left",
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run. ``how`` is the word for its end, "running", or "died" if it recorded none.

    ``bound`` is the sentence about what it waited for. ``shares`` are shares of the time of all
    concurrent batch slots, ``of_run`` shares of the run's own time.
    """

    number: int
    run: str
    where: str
    how: str
    began: float
    seconds: float
    completed: int
    failed: int
    parked: int
    commits: int
    cost: float
    bound: str = ""
    shares: Sequence[tuple[str, float]] = ()
    of_run: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A failed or parked item for display: shortened, and without control characters."""

    key: str
    message: str
    attempts: int
    time: str
    rows: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """The items that failed with one class of error."""

    error: str
    count: int
    examples: Sequence[Example]
    traceback: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the results."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """The schema of the results and a few of their rows; ``why_none`` says why there are none."""

    columns: Sequence[Column] = ()
    hidden: int = 0
    sample: Sequence[Sequence[str]] = ()
    why_none: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts and sizes of the checkpoint's parts."""

    rows: int
    shards: int
    shard_bytes: int
    records: int
    journal_bytes: int
    commits: int
    keys_each: float
    snapshots: int


@dataclass(frozen=True, slots=True)
class OutThere:
    """A submission with a service."""

    token: str
    state: str
    items: int
    since: str
    cost: float | None
    handle: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one checkpoint at one moment. Counts are items."""

    job: str
    version: str
    url: str
    status: str
    next: str
    created: str
    at: str
    damage: str
    expected: int | None
    completed: int
    failed: int
    quarantined: int
    parked: int
    without_key: str
    runs: Sequence[RunFacts]
    runs_hidden: int
    kinds: Sequence[Kind]
    kinds_hidden: int
    parked_examples: Sequence[Example]
    out: str
    out_items: int
    submissions: Sequence[OutThere]
    submissions_hidden: int
    cost: float
    cost_each: float | None
    budget: float | None
    remaining: Estimate | None
    timeline: Timeline
    sizes: Sizes
    rows: Rows
    published: Sequence[Note]


class Source:
    """The source of one checkpoint's facts; later looks read only what is new.

    ``opened`` returns the store of the place, as it is now.
    """

    def __init__(self, opened: Callable[[], Store]) -> None:
        self._opened = opened
        self._kept: tuple[Reader, Past] | None = None

    def read(self) -> Facts:
        """The current facts.

        Damage is a fact too; the facts then cover what comes before it. Raises `UsageError` if
        there is no checkpoint, `CheckpointDamaged` if nothing of it can be read.
        """
        fresh = Reader(self._opened()), Past()
        kept, self._kept = self._kept, None
        if kept is not None and kept[0].manifest.id == fresh[0].manifest.id:
            repairs = kept[1].repairs
            # Not after a repair, which can change records that were read, nor with damage.
            if _read_on(*kept) is None and kept[1].repairs == repairs:
                self._kept = kept
                return _facts(*kept, None)
        damage = _read_on(*fresh)
        self._kept = fresh if damage is None else None
        return _facts(*fresh, damage)


def read(store: Store) -> Facts:
    """The facts of the checkpoint in this store, as `Source.read` gives them."""
    return Source(lambda: store).read()


def _read_on(reader: Reader, history: Past) -> CheckpointDamaged | None:
    """Read what is new. Returns the damage found, if any."""
    reader.examine()
    try:
        past.read(reader.store, history)
    except CheckpointDamaged as error:
        return reader.damage or error
    return reader.damage


def _facts(reader: Reader, history: Past, damage: CheckpointDamaged | None) -> Facts:
    state, alive = reader.state, reader.holder is not None
    runs = [_run(history, at, alive) for at in range(len(history.runs))]
    kinds = _kinds(state.failures.values())
    quarantined = len(state.quarantined)
    return Facts(
        job=clean(reader.job, KEY_CHARS),
        version=clean(str(state.version or reader.manifest.version), 40),
        url=clean(without_secrets(reader.store.url)),
        status=reader.status,
        next=clean(reader.next),
        created=clean(reader.manifest.created, 40),
        at=now(),
        damage=clean(str(damage), 4 * MESSAGE_CHARS) if damage else "",
        expected=state.expected,
        completed=len(state.done),
        failed=len(state.failures),
        quarantined=quarantined,
        parked=len(state.parked),
        without_key=str(reader.keyless) if reader.keyless.there else "",
        runs=runs[-RUNS:],
        runs_hidden=max(0, len(runs) - RUNS),
        kinds=kinds[:KINDS],
        kinds_hidden=max(0, len(kinds) - KINDS),
        parked_examples=[_example(each) for each in list(state.parked.values())[:PARKED]],
        out=str(state.out.counts) if len(state.out) else "",
        out_items=state.out.items,
        submissions=[_submission(each) for each in list(state.out)[:OUT]],
        submissions_hidden=max(0, len(state.out) - OUT),
        cost=state.pace.cost,
        cost_each=state.pace.cost_each,
        budget=reader.total,
        remaining=_remaining(reader, quarantined),
        timeline=timeline(history, [run.how for run in runs]),
        sizes=_sizes(reader, history),
        rows=_rows(reader),
        published=notes.read(reader.store, reader.manifest.id),
    )


def _remaining(reader: Reader, quarantined: int) -> Estimate | None:
    state = reader.state
    if state.expected is None:
        return None
    left = state.expected - len(state.done) - quarantined - len(state.parked) - state.out.items
    return state.pace.estimate(max(0, left))


def _run(history: Past, at: int, alive: bool) -> RunFacts:
    run, commits = history.runs[at], history.commits
    some = slice(run.first, run.last)
    host, pid = run.info.get("host"), run.info.get("pid")
    told = run.end or {}
    bound = told.get("bound_by")
    bound = bound if isinstance(bound, Mapping) else {}
    failed, parked = told.get("failed"), told.get("parked")
    return RunFacts(
        number=at + 1,
        run=clean(run.run, 40),
        where=clean(f"{host} (pid {pid})", KEY_CHARS) if host is not None else "",
        how=_how(run, alive and at == len(history.runs) - 1),
        began=run.began,
        seconds=run.until - run.began,
        completed=int(sum(commits["keys"][some])),
        failed=failed if isinstance(failed, int) else int(sum(commits["failures"][some])),
        parked=parked if isinstance(parked, int) else 0,
        commits=run.last - run.first,
        cost=sum(commits["cost"][some]),
        bound=clean(str(bound.get("sentence", "")), MESSAGE_CHARS),
        shares=_shares(bound.get("shares"), OF_LANES),
        of_run=_shares(bound.get("shares"), _OF_RUN),
    )


def _how(run: PastRun, alive: bool) -> str:
    if run.end is not None:
        if "accepted" in run.end:
            return "accepted"
        return clean(str(run.end.get("how")), 40)
    return "running" if alive else "died"


def _shares(shares: Any, names: Mapping[str, str]) -> list[tuple[str, float]]:
    shares = shares if isinstance(shares, Mapping) else {}
    found = [(said, shares.get(name)) for name, said in names.items()]
    return [
        (said, min(1.0, float(share)))
        for said, share in found
        if isinstance(share, (int, float)) and share >= _SHARE
    ]


def _kinds(failures: Iterable[Failure]) -> list[Kind]:
    """The failures by class of error, the most frequent first."""
    each: dict[str, list[Failure]] = {}
    for failure in failures:
        each.setdefault(failure.error, []).append(failure)
    return [
        Kind(
            clean(error, KEY_CHARS),
            len(found),
            [_example(failure) for failure in found[:EXAMPLES]],
            _traceback(next((f.traceback for f in found if f.traceback), "")),
        )
        for error, found in sorted(each.items(), key=lambda kind: -len(kind[1]))
    ]


def _traceback(text: str) -> str:
    """The traceback without control characters. A long one keeps its end, which shows where."""
    cut = text if len(text) <= TRACE_CHARS else "…" + text[-TRACE_CHARS:]
    return "\n".join(clean(line.expandtabs(4)) for line in cut.rstrip().split("\n"))


def _example(failure: Failure) -> Example:
    return Example(
        keys.shown(failure.key, KEY_CHARS),
        clean(failure.message, MESSAGE_CHARS),
        failure.attempts,
        clean(failure.time, 40),
        _cell(failure.rows) if failure.rows is not None else "",
    )


def _submission(out: Submission) -> OutThere:
    return OutThere(
        clean(out.token, 40),
        out.state,
        out.count,
        clean(out.time, 40),
        out.cost,
        "" if out.handle is None else outstanding.shown(out.handle, CELL_CHARS),
    )


def _sizes(reader: Reader, history: Past) -> Sizes:
    state, commits = reader.state, history.commits
    made = [keys for keys in commits["keys"] if keys]
    return Sizes(
        rows=state.rows,
        shards=len(state.shards),
        shard_bytes=state.bytes,
        records=state.records,
        journal_bytes=history.journal_bytes,
        commits=len(commits["time"]),
        keys_each=sum(made) / len(made) if made else 0.0,
        snapshots=sum(reader.store.list(snapshots.FOLDER).values()),
    )


def _rows(reader: Reader) -> Rows:
    """The schema, and the first rows of the newest shard that has any."""
    import pyarrow as pa

    state = reader.state
    if not state.schema:
        return Rows(why_none="no rows are committed")
    try:
        schema = schemas.schema_from_text(state.schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        return Rows(why_none=f"the schema cannot be read: {clean(str(error), MESSAGE_CHARS)}")
    columns = [
        Column(clean(field.name, 60), clean(str(field.type), 60), field.nullable)
        for field in list(schema)[:COLUMNS]
    ]
    hidden = max(0, len(schema) - COLUMNS)
    small = [each for each in state.shards.values() if each.rows and each.bytes <= _SHARD_BYTES]
    if not small:
        return Rows(columns, hidden, why_none="no shard is small enough to be read for a sample")
    try:
        try:
            table = shards.read(reader.store, small[-1]).slice(0, ROWS)
        except CheckpointDamaged:
            reader.read_new()
            if small[-1].path not in reader.state.shards:
                return _rows(reader)  # the shard was merged with others meanwhile
            raise
        found = schemas.cast(table, schema).select(list(range(len(columns)))).to_pylist()
    except (CheckpointDamaged, FileNotFoundError) as error:
        return Rows(columns, hidden, why_none=clean(str(error), MESSAGE_CHARS))
    names = [field.name for field in list(schema)[:COLUMNS]]
    sample = [[_cell(row[name]) for name in names] for row in found]
    return Rows(columns, hidden, sample)


def _cell(value: Any) -> str:
    """A value of a row as shortened text."""
    if value is None:
        return "null"
    text = value if isinstance(value, str) else _text(value)
    return clean(text, CELL_CHARS)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError):
        return str(value)
