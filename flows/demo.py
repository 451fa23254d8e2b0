"""The demo of ``make demo``: the nightly ingest, killed halfway, inspected, resumed, checked.

    python -m flows.demo [SOURCE…]

Nothing is acted: the job is a process of its own on real files, the kill is SIGKILL to its whole
process group, and every number is read from the checkpoint or from what was published. The exit
code is 0 only if all of it adds up.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as pads

from flows._command import partition_folder
from flows.python_files import default_sources, expand, source_files

HOME = Path(".resumable/demo")  # the demo's own, removed at the start of each
CHECKPOINT, OUT = HOME / "checkpoint", HOME / "published"
INCOMPLETE = 75  # exit code of `status` for a job that is to be run again
BATCHES = 200  # few enough to be quick, many enough to be killed at about half
POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 300


def main(sources: list[str]) -> int:
    shutil.rmtree(HOME, ignore_errors=True)
    expected = [file.path for file in source_files(expand(sources or default_sources()))]
    if len(expected) < 2:
        return wrong("there are no files for a demo")
    # Said outright, so that the second run means the same day even at midnight.
    today = datetime.date.today()
    checkpoint = CHECKPOINT / str(today)
    command = [
        *(sys.executable, "-m", "flows.nightly_ingest", *sources),
        *("--date", str(today), "--checkpoint", str(CHECKPOINT), "--out", str(OUT)),
        *("--local", "--processes", "--concurrency", "2"),
        *("--batch-size", str(max(1, len(expected) // BATCHES)), "--no-progress"),
    ]

    say(f"# {len(expected):,} Python files. The job is started, and killed at about half of them.")
    killed_at = run_and_kill(command, checkpoint, len(expected) // 2)
    if killed_at is None:
        return wrong("the job ended before it could be killed at half; give it more files")

    say("\n# What is there now?")
    resumable = os.path.join(sysconfig.get_path("scripts"), "resumable")
    if (code := start([resumable, "status", str(checkpoint)]).wait()) != INCOMPLETE:
        return wrong(f"`resumable status` ended with exit code {code}, not {INCOMPLETE}")
    say(f"# Exit code {INCOMPLETE}: run it again to resume.")

    say("\n# The same command again.")
    if code := start(command).wait():
        return wrong(f"the second run ended with exit code {code}")

    say("\n# Does it add up?")
    last = max((checkpoint / "journal").glob("*.jsonl")).read_bytes()
    counts = json.loads(last.splitlines()[0])["info"]
    published = pads.dataset(OUT, partitioning="hive").to_table()
    paths = published["path"].to_pylist()
    twice = sum(n - 1 for n in Counter(paths).values())
    say(f"{counts['skipped']:,} files were done before the kill and were not handled again")
    say(f"{counts['completed']:,} files were handled by the second run")
    say(f"{len(paths):,} rows are in {partition_folder(str(OUT), today)}, {twice} of them twice")
    if counts["skipped"] != killed_at or not killed_at:
        return wrong(f"{killed_at:,} were in the journal after the kill")
    if counts["skipped"] + counts["completed"] != counts["total"] or counts["failed"]:
        return wrong(f"the counts of the second run do not add up: {counts}")
    if twice or set(paths) != set(expected):
        return wrong(f"the rows are not those of the {len(expected):,} files")

    say("\nThe five largest packages, from the published Parquet:")
    lines = published.group_by("package").aggregate([("lines", "sum"), ("path", "count")])
    for row in lines.sort_by([("lines_sum", "descending")]).slice(0, 5).to_pylist():
        name, number, files = row["package"], row["lines_sum"], row["path_count"]
        say(f"  {name:<20} {number:>9,} lines in {files:>5,} files")
    return 0


def run_and_kill(command: list[str], checkpoint: Path, at: int) -> int | None:
    """Run the job and SIGKILL it at so many files; how many were done. None: it was quicker."""
    job = start(command, background=True)
    began = time.monotonic()
    try:
        while keys_in_journal(checkpoint) < at:
            if job.poll() is not None or time.monotonic() - began > GIVE_UP_SECONDS:
                return None
            time.sleep(POLL_SECONDS)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            say(f"$ kill -KILL -- -{job.pid}")
        job.wait()
    done = keys_in_journal(checkpoint)
    say(f"# Dead, with {done:,} files in its journal.")
    return done if job.returncode == -signal.SIGKILL else None


def keys_in_journal(checkpoint: Path) -> int:
    """A line a completed file; see docs/format.md. No code of the library is asked."""
    records = (checkpoint / "journal").glob("*.jsonl")
    return sum(record.read_bytes().count(b'\n{"key":') for record in records)


def start(command: list[str], *, background: bool = False) -> subprocess.Popen[bytes]:
    """Start a command, and print it as a person would type it."""
    first = "python" if command[0] == sys.executable else os.path.basename(command[0])
    say(f"$ {shlex.join([first, *command[1:]])}{' &' * background}")
    # In the background it has a session of its own, so that a kill takes its workers too.
    return subprocess.Popen(command, start_new_session=background)  # noqa: S603 - our own command


def say(text: str) -> None:
    print(text, flush=True)  # in its place between the lines of the job's own


def wrong(what: str) -> int:
    print(f"demo: {what}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
