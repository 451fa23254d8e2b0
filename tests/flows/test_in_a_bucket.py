"""The flows with a checkpoint in a bucket, which takes one parameter; nothing else is kept."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow.dataset as pads
import pytest

pytest.importorskip("obstore")
pytest.importorskip("httpx")

from flows import http_ingest
from tests.conftest import Bucket
from tests.flows.api import Api, orders, serving
from tests.processes import started

REPOSITORY = Path(__file__).parents[2]
DATE = datetime.date(2026, 11, 23)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files that take some seconds to parse."""
    body = "".join(f"def f{i}(a, b):\n    return [a + b * {i}, (a, b)]\n" for i in range(300))
    for i in range(80):
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree" / f"m{i:03}.py").write_text(f"import m{i}\n{body}")
    return tmp_path / "tree"


@pytest.mark.long
def test_a_nightly_job_goes_on_from_the_bucket_in_a_wiped_folder(
    bucket: Bucket, tree: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows.nightly_ingest", str(tree), "--date", str(DATE)]
    command += ["--checkpoint", bucket.url, "--out", "out", "--batch-size", "2"]
    command += ["--concurrency", "1", "--no-progress"]

    def start(folder: str) -> AbstractContextManager[subprocess.Popen[str]]:
        (tmp_path / folder).mkdir()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return started(command, cwd=tmp_path / folder, env=environment, **pipes)

    def records() -> int:
        return sum(name.startswith(f"{DATE}/journal/") for name in bucket.stored())

    until = time.monotonic() + 120
    with start("one") as first:
        while records() < 3:
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not [*(tmp_path / "one").iterdir()]
    shutil.rmtree(tmp_path / "one")

    with start("two") as second:
        said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert "resum" in said
    rows = pads.dataset(tmp_path / "two/out", partitioning="hive").to_table()
    assert rows.num_rows == len(set(rows["path"].to_pylist())) == 80


def test_pages_of_an_api_leave_nothing_beside_the_bucket(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(Api(orders(35))) as api:
        result = http_ingest.ingest(
            f"{api.url}/link",
            date=DATE,
            checkpoint=bucket.url,
            out=str(tmp_path / "out"),
            progress=False,
        )
    assert (result.completed, result.checkpoint) == (35, f"{bucket.url}/{DATE}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
