"""What is out of a checkpoint in a bucket is listed, decided on and guarded as on a disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Waiting
from tests.cli.test_cli import cli, document
from tests.submitted.jobs import job
from tests.submitted.service import FileService, items


def test_a_bucket(bucket: Any, tmp_path: Path) -> None:
    service = FileService(tmp_path / "home", takes=None)
    with pytest.raises(Waiting):
        job(service).run(items(70), checkpoint=bucket.url, wait=False)
    found = document("submissions", bucket.url)
    assert (found["items"], found["submissions"]) == (70, 3)
    assert document("status", bucket.url)["out"] == 70
    first = found["each"][0]
    assert cli("submissions", bucket.url, "withdraw", first["token"], "--yes").exit_code == 0
    assert document("submissions", bucket.url)["submissions"] == 2
    refused = cli("reset", bucket.url, "--yes")
    assert (refused.exit_code, "in 2 submissions" in refused.stderr) == (2, True)
    assert job(service).cancel_submissions(checkpoint=bucket.url) == 2
    service.takes = 0
    result = job(service).run(items(70), checkpoint=bucket.url)
    assert sorted(result.table().column("id").to_pylist()) == list(range(70))
    lost = next(each for each in service.submissions if each["number"] == first["handle"]["number"])
    assert service.paid == Counter(range(70)) + Counter(lost["ids"])
    assert cli("reset", bucket.url, "--yes").exit_code == 0


def test_by_hand_from_another_machine(bucket: Any, tmp_path: Path) -> None:
    made = FileService(tmp_path / "home", without=("find",), lose=1)
    with pytest.raises(KeyboardInterrupt):
        job(made).run(items(20), checkpoint=bucket.url)
    (token,) = (each["token"] for each in document("submissions", bucket.url)["each"])
    attached = cli("submissions", bucket.url, "attach", token, '{"number": 1}')
    assert attached.exit_code == 0, attached.stderr
    job(made).run(items(20), checkpoint=bucket.url)
    assert made.paid == Counter(range(20))
