"""``python -m tests.benchmarks.adaptive``: adaptive concurrency against a server that throttles.

Draws ``docs/images/adaptive-concurrency.svg`` from what the server saw: how many calls it had at
once, what it bears (which changes on the way), and which calls it refused with 429.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from resumable_tasks import Adaptive, Budget, Retry, resumable_task

SECONDS_A_CALL = 0.05
BEARS = ((0.0, 12), (4.0, 5), (8.0, 16))  # from when on, how many calls at once
END = 12.0
IMAGE = Path(__file__).parents[2] / "docs/images/adaptive-concurrency.svg"


class TooManyRequests(Exception):
    status_code = 429


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.running = 0
        self.seen: list[tuple[float, int]] = []
        self.refused: list[tuple[float, int]] = []

    def bears(self) -> int:
        now = time.monotonic() - self.began
        return max((at, calls) for at, calls in BEARS if at <= now)[1]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["content-length"]))
        with server.lock:
            server.running += 1
            now = time.monotonic() - server.began
            refused = server.running > server.bears()
            server.seen.append((now, server.running))
            if refused:
                server.refused.append((now, server.running))
        time.sleep(0.001 if refused else SECONDS_A_CALL)
        self.send_response(429 if refused else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        with server.lock:
            server.running -= 1
            server.seen.append((time.monotonic() - server.began, server.running))

    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    local = threading.local()

    @resumable_task(
        key="id",
        batch_size=1,
        concurrency=Adaptive(1, 32),
        retries=Retry(delay=0.05),
        budget=Budget(seconds=END),
    )
    def call(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        local.connection.request("POST", "/", json.dumps(items))
        answer = local.connection.getresponse()
        found = json.loads(answer.read())
        if answer.status == 429:
            raise TooManyRequests
        return found  # type: ignore[no-any-return]

    with tempfile.TemporaryDirectory() as folder:
        try:
            call.run(({"id": n} for n in range(1_000_000)), checkpoint=folder + "/c")
        except KeyboardInterrupt as error:
            result = error.result  # type: ignore[attr-defined]
    server.shutdown()
    IMAGE.write_text(draw(server))
    calls = result.completed + len(server.refused)
    best = sum(
        bears * (end - at)
        for (at, bears), end in zip(BEARS, [*(at for at, _ in BEARS[1:]), END], strict=True)
    )
    print(f"{result.completed:,} calls answered, {len(server.refused):,} refused")
    print(f"{len(server.refused) / calls:.1%} of calls refused")
    print(f"{result.completed / (best / SECONDS_A_CALL):.0%} of what the server could have borne")


def draw(server: Server) -> str:
    width, height, left, bottom, most = 720, 260, 40, 30, 20

    def x(seconds: float) -> float:
        return left + (width - left - 10) * seconds / END

    def y(calls: float) -> float:
        return height - bottom - (height - bottom - 10) * calls / most

    bins: dict[int, int] = {}
    for at, running in server.seen:
        bins[int(at * 20)] = max(bins.get(int(at * 20), 0), running)
    line = " ".join(f"{x(n / 20):.1f},{y(calls):.1f}" for n, calls in sorted(bins.items()))
    bears = []
    for (at, calls), end in zip(BEARS, [*(at for at, _ in BEARS[1:]), END], strict=True):
        bears += [f"{x(at):.1f},{y(calls):.1f}", f"{x(end):.1f},{y(calls):.1f}"]
    dots = "".join(
        f'<circle cx="{x(at):.1f}" cy="{y(min(calls, most)):.1f}" r="2" fill="#c62828"/>'
        for at, calls in server.refused
    )
    ticks = "".join(
        f'<text x="{x(n):.0f}" y="{height - 10}" text-anchor="middle">{n} s</text>'
        for n in range(0, int(END) + 1, 2)
    ) + "".join(
        f'<text x="{left - 6}" y="{y(n) + 4:.0f}" text-anchor="end">{n}</text>'
        f'<line x1="{left}" x2="{width - 10}" y1="{y(n):.1f}" y2="{y(n):.1f}" stroke="#ddd"/>'
        for n in range(0, most + 1, 5)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>{ticks}'
        f'<polyline points="{" ".join(bears)}" fill="none" stroke="#888" stroke-dasharray="5 4"/>'
        f'<polyline points="{line}" fill="none" stroke="#1565c0" stroke-width="1.5"/>{dots}'
        f'<text x="{left + 8}" y="20" fill="#1565c0">calls at once</text>'
        f'<text x="{left + 108}" y="20" fill="#888">what the server bears</text>'
        f'<text x="{left + 258}" y="20" fill="#c62828">refused with 429</text></svg>\n'
    )


if __name__ == "__main__":
    main()
