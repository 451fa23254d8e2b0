"""A broken deploy is no item's fault: it is told from bad items, at once, and counts no attempt."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, resumable_task
from resumable_tasks.runners.environment import of_the_environment
from tests.processes import started
from tests.proof.crash.launcher import until

ITEMS = [{"id": i} for i in range(40)]


def raised(code: str) -> BaseException:
    try:
        exec(code)
    except BaseException as error:
        return error
    raise AssertionError


def test_what_the_environment_raises_is_known() -> None:
    for code in ("import no_such_module", "import os; os.environ['NO_SUCH_VARIABLE']"):
        assert of_the_environment(raised(code))
        assert of_the_environment(ExceptionGroup("g", [raised(code)]))
    assert of_the_environment(OSError(errno.ENOSPC, "No space left on device"))
    assert of_the_environment(OSError(errno.EMFILE, "Too many open files"))
    for code in ("{}['a']", "open('/no/such/file')", "raise ValueError('bad')"):
        assert not of_the_environment(raised(code))


@pytest.mark.parametrize("code", ["import no_such_module", "os.environ['NO_SUCH_VARIABLE']"])
@pytest.mark.parametrize("failing", [{}, {"isolate": False}, {"pause_after": None}], ids=str)
def test_nights_with_a_broken_deploy_quarantine_nothing(
    place: Path, code: str, failing: dict[str, Any]
) -> None:
    broken = True

    def handler(rows: list[Any]) -> list[Any]:
        if broken:
            exec(code)
        return rows

    job = resumable_task(
        handler, name="job", key="id", batch_size=5, failing=Failing(max_attempts=3, **failing)
    )
    for _ in range(4):
        with pytest.raises(JobFailed):
            job.run(ITEMS, checkpoint=place)
    broken = False
    assert job.run(ITEMS, checkpoint=place).completed == len(ITEMS)


def test_an_item_that_fails_among_others_is_quarantined_all_the_same(place: Path) -> None:
    def handler(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] <= 7 <= rows[-1]["id"]:
            raise KeyError("no such field")
        return rows

    job = resumable_task(
        handler, name="job", key="id", batch_size=5, failing=Failing(max_attempts=2)
    )
    for _ in range(2):
        with pytest.raises(JobFailed):
            job.run(ITEMS, checkpoint=place)
    assert job.run(ITEMS, checkpoint=place).quarantined == 1


def test_a_run_of_which_all_is_quarantined_never_ends_well(place: Path) -> None:
    def handler(rows: list[Any]) -> list[Any]:
        raise ValueError("bad")

    job = resumable_task(
        handler, name="job", key="id", failing=Failing(max_attempts=1, pause_after=None)
    )
    with pytest.raises(JobFailed):
        job.run(ITEMS[:3], checkpoint=place)
    with pytest.raises(JobFailed, match=r"3 are quarantined.*resumable retry"):
        job.run(ITEMS[:3], checkpoint=place)


PROGRAM = """
import os, sys, time
{first}
from resumable_tasks import resumable_task

@resumable_task(key="id", batch_size=5, concurrency=2, runner="processes", grace_seconds=20)
def work(items):
    with open(sys.argv[1] + ".called", "a") as file:
        file.write("called\\n")
    time.sleep({seconds})
    return items

def go():
    result = work.run([{{"id": number}} for number in range(20)], checkpoint=sys.argv[1])
    print("done", result.completed, flush=True)

{last}
"""
GUARDED = 'if __name__ == "__main__": go()'
POOL = """
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.get_context("{how}").Pool(1) as pool:
        pool.apply(go)
"""


def program(first: str = "", last: str = GUARDED, seconds: float = 0.0) -> str:
    return PROGRAM.format(first=first, last=last, seconds=seconds)


def run(code: str, folder: Path, *, stdin: bool = False) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-" if stdin else folder / "program.py", folder / "c"],
        input=code if stdin else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


def failed_items(folder: Path) -> bool:
    return any('"failed"' in file.read_text() for file in folder.glob("c/journal/*"))


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (program('if __name__ != "__main__": raise ImportError("libfoo.so.3")'), 1, "libfoo.so.3"),
        (program('if __name__ != "__main__": os._exit(7)'), 1, "ended with exit code 7"),
        (program(last="go()"), 2, 'if __name__ == "__main__":'),
    ],
    ids=["import", "exit", "no guard"],
)
def test_workers_that_cannot_start_say_why_once(
    tmp_path: Path, code: str, exit_code: int, words: str
) -> None:
    done = run(code, tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert words in done.stderr
    assert done.stderr.count("died") == 0
    assert not (tmp_path / "c.called").exists()
    assert not failed_items(tmp_path)


def test_a_handler_that_is_in_no_file_is_refused_at_once(tmp_path: Path) -> None:
    done = run(program(), tmp_path, stdin=True)
    assert done.returncode == 2
    assert "notebook" in done.stderr
    assert not failed_items(tmp_path)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_daemonic_process_may_have_workers(tmp_path: Path, how: str) -> None:
    done = run(program(last=POOL.format(how=how)), tmp_path)
    assert "done 20" in done.stdout, done.stderr


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda each: each.name)
def test_a_signal_to_the_whole_group_costs_no_call_in_a_worker(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "program.py").write_text(program(seconds=1.0))
    called = tmp_path / "c.called"
    with started(
        [sys.executable, tmp_path / "program.py", tmp_path / "c"],
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Under nohup, as in a background job, SIGHUP is ignored by whoever is started.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        until("two are called", lambda: called.exists() and len(called.read_text().split()) == 2)
        time.sleep(0.2)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=40)[1]
    assert process.returncode == 75, said
    assert "10 items were completed" in said
