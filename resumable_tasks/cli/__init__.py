"""The command line ``resumable``: look after checkpoints while nobody's script is at hand.

An error of the library ends a command with its exit code and one message on standard error; any
other exception is a bug and shows its traceback. Importing this loads neither pyarrow nor rich.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import click

from resumable_tasks import __version__
from resumable_tasks.cli import output, tables  # noqa: F401 - adds commands to `sql`
from resumable_tasks.cli.advise import advise
from resumable_tasks.cli.change import publish, repair, reset
from resumable_tasks.cli.check import check
from resumable_tasks.cli.compact import compact
from resumable_tasks.cli.database import sql
from resumable_tasks.cli.diff import diff
from resumable_tasks.cli.failed import failures, retry
from resumable_tasks.cli.imports import import_progress
from resumable_tasks.cli.look import keys, list_checkpoints, plan, status, verify
from resumable_tasks.cli.parked import accept
from resumable_tasks.cli.prune import prune
from resumable_tasks.cli.redo import redo
from resumable_tasks.cli.report import report
from resumable_tasks.cli.serve import serve
from resumable_tasks.cli.show import history, show
from resumable_tasks.cli.submissions import submissions
from resumable_tasks.cli.watch import watch
from resumable_tasks.errors import EXIT_INTERRUPTED, ResumableTasksError

_EPILOG = """\b
Exit codes:
  0   done
  1   items failed
  2   usage: fix the command; nothing was changed
  3   held by another run
  4   damaged checkpoint
  5   budget used up: raise it, or run the job again to spend another
  75  interrupted: run the job again to resume

\b
Example:
  resumable status checkpoints/classify
"""


class Commands(click.Group):
    """The commands in the order in which they were added, with the exit codes of our errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        for name in ("stdout", "stderr"):
            # A process that was started with it closed, as by a daemon, has nobody who reads it.
            stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - as long as we live
            setattr(sys, name, stream)
            # A terminal that cannot show a character gets its escape, not a traceback.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except ResumableTasksError as error:
            output.note(f"resumable: {error}")
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            output.note("resumable: interrupted")
            ctx.exit(EXIT_INTERRUPTED)


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="resumable")
def main() -> None:
    """Inspect and manage the checkpoints of resumable jobs.

    All commands only read, and are safe while a run is at work, except retry, redo, accept, repair,
    compact, reset, prune, import, check, submissions attach and withdraw, sql accept and sql init
    --apply.
    """


for _command in (
    status,
    list_checkpoints,
    plan,
    keys,
    show,
    failures,
    history,
    diff,
    submissions,
    retry,
    redo,
    accept,
    verify,
    repair,
    compact,
    publish,
    reset,
    prune,
    watch,
    report,
    serve,
    import_progress,
    advise,
    check,
    sql,
):
    main.add_command(_command)
