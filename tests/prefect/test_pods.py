"""A checkpoint on the disk of a pod: whoever deploys is told, once for each checkpoint."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import resumable_task

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_a_flow_run_in_a_pod_warns_of_a_checkpoint_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import flow

    if tmp_path.stat().st_dev != os.stat("/").st_dev:
        pytest.skip("the tests' folder is a volume here")

    @resumable_task(key="id", batch_size=2, runner="local")
    def work(rows: list[Any]) -> list[Any]:
        return rows

    @flow
    def nightly(count: int) -> None:
        work.run([{"id": n} for n in range(count)], progress=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resumable_tasks.checkpoint.store.local._TEMPORARY", ())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(logging.getLogger("prefect.flow_runs"), "handlers", [caplog.handler])
    nightly(2)
    # One record comes twice where another test has let Prefect's loggers propagate.
    records = {id(record): record.getMessage() for record in caplog.records}.values()
    said = [message for message in records if "this pod" in message]
    assert len(said) == 1
    assert f"{tmp_path}/.resumable/work/default is on the disk of this pod" in said[0]
    assert "deleted with it" in said[0]
    assert "RESUMABLE_CHECKPOINTS" in said[0]
    caplog.clear()
    nightly(4)
    work.run([{"id": 5}], checkpoint="another", progress=False)  # nobody deploys a script
    assert "4 of 4 items done (2 before, 2 now)" in caplog.text
    assert "this pod" not in caplog.text
