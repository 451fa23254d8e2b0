"""``make demo``: that it runs and adds up, and that it says so when it does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from flows import demo
from tests import warm

REPOSITORY = Path(__file__).parents[2]
STDLIB = Path(sysconfig.get_path("stdlib"))


def run(cwd: Path, *sources: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.demo", *sources],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_the_demo_adds_up(tmp_path: Path) -> None:
    mine = tmp_path / ".resumable/other"
    mine.mkdir(parents=True)
    (mine / "file").touch()
    leftover = tmp_path / ".resumable/demo"
    leftover.mkdir()
    (leftover / "file").touch()

    # Some of Python's own packages: all of them take as long as all the other tests of flows.
    names = ("asyncio", "ctypes", "email", "encodings", "idlelib", "multiprocessing", "unittest")
    packages = [STDLIB / name for name in names]
    done = run(tmp_path, *(str(each) for each in packages))

    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    files = int(re.search(r"# ([\d,]+) Python files", out)[1].replace(",", ""))
    killed = int(re.search(r"# Dead, with ([\d,]+) files", out)[1].replace(",", ""))
    resumed = re.search(r"([\d,]+) handled now, ([\d,]+) resumed, 0 failed", out)
    now, before = (int(number.replace(",", "")) for number in resumed.groups())
    assert files > 300
    assert files // 2 <= killed < files * 0.9
    assert (before, now) == (killed, files - killed)
    assert f"{files:,} rows are in .resumable/demo/published/date=" in out
    assert re.search(r"^\$ kill -KILL -- -\d+$", out, flags=re.M)
    assert re.search(r"^  completed    [\d,]+ items", out, flags=re.M)
    assert len(re.findall(r"^  \S+ +[\d,]+ lines in +[\d,]+ files$", out, flags=re.M)) == 5
    assert (mine / "file").exists()
    assert not (leftover / "file").exists()


def test_a_job_that_is_over_before_its_half_is_said(tmp_path: Path) -> None:
    assert demo.run_and_kill([sys.executable, "-c", "pass"], tmp_path / "none", at=1) is None


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize(
    ("killed_at", "tamper", "said"),
    [
        (1, lambda rows: rows, None),
        (2, lambda rows: rows, "2 were in the journal after the kill"),
        (1, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), "the rows are not those"),
        (1, lambda rows: rows.slice(1), "the rows are not those"),
        (None, lambda rows: rows, "before it could be killed"),
    ],
    ids=["right", "not resumed", "a row twice", "a row lost", "not killed"],
)
def test_what_does_not_add_up_is_said(
    killed_at: int | None,
    tamper: Callable[[pa.Table], pa.Table],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def some_and_no_more(command: list[str], checkpoint: Path, at: int) -> int | None:
        assert warm.run([*command, "--limit", "1"]).returncode == 0
        return killed_at

    class Tampered:
        def dataset(self, *place: Any, **how: Any) -> Any:
            return pads.InMemoryDataset(tamper(pads.dataset(*place, **how).to_table()))

    (tmp_path / "tree").mkdir()
    for name in "abc":
        (tmp_path / f"tree/{name}.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(demo, "run_and_kill", some_and_no_more)
    monkeypatch.setattr(demo, "INCOMPLETE", 0)  # for the run above did end
    monkeypatch.setattr(demo, "pads", Tampered())

    code = demo.main(["tree"])

    err = capfd.readouterr().err
    assert code == (0 if said is None else 1), err
    assert said is None or said in err
