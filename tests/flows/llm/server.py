"""An OpenAI-compatible server for the tests, on 127.0.0.1, as bad as it is told to be.

    python -m tests.flows.llm.server --port 8017 \\
        --script '[{"do": "429", "retry_after": 2, "every": 3}]'

It speaks ``POST /v1/chat/completions`` with structured output, and ``GET /v1/models``; it labels
by `tests.flows.llm.texts.right_label`. It writes down every call, and counts as *paid* each for
which it has made an answer, whether or not that has arrived. What is done wrong is in
`tests.flows.llm.script`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.flows.llm.protocol import MODEL, Refusal, check, ids_of, texts_of
from tests.flows.llm.script import Rule, spoilt
from tests.flows.llm.texts import right_label
from tests.ports import free_port

KEY = "sk-test"


@dataclass
class Call:
    """One call of the API, as the server has seen it."""

    number: int  # from 1
    time: float  # monotonic
    key: str  # for idempotency
    ids: list[str]
    did: str = "answer"  # or what the script says
    status: int | None = None  # of what was sent in full
    paid: bool = False
    replayed: bool = False
    ended: float = 0.0  # monotonic; 0: it is still at work


@dataclass
class Llm:
    """The server's state: what it is told to do, and what it was asked.

    ``remembers``: an answer is made, and paid for, once for each Idempotency-Key. ``hold_after``:
    calls with a higher number are not answered until `release`.
    """

    script: list[Rule] = field(default_factory=list)
    delay: float = 0.0
    remembers: bool = False
    hold_after: float = math.inf
    keys: set[str] = field(default_factory=lambda: {KEY})
    calls: list[Call] = field(default_factory=list)
    errors: list[BaseException | None] = field(default_factory=list)  # the server's own
    port: int = 0
    log: str | None = None
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[Any, bytes]] = {}
        self._server: Server | None = None
        self._released = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def paid(self) -> int:
        return sum(call.paid for call in self.calls)

    def counts(self) -> dict[str, int]:
        """How many calls ended how."""
        found: dict[str, int] = {}
        for call in self.calls:
            found[call.did] = found.get(call.did, 0) + 1
        return found

    def up(self) -> None:
        self.port = self.port or free_port()
        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.llm = self
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Nothing listens any more, and what was connected is cut off."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_off()
        self._server = None

    def hold(self, calls: int) -> None:
        """Answer so many more calls, and let the others wait."""
        self.hold_after = len(self.calls) + calls

    @property
    def holds(self) -> bool:
        return len(self.calls) > self.hold_after

    def release(self) -> None:
        self.hold_after = math.inf
        with self._released:
            self._released.notify_all()

    def wait_if_held(self, call: Call) -> None:
        with self._released:
            self._released.wait_for(lambda: call.number <= self.hold_after, timeout=60)

    def settle(self) -> None:
        """Wait until all calls are at their end: those of a client that was killed, too."""
        seen = -1
        while seen != len(self.calls) or any(not call.ended for call in self.calls):
            seen = len(self.calls)
            time.sleep(0.1)

    def begin(self, key: str, ids: list[str]) -> tuple[Call, Rule | None]:
        """Write down a call, and find what the script wants done about it."""
        with self._lock:
            call = Call(len(self.calls) + 1, time.monotonic(), key, ids)
            self.calls.append(call)
            at_once = sum(not each.ended for each in self.calls[-1_000:])
            self.most_at_once = max(self.most_at_once, at_once)
            rule = next((rule for rule in self.script if rule.takes(call.number, ids)), None)
            call.did = rule.do if rule else "answer"
            return call, rule

    def end(self, call: Call) -> None:
        call.ended = time.monotonic()
        if self.log is not None:
            with self._lock, open(self.log, "a") as file:
                file.write(json.dumps(asdict(call)) + "\n")

    def answer(self, call: Call, request: dict[str, Any], rule: Rule | None) -> bytes:
        """A full answer, paid for unless it is remembered from before."""
        with self._lock:
            known = self._answers.get(call.key) if self.remembers else None
        if known is not None:
            if known[0] != request:
                raise Refusal(422, "this Idempotency-Key was used with another request")
            call.replayed = True
            return known[1]
        wanted = request["response_format"]["json_schema"]["schema"]
        labels = wanted["properties"]["labels"]["items"]["properties"]["label"]["enum"]
        entries = [
            {"id": text["id"], "label": right_label(text["text"], labels)}
            for text in texts_of(request)
        ]
        content = json.dumps({"labels": entries})
        made: dict[str, Any] = {
            "id": f"chatcmpl-{call.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            # A thousand tokens a text and a hundred a label: easy to reckon with.
            "usage": {
                "prompt_tokens": 1_000 * len(entries),
                "completion_tokens": 100 * len(entries),
                "total_tokens": 1_100 * len(entries),
            },
        }
        body = spoilt(made, entries, rule)
        with self._lock:
            call.paid = True
            self._answers[call.key] = request, body
        return body


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        if not self.has_key():
            self.send(401, b'{"error": {"message": "Incorrect API key provided"}}')
        elif self.path == "/v1/models":
            models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}]
            self.send(200, json.dumps({"object": "list", "data": models}).encode())
        else:
            self.send(404, b'{"error": {"message": "no such address"}}')

    def do_POST(self) -> None:
        llm = self.server.llm
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = json.loads(body)
        call, rule = llm.begin(self.headers.get("Idempotency-Key", ""), ids_of(request))
        try:
            if self.path != "/v1/chat/completions":
                raise Refusal(404, "no such address")
            if not self.has_key():
                call.did = "401"
                raise Refusal(401, "Incorrect API key provided", "invalid_api_key")
            check(request)
            self.reply(call, request, rule)
        except Refusal as refusal:
            call.status = refusal.status
            self.send(refusal.status, json.dumps(refusal.body).encode(), rule)
        finally:
            llm.end(call)

    def has_key(self) -> bool:
        kind, _, key = self.headers.get("Authorization", "").partition(" ")
        return kind == "Bearer" and key in self.server.llm.keys

    def reply(self, call: Call, request: Any, rule: Rule | None) -> None:
        self.server.llm.wait_if_held(call)
        do = rule.do if rule is not None else "answer"
        if do.isdigit():
            raise Refusal(int(do), f"the script says {do}", rule.code if rule else None)
        if do == "drop":
            self.hang_up()
            return
        time.sleep(self.server.llm.delay)
        body = self.server.llm.answer(call, request, rule)
        if do == "lose":
            self.hang_up()
        elif do == "half":
            self.head(200, len(body))
            self.wfile.write(body[: len(body) // 2])
            self.hang_up()
        elif rule is not None and do in ("slow", "drip"):
            self.wait(rule, len(body))
            self.wfile.write(body) if do == "drip" else self.send(200, body)
        else:
            call.status = 200
            self.send(200, body)

    def wait(self, rule: Rule, length: int) -> None:
        """Say nothing for a while; or ("drip") a blank now and then, as some do to live."""
        until = time.monotonic() + rule.seconds
        if rule.do == "drip":
            self.head(200, length + 1_000)
        for _ in range(1_000):
            if rule.do == "drip":
                self.wfile.write(b" ")
            if time.monotonic() < until:
                time.sleep(min(0.02, rule.seconds))

    def send(self, status: int, body: bytes, rule: Rule | None = None) -> None:
        self.head(status, len(body), rule)
        self.wfile.write(body)

    def head(self, status: int, length: int, rule: Rule | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        if rule is not None and rule.retry_after is not None:
            self.send_header("Retry-After", f"{rule.retry_after:g}")
        self.end_headers()

    def hang_up(self) -> None:
        # With a reset and not a farewell, which the other side would take for an end.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    llm: Llm

    def __init__(self, *args: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def cut_off(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError | ValueError):  # clients of these tests die and hang up
            self.llm.errors.append(error)


@contextlib.contextmanager
def serving(llm: Llm) -> Iterator[Llm]:
    llm.up()
    try:
        yield llm
    finally:
        if llm._server is not None:
            llm.down()
    assert llm.errors == []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.flows.llm.server")
    parser.add_argument("--port", type=int, default=8017, help="0: any (default: %(default)s)")
    parser.add_argument("--script", type=json.loads, default=[], help="a JSON list of rules")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds an answer takes")
    parser.add_argument("--remembers", action="store_true", help="knows Idempotency-Key")
    parser.add_argument("--log", help="a file for the calls, a JSON line each")
    args = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored by what a shell starts with &
        signal.signal(each, signal.default_int_handler)
    script = [Rule(**rule) for rule in args.script]
    llm = Llm(script, args.delay, args.remembers, port=args.port, log=args.log)
    llm.up()
    print(
        f"export OPENAI_BASE_URL={llm.url} OPENAI_API_KEY={KEY} OPENAI_MODEL={MODEL} "
        "OPENAI_INPUT_PRICE=0.15 OPENAI_OUTPUT_PRICE=0.60",
        flush=True,
    )
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print(f"{len(llm.calls)} calls, {llm.paid()} paid: {llm.counts()}")


if __name__ == "__main__":
    main()
