"""What is in deployments/, used as it says: deployed, scheduled, killed in every way, and checked.

One worker serves the tests of this module. A test that ends it leaves none, and the next one that
needs a worker starts another.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from tests.ports import free_port
from tests.prefect.api import Api, until
from tests.prefect.deploying import (
    ALL,
    DEPLOYMENTS,
    REPOSITORY,
    Shell,
    Source,
    alive,
    children,
    committed,
    holder,
    kill_all,
    published,
)
from tests.prefect.server import Server, environment

pytestmark = pytest.mark.xdist_group("deployments")
# The window of the automation that finds what is lost; more than the 30 seconds of a heartbeat.
LOST_SECONDS = 40
GENTLY = "deployments/gently.py"


@dataclass
class Site:
    """A person's machine: prefect.yaml is deployed, automations.yaml applied, a worker runs."""

    api: Api
    shell: Shell
    home: Path
    name: str
    lost_seconds: int | None = LOST_SECONDS
    deployment: Any = None
    said: dict[str, str] = field(default_factory=dict)
    _worker: subprocess.Popen[bytes] | None = None

    def deploy(self, *more: str, home: str | None = None, code: int = 0) -> str:
        return self.shell.run(
            *("prefect", "--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml"),
            *("--name", self.name, "--pool", self.name, "--tag", self.name, *more),
            RESUMABLE_HOME=str(self.home) if home is None else home,
            code=code,
        )

    def set_up(self) -> None:
        self.shell.run("prefect", "work-pool", "create", self.name, "--type", "process")
        self.said["deploy"] = self.deploy()
        self.deployment = self.api.call("GET", f"deployments/name/nightly-ingest/{self.name}")
        # What prefect.yaml has asked for is looked at; the tests run several at once.
        self.patch(concurrency_limit=10)
        self.said["automations"] = self.automate()

    def automate(self) -> str:
        command = ["python", "deployments/automations.py", "--tag", self.name]
        if self.lost_seconds is not None:
            command += ["--lost-seconds", str(self.lost_seconds)]
        return self.shell.run(*command)

    def patch(self, **changes: Any) -> None:
        self.api.call("PATCH", f"deployments/{self.deployment['id']}", changes)

    def worker(self) -> subprocess.Popen[bytes]:
        """The worker of the moment, started by gently.py."""
        if self._worker is None or self._worker.poll() is not None:
            command = ("prefect", "worker", "start", "--pool", self.name, "--type", "process")
            self._worker = self.shell.start(
                "worker", "python", str(REPOSITORY / GENTLY), *command, "--with-healthcheck",
                PREFECT_WORKER_WEBSERVER_PORT="0",
            )  # fmt: skip
        return self._worker

    def create(self, date: str, deployment: str | None = None, **parameters: Any) -> str:
        """A flow run for a date, for now; its id."""
        asked = {"parameters": {"date": date, **parameters}, "state": {"type": "SCHEDULED"}}
        path = f"deployments/{deployment or self.deployment['id']}/create_flow_run"
        return str(self.api.call("POST", path, asked)["id"])

    def run(self, date: str, source: Source, **more: Any) -> str:
        return self.create(date, sources=[source.url], **more)

    def checkpoint(self, date: str) -> Path:
        return self.home / "checkpoints" / "nightly_ingest" / date

    def state(self, run: str) -> Any:
        return self.api.flow_run(run)["state"]

    def states(self, run: str) -> list[str]:
        """All up to now, but for "Late": it comes where the machine is busy."""
        found = self.api.call("GET", f"flow_run_states/?flow_run_id={run}")
        return [each["name"] for each in found if each["name"] != "Late"]

    def wait_for(self, run: str, name: str, seconds: float = 90) -> Any:
        try:
            return until(lambda: (s := self.state(run))["name"] == name and s, seconds)
        except AssertionError:
            log = (self.shell.folder / "worker.log").read_text("utf-8")[-3_000:]
            raise AssertionError(f"{self.states(run)}, not {name}\n{log}") from None

    def wait_for_work(self, date: str, other_than: int = 0, items: int = 250) -> int:
        """Wait until a process is at work on a date and has committed so much; its pid."""
        where = self.checkpoint(date)

        def at_work() -> Any:
            found = holder(where)
            pid = int(found["pid"]) if found else 0
            return pid != other_than and alive(pid) and committed(where) >= items and pid

        return int(until(at_work, 90))

    def ingested(self, date: str) -> list[Any]:
        return published(self.home / "published" / "nightly_ingest", date)


@pytest.fixture(scope="module")
def site(
    api: Api, prefect_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    shell = Shell(prefect_env, folder)
    found = Site(api, shell, folder / "home", f"nightly-{uuid.uuid4().hex[:8]}")
    try:
        found.set_up()
        yield found
    finally:
        shell.close()
        for each in automations(api, found.name):
            api.call("DELETE", f"automations/{each['id']}")


def automations(api: Api, tag: str) -> list[Any]:
    found: list[Any] = api.call("POST", "automations/filter", {"limit": 200})
    return [each for each in found if each["name"].startswith(f"{tag}: ")]


@pytest.fixture
def source() -> Iterator[Source]:
    found = Source()
    yield found
    found.close()


@dataclass
class Death:
    """A flow run that died in one way after the other, and what was seen.

    Tests that ask for the `lost` one use the time until it is found.
    """

    run: str
    date: str
    source: Source
    pid: int = 0
    items: int = 0
    seen: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def killed(site: Site) -> Iterator[Death]:
    """The process of a flow run gets SIGKILL, as from the system when memory runs out."""
    site.worker()
    source = Source()
    found = Death(site.run("2026-03-01", source), "2026-03-01", source)
    found.pid = site.wait_for_work(found.date)
    found.items = committed(site.checkpoint(found.date))
    os.kill(found.pid, signal.SIGKILL)
    # The automation reruns it, and the worker resumes: 400 more items can be had.
    source.let_go(2)
    found.seen["rerun"] = site.wait_for_work(found.date, found.pid, found.items + 1)
    found.seen["states"] = site.states(found.run)
    yield found
    source.close()


@pytest.fixture(scope="module")
def stopped(site: Site, killed: Death) -> Death:
    """The worker gets SIGTERM: a reboot, ``docker stop``, ``systemctl stop``."""
    until(lambda: committed(site.checkpoint(killed.date)) >= 600, 90)
    worker = site.worker()
    killed.pid = holder(site.checkpoint(killed.date))["pid"]
    family = children(worker.pid)
    killed.seen["family"] = killed.pid in family
    crashes = site.states(killed.run).count("Crashed")
    worker.send_signal(signal.SIGTERM)
    killed.seen["code"] = worker.wait(60)  # what containers and units give it
    killed.seen["left"] = [pid for pid in family if alive(pid)]
    until(lambda: site.states(killed.run).count("Crashed") > crashes, 90)
    found = site.api.call("GET", f"flow_run_states/?flow_run_id={killed.run}")
    killed.seen["message"] = [s for s in found if s["name"] == "Crashed"][-1]["message"]
    site.wait_for(killed.run, "AwaitingRetry")
    return killed


@pytest.fixture(scope="module")
def lost(site: Site, stopped: Death) -> Death:
    """The machine goes: the worker and the flow run at once, and nobody is left to tell."""
    worker = site.worker()
    stopped.source.let_go(3)
    stopped.pid = site.wait_for_work(stopped.date, stopped.pid, 1_000)
    kill_all(worker.pid)
    worker.wait()
    stopped.items = committed(site.checkpoint(stopped.date))
    stopped.seen["died"] = time.monotonic()
    time.sleep(2)
    stopped.seen["state"] = site.state(stopped.run)["type"]
    return stopped


def test_what_is_deployed(site: Site) -> None:
    found = site.deployment
    (schedule,) = found["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 4 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert found["parameters"]["checkpoint"] == f"{site.home}/checkpoints/nightly_ingest"
    assert found["parameters"]["out"] == f"{site.home}/published/nightly_ingest"
    assert found["work_pool_name"] == site.name


@pytest.mark.parametrize("home", ["", "data", "./data", "~/data"])
def test_a_home_that_is_not_absolute_is_not_deployed(home: str) -> None:
    (step,) = [
        step["prefect.deployments.steps.run_shell_script"]
        for step in in_yaml("prefect.yaml")["build"]
        if step["prefect.deployments.steps.run_shell_script"]["id"] == "home"
    ]
    done = subprocess.run(
        shlex.split(step["script"]),  # as Prefect does, which starts it without a shell
        env={**os.environ, "RESUMABLE_HOME": home},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "RESUMABLE_HOME must be the absolute path" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("place", "deployed"),
    [
        ("", "/srv/nightly/checkpoints"),
        ("/mnt/checkpoints", "/mnt/checkpoints"),
        ("s3://bucket/checkpoints/", "s3://bucket/checkpoints"),
        ("checkpoints", None),
        ("s3:/bucket", None),
    ],
)
def test_checkpoints_are_in_the_home_or_where_they_are_named(
    place: str, deployed: str | None
) -> None:
    (step,) = [
        step["prefect.deployments.steps.run_shell_script"]
        for step in in_yaml("prefect.yaml")["build"]
        if step["prefect.deployments.steps.run_shell_script"]["id"] == "checkpoints"
    ]
    done = subprocess.run(
        shlex.split(step["script"]),
        env={**os.environ, "RESUMABLE_HOME": "/srv/nightly", "RESUMABLE_CHECKPOINTS": place},
        capture_output=True,
        text=True,
    )
    if deployed is None:
        assert (done.returncode, done.stdout) == (2, "")
        assert "must be an absolute path or the URL of a bucket" in done.stderr
    else:
        assert (done.returncode, done.stdout.strip()) == (0, deployed)


def test_the_automations_are_there_once_however_often_they_are_applied(site: Site) -> None:
    before = {each["id"] for each in automations(site.api, site.name)}
    assert len(before) == 5
    assert site.said["automations"].count("created: ") == 5
    assert site.automate().count("updated: ") == 5
    assert {each["id"] for each in automations(site.api, site.name)} == before


def test_a_flow_run_that_is_killed_is_rerun_and_resumes(site: Site, killed: Death) -> None:
    assert killed.items >= 250
    assert killed.seen["rerun"] != killed.pid
    states = killed.seen["states"]
    assert states[:6] == [
        *("Scheduled", "Pending", "Submitting", "Running"),
        *("Crashed", "AwaitingRetry"),
    ]


def test_a_worker_that_is_stopped_stops_its_flow_runs_in_order(stopped: Death) -> None:
    assert stopped.seen["family"]
    assert stopped.seen["code"] == 0
    assert stopped.seen["left"] == []
    # Prefect by itself would have killed it, and left it Running for ever.
    assert stopped.seen["message"] == "Execution was aborted by a termination signal."


@pytest.mark.long
def test_a_run_whose_worker_died_with_it_is_left_running(lost: Death) -> None:
    assert lost.seen["state"] == "RUNNING"


@pytest.mark.long
def test_a_scheduled_run_ingests_the_date_of_its_schedule(site: Site, lost: Death) -> None:
    site.worker()
    # It has the deployment's one place, once it is called lost and rerun: it is not to keep it.
    lost.source.let_go()
    # A zone whose date is not that of UTC now, so that the wrong one would be seen.
    now = datetime.datetime.now(datetime.UTC)
    zone = "Pacific/Kiritimati" if now.hour >= 11 else "Pacific/Pago_Pago"
    # Late enough for the server's scheduler, which looks now and then, on a busy machine too.
    start = now + datetime.timedelta(seconds=30)
    schedule = {"interval": 86_400, "anchor_date": start.isoformat(), "timezone": zone}
    path = f"deployments/{site.deployment['id']}/schedules"
    parameters = {"sources": [str(REPOSITORY / "flows")]}
    body = [{"schedule": schedule, "active": True, "parameters": parameters}]
    (made,) = site.api.call("POST", path, body)
    try:
        site.wait_for(until(lambda: scheduled_by(site, made["id"]), 90), "Completed", 240)
    finally:
        site.api.call("DELETE", f"{path}/{made['id']}")
    date = start.astimezone(ZoneInfo(zone)).date()
    assert date != start.date()
    files = sorted(str(path) for path in (REPOSITORY / "flows").glob("*.py"))
    assert site.ingested(str(date)) == files


def scheduled_by(site: Site, schedule: str) -> Any:
    """The first flow run that the server's scheduler has made of a schedule."""
    found = site.api.flow_runs(
        deployments={"id": {"any_": [site.deployment["id"]]}}, sort="EXPECTED_START_TIME_ASC"
    )
    made = [r for r in found if r["created_by"] and r["created_by"]["id"] == schedule]
    assert all(each["auto_scheduled"] for each in made)
    return made and made[0]["id"]


@pytest.mark.long
def test_a_run_that_is_thought_dead_is_executed_twice_and_the_second_one_leaves(
    site: Site, lost: Death, source: Source
) -> None:
    site.worker()
    run, date = site.run("2026-03-02", source), "2026-03-02"
    first = site.wait_for_work(date)
    crashed = {"type": "CRASHED", "message": "so it is thought"}
    site.api.call("POST", f"flow_runs/{run}/set_state", {"state": crashed, "force": True})
    until(lambda: any("executed already" in line for line in site.api.logs(run)), 90)
    assert site.api.flow_run(run)["run_count"] == 2
    assert holder(site.checkpoint(date))["pid"] == first
    source.let_go()
    site.wait_for(run, "Completed")
    assert site.ingested(date) == ALL


@pytest.mark.long
def test_serve_runs_and_when_it_is_stopped_the_runs_stop_in_order(
    site: Site, lost: Death, source: Source
) -> None:
    name = f"{site.name}-served"
    parameters = json.dumps({"sources": [source.url]})
    serve = site.shell.start(
        name,
        *("python", str(DEPLOYMENTS / "serve.py"), "--name", name, "--tag", site.name),
        *("--parameters", parameters, "--cron", "0 4 * * *", "--tz", "Europe/Berlin"),
        RESUMABLE_HOME=str(site.home),
    )
    served = until(lambda: by_name(site.api, name), 60)
    run = site.create("2026-03-03", served["id"])
    pid = site.wait_for_work("2026-03-03")
    assert pid in children(serve.pid)
    done = committed(site.checkpoint("2026-03-03"))
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(60) == 0
    assert not alive(pid)
    states = site.api.call("GET", f"flow_run_states/?flow_run_id={run}")
    assert [each["message"] for each in states if each["name"] == "Crashed"] == [
        "Execution was aborted by a termination signal."
    ]
    assert committed(site.checkpoint("2026-03-03")) >= done

    served = by_name(site.api, name)
    assert not served["paused"]
    assert [each["active"] for each in served["schedules"]] == [True]
    assert served["global_concurrency_limit"]["limit"] == 1
    assert served["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    # Started again, as after a reboot, it resumes.
    source.let_go()
    serve = site.shell.start(
        name,
        *("python", str(DEPLOYMENTS / "serve.py"), "--name", name, "--tag", site.name),
        *("--parameters", parameters),
        RESUMABLE_HOME=str(site.home),
    )
    state = site.wait_for(run, "Completed")
    assert " before, " in state["message"]
    assert site.ingested("2026-03-03") == ALL


def by_name(api: Api, name: str) -> Any:
    try:
        return api.call("GET", f"deployments/name/nightly-ingest/{name}")
    except urllib.error.HTTPError:
        return None


# A machine that is busy calls every run lost, as often as the automation reruns it.
@pytest.mark.long
def test_a_run_without_a_sign_of_life_is_called_lost_and_resumes(site: Site, lost: Death) -> None:
    site.worker()
    lost.source.let_go()
    # On a slow machine a run that lives may be called lost too; it is resumed all the same.
    site.wait_for(lost.run, "Completed", LOST_SECONDS + 200)
    states = site.api.call("GET", f"flow_run_states/?flow_run_id={lost.run}")
    messages = [each["message"] for each in states if each["type"] == "CRASHED"]
    assert messages[-1] == "It has given no sign of life."
    assert site.ingested(lost.date) == ALL


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_power_fails_and_everything_is_started_again(source: Source, tmp_path: Path) -> None:
    server = Server(tmp_path / "prefect", free_port(), warmed=True)
    server.start()
    shell = Shell(environment(server.home, server.port), tmp_path)
    # With the window of the file: a shorter one would meet an event that died with the server.
    site = Site(Api(server.port), shell, tmp_path / "home", "nightly", lost_seconds=None)
    try:
        site.set_up()
        worker = site.worker()
        run = site.run("2026-03-01", source)
        site.wait_for_work("2026-03-01")
        server.kill()
        kill_all(worker.pid)
        worker.wait()
        source.let_go()
        server.start()
        assert site.state(run)["name"] == "Running"
        site.worker()
        site.wait_for(run, "Completed", 300 + 120)
        assert "Lost" in site.states(run)
        assert site.ingested("2026-03-01") == ALL
    finally:
        shell.close()
        server.kill()


def in_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOYMENTS / name).read_text("utf-8"))
