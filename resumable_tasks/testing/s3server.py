"""A strict S3 server for tests, on loopback, made of the standard library alone.

Of any number of racing creators of one name exactly one succeeds. On request the server makes the
faults of real services, listed in `KINDS`. It supports the requests of S3 clients and of obstore's
``GCSStore``. It does not check signatures, and a bucket needs no more memory than its objects.

::

    with S3Server() as server:                      # has a bucket "test"
        os.environ |= server.environment()
        server.fail("500-after", method="PUT", key="*/journal/*")
        ...
        assert server.counts()["CREATE"] == 2

``python -m resumable_tasks.testing.s3server --port 9000`` prints its endpoint and serves until it
is killed. Other processes use ``GET /-/log``, ``GET /-/counts`` and ``DELETE /-/log``,
``POST /-/faults`` (the arguments of `S3Server.fail` as JSON) and ``DELETE /-/faults``, and
``POST /-/options`` (fields of `Options` as JSON).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import formatdate
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from resumable_tasks.testing.s3objects import Bucket, Objects, Options, Refused, Reply, Request

_WRITES = ("PUT", "POST", "DELETE")


@dataclass(frozen=True)
class Kind:
    """A kind of fault, for requests of these methods."""

    applied: bool
    """Whether the request is applied."""
    answer: str
    """An error code, or the effect on the connection."""
    methods: Sequence[str] = ("GET", "HEAD", *_WRITES)


KINDS = {
    "500-before": Kind(False, "500 InternalError"),
    "500-after": Kind(True, "500 InternalError"),
    "503": Kind(False, "503 SlowDown"),
    "409-conflict": Kind(False, "409 ConditionalRequestConflict", _WRITES),
    "409-aborted": Kind(False, "409 OperationAborted", _WRITES),
    "403": Kind(False, "403 AccessDenied"),
    "reset-before": Kind(False, "reset"),
    "reset-after": Kind(True, "reset"),
    "hang": Kind(False, "silence"),
    "lost": Kind(True, "silence"),
    "late": Kind(True, "late"),
    "applied-late": Kind(False, "reset, then applied", ("PUT",)),
    "truncated": Kind(True, "half", ("GET",)),
}
"""All faults by name: an error, or a lost, late or partial reply; the request is applied or not."""


@dataclass
class Fault:
    """A fault: its kind, the requests that it affects, and how often."""

    kind: str
    method: str = "*"
    key: str = "*"
    """A shell pattern for the key; a listing's key is its prefix."""
    times: int = 1
    """The number of requests that it affects; -1: all."""
    rate: float = 1.0
    """The share of matching requests that it affects, by chance."""
    seconds: float = 1.0
    """The delay of a late reply or application."""

    def hits(self, request: Request, chance: random.Random) -> bool:
        key = request.key or request.query.get("prefix", "")
        return (
            self.times != 0
            and request.method in KINDS[self.kind].methods
            and fnmatchcase(request.method, self.method)
            and fnmatchcase(key, self.key)
            and (self.rate >= 1 or chance.random() < self.rate)
        )


@dataclass(frozen=True)
class Seen:
    """A request in the log. ``status`` is 0 if no reply was sent."""

    kind: str
    method: str
    bucket: str
    key: str
    query: dict[str, str]
    status: int
    fault: str = ""


class S3Server:
    """The server, which listens from its creation until `close` or the end of its ``with``."""

    def __init__(
        self, *, port: int = 0, buckets: Sequence[str] = ("test",), **options: Any
    ) -> None:
        """Listen on ``port`` of loopback (0: a free one); ``options`` are fields of `Options`."""
        self.options = Options(**options)
        self.objects = Objects(self.options)
        self.objects.buckets.update((name, Bucket()) for name in buckets)
        self.log: list[Seen] = []
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._later: list[threading.Thread] = []
        self._chance = random.Random(0)
        self._lock = threading.Lock()
        self._http = _Listener(("127.0.0.1", port), _Connection)
        self._http.serves = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def environment(self) -> dict[str, str]:
        """The environment variables that lead clients of S3 and Google's storage to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.options.access_key or "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "GOOGLE_ALLOW_HTTP": "true",
            "GOOGLE_BASE_URL": self.endpoint,
            "GOOGLE_BEARER_TOKEN": self.options.access_key or "test",
        }

    def stored(self, bucket: str = "test") -> dict[str, bytes]:
        """All names in a bucket with their bytes, read without the network and its faults."""
        return self.objects.snapshot(bucket)

    def put(self, key: str, data: bytes, bucket: str = "test") -> None:
        """Put an object without the network, to begin with many objects or with damage."""
        self.objects.put(bucket, key, data)

    # The log

    def counts(self, key: str = "*") -> Counter[str]:
        """Count the requests of each kind for keys (or prefixes) that match a pattern."""
        asked = ((each.kind, each.key or each.query.get("prefix", "")) for each in list(self.log))
        return Counter(kind for kind, name in asked if fnmatchcase(name, key))

    def forget(self) -> None:
        """Empty the log."""
        self.log.clear()

    # Faults

    def fail(self, kind: str, **how: Any) -> None:
        """Let requests fail; by default the next one. ``how`` are fields of `Fault`.

        Faults apply in the order in which they were added. Raises ``KeyError`` for an unknown kind.
        """
        fault = Fault(kind, **how)
        KINDS[kind]
        with self._lock:
            self._faults.append(fault)

    def fail_often(self, rate: float, seed: int = 0, kinds: Sequence[str] = (), **how: Any) -> None:
        """Let this share of all matching requests fail by one of ``kinds`` each (empty: any)."""
        kinds = kinds or tuple(KINDS)
        with self._lock:
            self._chance.seed(seed)
            each = rate / len(kinds)
            self._faults += [Fault(kind, rate=each, times=-1, **how) for kind in kinds]

    def heal(self) -> None:
        """Remove all faults, and wait until every delayed request is applied."""
        with self._lock:
            self._faults.clear()
            later, self._later = self._later, []
        for each in later:
            each.join()

    def apply_later(self, request: Request, seconds: float) -> None:
        """Apply a request after this time, unless the server is closed before."""

        def apply() -> None:
            if not self.stopping.wait(seconds):
                self.objects.apply(request)

        thread = threading.Thread(target=apply, daemon=True)
        with self._lock:
            self._later.append(thread)
            thread.start()

    def fault_for(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.hits(request, self._chance):
                    fault.times -= 1 if fault.times > 0 else 0
                    return fault
        return None

    # The end

    def close(self) -> None:
        """Stop the server: cut connections, and drop delayed requests."""
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> S3Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024
    serves: S3Server

    def __init__(self, *arguments: Any) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close without a shutdown, which would turn a reset into an ordinary end."""
        self.open.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for each in list(self.open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing; the log is `S3Server.log`."""

    def handle_expect_100(self) -> bool:
        """Ask for the body at once, because clients would wait a second otherwise."""
        answered = super().handle_expect_100()
        self.wfile.flush()
        return answered

    def _serve(self) -> None:
        server = cast(_Listener, self.server).serves
        request = self._request()
        if request.bucket == "-":
            self._send(_control(server, request))
            return
        server.stopping.wait(server.options.latency)
        fault = server.fault_for(request)
        if fault is None:
            reply = server.objects.apply(request)
            server.log.append(_seen(request, reply.status))
            self._send(reply)
        else:
            self._fail(server, request, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's

    def _fail(self, server: S3Server, request: Request, fault: Fault) -> None:
        kind = KINDS[fault.kind]
        reply = server.objects.apply(request) if kind.applied else Reply()
        status = 0
        if kind.answer in ("late", "half"):
            status = reply.status
        elif kind.answer[0].isdigit():
            reply = Refused(kind.answer).reply
            status = reply.status
        server.log.append(_seen(request, status, fault.kind))
        if kind.answer == "silence":
            server.stopping.wait(3600)
        elif kind.answer == "late":
            server.stopping.wait(fault.seconds)
        if kind.answer == "half":
            self._send(reply, len(reply.body) // 2)
        elif status:
            self._send(reply)
        if not status or kind.answer == "half":
            self._reset()
        if kind.answer == "reset, then applied":
            server.apply_later(request, fault.seconds)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _request(self) -> Request:
        target = urlsplit(self.path)
        bucket, _, key = unquote(target.path).lstrip("/").partition("/")
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        return Request(self.command, bucket, key, query, self.headers, self._body())

    def _body(self) -> bytes:
        if self.headers["transfer-encoding"] == "chunked":
            body, _ = _unchunked(self.rfile)
        else:
            length = int(self.headers["content-length"] or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionResetError("the client is gone before the end of its request")
        if (self.headers["x-amz-content-sha256"] or "").startswith("STREAMING-"):
            body, trailers = _unchunked(io.BytesIO(body))  # aws-chunked: chunks within the body
            for name, value in trailers.items():
                self.headers[name] = value
        return body

    def _send(self, reply: Reply, most: int | None = None) -> None:
        self.send_response_only(reply.status)
        now = cast(_Listener, self.server).serves.objects.now()
        headers = {"Date": formatdate(now, usegmt=True), "content-type": "application/xml"}
        bare = reply.status in (204, 304)
        headers |= {} if bare else {"Content-Length": str(len(reply.body))}
        for name, value in (headers | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and not bare:
            self.wfile.write(reply.body[:most])
        self.wfile.flush()


def _unchunked(source: io.BufferedIOBase) -> tuple[bytes, dict[str, str]]:
    """Decode a chunked body. Returns it with its trailers."""
    chunks: list[bytes] = []
    while size := int(source.readline().partition(b";")[0] or b"0", 16):
        chunks.append(source.read(size))
        source.readline()
    trailers: dict[str, str] = {}
    while line := source.readline().strip().decode():
        name, _, value = line.partition(":")
        trailers[name] = value.strip()
    return b"".join(chunks), trailers


def _seen(request: Request, status: int, fault: str = "") -> Seen:
    of = request
    return Seen(of.kind, of.method, of.bucket, of.key, of.query, status, fault)


def _control(server: S3Server, request: Request) -> Reply:
    """Answer a control request of another process: about the log, faults or options."""
    asked = (request.method, request.key)
    given = json.loads(request.body or b"null")
    answer: Any = {}
    if asked == ("GET", "log"):
        answer = [asdict(each) for each in list(server.log)]
    elif asked == ("GET", "counts"):
        answer = server.counts(request.query.get("key", "*"))
    elif asked == ("DELETE", "log"):
        server.forget()
    elif asked == ("POST", "faults"):
        server.fail(**given)
    elif asked == ("DELETE", "faults"):
        server.heal()
    elif asked == ("POST", "options"):
        for name, value in given.items():
            setattr(server.options, name, value)
    else:
        return Reply(404)
    return Reply(200, json.dumps(answer).encode(), {"content-type": "application/json"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until killed; the first line printed is the endpoint."""
    parser = argparse.ArgumentParser(prog="s3server", description="A strict S3 server for tests.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--bucket", default="test", help="there from the start")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a request")
    parser.add_argument("--page", type=int, default=1000, help="names in a page of a listing")
    parser.add_argument("--access-key", default="", help="the only one that is accepted")
    parser.add_argument("--no-conditions", dest="conditions", action="store_false")
    parser.add_argument("--no-metadata", dest="metadata", action="store_false")
    given = vars(parser.parse_args(arguments))
    with S3Server(buckets=(given.pop("bucket"),), **given) as server:
        sys.stdout.write(f"{server.endpoint}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            server.stopping.wait()


if __name__ == "__main__":
    main()
