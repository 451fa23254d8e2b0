"""A PostgreSQL server of the tests' own: in a temporary folder, on loopback, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.ports import free_port

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


class Server:
    """A server that can be stopped and started again on the same data, at the same ``url``."""

    def __init__(self, folder: Path) -> None:
        bin_ = programs()
        assert bin_ is not None, GET_IT
        self._postgres = bin_ / "postgres"
        self._data, self._log = folder / "data", folder / "log"
        initdb = ("-D", self._data, "-U", "tests", "-A", "trust", "-E", "UTF8", "-N")
        command = as_user(bin_ / "initdb", *initdb, "--locale=C.UTF-8")
        subprocess.run(command, check=True, capture_output=True)
        self._port = free_port()
        self.url = f"postgresql+psycopg://tests@127.0.0.1:{self._port}/"
        # What a process is to end with is the thread that began it.
        self._keeper = ThreadPoolExecutor(1)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = [f"port={self._port}", "listen_addresses=127.0.0.1", "unix_socket_directories="]
        # Power is not cut here; what the tests kill are drivers.
        settings += ["fsync=off", "max_connections=60", "deadlock_timeout=300ms"]
        options = [word for setting in settings for word in ("-c", setting)]
        command = as_user(self._postgres, "-D", self._data, *options)
        with self._log.open("ab") as output:
            begin = partial(subprocess.Popen, command, stdout=output, stderr=output)
            self._process = self._keeper.submit(begin, start_new_session=True).result()
        _wait(self._process, self.url, self._log)

    def stop(self, how: int = signal.SIGINT) -> None:
        """End it: by SIGINT in order, with all sessions, by SIGQUIT as if it had crashed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run a server on a free port, until the end."""
    # Not in pytest's folder, which every session of pytest closes to all but its own user.
    with tempfile.TemporaryDirectory(prefix="resumable-postgres-") as name:
        if os.getuid() == 0:
            shutil.chown(name, _USER, _USER)
        found = Server(Path(name))
        try:
            found.start()
            yield found
        finally:
            found.stop()


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
