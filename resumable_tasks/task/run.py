"""One run of a job, from the opening of its checkpoint to its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.exits import use_exit_codes
from resumable_tasks.checkpoint.directory.driver import Checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.checkpoint.sql.spec import SqlCheckpoint
from resumable_tasks.checkpoint.store.local import in_temporary_folder
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.engine import progress, watch
from resumable_tasks.engine.budget import Budget
from resumable_tasks.engine.engine import Engine
from resumable_tasks.engine.events import Listener, Listeners, Progress, RunFinished, RunStarted
from resumable_tasks.errors import Interrupted, JobFailed, UsageError
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planner
from resumable_tasks.results.result import RunResult, describe_failures
from resumable_tasks.runners.base import Runner, Work, is_coroutine_function
from resumable_tasks.runners.limits import Limits, parse_rates
from resumable_tasks.runners.retries import RetryPolicy, delay_of
from resumable_tasks.runners.threads import ThreadRunner
from resumable_tasks.task.dry_run import dry_run
from resumable_tasks.task.options import NAME, JobOptions

if TYPE_CHECKING:
    import asyncio

    from resumable_tasks.prefect.flow_run import FlowRun

_HOME = ".resumable"
_COUNTS = ("total", "completed", "skipped", "failed", "duplicates")


@dataclass(frozen=True, slots=True)
class RunArguments:
    checkpoint: str | os.PathLike[str] | SqlCheckpoint | None
    partition: str | date | None
    takeover: bool
    on_progress: Callable[[Progress], None] | None
    listeners: tuple[Listener, ...]
    progress: bool | None
    dry_run: bool = False


class Run:
    """One run: opens the checkpoint, has the engine work, says how it went, lets go."""

    def __init__(
        self,
        handler: Callable[..., Any],
        options: JobOptions,
        items: Any,
        arguments: RunArguments,
        loop: asyncio.AbstractEventLoop | None,
        flow_run: FlowRun | None = None,
    ) -> None:
        self._handler = handler
        self._options = options
        self._items = items
        self._arguments = arguments
        self._loop = loop
        self._flow_run = flow_run
        self._expected = len(items) if hasattr(items, "__len__") else None
        self._stop_requests: list[tuple[str, bool]] = []
        self._engine: Engine | None = None

    def request_stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the run to stop, also before it has begun. Safe in a signal handler."""
        # First into the list: in a flow run another thread makes the engine, and then reads it.
        # A request that comes in between is made twice, which does no harm.
        self._stop_requests.append((reason, at_once))
        if self._engine is not None:
            self._engine.request_stop(reason, at_once)

    def carry_out(self) -> RunResult:
        """Run, and say how it went: by a result or by an exception that carries it."""
        use_exit_codes()
        options, arguments = self._options, self._arguments
        if isinstance(arguments.checkpoint, SqlCheckpoint):
            return self._from_table(arguments.checkpoint)
        scheme = KeyScheme(options.key)
        fingerprinter = options.fingerprinter()
        place = _place(options.name, arguments.checkpoint, arguments.partition)
        if self._flow_run is not None:
            self._flow_run.check_place(place)
        if arguments.dry_run:
            return dry_run(place, options, self._items)
        runner = _runner(self._handler, options, self._loop, self._flow_run)
        checkpoint = Checkpoint.open(
            open_store(place),
            Manifest(options.name, str(options.version), scheme.describe(), options.results),
            takeover=arguments.takeover,
            on_version_change=options.on_version_change,
            expected=self._expected,
            max_attempts=options.max_attempts,
            identity=self._flow_run.identity if self._flow_run is not None else None,
            fingerprint=fingerprinter.describe() if fingerprinter is not None else None,
        )
        try:
            return self._with(checkpoint, scheme, runner)
        finally:
            checkpoint.close()

    def _from_table(self, described: SqlCheckpoint) -> RunResult:
        """Run on the rows of a database table, which is the checkpoint too."""
        from resumable_tasks.checkpoint.sql import opening

        arguments, flow_run = self._arguments, self._flow_run
        self._options = options = opening.check(described, self._options, self._items, arguments)
        if arguments.dry_run:
            return opening.dry_run(described, options)
        runner = _runner(self._handler, options, self._loop, flow_run)
        if runner.remote and options.runner != "processes" and described.shards is None:
            raise UsageError(
                f"{options.name}: task runs on other machines need shards=, a folder that all of "
                "them share, for their rows; or run the flow on ThreadPoolTaskRunner"
            )
        checkpoint = opening.open_form(
            described,
            options,
            takeover=arguments.takeover,
            identity=flow_run.identity if flow_run is not None else None,
        )
        try:
            self._expected = checkpoint.expected
            return self._with(checkpoint, KeyScheme(options.key), runner)
        finally:
            checkpoint.close()

    def _with(self, checkpoint: CheckpointForm, scheme: KeyScheme, runner: Runner) -> RunResult:
        options, arguments = self._options, self._arguments
        telemetry = (self._flow_run.telemetry(),) if self._flow_run is not None else ()
        listeners = Listeners.of(
            (progress.listener(arguments.progress), *telemetry, *arguments.listeners),
            arguments.on_progress,
        )
        planner = checkpoint.planner(scheme, options)
        listeners.each.append(watch.key_watch(planner, len(checkpoint.state.done)))
        work = Work(
            handler=self._handler,
            scheme=scheme,
            results=options.results,
            retry=RetryPolicy(
                options.retries,
                delay_of(options.retry_delay, options.retries),
                options.retry_on,
                options.give_up_after,
            ),
            timeout=options.timeout,
            limits=self._limits(),
            cost=options.known_cost,
            writer=checkpoint.shard_writer() if runner.remote else None,
            json_columns=checkpoint.json_columns,
        )
        engine = Engine(
            checkpoint,
            planner,
            runner,
            work,
            listeners,
            expected=self._expected,
            options=options,
            budget=Budget(
                options.max_items,
                options.max_seconds,
                options.max_cost,
                checkpoint.state.pace.cost_each,
            ),
        )
        self._engine = engine
        for request in self._stop_requests:
            engine.request_stop(*request)
        checkpoint.stop_when(lambda: engine.stopping)
        if hasattr(self._items, "stop_when"):  # async items, which wait for their source elsewhere
            self._items.stop_when(lambda: engine.stopping)

        began = time.monotonic()
        self._announce(checkpoint, engine)
        how = "error"
        try:
            engine.run(self._items)
            result = self._result(checkpoint, planner, engine, time.monotonic() - began)
            how = self._how(result, engine)
            counts = {name: getattr(result, name) for name in _COUNTS}
            self._warn_of_nothing_new(result, checkpoint)
            counts |= {"changed": planner.changed} if planner.changed else {}
            adopted = planner.adopted
            if adopted.count:
                log.warning(
                    "%s items were completed without a fingerprint= of this kind; they are taken "
                    "for unchanged, and compared from the next run on",
                    f"{adopted.count:,}",
                )
            checkpoint.end(
                {"how": how, **counts, "seconds": result.seconds},
                bytes(adopted.lines),
                bytes(adopted.prints),
            )
        finally:
            engine.tell(RunFinished, how=how, progress=engine.progress())
        return self._conclude(how, result, engine, checkpoint)

    def _warn_of_nothing_new(self, result: RunResult, checkpoint: CheckpointForm) -> None:
        """A scheduled run that finds all done has most likely another one's checkpoint."""
        scheduled = self._flow_run is not None and self._flow_run.scheduled
        before = checkpoint.before
        if scheduled and before is not None and 0 < result.total == result.skipped:
            log.warning(
                "all %s items were completed before this scheduled run began (last by run %s, %s) "
                "and nothing was done. If each run is to do its own, give each its own checkpoint: "
                "partition=scheduled_date()",
                f"{result.total:,}",
                before.run,
                before.time,
            )

    def _how(self, result: RunResult, engine: Engine) -> str:
        if engine.interrupted:
            return "interrupted"
        tolerated = self._options.tolerates(result.failed, result.total)
        return "done" if tolerated and not engine.ended_early else "failed"

    def _conclude(
        self, how: str, result: RunResult, engine: Engine, checkpoint: CheckpointForm
    ) -> RunResult:
        done = result.completed + result.skipped
        text = f"{result.job}: {done:,} of {result.total:,} items done"
        if result.skipped:
            text += f" ({result.skipped:,} before, {result.completed:,} now)"
        if result.quarantined:
            log.warning(
                "%s: %s items are quarantined, after max_attempts=%s, and were not tried: %s",
                result.job,
                f"{result.quarantined:,}",
                self._options.max_attempts,
                checkpoint.quarantine_hint,
            )
        if how == "interrupted":
            lost = engine.abandoned
            raise Interrupted(
                f"interrupted by {engine.interrupted}: {result.completed:,} items were "
                f"completed in this run, {result.skipped:,} before"
                + (f"; {lost:,} batches did not end in time" if lost else "")
                + (f", at a cost of {result.cost:.4g}" if result.cost else "")
                + (f"; what remains: {result.remaining}" if result.remaining else "")
                + f". All is safe in {result.checkpoint}. Run the same command again to resume",
                result=result,
                by_itself=not engine.asked_to_stop,
            )
        log.info(
            "%s, %d failed, in %.1f s; checkpoint %s",
            text,
            result.failed,
            result.seconds,
            result.checkpoint,
        )
        if how == "failed":
            raise JobFailed(describe_failures(result, engine.ended_early), result=result)
        return result

    def _announce(self, checkpoint: CheckpointForm, engine: Engine) -> None:
        found, failed = checkpoint.found, checkpoint.failed_before
        log.info(
            "%s: checkpoint %s: %s",
            self._options.name,
            checkpoint.url,
            f"{found:,} items are done and will be skipped, {failed:,} failed before and will be "
            "tried again"
            if found or failed
            else "new, all items will be handled",
        )
        if checkpoint.store and in_temporary_folder(checkpoint.store):
            log.warning(
                "the checkpoint %s lies in a temporary folder, which the system empties: "
                "name another checkpoint= for work that matters",
                checkpoint.url,
            )
        engine.tell(
            RunStarted,
            found=found,
            failed=failed,
            expected=self._expected,
            epoch=checkpoint.state.epoch,
        )

    def _result(
        self, checkpoint: CheckpointForm, planner: Planner, engine: Engine, seconds: float
    ) -> RunResult:
        # With retry_failed=False what failed before has failed still; quarantine is no failure.
        left = checkpoint.set_aside(planner)
        failed = [*engine.failures, *([] if self._options.retry_failed else left)]
        left = left if self._options.retry_failed else []
        return RunResult(
            job=self._options.name,
            checkpoint=checkpoint.url,
            run=checkpoint.run,
            total=planner.total,
            completed=engine.completed,
            skipped=planner.skipped,
            failed=len(failed),
            duplicates=planner.duplicates,
            seconds=round(seconds, 3),
            failures=tuple(failed),
            quarantined=len(left),
            cost=engine.budget.spent if self._options.known_cost is not None else None,
            remaining=self._remaining(checkpoint, planner, engine, len(failed) + len(left)),
            positions=planner.seen,
            changed=planner.changed,
            source=checkpoint.source,
            failures_listed=checkpoint.failures_listed,
        )

    def _remaining(
        self, checkpoint: CheckpointForm, planner: Planner, engine: Engine, failed: int
    ) -> Estimate | None:
        """What a run that was stopped has left, as far as the number of items is known."""
        if self._expected is None or not (engine.interrupted or engine.ended_early):
            return None
        seen = planner.total - planner.skipped - planner.duplicates
        # Of the items that were not read, those are done that were done before and not met yet.
        unread = max(0, self._expected - planner.total)
        unread -= min(unread, max(0, engine.found - planner.skipped - planner.changed))
        left = max(0, seen - engine.completed - failed) + unread
        estimate = checkpoint.state.pace.estimate(left)
        each = engine.budget.cost_each
        return replace(estimate, cost=left * each) if each else estimate

    def _limits(self) -> Limits | None:
        options = self._options
        rates, names = parse_rates(options.rate_limit)
        if names and self._flow_run is None:
            raise UsageError(
                f"{options.name}: rate_limit={options.rate_limit!r} names a limit of Prefect, and "
                'no flow run is going on; give a rate such as "60/minute"'
            )
        if not rates and not names and options.adaptive is None:
            return None
        gates = self._flow_run.gates(names) if self._flow_run is not None else ()
        return Limits(rates, options.adaptive, gates, options.batch_size)


def _runner(
    handler: Callable[..., Any],
    options: JobOptions,
    loop: asyncio.AbstractEventLoop | None,
    flow_run: FlowRun | None,
) -> Runner:
    if options.runner == "prefect" and flow_run is None:
        raise UsageError(
            f'{options.name}: runner="prefect", and no flow run is going on: call it in a function '
            'that is a Prefect @flow, or leave runner="auto"'
        )
    # In a task run of the user's own, that one is the task run; its threads are ours.
    in_flow = flow_run is not None and not flow_run.in_task_run
    if options.runner == "prefect" or (options.runner == "auto" and in_flow):
        assert flow_run is not None
        return flow_run.runner(options, loop)
    if is_coroutine_function(handler):
        if options.runner == "processes":
            raise UsageError(f"{options.name}: a coroutine handler cannot run in processes")
        from resumable_tasks.runners.aio import AsyncRunner

        return AsyncRunner(options.most_at_once, loop)
    if options.runner == "processes":
        from resumable_tasks.runners.processes import ProcessRunner

        if options.adaptive is not None:
            raise UsageError(
                f"{options.name}: an adaptive concurrency is for threads and coroutines; give a "
                "number of processes"
            )
        return ProcessRunner(options.most_at_once)
    return ThreadRunner(options.most_at_once)


def _place(
    name: str, checkpoint: str | os.PathLike[str] | None, partition: str | date | None
) -> str:
    """Where the checkpoint of this job and partition lives."""
    part = partition.isoformat() if isinstance(partition, date) else partition
    if part is not None and (not isinstance(part, str) or not NAME.fullmatch(part)):
        raise UsageError(
            f"partition={partition!r} cannot be a folder's name: use letters, digits, '_', '-' "
            "and '.', or a date"
        )
    if checkpoint is None:
        return str(Path(_HOME) / name / (part or "default"))
    base = os.fspath(checkpoint)
    if not base:
        raise UsageError("checkpoint is an empty path; name a directory")
    return f"{base.rstrip('/') or '/'}/{part}" if part else base
