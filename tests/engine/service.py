"""A real HTTP server on loopback that handlers call, which can be down, refuse, and ask to wait."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.ports import free_port

Answer = tuple[int, dict[str, str]]


@dataclass
class Service:
    """Answers each call with the ids that it was given, or as ``answer`` says of the n-th call."""

    answer: Callable[[int, list[int]], Answer] = lambda n, ids: (200, {})
    seconds: float = 0.0
    port: int = 0
    calls: list[tuple[float, tuple[int, ...], int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                ids = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with service._lock:
                    number = len(service.calls)
                    status, headers = service.answer(number, ids)
                    service.calls.append((time.monotonic(), tuple(ids), status))
                time.sleep(service.seconds)
                body = json.dumps([{"id": i, "label": f"label {i}"} for i in ids]).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self.port = self.port or free_port()
        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def down(self, after: float, seconds: float) -> threading.Thread:
        """Be down for some time, from some time on: nothing listens then."""

        def run() -> None:
            time.sleep(after)
            self.stop()
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def label(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A handler that calls this service."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/",
            data=json.dumps([item["id"] for item in items]).encode(),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())
        return found

    def paid(self) -> Counter[int]:
        """How often each id was labelled."""
        return Counter(i for _, ids, status in self.calls if status == 200 for i in ids)
