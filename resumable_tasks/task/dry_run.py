"""What a run would do, without doing it: nothing is called, written or held."""

from __future__ import annotations

from typing import Any

from resumable_tasks.base import log
from resumable_tasks.checkpoint.directory import manifest
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planner
from resumable_tasks.results.result import RunResult
from resumable_tasks.task.options import JobOptions


def dry_run(place: str, options: JobOptions, items: Any) -> RunResult:
    """Read all items, and say what `ResumableTask.run` would handle of them.

    ``remaining`` of the result has it, with what that would take at the pace of earlier runs.
    Raises what a run would raise for these items, or for this checkpoint.
    """
    store, scheme, state = open_store(place), KeyScheme(options.key), State()
    fingerprinter = options.fingerprinter()
    described = fingerprinter.describe() if fingerprinter is not None else None
    if manifest.NAME in store.list(""):
        found, state = read_checkpoint(store)
        wanted = Manifest(options.name, str(options.version), scheme.describe(), options.results)
        manifest.check(store, found, wanted)
        version = state.version or found.version
        if options.on_version_change == "restart" and version not in ("", wanted.version):
            state = State()
        elif options.on_version_change != "reuse":
            manifest.check_version(store, version, wanted.version)
            manifest.check_fingerprint(store, state.fingerprint, described)
    state.follow_scheme(described)
    planner = Planner(
        scheme,
        options.batch_size,
        state.done,
        on_duplicate=options.on_duplicate,
        batch_format=options.batch_format,
        set_aside=state.set_aside(options.max_attempts, options.retry_failed),
        fingerprinter=fingerprinter,
        on_change=options.on_change,
        failed=state.failures,
    )
    batches = again = handled = 0
    for batch in planner.batches(items):
        batches += 1
        handled += len(batch)
        if state.failures:
            again += sum(line in state.failures for line in batch.lines.split(b"\n"))
    left = len(planner.set_aside_lines)
    result = RunResult(
        job=options.name,
        checkpoint=store.url,
        run="",
        total=planner.total,
        completed=0,
        skipped=planner.skipped,
        failed=0 if options.retry_failed else left,
        duplicates=planner.duplicates,
        seconds=0.0,
        quarantined=left if options.retry_failed else 0,
        remaining=state.pace.estimate(handled),
        changed=planner.changed,
        positions=planner.seen,
    )
    log.info(
        "%s: a run would handle %s in %s batches; of all %s items %s are done, %s have failed "
        "before and would be tried again, %s would not be tried again",
        options.name,
        result.remaining,
        f"{batches:,}",
        f"{result.total:,}",
        f"{result.skipped:,}",
        f"{again:,}",
        f"{left:,}",
    )
    return result
