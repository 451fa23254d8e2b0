"""The report that a run writes at its end, if its job names a place for it."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from resumable_tasks.base import log
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import without_secrets
from resumable_tasks.checkpoint.form import Place
from resumable_tasks.checkpoint.store.urls import expanded, is_url, open_store
from resumable_tasks.errors import ResumableTasksError, UsageError
from resumable_tasks.task.options import JobOptions

if TYPE_CHECKING:
    from resumable_tasks.prefect.flow_run import FlowRun


@frozen
class Report:
    """The report of one run, to be written to ``to`` from the checkpoint ``at``."""

    job: str
    at: str
    to: str

    @classmethod
    def wanted(
        cls, options: JobOptions, place: Place, partition: str | date | None
    ) -> Report | None:
        """The report that the job asks for; None if it asks for none.

        Checks everything that can be checked before the run. Raises `UsageError`.
        """
        if options.report is None:
            return None
        from resumable_tasks.results.report import page, writing
        from resumable_tasks.task.partitions import folder_of

        page.check()
        at = place.reader().files_at
        if at is None:
            raise UsageError(
                f"{options.name}: report= needs a checkpoint with a journal, in a directory or "
                f"bucket; a {type(place).__name__} has no journal",
                remedy="Leave report= out",
            )
        name = options.name if partition is None else f"{options.name}-{folder_of(partition)}"
        to = writing.destination(options.report, name)
        writing.refuse_within(to, at)
        if is_url(to):
            open_store(to.rpartition("/")[0], "report")
        return cls(options.name, at, to)

    def write(self, flow_run: FlowRun | None) -> None:
        """Write the report, after the run has released the checkpoint.

        A failure is only logged: the run has ended by then, and its result stays.
        """
        from resumable_tasks.results.report import writing

        shown = without_secrets(self.to)
        try:
            writing.write_report(open_store(self.at), self.to)
        except (ResumableTasksError, OSError) as error:
            log.warning("%s: the report %s was not written: %s", self.job, shown, error)
            return
        log.info("%s: report %s", self.job, shown)
        if flow_run is not None:
            from pathlib import Path
            from urllib.parse import quote

            far = is_url(self.to)
            path = self.to if far else str(Path(expanded(self.to)).absolute())
            address = quote(path, safe=":/") if far else Path(path).as_uri()
            flow_run.show_report(self.job, address, without_secrets(path))
