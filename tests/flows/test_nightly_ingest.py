from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from flows import python_files
from resumable_tasks import ItemFailure
from tests import warm

REPOSITORY = Path(__file__).parents[2]
DATE = "2026-11-23"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
ENVIRONMENT.pop("PREFECT_API_URL", None)


# Processes are more to be killed.
HOW = [
    pytest.param((), id="threads", marks=pytest.mark.long),
    pytest.param(("--processes",), id="processes"),
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.nightly_ingest", "--no-progress", *arguments]


def run(cwd: Path, *arguments: str, date: str | None = DATE) -> subprocess.CompletedProcess[str]:
    return warm.run(
        command(*(("--date", date) if date else ()), *arguments),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def published(cwd: Path) -> pa.Table:
    return pads.dataset(cwd / "published/nightly_ingest", partitioning="hive").to_table()


def keys_in_journal(cwd: Path, date: str = DATE) -> int:
    records = (cwd / ".resumable/nightly_ingest" / date / "journal").glob("*.jsonl")
    return sum(text.count('\n{"key":') for text in (r.read_text("utf-8") for r in records))


@pytest.fixture(scope="session")
def slow_tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Files that take some seconds to parse, one after the other."""
    tree = tmp_path_factory.mktemp("slow") / "tree"
    body = "".join(f"def f{i}(a, b):\n    return [a + b * {i}, (a, b)]\n" for i in range(400))
    for i in range(60):
        folder = tree / f"p{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"m{i:03}.py").write_text(f"import m{i}\n{body}")
    return tree, 60


@pytest.fixture
def background() -> Iterator[list[warm.Program]]:
    """Processes that lead a group of their own and end with the test."""
    started: list[warm.Program] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_and_wait_for(
    cwd: Path, at: int, background: list[warm.Program], *arguments: str
) -> warm.Program:
    """A run in the background that has so many files done, and is at work on the rest."""
    process = warm.start(
        command("--date", DATE, *arguments),
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    background.append(process)
    until = time.monotonic() + 60
    while keys_in_journal(cwd) < at:
        assert process.poll() is None, "the run ended before it was half done"
        assert time.monotonic() < until, "the run does not get on"
        time.sleep(0.01)
    return process


def test_each_file_becomes_the_row_that_it_should(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "pkg/sub").mkdir(parents=True)
    for skipped in ("__pycache__", "pkg/__pycache__", "site-packages/other"):
        (tree / skipped).mkdir(parents=True)
        (tree / skipped / "no.py").write_text("x = 1\n")
    (tree / "notes.txt").write_text("no Python\n")
    (tree / "pkg/loop").symlink_to(tree)
    (tree / "itself.py").symlink_to("itself.py")
    (tree / "nowhere.py").symlink_to("gone.py")
    os.mkfifo(tree / "pipe.py")
    module = (
        "import os, sys\nfrom json import *\n\n\nclass A:\n    class B:\n"
        "        def one(self): ...\n\n    async def two(self):\n"
        "        def three(): ...\n        import re\n        return lambda: three\n"
    )
    chain = "a" + "+a" * 20_000
    # path → content, lines, (functions, classes, imports), package, what the error is
    Expected = tuple[bytes, int, tuple[int, int, int] | None, str, str | None]
    expected: dict[bytes, Expected] = {
        b"pkg/__init__.py": (b"", 0, (0, 0, 0), "pkg", None),
        b"pkg/module.py": (module.encode(), 12, (3, 2, 3), "pkg", None),
        b"pkg/sub/last.py": (b"import a\r\nimport b", 2, (0, 0, 2), "pkg", None),
        b"alone.py": (b"def f(): ...\n", 1, (1, 0, 0), "alone", None),
        b"broken.py": (b"def f(:\n", 1, None, "broken", "SyntaxError"),
        b"nulls.py": (b"x = 1\0\n", 1, None, "nulls", "null bytes"),
        b"deep.py": (chain.encode(), 1, None, "deep", "RecursionError"),
        b"latin.py": (b"# coding: latin-1\ndef caf\xe9(): ...\n", 2, (1, 0, 0), "latin", None),
        b"undeclared.py": (b"caf\xe9 = 1\n", 1, None, "undeclared", "codec can't decode"),
        b"caf\xe9.py": (b"import one\n", 1, (0, 0, 1), r"caf\xe9", None),
        rb"caf\xe9.py": (b"import one, two\n", 1, (0, 0, 1), r"caf\\xe9", None),
        "näme 🐍.py".encode(): (b"class C: ...\n", 1, (0, 1, 0), "näme 🐍", None),
    }
    for name, (content, *_) in expected.items():
        with open(os.path.join(os.fsencode(tree), name), "wb") as file:
            file.write(content)

    done = run(tmp_path, "tree", "--batch-size", "5")

    assert done.returncode == 0, done.stderr
    rows = {row.pop("path"): row for row in published(tmp_path).to_pylist()}
    as_keys = {b"caf\xe9.py": r"caf\xe9.py", rb"caf\xe9.py": r"caf\\xe9.py"}
    assert set(rows) == {f"{tree}/{as_keys.get(name) or name.decode()}" for name in expected}
    for name, (content, lines, counts, package, error) in expected.items():
        row = rows[f"{tree}/{as_keys.get(name) or name.decode()}"]
        text = row.pop("syntax_error")
        assert (text is None) if error is None else (error in text), (name, text)
        functions, classes, imports = counts or (None, None, None)
        assert row == {
            "package": package,
            "bytes": len(content),
            "lines": lines,
            "sha256": hashlib.sha256(content).hexdigest(),
            "functions": functions,
            "classes": classes,
            "imports": imports,
            "date": DATE,
        }
    assert re.search(rf"^12 files on {DATE}: 12 handled now, 0 resumed, 0 failed", done.stdout)
    assert "Warning" not in done.stderr


def test_a_file_that_cannot_be_read_fails_alone_and_is_tried_again(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / f"{name}.py").write_text("x = 1\n")
    # Reading it is an input/output error, also for root.
    (tree / "bad.py").symlink_to("/proc/self/mem")

    failed = run(tmp_path, "tree")

    assert failed.returncode == 1
    assert "1 of 4 items of nightly_ingest failed" in failed.stderr
    assert "OSError" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "published").exists()
    assert keys_in_journal(tmp_path) == 3

    (tree / "bad.py").unlink()
    (tree / "bad.py").write_text("import fixed\n")
    fixed = run(tmp_path, "tree")
    assert fixed.returncode == 0
    assert "4 files on 2026-11-23: 1 handled now, 3 resumed, 0 failed" in fixed.stdout
    assert published(tmp_path).num_rows == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_fails_as_an_item(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("x = 1\n")
    (tree / "secret.py").write_text("x = 1\n")
    (tree / "secret.py").chmod(0)
    failed = run(tmp_path, "tree")
    assert failed.returncode == 1
    assert "PermissionError" in failed.stderr


def test_a_folder_that_cannot_be_listed_is_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "shut").mkdir()
    (tmp_path / "open/a.py").write_text("x = 1\n")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(python_files.source_files([str(tmp_path)]))
    assert [file.file for file in found] == [f"{tmp_path}/open/a.py", f"{tmp_path}/shut"]
    row, failure = python_files.ingest(found)
    assert isinstance(row, dict)
    assert isinstance(failure, ItemFailure)
    assert failure.key == f"{tmp_path}/shut"


def test_a_file_that_vanishes_or_changes_is_data(tmp_path: Path) -> None:
    for name in ("changes", "vanishes"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    files = list(python_files.source_files([str(tmp_path)]))
    (tmp_path / "changes.py").write_text("import new\nimport old\n")
    (tmp_path / "vanishes.py").unlink()

    changed, vanished = python_files.ingest(files)

    assert isinstance(changed, dict)
    assert isinstance(vanished, dict)
    assert changed["lines"].as_py() == changed["imports"].as_py() == 2
    assert vanished["path"] == f"{tmp_path}/vanishes.py"
    assert all(vanished[name].as_py() is None for name in python_files.COLUMNS if name != "package")


def test_the_walk_is_lazy_and_always_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/z", "b/a", "a/y", "a/x", "c", "B"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    walk, listed = os.walk, []

    def shuffled(top: str, **options: Any) -> Iterator[Any]:
        for folder, folders, names in walk(top, **options):
            listed.append(folder)
            folders.sort(reverse=True)
            yield folder, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", shuffled)
    found = python_files.source_files([str(tmp_path)])
    assert next(found).path == f"{tmp_path}/B.py"
    assert listed == [str(tmp_path)]
    rest = [file.path.removeprefix(f"{tmp_path}/") for file in found]
    assert rest == ["c.py", "a/x.py", "a/y.py", "b/a.py", "b/z.py"]


def test_a_file_that_two_sources_name_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "src/pkg").mkdir(parents=True)
    for name in ("__init__", "a", "b"):
        (tmp_path / f"src/pkg/{name}.py").touch()
    done = run(tmp_path, "src/pkg", "src", "src/pkg/*.py", "src/pkg/a.py")
    assert done.returncode == 0, done.stderr
    rows = published(tmp_path).to_pylist()
    assert len(rows) == 3
    assert {row["package"] for row in rows} == {"pkg"}


def test_by_default_it_takes_the_real_files_of_this_interpreter(tmp_path: Path) -> None:
    done = run(tmp_path, "--limit", "100", "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    assert "100 files" in done.stdout
    rows = published(tmp_path)
    assert rows.num_rows == 100
    sizes = dict(zip(rows["path"].to_pylist(), rows["bytes"].to_pylist(), strict=True))
    assert sizes == {path: os.path.getsize(path) for path in sizes}
    assert argparse.__file__ in sizes


@pytest.mark.long
@pytest.mark.parametrize("how", HOW)
def test_killed_at_half_and_resumed_every_path_is_there_once(
    how: tuple[str, ...],
    tmp_path: Path,
    slow_tree: tuple[Path, int],
    background: list[warm.Program],
) -> None:
    tree, files = slow_tree
    arguments = (str(tree), "--batch-size", "4", "--concurrency", "2", *how)
    process = start_and_wait_for(tmp_path, files // 2, background, *arguments)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = keys_in_journal(tmp_path)
    assert files // 2 <= done < files
    assert not (tmp_path / "published").exists()

    resumed = run(tmp_path, *arguments)

    assert resumed.returncode == 0, resumed.stderr
    assert f"{files} files on {DATE}: {files - done} handled now, {done} resumed" in resumed.stdout
    paths = published(tmp_path)["path"].to_pylist()
    assert sorted(paths) == sorted(str(path) for path in tree.rglob("*.py"))


def test_a_second_run_of_a_date_handles_nothing_and_another_date_everything(
    tmp_path: Path,
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / f"{name}.py").write_text("x = 1\n")
    assert run(tmp_path, "tree").returncode == 0
    first = published(tmp_path)
    (tree / "a.py").write_text("a file of a date that is done is not read again\n")

    again = run(tmp_path, "tree")

    assert again.returncode == 0
    assert "3 files on 2026-11-23: 0 handled now, 3 resumed, 0 failed" in again.stdout
    assert published(tmp_path).equals(first)

    # On the first date no file had a syntax error; the column must be text all the same.
    next_day = run(tmp_path, "tree", "--date", "2026-11-24")
    assert next_day.returncode == 0
    assert "3 files on 2026-11-24: 3 handled now, 0 resumed, 0 failed" in next_day.stdout
    assert sorted(os.listdir(tmp_path / ".resumable/nightly_ingest")) == [DATE, "2026-11-24"]
    assert sorted(os.listdir(tmp_path / "published/nightly_ingest")) == [
        "date=2026-11-23",
        "date=2026-11-24",
    ]
    rows = published(tmp_path).select(["date", "path", "syntax_error"]).to_pylist()
    by_date = {
        date: sorted(Path(row["path"]).name for row in group)
        for date, group in itertools.groupby(
            sorted(rows, key=lambda row: row["date"]), lambda row: row["date"]
        )
    }
    assert by_date == {date: ["a.py", "b.py", "c.py"] for date in (DATE, "2026-11-24")}
    broken = [(row["date"], Path(row["path"]).name) for row in rows if row["syntax_error"]]
    assert broken == [("2026-11-24", "a.py")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--date", "yesterday"),
        ("--limit", "0"),
        ("--keep", "0"),
        ("--batch-size", "0"),
        ("no/such/folder",),
        ("tree/*.nothing",),
        ("--from", "2026-11-01"),
        ("--to", "2026-11-01"),
        ("--from", "2026-11-02", "--to", "2026-11-01"),
        ("--from", "2026-11-01", "--to", "2026-11-02", "--date", "2026-11-01"),
        ("--tz", "Mars/Olympus"),
    ],
    ids=" ".join,
)
def test_what_is_asked_wrongly_ends_with_2_and_starts_nothing(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    refused = run(tmp_path, *arguments, date=None)
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""
    assert not (tmp_path / ".resumable").exists()


def test_a_range_of_dates_is_done_date_by_date_and_ends_with_the_worst(tmp_path: Path) -> None:
    for day, names in (("01", "ab"), ("02", "c"), ("03", "def")):
        (tmp_path / f"2026-11-{day}").mkdir()
        for name in names:
            (tmp_path / f"2026-11-{day}/{name}.py").write_text("x = 1\n")
    # Reading it is an input/output error, also for root.
    (tmp_path / "2026-11-02/bad.py").symlink_to("/proc/self/mem")
    arguments = ("{date}", "--from", "2026-11-01", "--to", "2026-11-04")

    done = run(tmp_path, *arguments, date=None)

    table = re.findall(r"^(2026-11-0\d)  +(\S+)  (.*)$", done.stdout, re.M)
    assert done.returncode == 2
    assert [(date, code) for date, code, _ in table] == [
        ("2026-11-01", "0"),
        ("2026-11-02", "1"),
        ("2026-11-03", "0"),
        ("2026-11-04", "2"),
    ]
    assert table[1][2].startswith("1 handled now, 0 resumed, 1 failed")
    assert table[3][2].startswith("source '2026-11-04' is not a file or folder")
    assert published(tmp_path).num_rows == 5

    (tmp_path / "2026-11-02/bad.py").unlink()
    (tmp_path / "2026-11-04").mkdir()
    again = run(tmp_path, *arguments, date=None)
    assert again.returncode == 0
    assert re.findall(r"^2026-11-0\d  +0  (.*), 0 failed", again.stdout, re.M) == [
        "0 handled now, 2 resumed",
        "0 handled now, 1 resumed",
        "0 handled now, 3 resumed",
        "0 handled now, 0 resumed",
    ]


def test_old_checkpoints_are_removed_once_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.py").write_text("x = 1\n")
    checkpoints = tmp_path / ".resumable/nightly_ingest"
    dates = ("--from", "2026-11-01", "--to", "2026-11-04")
    assert run(tmp_path, "tree", *dates, date=None).returncode == 0
    assert len(list(checkpoints.iterdir())) == 4
    shutil.rmtree(tmp_path / "published/nightly_ingest/date=2026-11-02")

    assert run(tmp_path, "tree", "--keep", "2", date="2026-11-05").returncode == 0
    left = {path.name for path in checkpoints.iterdir()}
    assert left == {"2026-11-02", "2026-11-04", "2026-11-05"}
    # The date at hand is spared, however old; the data of all stays.
    assert run(tmp_path, "tree", "--keep", "1", date="2026-10-01").returncode == 0
    left = {path.name for path in checkpoints.iterdir()}
    assert left == {"2026-10-01", "2026-11-02", "2026-11-05"}
    assert published(tmp_path).num_rows == 5


def test_a_date_that_is_damaged_does_not_keep_the_next_from_being_done(
    tmp_path: Path,
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.py").write_text("x = 1\n")
    assert run(tmp_path, "tree").returncode == 0
    checkpoint = tmp_path / ".resumable/nightly_ingest" / DATE
    next((checkpoint / "shards").iterdir()).write_bytes(b"cut")
    done = run(tmp_path, "tree", "--from", DATE, "--to", "2026-11-24", date=None)
    assert done.returncode == 4
    assert re.findall(r"^(2026-11-2\d)  +(\d)  ", done.stdout, re.M) == [
        (DATE, "4"),
        ("2026-11-24", "0"),
    ]


def test_without_a_date_it_is_today_in_the_time_zone_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    found = set()
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # 25 hours apart: never the same day
        assert run(tmp_path, "tree", "--tz", zone, date=None).returncode == 0
        found = set(os.listdir(tmp_path / ".resumable/nightly_ingest"))
    assert len(found) == 2


@pytest.mark.parametrize("how", HOW)
def test_a_second_run_is_refused_with_3_and_sigterm_ends_the_first_with_75(
    how: tuple[str, ...],
    tmp_path: Path,
    slow_tree: tuple[Path, int],
    background: list[warm.Program],
) -> None:
    tree, files = slow_tree
    arguments = (str(tree), "--batch-size", "2", "--concurrency", "1", *how)
    first = start_and_wait_for(tmp_path, 10, background, *arguments)

    second = run(tmp_path, *arguments)
    assert second.returncode == 3, second.stderr
    assert f"pid {first.pid}" in second.stderr

    # To the whole group, as a service manager sends it.
    os.killpg(first.pid, signal.SIGTERM)
    assert first.wait(timeout=30) == 75
    done = keys_in_journal(tmp_path)
    assert 10 <= done < files

    last = run(tmp_path, *arguments)
    assert last.returncode == 0, last.stderr
    assert f"{files - done} handled now, {done} resumed, 0 failed" in last.stdout
    assert published(tmp_path).num_rows == files


def test_a_damaged_checkpoint_ends_with_4_and_is_mended_as_the_message_says(
    tmp_path: Path,
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abc":
        (tree / f"{name}.py").write_text("x = 1\n")
    assert run(tmp_path, "tree", "--batch-size", "1").returncode == 0
    checkpoint = tmp_path / ".resumable/nightly_ingest" / DATE
    next((checkpoint / "shards").iterdir()).write_bytes(b"cut")

    damaged = run(tmp_path, "tree")

    assert damaged.returncode == 4
    assert f"resumable repair {checkpoint}" in damaged.stderr
    assert published(tmp_path).num_rows == 3  # what was published is left alone
