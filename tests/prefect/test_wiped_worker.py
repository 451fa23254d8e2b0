"""Deployments whose checkpoints are in a bucket: workers that keep nothing, and the variable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from tests.conftest import Bucket
from tests.prefect.api import Api, until
from tests.prefect.deploying import (
    ALL,
    REPOSITORY,
    Shell,
    Source,
    committed_in,
    kill_all,
    published,
)

BATCH_SIZE, CONCURRENCY = 50, 4  # of prefect.yaml
DATE = "2026-03-01"
CHECKPOINT = f"nightly_ingest/{DATE}"
DEPLOY = ("prefect", "--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml")


@pytest.fixture
def name() -> str:
    return f"wiped-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def source() -> Iterator[Source]:
    found = Source()
    yield found
    found.close()


@pytest.fixture
def shell(prefect_env: dict[str, str], bucket: Bucket, tmp_path: Path) -> Iterator[Shell]:
    found = Shell({**prefect_env, **bucket.server.environment()}, tmp_path)
    yield found
    found.close()


# Added to the flow: what its handler is given, it notes.
NOTES = """
_row = row
def row(api, record):
    with open({path!r}, "a") as file:
        file.write(record["id"] + chr(10))
    return _row(api, record)
"""


def disk(folder: Path, handled: Path) -> Path:
    """The disk of a new pod or machine: a checkout, and nothing that a run has left."""
    shutil.rmtree(folder, ignore_errors=True)
    for each in ("flows", "deployments"):
        shutil.copytree(REPOSITORY / each, folder / each, ignore=lambda *_: ["__pycache__"])
    with (folder / "flows" / "http_ingest.py").open("a") as flow:
        flow.write(NOTES.format(path=str(handled)))
    return folder


@pytest.mark.long
def test_a_worker_whose_disk_is_wiped_between_runs_resumes_from_the_bucket(
    api: Api, shell: Shell, bucket: Bucket, source: Source, name: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "handled-first", tmp_path / "handled-second"
    site = disk(tmp_path / "site", first)
    shell.run("prefect", "work-pool", "create", name, "--type", "process")
    places = {"RESUMABLE_HOME": str(site), "RESUMABLE_CHECKPOINTS": bucket.url}
    out = tmp_path / "published"
    names = ("--name", name, "--pool", name, "--tag", name)
    shell.run(*DEPLOY, *names, "--param", f"out={out}", cwd=site, **places)
    deployment = api.call("GET", f"deployments/name/nightly-ingest/{name}")
    asked = {"parameters": {"date": DATE, "sources": [source.url]}, "state": {"type": "SCHEDULED"}}
    run = api.call("POST", f"deployments/{deployment['id']}/create_flow_run", asked)["id"]

    work = ("prefect", "worker", "start", "--pool", name, "--type", "process")
    worker = shell.start("one", *work)
    until(lambda: committed_in(bucket, CHECKPOINT).total() >= 250, 120)
    os.kill(json.loads(bucket.stored()[f"{CHECKPOINT}/holder.json"])["pid"], signal.SIGKILL)
    until(lambda: api.flow_run(run)["state"]["type"] == "CRASHED", 90)
    kill_all(worker.pid)
    done = committed_in(bucket, CHECKPOINT)
    disk(site, second)

    source.let_go()
    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    api.call("POST", f"flow_runs/{run}/set_state", retry)
    shell.start("two", *work)
    until(lambda: api.flow_run(run)["state"]["name"] == "Completed", 120)
    assert f"({len(done):,} before, " in api.flow_run(run)["state"]["message"]
    assert api.flow_run(run)["run_count"] == 2
    # A key that is committed was paid for: none a second time.
    assert set(first.read_text().split()) >= set(done)
    assert Counter(second.read_text().split()) == Counter(ALL) - done
    assert committed_in(bucket, CHECKPOINT) == Counter(ALL)
    assert published(out, DATE) == ALL
    kept = {path.relative_to(site).parts[0] for path in site.rglob("*") if path.is_file()}
    assert kept == {"flows", "deployments"}


@pytest.mark.xdist_group("deployments")  # the variable is for all who deploy meanwhile
def test_prefects_variable_names_the_place_of_the_checkpoints(
    api: Api, shell: Shell, bucket: Bucket, name: str, tmp_path: Path
) -> None:
    shell.run("prefect", "work-pool", "create", name, "--type", "process")

    def deployed(**places: str) -> str:
        names = ("--name", name, "--pool", name)
        shell.run(*DEPLOY, *names, RESUMABLE_HOME=str(tmp_path), **places)
        found = api.call("GET", f"deployments/name/nightly-ingest/{name}")["parameters"]
        return str(found["checkpoint"])

    # Without either they are in the home: tests/prefect/test_deployments.py.
    variable = {"name": "resumable_checkpoints", "value": f"{bucket.url}/"}
    made = api.call("POST", "variables/", variable)
    try:
        assert deployed() == f"{bucket.url}/nightly_ingest"
        assert (
            deployed(RESUMABLE_CHECKPOINTS="s3://other/place") == "s3://other/place/nightly_ingest"
        )
    finally:
        api.call("DELETE", f"variables/{made['id']}")
