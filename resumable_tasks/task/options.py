"""The options of a job: each one's type, default and text stand here, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, fields
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.base import checks
from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.settings import Failing
from resumable_tasks.engine.budget import Budget
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import KeyScheme, KeySpec

if TYPE_CHECKING:
    from resumable_tasks.items.fingerprints import Changes, Fingerprinter
    from resumable_tasks.items.plan import BatchFormat, OnBadItem, OnDuplicate
    from resumable_tasks.runners.limits import Adaptive
    from resumable_tasks.runners.outcome import Cost, ResultsMode
    from resumable_tasks.runners.rates import RateSpec
    from resumable_tasks.runners.retries import Retry
    from resumable_tasks.runners.values.columns import Columns

RunnerName = Literal["auto", "local", "processes", "prefect"]


@frozen
class JobOptions:
    """The options of a job.

    Args:
        name: name of the job; by default the function's name.
        key: where an item's key comes from: a field name, a tuple of field names, or a callable;
            None if the items are strings or integers that are their own keys.
        batch_size: maximum number of items per handler call.
        concurrency: number of simultaneous calls, in threads, coroutines or processes.
            ``"adaptive"`` or ``Adaptive(lowest, highest)`` starts with one call (or ``lowest``),
            adds calls as long as they do not become slower, and halves the number when the service
            reports overload (HTTP 429, ``Retry-After``, a timeout); the maximum is 32 (or
            ``highest``).
        retries: further calls for a batch whose call raised: a number, or a ``Retry(times, delay=…,
            on=…)``.
        timeout: seconds a call may take before it fails with ``TimeoutError`` (and is retried if
            retries allow it). A coroutine is cancelled; a process is killed and replaced. A plain
            function on a thread cannot be stopped: the call is reported as overdue, and its results
            still count when they arrive. If only overdue calls are left, or if they leave no room
            for others, the run waits ``grace_seconds`` more, then ends without them and names their
            items.
        schema: the columns of the results and their types, the same in every run and partition: a
            ``pyarrow.Schema``, a pydantic model or a dataclass. By default they are inferred. A
            result that does not fit is kept, and its item is *parked*.
        json_columns: columns stored as JSON text, whatever values they hold.
        results: ``"one"`` row per item (an item that is left out has failed), ``"many"`` (0 to n
            rows per item), or ``"none"`` (completion only).
        version: version of the handler. If it has changed, a run ends with `CheckpointMismatch`, or
            does what its ``on_version_change`` says.
        runner: ``"local"`` (threads, or the event loop for a coroutine function), ``"processes"``,
            ``"prefect"`` (task runs of the surrounding flow run), or ``"auto"``: ``"prefect"`` in a
            flow run, otherwise ``"local"``.
        batch_format: what the handler receives: ``"rows"`` (a list), ``"arrow"`` (a
            ``pyarrow.RecordBatch``), or ``"auto"``: Arrow if the items are Arrow.
        rate_limit: maximum rate of handler calls (``"60/minute"``), items (``"600 items/minute"``),
            tokens (``"200k tokens/minute"``, ``"2M input tokens/minute"``, ``"output tokens"``) or
            bytes of the items' JSON (``"80 MB/minute"``), or a list of several; shared by all
            workers of a process, and divided among processes. Tokens are estimated until the
            handler reports them (`CurrentBatch.report`). A dict holds the rates of each ``quota``.
            ``"auto"`` keeps to the limits in the headers of reported answers. ``"prefect:NAME"``
            takes slots of Prefect's global concurrency limit of that name, which all flow runs
            share.
        share: a file through which all processes on this host that name it keep to ``rate_limit``
            together, whichever jobs they run: one window for all. Processes on several hosts share
            through Redis: ``"redis://host:6379/0#name"``. By default each run has its own window.
        weight: the tokens of an item, if known: a field name, or a callable that takes the item. By
            default tokens are estimated from the size of the item's JSON and from what earlier
            calls reported.
        max_weight: maximum weight of a batch, in addition to ``batch_size``: in bytes of the items'
            JSON (``"190 MB"``), in tokens (``"100k tokens"``), or a number measured by ``weight``.
            A heavier item is handled alone, with a warning. Every batch except the last has
            ``batch_size`` items or at least half of this weight; items may change places for that.
        quota: which quota of ``rate_limit`` an item counts against, such as its model: a field
            name, or a callable that takes the item.
        tolerated_failures: how many items (int), or what share of them (float), may fail before the
            run raises `JobFailed`.
        fail_fast: stop at the first failed batch or item, once running batches have ended.
        cost: what a call has cost: a field of the results, which is summed (``"cost"`` if the
            budget has a cost), or a callable that takes the `CallOutcome` (its ``table``,
            ``seconds``, ``failures``, ``batch``). Work submitted to a service does not need it: see
            `Collected`.
        tags: tags of the task runs in Prefect.
        grace_seconds: how long running batches may take to finish after Ctrl-C, SIGTERM or another
            stop signal.
        on_duplicate: what to do if a key occurs twice in one run: ``"error"``, or ``"skip"``, which
            keeps the first item.
        failing: a `Failing`: how bad items are isolated, when a run pauses or gives up, and what is
            tried again.
        budget: a `Budget` of items, seconds and cost, per run or in total for all runs.
        changes: a `Changes`: how a run detects that an item has changed since it was completed. By
            default nothing is compared, and completed items stay completed.
        linger: seconds after which a batch is handled even if it is not full, if the items come
            from a generator or an async iterable: a queue, a paginated API. By default a batch
            waits until it is full or the items end.
        on_bad_item: what to do with an item that has no usable key, or the key of an earlier item:
            ``"fail"`` lists it among the failures, with its position, and handles the others;
            ``"error"`` ends the run. By default an item without a usable key fails, and a duplicate
            key is an error. A list or a table is checked before the first call, so that an error
            costs nothing; the same holds if half of its items have no usable key.
        report: where each run writes an HTML page about its checkpoint when it ends, however it
            ends: a path, or a URL in a bucket. A name that does not end in ``.html`` is a folder;
            the page in it is named after the job and its partition. Needs the extra ``report``.
    """

    _: KW_ONLY
    name: str = ""
    key: KeySpec = None
    batch_size: int = 50
    concurrency: int | Literal["adaptive"] | Adaptive = 4
    retries: int | Retry = 0
    timeout: float | None = None
    schema: Any = None
    json_columns: Sequence[str] = ()
    results: ResultsMode = "one"
    version: str | int = "1"
    runner: RunnerName = "auto"
    batch_format: BatchFormat = "auto"
    rate_limit: RateSpec | None = None
    weight: str | Callable[[Any], int] | None = None
    share: str | os.PathLike[str] | None = None
    max_weight: int | str | None = None
    quota: str | Callable[[Any], str] | None = None
    tolerated_failures: int | float = 0
    fail_fast: bool = False
    cost: Cost | None = None
    tags: Sequence[str] = ()
    grace_seconds: float = 25.0
    on_duplicate: OnDuplicate = "error"
    failing: Failing = Failing()
    budget: Budget = Budget()
    changes: Changes | None = None
    linger: float | None = None
    on_bad_item: OnBadItem | None = None
    report: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        checks.job_name(self.name)
        KeyScheme(self.key)
        checks.choice("results", self.results, ("one", "many", "none"))
        checks.choice("runner", self.runner, ("auto", "local", "processes", "prefect"))
        checks.choice("batch_format", self.batch_format, ("auto", "rows", "arrow"))
        checks.choice("on_duplicate", self.on_duplicate, ("error", "skip"))
        checks.choice("on_bad_item", self.on_bad_item, ("error", "fail", None))
        checks.whole_number("batch_size", self.batch_size, 1)
        checks.seconds_or_none("timeout", self.timeout)
        checks.seconds_or_none("linger", self.linger)
        checks.seconds("grace_seconds", self.grace_seconds)
        checks.flag("fail_fast", self.fail_fast)
        self._check_version()
        self._check_objects()
        self._check_concurrency()
        self._check_rates()
        self._check_cost()
        self._check_tolerated()
        self._check_columns()
        if self.report is not None and not isinstance(self.report, str | os.PathLike):
            raise UsageError(
                f"report={self.report!r} is neither a path nor a URL",
                remedy="Give report= a path or URL, such as 'reports/'",
            )
        checks.texts("tags", self.tags, "nightly")

    def _check_version(self) -> None:
        if type(self.version) not in (str, int):
            raise UsageError(
                f"version={self.version!r} is neither a string nor a whole number (as a number, "
                "1.10 would be 1.1)",
                remedy='Give version= one of the two, such as "2" or "1.10"',
            )

    def _check_objects(self) -> None:
        self._check_retries()
        checks.instance("failing", self.failing, Failing, "Failing(isolate=…, …)")
        checks.instance("budget", self.budget, Budget, "Budget(items=…, seconds=…, cost=…)")
        if self.changes is not None:
            from resumable_tasks.items.fingerprints import Changes

            checks.instance("changes", self.changes, Changes, "Changes(by, then=…)")

    def _check_retries(self) -> None:
        retries = self.retries
        if type(retries) is int and retries >= 0:
            return
        from resumable_tasks.runners.retries import Retry

        if not isinstance(retries, Retry):
            raise UsageError(
                f"retries={retries!r} is neither a whole number from 0 nor a "
                "Retry(times, delay=…, on=…)",
                remedy="Give retries= one of the two",
            )

    def _check_columns(self) -> None:
        names = self.json_columns
        checks.texts("json_columns", names, "extra")
        taken = set(names) & set(KeyScheme(self.key).columns)
        if taken:
            raise UsageError(
                f"json_columns={names!r}: {min(taken)!r} is the key, which cannot be a JSON column",
                remedy="Leave it out of json_columns=",
            )
        if self.results == "none" and (self.schema is not None or names):
            raise UsageError(
                'schema= and json_columns= describe rows, and results="none" has none',
                remedy='Leave them out, or give results="one"',
            )

    def _check_concurrency(self) -> None:
        concurrency = self.concurrency
        if concurrency == "adaptive" or (type(concurrency) is int and concurrency >= 1):
            return
        from resumable_tasks.runners.limits import Adaptive

        if not isinstance(concurrency, Adaptive):
            raise UsageError(
                f"concurrency={concurrency!r} is neither a whole number from 1 nor "
                '"adaptive" nor an Adaptive(lowest, highest)',
                remedy="Give concurrency= one of the three",
            )

    def _check_rates(self) -> None:
        if not self.weighs:
            return
        from resumable_tasks.task.weighing import check

        check(self)

    @property
    def weighs(self) -> bool:
        """True if something may ask for the weights of items."""
        return any(
            option is not None
            for option in (
                *(self.rate_limit, self.weight, self.quota),
                *(self.max_weight, self.share),
            )
        )

    def _check_cost(self) -> None:
        is_field = isinstance(self.cost, str) and self.cost
        if self.cost is not None and not callable(self.cost) and not is_field:
            raise UsageError(
                f"cost={self.cost!r} is neither a field's name nor a callable",
                remedy="Give cost= one of the two",
            )
        if isinstance(self.cost, str):
            self.check_has_field(self.cost)

    def _check_tolerated(self) -> None:
        tolerated = self.tolerated_failures
        most = 1 if isinstance(tolerated, float) else float("inf")
        if not checks.is_number(tolerated) or tolerated > most:
            raise UsageError(
                f"tolerated_failures={tolerated!r} is neither a count of items nor a share of "
                "them between 0.0 and 1.0",
                remedy="Give tolerated_failures= a number such as 10, or 0.01 for one of a hundred",
            )

    def check_has_field(self, cost: Cost | None) -> None:
        """Raise `UsageError` for a field of the results as the cost, where there are none."""
        if isinstance(cost, str) and self.results == "none":
            raise UsageError(
                f'cost={cost!r} is a field of the results, and results="none": give '
                "cost= a callable of an outcome"
            )

    @property
    def columns(self) -> Columns:
        """The declared columns of the results. Raises `UsageError`."""
        from resumable_tasks.runners.values.columns import columns_of

        return columns_of(self.schema, self.json_columns)

    @property
    def retry(self) -> Retry:
        """The retries of the job, in whichever form they were given."""
        from resumable_tasks.runners.retries import Retry

        return self.retries if isinstance(self.retries, Retry) else Retry(self.retries)

    @property
    def known_cost(self) -> Cost | None:
        """The source of a call's cost."""
        return "cost" if self.cost is None and self.budget.of_money else self.cost

    @property
    def adaptive(self) -> Adaptive | None:
        """The bounds of an adaptive concurrency; None if it is fixed."""
        if isinstance(self.concurrency, int):
            return None
        from resumable_tasks.runners.limits import Adaptive

        if isinstance(self.concurrency, Adaptive):
            return self.concurrency
        return Adaptive() if self.concurrency == "adaptive" else None

    @property
    def most_at_once(self) -> int:
        """The largest number of calls at once."""
        if isinstance(self.concurrency, int):
            return self.concurrency
        adaptive = self.adaptive
        assert adaptive is not None
        return adaptive.highest

    def fingerprinter(self) -> Fingerprinter | None:
        """The maker of the items' fingerprints; None if there are none."""
        if self.changes is None:
            return None
        from resumable_tasks.items.fingerprints import Fingerprinter

        return Fingerprinter(self.changes.by)

    def tolerates(self, failed: int, total: int) -> bool:
        """True if so many failed items out of so many do not fail the run."""
        tolerated = self.tolerated_failures
        return failed <= (tolerated * total if isinstance(tolerated, float) else tolerated)


def described(options: JobOptions) -> list[tuple[str, str]]:
    """The key and what is not as by default: options by their names."""
    found = []
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name == "key" or (value is not each.default and value != each.default):
            found.append((each.name, getattr(value, "__qualname__", None) or repr(value)))
    return [pair for pair in found if pair[0] != "name"]
