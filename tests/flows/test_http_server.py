"""An HTTP JSON API for the tests, on 127.0.0.1, and that it is as bad as it is told to be."""

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
from email.utils import formatdate
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

Fault = Callable[["Handler"], None]


@dataclass
class Asked:
    """One request, as the server has seen it."""

    time: float  # monotonic
    clock: float
    path: str
    headers: dict[str, str]
    status: int | None = None  # what was answered in full


@dataclass
class Api:
    """The server, what it has, how it misbehaves, and what it was asked.

    ``faults`` has, by path (without the query, or with it), what is done instead of answering;
    each once, in order. What is answered without one is what is there.
    """

    records: list[dict[str, Any]]
    page_size: int = 10
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    errors: list[BaseException | None] = field(default_factory=list)  # the server's own
    links_on_304: bool = True
    etags: bool = True
    etags_of_items: bool = False  # and not of what stands beside them
    dated: str | None = None  # the Last-Modified of all pages
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

    def tag_of(self, found: Any) -> str:
        """Of the body alone, as most servers have it; or of the first thing that stands in it."""
        if self.etags_of_items and isinstance(found, dict):
            found = next(iter(found.values()))
        return f'"{hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]}"'

    def page(self, path: str) -> tuple[Any, dict[str, str]] | None:
        """What a path holds, and the headers that go with it."""
        parts = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        size = int(query.get("per_page", self.page_size))
        if parts.path == "/page":
            at = (int(query["page"]) - 1) * size
            return self.records[at : at + size], {}
        at = int(query.get("after", query.get("cursor", "c0"))[1:])
        found, after = self.records[at : at + size], f"c{at + size}"
        more = at + size < len(self.records)
        if parts.path == "/cursor":
            return {"data": {"all": found}, "meta": {"next": after if more else None}}, {}
        if parts.path == "/urls":
            return {"results": found, "next": f"{self.url}/urls?after={after}" if more else ""}, {}
        if parts.path == "/link":
            links = [f'<{self.url}/link>; rel="first"; title="a, b"']
            if more:
                links.append(f"<?after={after}&per_page={size}>; rel=NEXT")
            return found, {"Link": ", ".join(links)}
        if parts.path.startswith("/detail/"):
            name = parts.path.removeprefix("/detail/")
            for record in self.records:
                if str(record["id"]) == name:
                    return {"id": record["id"], "detail": f"detail of {name}"}, {}
        return None


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        api = self.server.api
        named = {name.lower(): value for name, value in self.headers.items()}
        self.asked = Asked(time.monotonic(), time.time(), self.path, named)
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
        body, headers = json.dumps(found[0]).encode(), found[1]
        if api.dated is not None:
            headers["Last-Modified"] = api.dated
        if api.etags:
            headers["ETag"] = api.tag_of(found[0])
        known = self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since")
        if (api.etags and known[0] == headers["ETag"]) or (api.dated and known[1] == api.dated):
            if not api.links_on_304:
                headers.pop("Link", None)
            self.answer(304, b"", headers)
        else:
            self.answer(200, body, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", **(headers or {})}
        for name, value in headers.items():
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
    """Says how long the answer is, sends half of it, and hangs up."""
    found = handler.server.api.page(handler.path)
    assert found is not None
    body = json.dumps(found[0]).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def halves_unseen(handler: Handler) -> None:
    """Sends half of the answer, and its end is the end of the connection: all looks well."""
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
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)


def hangs(handler: Handler) -> None:
    """Takes the request, and never answers."""
    time.sleep(30)
    handler.close_connection = True


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


@pytest.fixture
def api() -> Iterator[Api]:
    """An API of 35 orders, on pages of 10."""
    with serving(Api(orders(35))) as started:
        yield started


def get(api: Api, path: str, **headers: str) -> tuple[int, bytes]:
    """A request by the standard library, not by what is tested."""
    connection = HTTPConnection("127.0.0.1", api.port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_serves_its_records_and_counts_what_it_is_asked(api: Api) -> None:
    assert [record["id"] for record in json.loads(get(api, "/page?page=4")[1])] == [
        30,
        31,
        32,
        33,
        34,
    ]
    assert json.loads(get(api, "/page?page=5")[1]) == []
    assert json.loads(get(api, "/cursor?cursor=c30")[1])["meta"] == {"next": None}
    assert json.loads(get(api, "/detail/7")[1])["detail"] == "detail of 7"
    assert get(api, "/detail/99")[0] == 404
    assert api.count("/page") == 2
    assert api.count("/detail", 404) == 1


def test_it_knows_what_is_unchanged(api: Api) -> None:
    tag = f'"{hashlib.sha256(get(api, "/page?page=1")[1]).hexdigest()[:16]}"'
    assert get(api, "/page?page=1", If_None_Match=tag) == (304, b"")
    api.records[0]["name"] = "other"
    assert get(api, "/page?page=1", If_None_Match=tag)[0] == 200


def test_it_misbehaves_as_it_is_told_and_once(api: Api) -> None:
    api.fail("/page", says(429, retry_after="1"), drops, halves, halves_unseen)
    assert get(api, "/page?page=1")[0] == 429
    for _ in range(2):
        with pytest.raises((HTTPException, OSError)):
            get(api, "/page?page=1")
    status, body = get(api, "/page?page=1")
    assert status == 200
    with pytest.raises(ValueError):
        json.loads(body)
    assert len(json.loads(get(api, "/page?page=1")[1])) == 10
    assert api.count("/page") == 5


def http_date(seconds_from_now: float) -> str:
    return formatdate(time.time() + seconds_from_now, usegmt=True)
