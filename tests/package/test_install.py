"""`pip install .` into an empty environment brings the package, no Prefect, and jobs run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_PIP = [
    *("INSTALLER", "METADATA", "RECORD", "REQUESTED", "WHEEL", "direct_url.json"),
    *("entry_points.txt", "licenses/LICENSE"),
]

SCRIPT = """
from resumable_tasks import resumable_task

@resumable_task(key="id")
def double(rows):
    return [{"id": row["id"], "value": row["id"] * 2} for row in rows]

run = double.run([{"id": i} for i in range(120)], checkpoint="checkpoint")
assert run.table(ordered=True).column("value").to_pylist() == [i * 2 for i in range(120)]
print(run.completed, run.skipped)
"""


def ours() -> set[str]:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "resumable_tasks").rglob("*.*")}
    return {name for name in found if not name.endswith(".pyc")}


@pytest.mark.flaky(reruns=2, reruns_delay=5)  # what builds it is fetched from a registry
def test_the_wheel_has_every_file_and_asks_for_no_prefect(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path))
    subprocess.run([*pip, str(ROOT)], capture_output=True, check=True)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = wheel.namelist()
        (about,) = {Path(name).parts[0] for name in names} - {"resumable_tasks"}
        told = wheel.read(f"{about}/METADATA").decode()
    of_wheel = set(OF_PIP) - {"INSTALLER", "REQUESTED", "direct_url.json"}
    assert set(names) == ours() | {f"{about}/{name}" for name in of_wheel}
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", told, re.M)
    assert "pyarrow" in needed
    assert not {"prefect", "numpy"} & set(needed)


@pytest.mark.long
def test_a_plain_install_runs_jobs_without_prefect(tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    folder = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    python, resumable = folder / "python", folder / "resumable"

    def run(*command: object) -> str:
        return subprocess.run(
            [str(word) for word in command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},  # the first start compiles for all
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    constraints = ROOT / "constraints.txt"
    pip = (sys.executable, "-m", "pip", "--python", python)
    # To compile all of pyarrow takes longer than all the rest.
    run(*pip, "install", "--quiet", "--no-compile", "-c", constraints, ROOT)
    installed = run(*pip, "list", "--format=freeze").lower()
    assert "resumable-tasks==" in installed
    assert "prefect" not in installed
    assert "numpy" not in installed
    (files,) = (tmp_path / "env").rglob("resumable_tasks-*.dist-info/RECORD")
    assert {line.split(",")[0] for line in files.read_text("utf-8").splitlines()} == {
        *ours(),
        *(f"{files.parent.name}/{name}" for name in OF_PIP),
        f"../../../{folder.name}/resumable",
    }
    (tmp_path / "job.py").write_text(SCRIPT)
    assert run(python, "job.py") == "120 0\n"
    assert run(python, "job.py") == "0 120\n"
    assert "120 items" in run(resumable, "status", "checkpoint")
