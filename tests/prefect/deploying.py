"""What the tests of deployments/ are made with: an API to ingest, and the commands of a person."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import warm
from tests.conftest import Bucket

REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS = REPOSITORY / "deployments"
PAGE, PAGES = 400, 4
# Supervisors look for work every second, and are not asked for more than that.
OFTEN = {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "PREFECT_WORKER_QUERY_SECONDS": "1"}


class Source:
    """An HTTP API of 1,600 records. Its pages are held back until they are let go."""

    def __init__(self) -> None:
        source = self
        self.pages = 1
        self._changed = threading.Condition()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                source.wait_for(page := int(query.get("page", ["1"])[0]))
                data = json.dumps([{"id": id} for id in ids(page)]).encode()
                self.send_response(200)
                if page < PAGES:
                    self.send_header("link", f"<?page={page + 1}>; rel=next")
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # Whoever asked for a page that was held back may be dead by now.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/records"

    def wait_for(self, page: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: page <= self.pages)

    def let_go(self, pages: int = PAGES) -> None:
        with self._changed:
            self.pages = pages
            self._changed.notify_all()

    def close(self) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()


def ids(page: int) -> list[str]:
    return [f"{page}-{number:03}" for number in range(PAGE)] if page <= PAGES else []


ALL = [id for page in range(1, PAGES + 1) for id in ids(page)]


@dataclass
class Shell:
    """Starts commands, as a person would, in an environment and a folder."""

    env: Mapping[str, str]
    folder: Path
    started: list[Any] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{self.env['PATH']}"
        return {**self.env, "PATH": path, **more}

    @staticmethod
    def _warmed(command: tuple[str, ...]) -> tuple[list[str], bool]:
        """Programs of Python come from the warm parent."""
        bin = Path(sys.executable).parent
        known = {"prefect": [str(bin / "prefect")], "python": [sys.executable]}
        first = known.get(command[0])
        return [*(first or command[:1]), *command[1:]], first is not None

    def run(self, *command: str, cwd: Path = REPOSITORY, code: int = 0, **more: str) -> str:
        words, is_python = self._warmed(command)
        run: Any = partial(warm.run, prefect=True) if is_python else subprocess.run
        done = run(
            words,
            cwd=cwd,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}"
        return str(done.stdout)

    def start(self, name: str, *command: str, **more: str) -> Any:
        """Something that goes on; what it says is in NAME.log."""
        words, is_python = self._warmed(command)
        start: Any = partial(warm.start, prefect=True) if is_python else subprocess.Popen
        with (self.folder / f"{name}.log").open("ab") as log:
            process = start(
                words,
                cwd=self.folder,
                env=self.environment(**OFTEN, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                kill_all(process.pid)
            process.wait()


def children(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(entry.name), *children(int(entry.name))]
    return found


def alive(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" Z")
    except OSError:
        return False


def kill_all(pid: int) -> None:
    """As when the power fails: the process and all that it has started, at once."""
    for each in [pid, *children(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def committed(checkpoint: Path) -> int:
    """How many items a checkpoint has, as a reader that knows nothing of the library counts."""
    return sum(
        line.startswith('{"key":')
        for file in checkpoint.glob("journal/*.jsonl")
        for line in file.read_text("utf-8").splitlines()
    )


def committed_in(bucket: Bucket, checkpoint: str) -> Counter[str]:
    """Each key that a checkpoint in a bucket has, and how often."""
    return Counter(
        json.loads(line)["key"]
        for name, data in bucket.stored().items()
        if name.startswith(f"{checkpoint}/journal/")
        for line in data.decode().splitlines()
        if line.startswith('{"key":')
    )


def holder(checkpoint: Path) -> Any:
    """Who is at work on a checkpoint; None if nobody."""
    try:
        return json.loads((checkpoint / "holder.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def published(folder: Path, date: str) -> list[Any]:
    """The keys of a date, sorted, with all that come more than once."""
    import pyarrow.dataset as ds

    table = ds.dataset(folder / f"date={date}", format="parquet").to_table()
    return sorted(table["id" if "id" in table.column_names else "path"].to_pylist())
