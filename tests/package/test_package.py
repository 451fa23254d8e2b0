from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import resumable_tasks

PACKAGE = Path(resumable_tasks.__file__).parent


def in_a_new_interpreter(code: str, *, cwd: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=cwd
    ).stdout


def test_import_loads_neither_pyarrow_nor_prefect_nor_anything_slow(tmp_path: Path) -> None:
    code = "import resumable_tasks, sys; print(*sys.modules)"
    loaded = set(in_a_new_interpreter(code, cwd=tmp_path).split())
    assert not loaded & {"pyarrow", "prefect", "rich", "click", "asyncio", "numpy"}


def test_naming_a_job_loads_nothing_that_only_a_run_needs(tmp_path: Path) -> None:
    code = """
import sys
from resumable_tasks import resumable_task
work = resumable_task(lambda rows: rows, name="work", key="id", rate_limit="60/minute")
print(*sys.modules)
"""
    loaded = set(in_a_new_interpreter(code, cwd=tmp_path).split())
    assert not loaded & {
        *("asyncio", "multiprocessing", "subprocess", "socket", "email", "http", "pathlib", "uuid"),
        *("pyarrow", "prefect", "sqlalchemy", "tenacity", "pyrate_limiter", "rich", "click"),
    }
    rooms = {name.split(".")[1] for name in loaded if name.startswith("resumable_tasks.")}
    assert rooms.isdisjoint({"prefect", "results", "cli", "testing"})
    assert not {name for name in loaded if name.startswith("resumable_tasks.checkpoint.directory")}
    ours = [name for name in loaded if name.startswith("resumable_tasks")]
    assert len(ours) <= 27, sorted(ours)


def test_a_complete_job_is_found_complete_without_what_only_work_needs(tmp_path: Path) -> None:
    code = """
import sys
from resumable_tasks import resumable_task
work = resumable_task(lambda rows: rows, name="work", key="id")
items = [{"id": i} for i in range(100)]
work.run(items, checkpoint="c")
"""
    in_a_new_interpreter(code, cwd=tmp_path)
    bare = set(in_a_new_interpreter("import sys; print(*sys.modules)", cwd=tmp_path).split())
    loaded = set(in_a_new_interpreter(f"{code}print(*sys.modules)", cwd=tmp_path).split()) - bare
    assert not loaded & {
        *("pyarrow", "prefect", "sqlalchemy", "tenacity", "pyrate_limiter", "rich", "click"),
        *("pathlib", "urllib", "urllib.parse", "ipaddress", "fnmatch", "ntpath"),
        *("hashlib", "_hashlib", "_ssl", "shlex"),
        *("asyncio", "multiprocessing", "subprocess", "socket", "sqlite3", "uuid", "decimal"),
        *("tempfile", "shutil", "random", "secrets", "concurrent.futures", "obstore"),
    }
    ours = {name.removeprefix("resumable_tasks.") for name in loaded}
    assert not ours & {
        *("engine.committer", "engine.failing", "engine.breaker", "engine.feeder"),
        *("engine.withservice", "base.container"),
        *("task.early", "task.elsewhere", "task.partitions", "task.previewed"),
        *("runners.handle", "runners.match", "runners.limits", "runners.retries"),
        *("results.publish", "results.rows", "checkpoint.estimate", "checkpoint.choice"),
        *(
            "checkpoint.directory.archive",
            "checkpoint.directory.reader",
            "checkpoint.store.object",
            "checkpoint.store.clients",
            "checkpoint.store.requests",
        ),
    }


def test_a_complete_job_starts_no_thread_but_its_heartbeat(tmp_path: Path) -> None:
    code = """
import threading
from resumable_tasks import resumable_task
started = []
start = threading.Thread.start
threading.Thread.start = lambda thread: (started.append(thread.name), start(thread))[1]
work = resumable_task(lambda rows: rows, name="work", key="id")
work.run([{"id": i} for i in range(100)], checkpoint="c")
print(*started)
"""
    assert "resumable-commit" in in_a_new_interpreter(code, cwd=tmp_path)
    assert in_a_new_interpreter(code, cwd=tmp_path).split() == ["resumable-heartbeat"]


def test_the_public_names_are_sorted_exist_and_are_all() -> None:
    assert resumable_tasks.__all__ == sorted(resumable_tasks.__all__)
    for name in resumable_tasks.__all__:
        assert getattr(resumable_tasks, name).__name__.rpartition(".")[2] == name
    assert set(resumable_tasks.__all__) == {*resumable_tasks._HOME_OF, "events"}
    with pytest.raises(AttributeError, match="nonsense"):
        resumable_tasks.nonsense  # noqa: B018


def test_without_prefect_every_name_is_there_and_says_the_pip_line(tmp_path: Path) -> None:
    code = """
import pydoc, sys
sys.modules["prefect"] = None  # as where it is not installed
import resumable_tasks
from resumable_tasks import *
assert set(resumable_tasks.__all__) <= set(globals())
assert "flow_state(result" in pydoc.plain(pydoc.render_doc(resumable_tasks))
scheduled_date()
job = resumable_task(lambda rows: [{"v": 1} for _ in rows], name="job")
in_flows = resumable_task(lambda rows: rows, name="in_flows", runner="prefect")
result = job.run(["a"], checkpoint="c")
for needs_prefect in (
    lambda: flow_state(result),
    lambda: in_flows.run(["a"], checkpoint="other"),
):
    try:
        needs_prefect()
    except UsageError as error:
        print(error.remedy)
"""
    said = in_a_new_interpreter(code, cwd=tmp_path)
    assert said.splitlines()[-2:] == ['pip install "resumable-tasks[prefect]"'] * 2


def test_nothing_of_the_library_prints_pickles_or_evaluates() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name == "cli.py" or "cli" in path.parts or "testing" in path.parts:
            continue
        text = path.read_text()
        for word in (" print(", "import pickle", " eval(", " exec("):
            assert word not in text, f"{path}: {word}"


def test_no_class_shares_its_private_names_with_one_of_the_standard_librarys_threads() -> None:
    # Python 3.13 gave Thread a `_handle`, which took the place of a method of ours.
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not bases & {"Thread", "Timer", "Process"}, f"{path}: {node.name}"
