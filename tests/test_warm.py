"""Programs from the warm parent behave as those of a fresh interpreter, and outlive no test run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import warm

CASES = {
    "words": "import sys; print(sys.argv, __name__, input()); print('e', file=sys.stderr)",
    "code": "raise SystemExit(75)",
    "message": "raise SystemExit('wrong')",
    "interrupted": "raise KeyboardInterrupt",
    "thread": "import threading as t; t.Timer(0.05, print, ['late']).start()",
    "exit function": "import atexit; atexit.register(print, 'last'); raise OSError",
    "hook": "import sys; sys.excepthook = lambda *_: sys.exit(4); raise OSError",
    "environment": "import os; print(sorted(os.environ), os.getcwd())",
    "signals": "import signal as s; print(*map(s.getsignal, (s.SIGINT, s.SIGTERM, s.SIGCHLD)))",
    "killed": "import os; os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES.keys())
def test_it_is_as_a_fresh_interpreter(code: str, tmp_path: Path) -> None:
    def tried(run: Any) -> tuple[Any, ...]:
        env = {"LANG": "C.UTF-8", "LC_CTYPE": "C.UTF-8"}
        done = run(
            [sys.executable, "-c", code, "x"],
            input="line\n", capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if line and line[0] != " "]
        return done.returncode, done.stdout, said

    assert tried(warm.run) == tried(subprocess.run)


def test_warnings_are_errors_where_they_are_to_be(tmp_path: Path) -> None:
    code = "import sys, warnings; print(sys.warnoptions, flush=True); warnings.warn('so it is')"
    for options, returned in (([], 0), (["-W", "error"], 1)):
        command = [sys.executable, *options, "-c", code]
        found = [run(command, capture_output=True, text=True) for run in (warm.run, subprocess.run)]
        assert [each.returncode for each in found] == [returned, returned]
        assert found[0].stdout == found[1].stdout
        assert all("UserWarning: so it is" in each.stderr for each in found)


@pytest.mark.long
@pytest.mark.parametrize("level", ["DEBUG", "ERROR"])
def test_prefect_is_set_up_by_the_environment_of_the_program(tmp_path: Path, level: str) -> None:
    pytest.importorskip("prefect")
    code = (
        "import logging, prefect.main; from prefect.settings import PREFECT_API_URL, PREFECT_HOME; "
        "print(PREFECT_API_URL.value(), PREFECT_HOME.value(), logging.getLogger('prefect').level)"
    )
    env = {
        "PREFECT_API_URL": f"http://127.0.0.1:1/{level}",
        "PREFECT_HOME": str(tmp_path / level),
        "PREFECT_LOGGING_LEVEL": level,
    }
    options: Any = {"capture_output": True, "text": True, "env": env, "timeout": 120}
    command = [sys.executable, "-c", code]
    found = warm.run(command, prefect=True, **options).stdout
    assert found == subprocess.run(command, **options).stdout != ""


def test_scripts_and_modules(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import sys; print(__name__, sys.argv[1:])")
    (tmp_path / "script.py").write_text("import beside, os; print(os.path.basename(__file__))")
    (tmp_path / "elsewhere").mkdir()
    script = [sys.executable, tmp_path / "script.py", "1"]
    module = [sys.executable, "-m", "beside", "1"]
    for command, cwd in ((script, "elsewhere"), (module, ".")):
        options: Any = {"capture_output": True, "text": True, "cwd": tmp_path / cwd}
        assert warm.run(command, **options).stdout == subprocess.run(command, **options).stdout


def test_an_end_that_comes_before_anybody_asks_is_not_lost() -> None:
    program = warm.start([sys.executable, "-c", "import os; os._exit(9)"])
    time.sleep(0.1)
    assert program.wait(60) == 9


def test_it_is_killed_as_any_process_and_with_its_parent(tmp_path: Path) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    first = warm.start(sleeps)
    first.kill()
    assert first.wait(60) == -signal.SIGKILL
    second = warm.start(sleeps)
    assert second.poll() is None
    warm.close()
    for _ in range(1000):
        if not Path(f"/proc/{second.pid}").exists():
            return
        time.sleep(0.01)
    raise AssertionError("it outlives the warm parent")


def test_workers_of_one_run_share_what_is_imported_until_it_ends() -> None:
    def ancestors(pid: int) -> list[int]:
        found = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return [found, *ancestors(found)] if found > 1 else []

    def parent() -> warm.Parent:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTEST_XDIST_WORKER", "gw0")
            patch.setenv("PYTEST_XDIST_TESTRUNUID", run)
            patch.setattr("os.getppid", lambda: session.pid)
            return warm.Parent()

    def sleeping(of: warm.Parent) -> warm.Program:
        sleep = ["-c", "import time; time.sleep(600)"]
        request = {"command": sleep, "cwd": "/", "env": {}, "handles": [0, 1, 2]}
        return of.start(request, [0, 1, 2], [None, None, None])

    run = uuid.uuid4().hex
    with subprocess.Popen(["sleep", "600"]) as session:
        one, other = parent(), parent()
        first, second = sleeping(one), sleeping(other)
        mine, shared = ancestors(first.pid)[:2]
        theirs, also = ancestors(second.pid)[:2]
        assert (mine != theirs, shared) == (True, also)
        one.close()  # as a worker that ends
        gone(first.pid)
        assert second.poll() is None
        other.close()
        gone(second.pid)
        session.kill()
    gone(shared)


def gone(pid: int) -> None:
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} goes on")
