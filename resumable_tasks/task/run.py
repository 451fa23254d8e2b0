"""One run of a job, from the opening of its checkpoint to its result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.exits import use_exit_codes
from resumable_tasks.base.text import clean, command
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.form import Checkpoint, Job, Opening, Place
from resumable_tasks.checkpoint.store.local import in_temporary_folder
from resumable_tasks.engine import monitoring, progress
from resumable_tasks.engine.budget import Budget, Spending
from resumable_tasks.engine.engine import Ending, Engine
from resumable_tasks.engine.events import Listeners, RunStarted
from resumable_tasks.engine.rules import Rules
from resumable_tasks.engine.watch import key_watch
from resumable_tasks.errors import Interrupted, JobFailed, UsageError
from resumable_tasks.items.plan import Planning
from resumable_tasks.results.result import RunResult, describe_failures
from resumable_tasks.results.shown import Failures
from resumable_tasks.runners import failures
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.submitted.kind import is_submitted
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions
from resumable_tasks.task.origin import origin_of
from resumable_tasks.task.parameters import HOME, name_of
from resumable_tasks.task.patience import Patience
from resumable_tasks.task.reporting import Report
from resumable_tasks.task.runner import runner_of

if TYPE_CHECKING:
    import asyncio

    from resumable_tasks.checkpoint.estimate import Estimate
    from resumable_tasks.items.cutting import MaxWeight
    from resumable_tasks.items.weights import Weigher
    from resumable_tasks.prefect.flow_run import FlowRun
    from resumable_tasks.runners.handle import Work
    from resumable_tasks.runners.limits import Limits
    from resumable_tasks.runners.usage import Learnt

_COUNTS = ("total", "completed", "skipped", "failed", "parked", "duplicates")


class Run:
    """One run: opens the checkpoint, lets the engine work, reports, and releases it."""

    def __init__(
        self,
        handler: Callable[..., Any],
        options: JobOptions,
        arguments: RunArguments,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        flow_run: FlowRun | None = None,
    ) -> None:
        self._handler = handler
        self._options = options
        self._arguments = arguments
        self._loop = loop
        self._flow_run = flow_run
        self._stop_requests: list[tuple[str, bool]] = []
        self._patience = Patience(self._stop_requests)
        self._engine: Engine | None = None
        self._limits: Limits | None = None
        self._learnt: Learnt | None = None

    def request_stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the run to stop, also before it has begun. Safe in a signal handler."""
        # Into the list first: in a flow run another thread creates the engine and then reads the
        # list. A request in between may reach the engine twice, which does no harm.
        self._stop_requests.append((reason, at_once))
        if self._engine is not None:
            self._engine.request_stop(reason, at_once)

    @property
    def asked_to_stop(self) -> bool:
        """True once the run was asked to stop."""
        return bool(self._stop_requests)

    def carry_out(self) -> RunResult:
        """Run. Returns the result, or raises an exception that carries it."""
        use_exit_codes()
        try:
            return self._carry_out()
        except BaseException as error:
            if self._engine is None and not self._arguments.dry_run:
                monitoring.tell_refused(self._options.name, error)
            raise

    def _carry_out(self) -> RunResult:
        _refuse_in_a_worker(self._options.name)
        arguments, flow_run = self._arguments, self._flow_run
        place = as_place(self._options.name, arguments.checkpoint, arguments.partition)
        path = place.local_path()
        if flow_run is not None and path is not None:
            flow_run.check_place(path)
        if self._submits and not place.keeps_submissions():
            raise UsageError(
                f"{self._options.name}: work submitted to a service needs a checkpoint that keeps "
                "track of the submissions",
                remedy="Use a directory or a bucket URL as checkpoint=",
            )
        job = place.check(self._job(), arguments.items)
        report = Report.wanted(self._options, place, arguments.partition)
        if arguments.dry_run:
            from resumable_tasks.task.previewed import previewed

            return previewed(self._options, place, place.preview(job, arguments.items))
        runner = runner_of(self._handler, self._options, arguments, flow_run, self._loop)
        if runner.remote and self._options.adaptive is not None:
            raise UsageError(
                f"{job.name}: adaptive concurrency works only for threads and coroutines of one "
                "process; give a number"
            )
        if runner.needs_files and not place.takes_files():
            raise UsageError(
                f"{job.name}: task runs on other machines need a shared folder for their rows: "
                "give SqlCheckpoint shards=; or run the flow on ThreadPoolTaskRunner"
            )
        if self._options.budget.total is not None and not place.keeps_spending():
            raise UsageError(
                f"{job.name}: Budget(total=…) needs a checkpoint that records what its runs spend, "
                "such as a directory; here, give Budget(cost=…), which limits one run"
            )
        items = arguments.items
        opening = Opening(
            arguments.takeover,
            len(items) if hasattr(items, "__len__") else None,
            flow_run.identity if flow_run is not None else {},
            self._options.budget.total,
        )
        checkpoint = self._opened(place, job, opening)
        try:
            if checkpoint.expected is None:
                checkpoint.expected = opening.expected
            if checkpoint.submissions and not runner.submits:
                raise UsageError(
                    f"{job.name}: a service has {len(checkpoint.submissions)} submissions of "
                    f"{checkpoint.url}, but this handler cannot collect them",
                    remedy="Run the job with the handler that submitted them until they are "
                    f"collected; {command('submissions', checkpoint.url)} lists them",
                )
            return self._with(place, checkpoint, job, runner)
        finally:
            self._patience.close(place, checkpoint)
            if report is not None:
                report.write(flow_run)

    def _opened(self, place: Place, job: Job, opening: Opening) -> Checkpoint:
        """Open the checkpoint, after accepting parked results that fit by now."""
        checkpoint = self._patience.open(place, job, opening)
        if not checkpoint.found.parked:
            return checkpoint
        from resumable_tasks.engine.accept import accept

        try:
            accepted = accept(checkpoint, job.planning.scheme, job.results)
        except BaseException:
            checkpoint.close()
            raise
        if not accepted:
            return checkpoint
        log.info("%s: took over %s parked results that fit now, without a call", job.name, accepted)
        checkpoint.close()
        return self._patience.open(place, job, opening)  # so that its planner knows them as done

    def _job(self) -> Job:
        """The job, in the form for a place."""
        options = self._options
        return Job(
            options.name,
            str(options.version),
            options.results,
            Planning(
                options.key,
                options.batch_size,
                options.batch_format,
                options.on_duplicate,
                options.changes,
                options.linger,
                options.on_bad_item,
                *self._weighing(),
            ),
            options.most_at_once,
            options.failing.max_attempts,
            options.failing.retry_failed,
            self._arguments.on_version_change,
            options.columns,
            origin_of(self._handler, named=not self._is_default),
            self._arguments.same_key,
        )

    def _weighing(self) -> tuple[Weigher | None, MaxWeight | None]:
        if not self._options.weighs:
            return None, None
        from resumable_tasks.runners.usage import Learnt
        from resumable_tasks.task.weighing import max_weight, weigher

        self._learnt = Learnt()
        return weigher(self._options), max_weight(self._options, self._learnt)

    @property
    def _submits(self) -> bool:
        return is_submitted(self._handler) and self._options.runner != "local"

    @property
    def _is_default(self) -> bool:
        """True if the checkpoint's path follows from the function's name alone."""
        named = self._options.name != name_of(self._handler)
        return self._arguments.checkpoint is None and not named

    def _with(self, place: Place, checkpoint: Checkpoint, job: Job, runner: Runner) -> RunResult:
        engine = self._prepared(checkpoint, job, runner)
        self._announce(place, checkpoint, engine, job)
        how, result = "error", None
        try:
            ending = engine.run(self._arguments.items)
            result = self._result(place, checkpoint, ending)
            how = self._how(result, ending)
            self._warn_of_nothing_new(result, checkpoint)
            changed = {"changed": result.changed} if result.changed else {}
            counts = {name: getattr(result, name) for name in _COUNTS} | changed
            counts["seconds"] = result.seconds
            if result.submissions:
                counts |= {"out": result.out, "submissions": result.submissions}
            if result.bound_by is not None:
                counts["bound_by"] = asdict(result.bound_by)
            if self._learnt is not None and (learnt := self._learnt.told()):
                counts["learnt"] = learnt
            self._patience.end(place, checkpoint, how, counts)
        except Interrupted:  # by a second signal
            how = "interrupted"
            raise
        finally:
            engine.tell_end(how, result)
        return self._concluded(how, result, ending, checkpoint)

    def _prepared(self, checkpoint: Checkpoint, job: Job, runner: Runner) -> Engine:
        """The engine with its listeners, before anything runs."""
        options, arguments = self._options, self._arguments
        spending = _spending(options.budget, checkpoint, runner)
        runner, monitors = monitoring.observed(options.name, runner)
        telemetry = (self._flow_run.telemetry(),) if self._flow_run is not None else ()
        listeners = Listeners.of(
            (*progress.listeners(arguments.progress), *telemetry, *monitors, *arguments.listeners),
            arguments.on_progress,
        )
        listeners.each.append(key_watch(checkpoint.planner, checkpoint.found.completed))
        failing = options.failing
        self._limits = self._made_limits(checkpoint)
        engine = Engine(
            checkpoint,
            runner,
            partial(self._work, checkpoint, job, runner),
            listeners,
            expected=checkpoint.expected,
            rules=Rules(
                _isolates(options, runner),
                failing.pause_after,
                failing.give_up_after,
                failing.keep_items,
                options.fail_fast,
                options.grace_seconds,
            ),
            spending=spending,
        )
        self._engine = engine
        for request in self._stop_requests:
            engine.request_stop(*request)
        checkpoint.stop_when(lambda: engine.stopping)
        if hasattr(arguments.items, "stop_when"):  # async items, which wait for their source
            arguments.items.stop_when(lambda: engine.stopping)
        return engine

    def _made_limits(self, checkpoint: Checkpoint) -> Limits | None:
        options = self._options
        if not options.weighs and options.adaptive is None:
            return None
        from resumable_tasks.runners.usage import Learnt
        from resumable_tasks.task.weighing import limits

        self._learnt = self._learnt or Learnt()
        self._learnt.resume(checkpoint.found.learnt)
        return limits(options, self._flow_run, self._learnt)

    def _work(self, checkpoint: Checkpoint, job: Job, runner: Runner) -> Work:
        from resumable_tasks.runners.handle import Work

        options = self._options
        return Work(
            handler=self._handler,
            scheme=job.planning.scheme,
            results=options.results,
            retry=options.retry.policy(options.failing.give_up_after),
            timeout=options.timeout,
            limits=self._limits,
            # A service reports its costs itself.
            cost=options.cost if runner.submits else options.known_cost,
            writer=checkpoint.shard_writer() if runner.remote else None,
            columns=checkpoint.columns,
            isolate=_isolates(options, runner) and not options.fail_fast,
        )

    def _warn_of_nothing_new(self, result: RunResult, checkpoint: Checkpoint) -> None:
        """Warn if a scheduled run finds everything done: probably its checkpoint is another's."""
        scheduled = self._flow_run is not None and self._flow_run.scheduled
        before = checkpoint.found.last
        if scheduled and before is not None and 0 < result.total == result.skipped:
            log.warning(
                "all %s items were completed before this scheduled run began (last by run %s, %s) "
                "and nothing was done. If each run should do its own work, give each its own "
                "checkpoint: partition=scheduled_date()",
                f"{result.total:,}",
                *before,
            )

    def _how(self, result: RunResult, ending: Ending) -> str:
        if ending.stopped:
            # Results that are paid for must be collected, also without any budget left.
            return "spent" if ending.by_budget and ending.again_at is None else "interrupted"
        tolerated = self._options.tolerates(result.failed + result.parked, result.total)
        # A run in which every item is quarantined never ends well.
        nothing = result.quarantined and not result.completed + result.skipped + result.parked
        return "done" if tolerated and not ending.why_failed and not nothing else "failed"

    def _concluded(
        self, how: str, result: RunResult, ending: Ending, checkpoint: Checkpoint
    ) -> RunResult:
        if result.retried:
            log.info(
                "%s: %s needed more than one call: retried, told to wait, or handled again after "
                "the service was down",
                result.job,
                "1 batch" if result.retried == 1 else f"{result.retried:,} batches",
            )
        if result.bound_by is not None:
            log.info("%s: bound by %s", result.job, result.bound_by.sentence)
        if result.quarantined:
            log.warning(
                "%s: %s items are quarantined after max_attempts=%s and were not tried: %s",
                result.job,
                f"{result.quarantined:,}",
                self._options.failing.max_attempts,
                checkpoint.quarantine_hint,
            )
        if how in ("spent", "interrupted"):
            from resumable_tasks.task.early import stopped

            raise stopped(how, result, ending)
        log.info(
            "%s: %s, in %.1f s; checkpoint %s",
            *(result.job, result.summary, result.seconds, result.checkpoint),
        )
        if how == "failed":
            raise JobFailed(describe_failures(result, ending.why_failed), result=result)
        return result

    def _announce(self, place: Place, checkpoint: Checkpoint, engine: Engine, job: Job) -> None:
        found, failing = checkpoint.found, self._options.failing
        # Which failed items are quarantined is known only when they come.
        all_again = failing.retry_failed and failing.max_attempts is None
        log.info(
            "%s: checkpoint %s: %s",
            self._options.name,
            checkpoint.url,
            f"{found.completed:,} items are done and will be skipped, {found.failed:,} failed "
            "before"
            + (" and will be tried again" if all_again else "")
            + (f", {found.parked:,} are parked and will not" if found.parked else "")
            + (f", {checkpoint.out}" if checkpoint.submissions else "")
            if found.completed or found.failed or found.parked or checkpoint.submissions
            else "new, all items will be handled",
        )
        if found.edited:
            log.warning(
                "%s: %s. To redo these items: %s; key and where select some of them",
                self._options.name,
                _describe_edit(found.handlers),
                checkpoint.redo_hint,
            )
        path = place.local_path()
        if self._is_default and not (found.completed or found.failed):
            self._look_elsewhere(checkpoint, job)
        if path is not None:
            self._warn_of_place(path, checkpoint)
        engine.tell(
            RunStarted,
            found=found.completed,
            failed=found.failed,
            expected=checkpoint.expected,
            epoch=found.epoch,
            out=str(checkpoint.out) if checkpoint.submissions else "",
        )

    def _warn_of_place(self, path: str, checkpoint: Checkpoint) -> None:
        """Warn of a new checkpoint that will not be there when it is needed."""
        if checkpoint.found.epoch > 1:
            return
        if in_temporary_folder(path):
            log.warning(
                "the checkpoint %s is in a temporary directory that the system may empty; choose "
                "another checkpoint= for work that matters",
                checkpoint.url,
            )
        elif self._flow_run is not None:
            from resumable_tasks.base.container import lost_with

            which = lost_with(path)
            if which is not None:
                log.warning(
                    "the checkpoint %s is on the disk of this %s and is deleted with it: a retry "
                    "in another %s would start from scratch. Set checkpoint= to the URL of a "
                    "bucket (s3://bucket/prefix; RESUMABLE_CHECKPOINTS sets it for the deployments "
                    "of the repository), or to a path on a volume",
                    checkpoint.url,
                    which,
                    which,
                )

    def _look_elsewhere(self, checkpoint: Checkpoint, job: Job) -> None:
        from resumable_tasks.task.elsewhere import look_elsewhere

        assert job.origin is not None
        look = look_elsewhere(self._handler, job.name, job.origin, checkpoint.url)
        if look is not None:
            checkpoint.planner.look_with(look)

    def _result(self, place: Place, checkpoint: Checkpoint, ending: Ending) -> RunResult:
        # With retry_failed=False earlier failures still count; quarantined items do not.
        options, planner = self._options, checkpoint.planner
        left, out = checkpoint.left_alone(), checkpoint.out
        parked = [*ending.parked, *(failure for failure in left if failure.parked)]
        left = [failure for failure in left if not failure.parked]
        quarantined = left if options.failing.retry_failed else []
        bad = failures.of_bad_items(planner.bad)
        failed = [*ending.failures, *bad, *([] if options.failing.retry_failed else left)]
        return RunResult(
            job=options.name,
            checkpoint=checkpoint.url,
            run=checkpoint.run,
            total=planner.total,
            completed=ending.completed,
            skipped=planner.skipped,
            failed=len(failed),
            duplicates=planner.duplicates,
            seconds=round(ending.seconds, 3),
            failures=Failures(failed),
            quarantined=len(quarantined),
            cost=ending.spent if ending.spent or options.known_cost is not None else None,
            remaining=_remaining(checkpoint, ending, len(failed) + len(quarantined) + len(parked)),
            positions=planner.seen,
            changed=planner.changed,
            retried=ending.retried,
            parked=len(parked),
            parked_items=Failures(parked),
            read_all=not ending.stopped and not ending.why_failed,
            reader=place.reader(),
            failures_listed=checkpoint.failures_listed if failed or quarantined or parked else "",
            bound_by=ending.bound_by,
            out=out.items,
            submissions=out.submissions,
            when_published=self._flow_run.published if self._flow_run is not None else None,
        )


def _spending(budget: Budget, checkpoint: Checkpoint, runner: Runner) -> Spending:
    if not (runner.submits and budget.of_money):
        return Spending(budget, checkpoint.found)
    from resumable_tasks.engine.reserved import ReservedSpending

    return ReservedSpending(budget, checkpoint.found, runner.price)


def _isolates(options: JobOptions, runner: Runner) -> bool:
    """Whether a failed batch is halved; by default not for services, which may take hours."""
    isolate = options.failing.isolate
    return not runner.submits if isolate is None else isolate


def _describe_edit(handlers: tuple[str, str] | None) -> str:
    if handlers is None:
        return (
            "the handler's code has changed since these items were completed; their results are "
            "kept"
        )
    then, now = map(clean, handlers)
    return (
        f"another handler completed these items (then: {then}; now: {now}); their results are "
        "kept. If this is another job, stop now and give it a checkpoint= of its own"
    )


def _refuse_in_a_worker(name: str) -> None:
    """Refuse to run while a worker process imports the program, which would run the job again."""
    worker = sys.modules.get("resumable_tasks.runners.worker")
    if worker is not None and worker.starting:
        raise UsageError(
            f"{name}: worker processes import the program, which runs this job on import. Put the "
            'code that runs the job under `if __name__ == "__main__":`'
        )


def as_place(
    name: str, checkpoint: str | os.PathLike[str] | Place | None, partition: str | date | None
) -> Place:
    """The place of this job's and partition's checkpoint. Raises `UsageError`."""
    part = None
    if partition is not None:
        from resumable_tasks.task.partitions import folder_of

        part = folder_of(partition)
    if checkpoint is None:
        return Directory(os.path.join(HOME, name, part or "default"))
    if isinstance(checkpoint, Place):
        return checkpoint.partition(part) if part else checkpoint
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise UsageError(
            f"checkpoint={checkpoint!r} is not a path",
            remedy="Name a directory, or a URL of a bucket",
        )
    base = Directory(os.fspath(checkpoint))
    if not base.path:
        raise UsageError("checkpoint is an empty path; name a directory, or a URL")
    return base.partition(part) if part else base


def _remaining(checkpoint: Checkpoint, ending: Ending, failed: int) -> Estimate | None:
    """The items that a stopped run has left; None if their number is unknown."""
    planner, expected = checkpoint.planner, checkpoint.expected
    if expected is None or not (ending.stopped or ending.why_failed):
        return None
    seen = planner.total - planner.skipped - planner.duplicates
    # Unread items are done if they were completed before and this run has not seen them yet.
    unread = max(0, expected - planner.total)
    unread -= min(unread, max(0, checkpoint.found.completed - planner.skipped - planner.changed))
    out = checkpoint.out.items
    left = max(0, max(0, seen - ending.completed - failed) + unread - out)
    estimate = checkpoint.estimate(left)
    each = ending.cost_each
    return replace(estimate, cost=left * each) if each else estimate
