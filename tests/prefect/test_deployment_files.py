"""The files for containers and Kubernetes. There is neither here: they are linted, held against
each other, and what they start is started without a container.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import Bucket
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
    committed_in,
    published,
)
from tests.prefect.server import environment

CONSTRAINTS = REPOSITORY / "constraints.txt"


def in_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOYMENTS / name).read_text("utf-8"))


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", (DEPLOYMENTS / "Dockerfile").read_text("utf-8"), flags=re.M)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]  # type: ignore[misc]


def arguments(instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == instruction]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text.removesuffix("s"))


def gently() -> Any:
    spec = importlib.util.spec_from_file_location("gently", DEPLOYMENTS / "gently.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(**values: Any) -> Any:
    """The job that a Kubernetes worker makes of the template, by its defaults and these values."""
    from prefect.utilities.templating import apply_values

    template = json.loads((DEPLOYMENTS / "kubernetes/job-template.json").read_text("utf-8"))
    properties = template["variables"]["properties"]
    known = {name: each["default"] for name, each in properties.items() if "default" in each}
    known |= {"name": "amber-owl", "env": [], "command": ["prefect", "flow-run", "execute"]}
    return apply_values(template["job_configuration"]["job_manifest"], known | values)


def test_the_dockerfile_passes_hadolint() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which("hadolint", path=path)
    if found is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([found, DEPLOYMENTS / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_what_the_compose_specification_says() -> None:
    pytest.importorskip("check_jsonschema")
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [sys.executable, *command, DEPLOYMENTS / "compose.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_kubernetes_files_are_what_kubernetes_takes() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    made = job()
    # Prefect's worker demands these two where Kubernetes knows and heeds no such fields.
    assert made["spec"]["template"]["spec"].pop("parallelism") == 1
    assert made["spec"]["template"]["spec"].pop("completions") == 1
    validate(made, "1.34", strict=True)


def test_all_that_is_copied_into_the_image_is_there_and_let_through() -> None:
    ignored, *let_through = (
        (DEPLOYMENTS / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    )
    assert ignored == "*"
    names = {name.rstrip("/") for line in arguments("COPY") for name in line.split()[:-1]}
    wanted = {name for name in names if not any(name.startswith(f"{each}/") for each in names)}
    assert {name.removeprefix("!") for name in let_through if name[0] == "!"} == wanted
    assert all((REPOSITORY / name).exists() for name in names)


def test_the_image_is_pinned_and_its_user_is_not_root() -> None:
    assert arguments("FROM") == ["${BASE}"]
    assert [":" in line for line in arguments("ARG") if line.startswith("BASE=")] == [True]
    (user,) = arguments("USER")
    assert int(user) > 0
    assert f"--uid {user} " in arguments("RUN")[0]
    assert job()["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, Requirement]:
    """The requirements of a file of pins, without their hashes."""
    lines = re.sub(r"\s*\\\n\s*", " ", path.read_text("utf-8")).splitlines()
    each = [Requirement(line.partition(" --hash=")[0]) for line in lines if line[:1] != "#"]
    return {normal(requirement.name): requirement for requirement in each}


# What the image is: of the machines that it is built for, each takes another choice of packages.
PLATFORMS = [
    {
        "python_version": "3.11",
        "python_full_version": "3.11.14",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": machine,
    }
    for machine in ("x86_64", "aarch64")
]


def needed(platform: dict[str, str]) -> set[str]:
    """All that the library needs there with two of its extras, by what packages here say."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    listed = project["project"]
    extras = listed["optional-dependencies"]
    left = [*map(Requirement, [*listed["dependencies"], *extras["prefect"], *extras["object"]])]
    found: set[tuple[str, str]] = set()
    while left:
        requirement = left.pop()
        for extra in ("", *requirement.extras):
            if (normal(requirement.name), extra) in found:
                continue
            found.add((normal(requirement.name), extra))
            for text in metadata.requires(requirement.name) or ():
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({**platform, "extra": extra}):
                    left.append(inner)
    names = {name for name, _ in found}
    return names | {normal(Requirement(each).name) for each in project["build-system"]["requires"]}


def test_all_that_the_image_installs_is_pinned_by_hash() -> None:
    path = DEPLOYMENTS / "requirements.txt"
    installs = [line for line in arguments("RUN") if "pip install" in line]
    assert "--no-deps --require-hashes --requirement deployments/requirements.txt" in installs[0]
    assert "--no-deps --no-build-isolation . && pip check" in installs[1]
    assert len(installs) == 2
    by_hash, tested = pinned(path), pinned(CONSTRAINTS)
    for platform in PLATFORMS:
        there = {
            name: each.specifier
            for name, each in by_hash.items()
            if each.marker is None or each.marker.evaluate(platform)
        }
        assert needed(platform) - set(there) == set()
        assert {name for name, pin in there.items() if tested[name].specifier != pin} == set()
    text = path.read_text("utf-8")
    every = re.split(r"^(?=[a-z])", text, flags=re.M | re.I)[1:]
    assert [each for each in every if "--hash=sha256:" not in each] == []
    assert re.findall(r"^ *-(?!-hash)|://", text, flags=re.M) == []


def test_the_times_to_stop_fit_each_other() -> None:
    from resumable_tasks.task.options import JobOptions

    limits = gently()
    grace = {each.name: each.default for each in dataclasses.fields(JobOptions)}["grace_seconds"]
    # What came in time is still to be committed, and the end to be reported.
    assert grace + 10 <= limits.FLOW_RUN_SECONDS
    in_all = limits.FLOW_RUN_SECONDS + limits.COMMAND_SECONDS
    assert seconds(in_yaml("compose.yaml")["services"]["worker"]["stop_grace_period"]) > in_all
    assert job()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > in_all
    for page in (DEPLOYMENTS / "README.md", REPOSITORY / "docs/deploying.md"):
        for stop in re.findall(r"^TimeoutStopSec=(\d+)$", page.read_text("utf-8"), flags=re.M):
            assert int(stop) > in_all


def test_secrets_are_files_and_no_container_has_more_rights_than_it_needs() -> None:
    compose = in_yaml("compose.yaml")
    assert compose["secrets"] == {
        "postgres_password": {"environment": "POSTGRES_PASSWORD"},
        "bucket_env": {"environment": "BUCKET_ENV"},
    }
    for name, service in compose["services"].items():
        assert "no-new-privileges:true" in service["security_opt"]
        said = json.dumps([service.get("environment", {}), service.get("command", "")])
        assert not re.search(r"(?<!\$)\$\{", said), f"a secret of {name} is in its environment"
    pod = job()["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_window_of_the_automation_is_some_heartbeats() -> None:
    (deployment,) = in_yaml("prefect.yaml")["deployments"]
    beat = int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    served = re.search(r'HEARTBEAT_FREQUENCY", "(\d+)"', (DEPLOYMENTS / "serve.py").read_text())
    assert served is not None
    assert int(served[1]) == beat
    (window,) = [
        each["trigger"]["within"]
        for each in in_yaml("automations.yaml")["automations"]
        if each["trigger"]["posture"] == "Proactive"
    ]
    assert window >= max(4 * beat, 300)


@pytest.mark.parametrize(
    ("codes", "calls"),
    [((137, 75, 0), 3), ((1, 0), 1), ((3, 0), 1), ((75, 5, 0), 2), ((0,), 1)],
    ids=str,
)
def test_the_line_of_the_crontab_starts_again_what_was_interrupted_and_nothing_else(
    codes: tuple[int, ...], calls: int, tmp_path: Path
) -> None:
    page = (DEPLOYMENTS / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^0 4 \* \* \* +(.*)$", page, flags=re.M)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    # Each call notes its arguments, and ends with the next code.
    python.write_text(
        '#!/bin/sh\necho "$@" >> calls\ncode=$(sed -n "$(wc -l < calls)p" codes)\nexit $code\n'
    )
    python.chmod(0o755)
    command = line.replace("\\%", "%").replace("/srv/resumable-tasks", str(tmp_path))
    assert "sleep 900" in command
    subprocess.run(["sh", "-c", command.replace("sleep 900", "true")], check=False, timeout=30)
    noted = (tmp_path / "calls").read_text().splitlines()
    assert len(noted) == calls
    assert len(set(noted)) == 1
    assert re.search(r"--date \d{4}-\d\d-\d\d ", noted[0])


def test_a_deployment_and_serve_say_the_same() -> None:
    (deployment,) = in_yaml("prefect.yaml")["deployments"]
    (schedule,) = deployment["schedules"]
    said = (DEPLOYMENTS / "serve.py").read_text("utf-8")
    for value in (deployment["name"], *deployment["tags"], schedule["cron"], schedule["timezone"]):
        assert f'default="{value}"' in said


def test_kubernetes_starts_one_pod_for_a_flow_run_and_no_second_one() -> None:
    made = job()
    assert made["spec"]["backoffLimit"] == 0
    pod = made["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"


def test_pods_and_the_worker_of_compose_keep_nothing() -> None:
    pod = job()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "volumes" not in pod
    assert "volumeMounts" not in container
    assert container["envFrom"] == [{"secretRef": {"name": "nightly-bucket", "optional": True}}]
    compose = in_yaml("compose.yaml")
    assert set(compose["volumes"]) == {"postgres", "server"}
    assert "volumes" not in compose["services"]["worker"]
    assert "RESUMABLE_CHECKPOINTS" in compose["services"]["deploy"]["environment"]
    assert "RESUMABLE_HOME=/data" in arguments("ENV")


def test_the_server_takes_the_kubernetes_work_pool(api: Api) -> None:
    template = json.loads((DEPLOYMENTS / "kubernetes/job-template.json").read_text("utf-8"))
    pool = {"name": "kubernetes", "type": "kubernetes", "base_job_template": template}
    assert api.call("POST", "work_pools/", pool)["base_job_template"] == template
    api.call("DELETE", "work_pools/kubernetes")


@dataclass
class Image:
    """What the Dockerfile builds, without a container: /app and the packages."""

    root: Path
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.root / "app"

    @property
    def path(self) -> str:
        return f"{self.root / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"

    def build(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", self.root / "venv"], check=True)
        for name, line in instructions():
            if name == "COPY":
                *sources, target = line.split()
                for source in sources:
                    self._copy(REPOSITORY / source, self.folder / target, into=target[-1] == "/")
            elif name == "RUN" and line.startswith("pip "):
                env = {**os.environ, "PATH": self.path}
                subprocess.run(line, shell=True, cwd=self.folder, env=env, check=True)

    def _copy(self, source: Path, target: Path, *, into: bool) -> None:
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            target = target / source.name if into else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    found = Image(tmp_path_factory.mktemp("image"))
    found.build()
    return found


@pytest.fixture
def source() -> Iterator[Source]:
    found = Source()
    yield found
    found.close()


@dataclass
class Composed:
    """The services of compose.yaml as plain processes, on ports of their own."""

    image: Image
    home: Path
    bucket: Bucket
    ports: dict[str, int] = field(
        default_factory=lambda: {"4200": free_port(), "5432": free_port(), "8080": free_port()}
    )
    shell: Shell = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir()
        (self.home / "password").write_text("secret")
        lines = [f"{name}={value}\n" for name, value in self.bucket.server.environment().items()]
        (self.home / "bucket_env").write_text("".join(lines))
        self.exported = {
            "RESUMABLE_CHECKPOINTS": self.bucket.url,
            "RESUMABLE_PUBLISHED": f"{self.bucket.url}/published",
        }
        self.shell = Shell(environment(self.home / "prefect"), self.home)
        self.services = in_yaml("compose.yaml")["services"]

    def translated(self, text: str) -> str:
        """Hosts, ports and folders as they are here."""
        text = text.replace("/run/secrets/postgres_password", str(self.home / "password"))
        text = text.replace("/run/secrets/bucket_env", str(self.home / "bucket_env"))
        text = text.replace("$$", "$")
        text = re.sub(r"\b(server|postgres):(\d+)\b", r"127.0.0.1:\2", text)
        text = "127.0.0.1" if text == "postgres" else text
        text = re.sub(r"\b(4200|5432|8080)\b", lambda found: str(self.ports[found[1]]), text)
        return text.replace("/data", str(self.home / "data"))

    def env(self, service: str) -> dict[str, str]:
        given = self.services[service].get("environment", {})
        return {
            **{
                name: self.exported[name] if value is None else self.translated(value)
                for name, value in given.items()
            },
            "RESUMABLE_HOME": "/data",  # of the image
            "PATH": self.image.path,
            "PREFECT_SERVER_API_PORT": str(self.ports["4200"]),
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["8080"]),
        }

    def start(self, service: str) -> subprocess.Popen[bytes]:
        self.shell.folder = self.image.folder
        command = map(self.translated, self.services[service]["command"])
        return self.shell.start(service, *command, **self.env(service))

    def run(self, service: str) -> str:
        command = map(self.translated, self.services[service]["command"])
        return self.shell.run(*command, cwd=self.image.folder, **self.env(service))

    def healthy(self, service: str) -> bool:
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        command = [self.translated(each) for each in command]
        if service == "postgres":
            command += ["--port", str(self.ports["5432"])]
        env = {**os.environ, "PATH": f"{self.image.path}{os.pathsep}{postgres_folder()}"}
        return subprocess.run(command, env=env, capture_output=True).returncode == 0


def postgres_folder() -> Path | None:
    folders = [Path(found).parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture
def postgres() -> Iterator[int]:
    """A PostgreSQL as compose.yaml asks for it; its port."""
    if (programs := postgres_folder()) is None:
        pytest.skip("PostgreSQL is not installed")
    # It does not run as root, and pytest's folders are closed to others.
    account = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    place, port = Path(tempfile.mkdtemp()), free_port()
    (place / "password").write_text("secret")
    if account:
        for each in (place, place / "password"):
            shutil.chown(each, **account)
    initdb = [
        "initdb",
        "--pgdata",
        place / "data",
        "--username",
        "prefect",
        "--auth",
        "scram-sha-256",
    ]
    settings = ["-c", "fsync=off", "-c", f"unix_socket_directories={place}"]
    started = ["postgres", "-D", place / "data", "-p", str(port), "-h", "127.0.0.1", *settings]
    env = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PGPASSWORD": "secret",
    }
    subprocess.run(
        [programs / initdb[0], *initdb[1:], "--pwfile", place / "password"],
        check=True, cwd=place, env=env, stdout=subprocess.DEVNULL, **account,
    )  # fmt: skip
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / started[0], *started[1:]],
            cwd=place,
            env=env,
            stdout=log,
            stderr=log,
            **account,
        )
    try:
        created = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"]
        command = [programs / created[0], *created[1:]]
        until(lambda: subprocess.run(command, env=env, capture_output=True).returncode == 0)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.long
def test_the_services_of_compose_ingest_a_date_and_stop_in_order(
    image: Image, postgres: int, source: Source, bucket: Bucket, tmp_path: Path
) -> None:
    composed = Composed(image, tmp_path / "home", bucket)
    composed.ports["5432"] = postgres
    until(lambda: composed.healthy("postgres"))
    assert not composed.healthy("server")
    try:
        server = composed.start("server")
        until(lambda: server.poll() is not None or composed.healthy("server"), 120)
        composed.run("deploy")
        composed.run("deploy")  # at each `up`
        worker = composed.start("worker")
        until(lambda: worker.poll() is not None or composed.healthy("worker"), 120)

        api = Api(composed.ports["4200"])
        deployment = api.call("GET", "deployments/name/nightly-ingest/nightly")
        assert len(api.call("POST", "automations/filter", {})) == 5
        path = f"deployments/{deployment['id']}/create_flow_run"
        asked = {"parameters": {"date": "2026-03-01", "sources": [source.url]}}
        run = api.call("POST", path, asked | {"state": {"type": "SCHEDULED"}})["id"]
        checkpoint = "nightly_ingest/2026-03-01"
        until(lambda: committed_in(bucket, checkpoint).total() >= 250, 120)
        pid = json.loads(bucket.stored()[f"{checkpoint}/holder.json"])["pid"]
        assert pid in children(worker.pid)
        worker.send_signal(signal.SIGTERM)  # docker compose stop
        limit = seconds(composed.services["worker"]["stop_grace_period"])
        assert worker.wait(limit) == 0
        assert not alive(pid)
        until(lambda: api.flow_run(run)["state"]["name"] == "AwaitingRetry")

        source.let_go()
        composed.start("worker")
        until(lambda: api.flow_run(run)["state"]["name"] == "Completed", 90)
        assert committed_in(bucket, checkpoint) == Counter(ALL)
        assert any(name.startswith("published/nightly_ingest/date=") for name in bucket.stored())
        assert not (composed.home / "data").exists()
    finally:
        composed.shell.close()


@pytest.mark.long
def test_the_command_of_the_pod_executes_a_flow_run_and_reschedules_it_when_the_pod_is_evicted(
    image: Image, api: Api, prefect_env: dict[str, str], source: Source, tmp_path: Path
) -> None:
    """With the job as the Kubernetes worker makes it, of the template that the server has."""
    pip = ["-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
    python = image.root / "venv/bin/python"
    subprocess.run([python, *pip, "prefect-kubernetes==0.8.0"], check=True)
    template = DEPLOYMENTS / "kubernetes/job-template.json"
    env = {**prefect_env, "PATH": image.path, "RESUMABLE_HOME": str(tmp_path)}
    shell = Shell(env, image.folder)
    name = f"pods-{time.time_ns()}"
    pool = ["work-pool", "create", name, "--type", "kubernetes", "--base-job-template"]
    deploy = ["--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml"]

    def prefect(*command: str) -> None:
        found = [str(image.root / "venv/bin/prefect"), *command]
        subprocess.run(found, cwd=image.folder, env=env, check=True, stdout=subprocess.DEVNULL)

    prefect(*pool, str(template))
    prefect(*deploy, "--name", name, "--pool", name, "--tag", name)
    deployment = api.call("GET", f"deployments/name/nightly-ingest/{name}")
    path = f"deployments/{deployment['id']}/create_flow_run"
    asked = {"parameters": {"date": "2026-03-01", "sources": [source.url]}}
    run = api.call("POST", path, asked | {"state": {"type": "PENDING"}})["id"]

    manifest = tmp_path / "job.json"
    subprocess.run([python, "-c", MAKE_JOB, name, run, manifest], env=env, check=True)
    made = json.loads(manifest.read_text())
    (container,) = made["spec"]["template"]["spec"]["containers"]
    mine = job(namespace=made["metadata"]["namespace"])["spec"]["template"]["spec"]
    same = {**mine["containers"][0], "args": container["args"], "env": container["env"]}
    assert container == same
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"

    command = [str(image.root / "venv/bin" / container["args"][0]), *container["args"][1:]]
    try:
        pod = shell.start("pod", *command, **{**variables, "PATH": image.path})
        checkpoint = tmp_path / "checkpoints/nightly_ingest/2026-03-01"
        until(lambda: committed(checkpoint) >= 250, 120)
        pod.send_signal(signal.SIGTERM)
        pod.wait(made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])
        assert api.flow_run(run)["state"]["name"] == "AwaitingRetry"
        done = committed(checkpoint)
        source.let_go()
        pod = shell.start("pod", *command, **{**variables, "PATH": image.path})
        assert pod.wait(120) == 0
        state = api.flow_run(run)["state"]
        assert state["name"] == "Completed"
        assert f"({done:,} before, " in state["message"]
        assert published(tmp_path / "published/nightly_ingest", "2026-03-01") == ALL
    finally:
        shell.close()


MAKE_JOB = """
import asyncio, json, sys, uuid
from pathlib import Path
from prefect.client.orchestration import get_client
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration

async def main(pool, run, manifest):
    async with get_client() as client:
        flow_run = await client.read_flow_run(uuid.UUID(run))
        deployment = await client.read_deployment(flow_run.deployment_id)
        pool = await client.read_work_pool(pool)
        made = await Configuration.from_template_and_values(
            pool.base_job_template, deployment.job_variables, client=client
        )
        flow = await client.read_flow(flow_run.flow_id)
        made.prepare_for_flow_run(flow_run, deployment, flow, pool, "worker")
        Path(manifest).write_text(json.dumps(made.job_manifest))

asyncio.run(main(*sys.argv[1:]))
"""
