"""An HTTP JSON API for the tests, on 127.0.0.1, as bad as it is told to be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Fault = Callable[["Handler"], None]


@dataclass
class Asked:
    """One request, as the server has seen it."""

    time: float  # monotonic
    path: str
    headers: dict[str, str]
    status: int | None = None  # what was answered in full


@dataclass
class Api:
    """The server: what it has, how it misbehaves, and what it was asked.

    ``faults`` has, by path (with the query or without it), what is done instead of answering,
    each once, in order; ``always`` what is done every time.
    """

    records: list[dict[str, Any]]
    page_size: int = 10
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    errors: list[BaseException | None] = field(default_factory=list)  # the server's own
    before: Callable[[str], None] = lambda path: None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, prefix: str, status: int | None = None) -> int:
        """How often something was asked for; with ``status``, how often that was the answer."""
        return sum(
            each.path.startswith(prefix) and status in (None, each.status) for each in self.asked
        )

    def fail(self, path: str, *faults: Fault) -> None:
        self.faults.setdefault(path, deque()).extend(faults)

    def fault_for(self, path: str) -> Fault | None:
        for name in (path, urlsplit(path).path):
            if self.faults.get(name):
                return self.faults[name].popleft()
            if name in self.always:
                return self.always[name]
        return None

    def page(self, path: str) -> tuple[Any, dict[str, str]] | None:
        """What a path holds, and the headers that go with it."""
        parts = urlsplit(path)
        after = parse_qs(parts.query).get("after", ["c0"])[-1]
        at = int(after[1:])
        found, end = self.records[at : at + self.page_size], at + self.page_size
        more = end < len(self.records)
        if parts.path == "/field":
            following = f"/field?after=c{end}" if more else None
            return {"data": {"all": found}, "meta": {"next": following}}, {}
        if parts.path == "/link":
            links = [f'<{self.url}/link>; rel="first"; title="a, b"']
            links += [f"<?after=c{end}>; rel=next"] * more
            return found, {"Link": ", ".join(links)}
        if parts.path.startswith("/detail/"):
            name = parts.path.removeprefix("/detail/")
            if any(str(record["id"]) == name for record in self.records):
                return {"detail": f"detail of {name}"}, {}
        return None


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        api = self.server.api
        named = {name.lower(): value for name, value in self.headers.items()}
        self.asked = Asked(time.monotonic(), self.path, named)
        api.asked.append(self.asked)
        api.before(self.path)
        fault = api.fault_for(self.path)
        if fault is not None:
            fault(self)
            return
        found = api.page(self.path)
        if found is None:
            self.answer(404, b'{"error": "no such thing"}')
            return
        body = json.dumps(found[0]).encode()
        headers = {**found[1], "ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'}
        unchanged = named.get("if-none-match") == headers["ETag"]
        self.answer(304 if unchanged else 200, b"" if unchanged else body, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.asked.status = status  # before the other side can go on
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    api: Api

    def handle_error(self, *_: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # clients of these tests die and hang up
            self.api.errors.append(error)


def says(status: int, body: Any = b"", **headers: str) -> Fault:
    """Answers with this; ``retry_after="1"`` is the header Retry-After."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, data, named)


def drops(handler: Handler) -> None:
    """Hangs up without a word."""
    # With a reset and not a farewell, which the other side would take for the end of an answer.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def halves(handler: Handler) -> None:
    """Sends half of the answer, whose end is the end of the connection: all looks well."""
    found = handler.server.api.page(handler.path)
    assert found is not None
    body = json.dumps(found[0]).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def drips(handler: Handler) -> None:
    """A byte now and then, for ever: never is there nothing for long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)


def orders(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "price": i / 4, "name": f"order {i}"} for i in range(count)]


@contextlib.contextmanager
def serving(api: Api) -> Iterator[Api]:
    server = Server(("127.0.0.1", 0), Handler)
    server.api, api.port = api, server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not api.errors
