"""One real Prefect server for all tests of a session, whichever worker of pytest-xdist asks first.

Run as a program it starts the server, and ends it when the session's process is gone: a worker
that starts it may end before another that uses it.

To make a database takes longer than all the rest of a start, so that the first one is kept, of each
version of Prefect, and every later server begins with a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import certifi

from tests import warm
from tests.ports import free_port

MADE = Path(__file__).parents[2] / "build"
SERVING = "tests.prefect.serving"
START_SECONDS = 240
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    # Its scheduler, foreman and lateness services look more often than they do by default.
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_TRIGGERS_PROACTIVE_EVALUATION_LOOP_SECONDS": "2",
}


def environment(home: Path, port: int | None = None) -> dict[str, str]:
    """What a process needs to be in to talk to the server, or to be it."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    found |= {**_QUIET, "PREFECT_HOME": str(home)}
    # Each client reads the certificates of all authorities, for a server without TLS: 20 ms.
    found["PREFECT_API_SSL_CERT_FILE"] = str(one_authority())
    if port is not None:
        found["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    return found


def one_authority() -> Path:
    """A file with the certificate of one authority."""
    path = MADE / "authority.pem"
    if not path.exists():
        end = "-----END CERTIFICATE-----\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(certifi.contents().partition(end)[0] + end)
        part.replace(path)
    return path


def made_database() -> Path:
    return MADE / f"prefect-{version('prefect')}.db"


def copy(database: Path, to: Path) -> None:
    """A copy of a database that may be in use; nobody sees half of it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_suffix(f".{os.getpid()}")
    with closing(sqlite3.connect(database)) as old, closing(sqlite3.connect(part)) as new:
        old.backup(new)
    part.replace(to)


def with_database(home: Path) -> Path:
    """This home, with an empty database in it if one was made before."""
    home.mkdir(parents=True, exist_ok=True)
    if made_database().exists() and not (home / "prefect.db").exists():
        copy(made_database(), home / "prefect.db")
    return home


@dataclass
class Server:
    """A server of one's own, to be killed and started again, on the same port and database.

    A ``warmed`` one starts faster, and ends with the process that has started it.
    """

    home: Path
    port: int
    process: subprocess.Popen[bytes] | warm.Program | None = None
    warmed: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        begin: Any = partial(warm.start, prefect=True) if self.warmed else subprocess.Popen
        with_database(self.home)
        with (self.home / "server.log").open("ab") as log:
            self.process = begin(
                [sys.executable, "-m", SERVING, "server", "start", "--port", str(self.port)],
                env=environment(self.home, self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while not is_up(self.port):
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"no Prefect server: {(self.home / 'server.log').read_text()}")
            time.sleep(0.2)
        if not made_database().exists():
            copy(self.home / "prefect.db", made_database())

    def kill(self) -> None:
        """SIGKILL to the server and to what it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def begin(folder: Path, session: int) -> int:
    """Start the session's server if nobody has; its port, on which it answers some time later."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = folder / "port"
        if known.exists():
            return int(known.read_text())
        port = free_port()
        command = [sys.executable, "-m", "tests.prefect.server"]
        with (folder / "watch.log").open("wb") as log:
            watch = subprocess.Popen(
                [*command, str(folder), str(port), str(session)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        known.write_text(str(port))
        watch.returncode = 0  # it outlives this process, on purpose
        return port


def shared(folder: Path, session: int) -> tuple[int, Path]:
    """The port and home of the session's server, once it answers."""
    port = begin(folder, session)
    until = time.monotonic() + START_SECONDS
    while not is_up(port):
        if time.monotonic() > until:
            raise RuntimeError(f"no Prefect server; see {folder}")
        time.sleep(0.2)
    return port, folder


def main() -> None:
    folder, port, session = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    server = Server(folder, port)
    server.start()
    try:
        while server.process is not None and server.process.poll() is None:
            os.kill(session, 0)
            time.sleep(1)
    except ProcessLookupError:
        pass
    finally:
        server.kill()


if __name__ == "__main__":
    main()
