"""Paths that are lost with the pod or container that they are in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resumable_tasks.base import container
from resumable_tasks.base.container import lost_with

IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
IN_ECS = {"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/1"}
BY_A_WORKER = {"PREFECT__FLOW_RUN_ID": "1"}


@pytest.fixture
def on_a_volume() -> str:
    for path in ("/dev/shm", "/proc"):
        if os.path.isdir(path) and os.stat(path).st_dev != os.stat("/").st_dev:
            return path
    pytest.skip("there is nothing here but the disk of /")


def test_the_disk_of_a_pod_is_lost_with_it_and_a_volume_is_not(on_a_volume: str) -> None:
    assert lost_with("/usr", IN_A_POD) == "pod"
    assert lost_with(on_a_volume, IN_A_POD) is None


def test_of_other_containers_those_of_a_worker_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_MARKS", (str(tmp_path / ".dockerenv"),))
    assert lost_with("/usr", {}) is None
    assert lost_with("/usr", BY_A_WORKER) is None  # on a machine of its own
    assert lost_with("/usr", IN_ECS) is None
    assert lost_with("/usr", IN_ECS | BY_A_WORKER) == "container"
    (tmp_path / ".dockerenv").touch()
    assert lost_with("/usr", {}) is None
    assert lost_with("/usr", BY_A_WORKER) == "container"
