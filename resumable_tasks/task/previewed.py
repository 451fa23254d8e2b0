"""The result of a dry run."""

from __future__ import annotations

from resumable_tasks.base import log
from resumable_tasks.checkpoint.form import Place, Preview
from resumable_tasks.items.submission import Out
from resumable_tasks.results.result import RunResult
from resumable_tasks.task.options import JobOptions


def previewed(options: JobOptions, place: Place, preview: Preview) -> RunResult:
    """The result of a dry run; ``remaining`` are the items that a run would handle."""
    batches = f" in {preview.batches:,} batches" if preview.batches is not None else ""
    log.info(
        "%s: a run would handle %s%s; of %s items in total, %s are done, %s failed before and "
        "would be tried again, %s would not be tried again%s",
        options.name,
        preview.remaining,
        batches,
        f"{preview.total:,}",
        f"{preview.skipped:,}",
        f"{preview.again:,}",
        f"{preview.left_alone:,}",
        f", {Out(preview.out, preview.submissions)}" if preview.submissions else "",
    )
    quarantine = options.failing.retry_failed
    return RunResult(
        job=options.name,
        checkpoint=preview.url,
        run="",
        total=preview.total,
        completed=0,
        skipped=preview.skipped,
        failed=0 if quarantine else preview.left_alone,
        duplicates=preview.duplicates,
        seconds=0.0,
        quarantined=preview.left_alone if quarantine else 0,
        remaining=preview.remaining,
        changed=preview.changed,
        positions=preview.positions,
        out=preview.out,
        submissions=preview.submissions,
        reader=place.reader(),
    )
