"""A PostgreSQL server of the tests' own: in a temporary folder, on loopback, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WHERE = "/usr/lib/postgresql"
GET_IT = (
    "no PostgreSQL server in /usr/lib/postgresql: `apt-get install postgresql`, or `make system`"
)
_USER = "postgres"


def programs() -> Path | None:
    """The folder of the newest server's programs."""
    found = sorted(Path(WHERE).glob("*/bin/postgres"))
    return found[-1].parent if found else None


def as_user(*command: object) -> list[str]:
    """The command as a user that PostgreSQL accepts: it refuses root."""
    plain = [str(word) for word in command]
    if os.getuid() != 0:
        return plain
    who = [f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
    # A test that is stopped by its time limit takes the process with it, and no clean-up is done.
    return ["setpriv", *who, "--pdeathsig=INT", *plain]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server on a free port; its URL, without a database's name."""
    # Not in pytest's folder, which every session of pytest closes to all but its own user.
    with tempfile.TemporaryDirectory(prefix="resumable-postgres-") as name:
        if os.getuid() == 0:
            shutil.chown(name, _USER, _USER)
        with _running_in(Path(name)) as url:
            yield url


@contextlib.contextmanager
def _running_in(folder: Path) -> Iterator[str]:
    bin_ = programs()
    assert bin_ is not None, GET_IT
    data, log = folder / "data", folder / "log"
    initdb = ("-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
    subprocess.run(as_user(bin_ / "initdb", *initdb), check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
    # Power is not cut here; what the tests kill are drivers.
    settings += ["fsync=off", "max_connections=60", "deadlock_timeout=300ms"]
    options = [word for setting in settings for word in ("-c", setting)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            as_user(bin_ / "postgres", "-D", data, *options),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"postgresql+psycopg://tests@127.0.0.1:{port}/"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # to PostgreSQL: end now, and in order
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import psycopg

    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(url.replace("+psycopg", "") + "postgres", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise AssertionError(f"the server does not answer: {log.read_text()}")
