"""A batch API that can be told to make trouble, and counts for itself what was paid.

    with BatchServer() as server:
        client = openai.OpenAI(api_key="k", base_url=server.openai)      # or server.anthropic
        server.script(takes=0.2, next=[{"fate": "expired", "done": 0.3}])
        server.trouble("create", "lose", every=4)
        ...
        assert server.paid() == {"a text": 1}

It is a process of its own, so that what was paid is known however its clients are killed. Both
providers' paths are there at once. A text is the content of the last message of a request, or its
``input``; a content that is a JSON list counts as a text each.

``script`` sets, from then on:

* ``takes``: seconds from the creation of a batch to its end, None: for ever; ``validates``: of
  them, seconds until OpenAI looks at the file.
* ``listing_lag``, ``unknown_for``: seconds for which a new batch is not listed, not found. As
  ``results_lag`` they hold for the batches that are there, too: HIDDEN, and 0 later.
* ``results_lag``: seconds for which the results of an ended batch are not found.
* ``next``: what becomes of the next batches, in order (None: as usual). ``fate`` is one of FATES;
  ``done`` is the share of requests that were handled, and paid, before that; ``takes`` is that
  of this batch alone.
* ``funds``: requests that can still be paid; behind them each is refused for want of funds.
* ``queue``: requests in all running batches, above which a batch is not taken.

Each answer's usage is 10 tokens in and 2 out. Texts that hold REFUSED, BUSY (429), BROKEN (500),
NONSENSE are answered so. ``trouble`` is for requests: see `Trouble`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HIDDEN = 1e9
FATES = (
    *("expired", "cancelled"),
    "failed",  # with `errors`, such as [{"code": "invalid_request", "line": 3, "message": "…"}]
    *("no_files", "empty_ids"),  # completed, paid, and nothing to fetch: null, or ""
    "lines_missing",  # completed, but only the `done` share of lines is there
    "status_0",  # completed, the others have a line with status 0
    "unauthorized",  # the others are refused with 401
)
OPERATIONS = ("upload", "create", "retrieve", "list", "content", "delete", "cancel", "call")


@dataclass
class Trouble:
    """What goes wrong with requests of one kind.

    ``operation`` is one of OPERATIONS; ``what``:

    * ``lose``: it is carried out, and the connection closed without an answer.
    * ``drop``: the connection is closed, and nothing is carried out.
    * ``refuse``: answered with ``status`` and ``body``, and not carried out.
    * ``refuse_late``: carried out, and answered with ``status`` all the same.
    * ``kill``: it is carried out, and the client's process is killed before the answer.
    * ``kill_before``: the client's process is killed, and nothing is carried out.
    * ``slow``: answered after ``seconds``.

    Each ``every``-th one after the first ``skip``, at most ``times`` in all.
    """

    operation: str
    what: str
    every: int = 1
    skip: int = 0
    times: int | None = None
    status: int = 500
    body: Any = None
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    done: int = 0

    def strikes(self) -> bool:
        self.seen += 1
        if self.seen <= self.skip or (self.seen - self.skip) % self.every:
            return False
        if self.times is not None and self.done >= self.times:
            return False
        self.done += 1
        return True


@dataclass
class Batch:
    """A batch of either provider. ``paid`` are the places of the requests that were paid."""

    id: str
    provider: str
    requests: list[dict[str, Any]]
    created: float
    takes: float | None
    validates: float
    fate: dict[str, Any]
    file: str = ""
    endpoint: str = ""
    metadata: dict[str, str] | None = None
    status: str = "in_progress"
    ended: float | None = None
    cancel_asked: bool = False
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    paid: int = 0
    number: int = 0

    def told(self) -> dict[str, Any]:
        """What the control knows of it."""
        names = ("id", "provider", "status", "paid", "file", "metadata", "fate", "created", "ended")
        told = {name: getattr(self, name) for name in names}
        return told | {
            "requests": len(self.requests),
            "texts": [text for each in self.requests for text in texts_of(body_of(each))],
            "ids": [each.get("custom_id") for each in self.requests],
        }


class State:
    """All that the server knows, under one lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.script: dict[str, Any] = {
            "takes": 0.05,
            "validates": 0.0,
            "listing_lag": 0.0,
            "unknown_for": 0.0,
            "results_lag": 0.0,
            "next": [],
            "funds": None,
            "queue": None,
        }
        self.troubles: list[Trouble] = []
        self.files: dict[str, bytes | None] = {}
        self.file_times: dict[str, float] = {}
        self.batches: dict[str, Batch] = {}
        self.paid: Counter[str] = Counter()
        self.full_price: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.ids = count(1)

    def create(self, provider: str, requests: list[dict[str, Any]], **more: Any) -> Batch:
        now, script = time.time(), self.script
        fate = (script["next"].pop(0) if script["next"] else None) or {}
        number = next(self.ids)
        name = f"batch_{number:06d}" if provider == "openai" else f"msgbatch_{number:06d}"
        running = sum(len(b.requests) for b in self.batches.values() if b.ended is None)
        if script["queue"] is not None and running + len(requests) > script["queue"]:
            if provider == "anthropic":
                raise Refusal(429, error_body(provider, "rate_limit_error", "queue is full"))
            what = "Enqueued token limit reached for gpt-4o-mini in organization org-x"
            told = {"code": "token_limit_exceeded", "message": what, "line": None}
            fate = {"fate": "failed", "errors": [told]}
        batch = Batch(
            *(
                name,
                provider,
                requests,
                now,
                fate.get("takes", script["takes"]),
                script["validates"],
                fate,
            ),
            number=number,
            **more,
        )
        self.batches[batch.id] = batch
        return batch

    def advance(self) -> None:
        """Bring each batch to where it is by now."""
        now = time.time()
        for batch in list(self.batches.values()):
            if batch.ended is not None:
                continue
            gone = batch.file and self.files.get(batch.file) is None
            if gone and now < batch.created + batch.validates:
                told = {"code": "file_not_found", "message": "input file was deleted"}
                batch.status, batch.ended = "failed", now
                batch.failed = [told | {"line": None}]
            elif batch.fate.get("fate") == "failed":
                batch.status, batch.ended = "failed", now
                batch.failed = list(batch.fate.get("errors", ()))
            elif batch.takes is not None and now >= batch.created + batch.takes:
                self.finish(batch, batch.fate.get("fate", "completed"), batch.fate.get("done"))
            elif batch.cancel_asked:
                share = 0.0 if not batch.takes else (now - batch.created) / batch.takes
                self.finish(batch, "cancelled", share)

    def finish(self, batch: Batch, fate: str, done: float | None) -> None:
        """Handle the requests, and pay for them."""
        handled = len(batch.requests) if done is None else int(len(batch.requests) * done)
        batch.ended, batch.status = time.time(), "completed"
        if fate in ("expired", "cancelled"):
            batch.status = fate
        for at, request in enumerate(batch.requests):
            if at < handled:
                self.handle(batch, request)
            else:
                self.leave(batch, request, fate)
        # The order is not kept.
        batch.output.reverse()

    def handle(self, batch: Batch, request: dict[str, Any]) -> None:
        body, texts = body_of(request), texts_of(body_of(request))
        refusal = refusal_of(batch.provider, texts)
        if refusal is None and self.script["funds"] is not None:
            if self.script["funds"] < 1:
                refusal = no_funds(batch.provider)
            else:
                self.script["funds"] -= 1
        if refusal is not None:
            batch.errors.append(line_of(batch.provider, request, refusal.status, refusal.body))
            return
        batch.paid += 1
        self.paid.update(texts)
        if batch.fate.get("fate") in ("no_files", "empty_ids"):
            return
        answer = answer_to(batch.provider, batch.endpoint, body, texts)
        batch.output.append(line_of(batch.provider, request, 200, answer))

    def leave(self, batch: Batch, request: dict[str, Any], fate: str) -> None:
        """A request that is not handled, and not paid."""
        if fate == "lines_missing":
            return
        if fate == "unauthorized":
            body = error_body(batch.provider, "authentication_error", "invalid key")
            batch.errors.append(line_of(batch.provider, request, 401, body))
        elif batch.provider == "anthropic":
            kind = "canceled" if fate == "cancelled" else "expired"
            line = {"custom_id": request["custom_id"], "result": {"type": kind}}
            batch.errors.append(line)
        elif fate == "status_0":
            batch.errors.append(line_of("openai", request, 0, ""))
        else:
            told = {"code": f"batch_{fate}", "message": "This request was not executed in time."}
            line = {"custom_id": request["custom_id"], "response": None, "error": told}
            batch.errors.append(line)


class Refusal(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


def error_body(provider: str, kind: str, message: str, code: str | None = None) -> Any:
    if provider == "openai":
        return {"error": {"message": message, "type": kind, "code": code or kind, "param": None}}
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": "req_1"}


def no_funds(provider: str) -> Refusal:
    if provider == "openai":
        what = "You exceeded your current quota, please check your plan and billing details."
        return Refusal(429, error_body(provider, "insufficient_quota", what))
    what = "Your credit balance is too low to access the Anthropic API."
    return Refusal(400, error_body(provider, "invalid_request_error", what))


def refusal_of(provider: str, texts: list[str]) -> Refusal | None:
    text = " ".join(texts)
    if "REFUSED" in text:
        return Refusal(400, error_body(provider, "invalid_request_error", "this text is refused"))
    if "BUSY" in text:
        kind = "rate_limit_exceeded" if provider == "openai" else "rate_limit_error"
        return Refusal(429, error_body(provider, kind, "too many requests"))
    if "BROKEN" in text:
        kind = "server_error" if provider == "openai" else "api_error"
        return Refusal(500, error_body(provider, kind, "internal error"))
    return None


def line_of(provider: str, request: dict[str, Any], status: int, body: Any) -> dict[str, Any]:
    """A line of the results."""
    name = request["custom_id"]
    if provider == "openai":
        response = {"status_code": status, "request_id": "req_1", "body": body}
        return {"id": "batch_req_1", "custom_id": name, "response": response, "error": None}
    if status == 200:
        return {"custom_id": name, "result": {"type": "succeeded", "message": body}}
    return {"custom_id": name, "result": {"type": "errored", "error": body}}


def body_of(request: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = request.get("body") or request.get("params") or {}
    return found


def texts_of(body: dict[str, Any]) -> list[str]:
    """The texts of a request."""
    content = content_of_body(body)
    if not isinstance(content, list):
        return [str(content)]
    return [str(each["text"] if isinstance(each, dict) else each) for each in content]


def labelled(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The first of the labels that the request allows, for each text by its id."""
    schema = body["response_format"]["json_schema"]["schema"]
    label = schema["properties"]["labels"]["items"]["properties"]["label"]["enum"][0]
    return [{"id": each["id"], "label": label} for each in content_of_body(body)]


def is_list(body: dict[str, Any]) -> bool:
    return isinstance(content_of_body(body), list)


def content_of_body(body: dict[str, Any]) -> Any:
    content = body.get("input")
    if body.get("messages"):
        content = body["messages"][-1].get("content")
    if isinstance(content, str) and content.startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(content)
    return content


def answer_to(provider: str, endpoint: str, body: dict[str, Any], texts: list[str]) -> Any:
    """A label for each text, its length; for a text that is not one of a list, without the list."""
    labels = [{"label": len(text)} for text in texts]
    said = json.dumps(labels if is_list(body) else labels[0])
    if "response_format" in body:
        said = json.dumps({"labels": labelled(body)})
    if any("NONSENSE" in text for text in texts):
        said = "NONSENSE"
    model = body.get("model", "")
    if provider == "anthropic":
        usage = {"input_tokens": 10, "output_tokens": 2}
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": said}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
    if endpoint.endswith("embeddings"):
        data = [{"object": "embedding", "index": at, "embedding": [float(len(text))]}
                for at, text in enumerate(texts)]  # fmt: skip
        return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 10}}
    if endpoint.endswith("responses"):
        message = {"type": "message", "content": [{"type": "output_text", "text": said}]}
        usage = {"input_tokens": 10, "output_tokens": 2}
        return {"id": "resp_1", "object": "response", "output": [message], "usage": usage}
    message = {"role": "assistant", "content": said}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: str) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state, parts = self.server.state, url.path.strip("/").split("/")
        if parts[0] == "control":
            if parts[1] == "reset":
                state = self.server.state = State()
            with state.lock:
                state.advance()
                self.send(200, control(state, parts[1], json.loads(body or b"{}")))
            return
        operation = operation_of(method, parts)
        with state.lock:
            state.advance()
            state.calls[operation] += 1
            struck = [t for t in state.troubles if t.operation == operation and t.strikes()]
            refused = next((t for t in struck if t.what in ("refuse", "drop")), None)
            kills = any(t.what.startswith("kill") for t in struck)
            if any(t.what == "kill_before" for t in struck):
                kill(self.client_address, self.server.server_port)
                refused = Trouble(operation, "drop")
            if refused is None:
                try:
                    status, answer = self.route(method, parts, query, body)
                except Refusal as refusal:
                    status, answer = refusal.status, refusal.body
            if kills and refused is None:
                kill(self.client_address, self.server.server_port)
        time.sleep(sum(t.seconds for t in struck if t.what == "slow"))
        if kills or (refused or Trouble("", "")).what == "drop" or _any(struck, "lose"):
            self.close_connection = True
            return
        late = next((t for t in struck if t.what == "refuse_late"), None)
        if (told := refused or late) is not None:
            status = told.status
            answer = told.body or error_body("openai", "server_error", "told to fail")
            self.send(status, answer, told.headers)
            return
        self.send(status, answer)

    def send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        binary = isinstance(answer, bytes)
        self.send_header("Content-Type", "application/" + ("binary" if binary else "json"))
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client was killed
            self.wfile.write(data)

    def route(self, method: str, parts: list[str], query: Any, body: bytes) -> tuple[int, Any]:
        if parts[:2] == ["v1", "messages"]:
            return 200, anthropic(self, parts[2:], query, body)
        return 200, openai(self, method, parts[1:], query, body)


def _any(struck: list[Trouble], what: str) -> bool:
    return any(trouble.what == what for trouble in struck)


def operation_of(method: str, parts: list[str]) -> str:
    """The operation of a request, by the same word for both providers."""
    if method == "DELETE":
        return "delete"
    last = parts[-1]
    if last in ("content", "results"):
        return "content"
    if last == "cancel":
        return "cancel"
    if last == "files":
        return "upload"
    if last == "batches":
        return "create" if method == "POST" else "list"
    return "call" if method == "POST" else "retrieve"


# --- OpenAI


def openai(handler: Handler, method: str, parts: list[str], query: Any, body: bytes) -> Any:
    state = handler.server.state
    match method, parts:
        case "POST", ["files"]:
            content = uploaded(handler.headers["Content-Type"], body)
            name = f"file-{next(state.ids):06d}"
            state.files[name], state.file_times[name] = content, time.time()
            return file_object(state, name)
        case "DELETE", ["files", name]:
            if state.files.get(name) is None:
                raise Refusal(404, error_body("openai", "invalid_request_error", "No such File"))
            state.files[name] = None
            return {"id": name, "object": "file", "deleted": True}
        case "GET", ["files", name, "content"]:
            return content_of(state, name)
        case "POST", ["batches"]:
            return openai_batch(openai_create(state, json.loads(body)))
        case "GET", ["batches"]:
            return openai_page(state, query)
        case "GET", ["batches", name]:
            return openai_batch(known(state, name, "openai"))
        case "POST", ["batches", name, "cancel"]:
            batch = known(state, name, "openai")
            if batch.ended is not None:
                what = f"Cannot cancel a batch with status '{batch.status}'."
                raise Refusal(409, error_body("openai", "invalid_request_error", what))
            batch.cancel_asked, batch.status = True, "cancelling"
            return openai_batch(batch)
        case "POST", ["chat", "completions"] | ["responses"] | ["embeddings"]:
            return plain_call(state, "openai", "/" + "/".join(parts), json.loads(body))
    raise Refusal(404, error_body("openai", "invalid_request_error", f"no route {parts}"))


def openai_create(state: State, asked: dict[str, Any]) -> Batch:
    content = state.files.get(asked["input_file_id"])
    if content is None:
        what = f"No such File object: {asked['input_file_id']}"
        raise Refusal(400, error_body("openai", "invalid_request_error", what))
    requests = [json.loads(line) for line in content.splitlines() if line.strip()]
    assert len({each["custom_id"] for each in requests}) == len(requests), "custom_id twice"
    assert asked["completion_window"] == "24h"
    assert all(each["url"] == asked["endpoint"] for each in requests)
    return state.create(
        *("openai", requests),
        file=asked["input_file_id"],
        endpoint=asked["endpoint"],
        metadata=asked.get("metadata"),
    )


def uploaded(kind: str, body: bytes) -> bytes:
    """The file of a form."""
    boundary = kind.split("boundary=")[1].strip('"').encode()
    parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)]
    fields = {b'name="purpose"' in head: content for head, _, content in parts if content}
    assert fields[True].strip() == b"batch"
    return fields[False].removesuffix(b"\r\n")


def file_object(state: State, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "file",
        "purpose": "batch",
        "filename": "f.jsonl",
        "bytes": len(state.files[name] or b""),
        "status": "processed",
        "created_at": int(state.file_times[name]),
    }


def content_of(state: State, name: str) -> bytes:
    """An output or error file: ``file-out-BATCH``, ``file-err-BATCH``."""
    for batch in state.batches.values():
        if name in (f"file-out-{batch.id}", f"file-err-{batch.id}"):
            results_there(state, batch)
            lines = batch.output if name.startswith("file-out") else batch.errors
            return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
    if state.files.get(name):
        return state.files[name] or b""
    raise Refusal(404, error_body("openai", "invalid_request_error", f"No such File: {name}"))


def openai_page(state: State, query: dict[str, str]) -> dict[str, Any]:
    batches = listed(state, "openai")
    if "after" in query:
        ids = [batch.id for batch in batches]
        batches = batches[ids.index(query["after"]) + 1 :]
    limit = int(query.get("limit", 20))
    page = [openai_batch(batch) for batch in batches[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return {"object": "list", "data": page, "has_more": len(batches) > limit, **ends}


def openai_batch(batch: Batch) -> dict[str, Any]:
    fate, ended = batch.fate.get("fate"), batch.ended is not None
    nothing = "" if fate == "empty_ids" else None
    total = len(batch.requests)
    done = len(batch.output) if ended else 0
    if fate in ("no_files", "lines_missing", "empty_ids") and ended:
        done = total  # the counts lie
    counts = {"total": total, "completed": done, "failed": len(batch.errors) if ended else 0}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "input_file_id": batch.file,
        "completion_window": "24h",
        "status": batch.status,
        "created_at": int(batch.created),
        "metadata": batch.metadata,
        "output_file_id": f"file-out-{batch.id}" if batch.output else nothing,
        "error_file_id": f"file-err-{batch.id}" if batch.errors else nothing,
        "errors": {"object": "list", "data": batch.failed} if batch.failed else None,
        "request_counts": counts,
    }


# --- Anthropic


def anthropic(handler: Handler, parts: list[str], query: Any, body: bytes) -> Any:
    state, method = handler.server.state, handler.command
    base = f"http://127.0.0.1:{handler.server.server_port}"
    match method, parts:
        case "POST", []:
            return plain_call(state, "anthropic", "/messages", json.loads(body))
        case "POST", ["batches"]:
            requests = json.loads(body)["requests"]
            assert len({each["custom_id"] for each in requests}) == len(requests)
            return anthropic_batch(state.create("anthropic", requests), base)
        case "GET", ["batches"]:
            return anthropic_page(state, query, base)
        case "GET", ["batches", name]:
            return anthropic_batch(known(state, name, "anthropic"), base)
        case "GET", ["batches", name, "results"]:
            batch = known(state, name, "anthropic")
            results_there(state, batch)
            lines = [*batch.output, *batch.errors]
            return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
        case "POST", ["batches", name, "cancel"]:
            batch = known(state, name, "anthropic")
            if batch.ended is not None:
                what = "a batch that has ended cannot be canceled"
                raise Refusal(400, error_body("anthropic", "invalid_request_error", what))
            batch.cancel_asked, batch.status = True, "canceling"
            return anthropic_batch(batch, base)
    raise Refusal(404, error_body("anthropic", "not_found_error", f"no route {parts}"))


def anthropic_page(state: State, query: dict[str, str], base: str) -> dict[str, Any]:
    batches = listed(state, "anthropic")
    ids = [batch.id for batch in batches]
    if "after_id" in query:
        batches = batches[ids.index(query["after_id"]) + 1 :]
    limit = int(query.get("limit", 20))
    page = [anthropic_batch(batch, base) for batch in batches[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return {"data": page, "has_more": len(batches) > limit, **ends}


def anthropic_batch(batch: Batch, base: str) -> dict[str, Any]:
    ended = batch.ended is not None
    kinds = Counter(
        line["result"]["type"] for line in [*batch.output, *batch.errors] if ended
    )  # fmt: skip
    counts = {kind: kinds[kind] for kind in ("succeeded", "errored", "canceled", "expired")}
    counts["processing"] = 0
    if not ended:
        counts["processing"] = len(batch.requests)
    elif batch.fate.get("fate") in ("no_files", "lines_missing", "empty_ids"):
        counts["succeeded"] = len(batch.requests)
    there = ended and batch.fate.get("fate") not in ("no_files", "empty_ids")
    status = "ended" if ended else batch.status
    created = datetime.fromtimestamp(batch.created, UTC)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": counts,
        "created_at": created.isoformat(),
        "expires_at": datetime.fromtimestamp(batch.created + 86400, UTC).isoformat(),
        "ended_at": datetime.fromtimestamp(batch.ended, UTC).isoformat() if batch.ended else None,
        "results_url": f"{base}/v1/messages/batches/{batch.id}/results" if there else None,
        "archived_at": None,
        "cancel_initiated_at": None,
    }


# --- both


def plain_call(state: State, provider: str, endpoint: str, body: dict[str, Any]) -> Any:
    texts = texts_of(body)
    if (refusal := refusal_of(provider, texts)) is not None:
        raise refusal
    state.full_price.update(texts)
    return answer_to(provider, endpoint, body, texts)


def listed(state: State, provider: str) -> list[Batch]:
    """The newest first."""
    since = time.time() - state.script["listing_lag"]
    found = [b for b in state.batches.values() if b.provider == provider and b.created <= since]
    return sorted(found, key=lambda batch: -batch.number)


def known(state: State, name: str, provider: str) -> Batch:
    batch = state.batches.get(name)
    since = time.time() - state.script["unknown_for"]
    if batch is None or batch.provider != provider or batch.created > since:
        kind = "invalid_request_error" if provider == "openai" else "not_found_error"
        raise Refusal(404, error_body(provider, kind, f"No batch found with id '{name}'."))
    return batch


def results_there(state: State, batch: Batch) -> None:
    if batch.ended is None or time.time() < batch.ended + state.script["results_lag"]:
        raise Refusal(404, error_body(batch.provider, "not_found_error", "results not found"))


def kill(client: tuple[str, int], own: int) -> None:
    """SIGKILL the process at the other end of a connection, and wait until it is gone."""
    process = process_of(client[1], own)
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(process):
        time.sleep(0.002)


def alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def process_of(port: int, peer: int) -> int:
    """The process that has the connection from this local port. Linux only."""
    ends = (f":{port:04X}", f":{peer:04X}")
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(x[9] for x in lines if x[1].endswith(ends[0]) and x[2].endswith(ends[1]))
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(each) == f"socket:[{inode}]" for each in folder.iterdir()):
                return int(folder.parent.name)
    raise LookupError(f"nobody has port {port}")


def control(state: State, what: str, given: dict[str, Any]) -> Any:
    """What tests ask for."""
    match what:
        case "script":
            unknown = set(given) - set(state.script)
            assert not unknown, f"the script knows no {unknown}"
            for fate in given.get("next", ()):
                assert fate is None or fate.get("fate", FATES[0]) in FATES, fate
            state.script.update(given)
        case "trouble":
            state.troubles.append(Trouble(**given))
        case "calm":
            state.troubles.clear()
        case "delete":
            state.files[given["file"]] = None
        case "finish":
            running = [batch for batch in state.batches.values() if batch.ended is None]
            for batch in running[: 1 if given.get("oldest") else None]:
                if given.get("id", batch.id) == batch.id:
                    state.finish(
                        batch, batch.fate.get("fate", "completed"), batch.fate.get("done")
                    )  # fmt: skip
    return {
        "paid": state.paid,
        "full_price": state.full_price,
        "calls": state.calls,
        "running": sum(batch.ended is None for batch in state.batches.values()),
        "batches": [b.told() for b in state.batches.values()] if what == "batches" else [],
        "script": state.script,
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.state = State()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class BatchServer:
    """The server, as tests have it. A context manager; `start` and `stop` do the same."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> BatchServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> BatchServer:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.batch_apis.server"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    @property
    def openai(self) -> str:
        """The ``base_url`` of OpenAI's SDK."""
        return f"{self.url}/v1"

    @property
    def anthropic(self) -> str:
        """The ``base_url`` of Anthropic's SDK."""
        return self.url

    def script(self, **given: Any) -> None:
        """Set what is to happen from now on."""
        self._control("script", given)

    def trouble(self, operation: str, what: str, **given: Any) -> None:
        """Let requests go wrong: a `Trouble`."""
        assert operation in OPERATIONS
        self._control("trouble", {"operation": operation, "what": what, **given})

    def calm(self) -> None:
        """No more trouble with requests."""
        self._control("calm")

    def reset(self) -> None:
        """Forget everything."""
        self._control("reset")

    def finish(self, id: str | None = None, *, oldest: bool = False) -> None:
        """End this batch, or the oldest that runs, or all that run, now."""
        self._control("finish", {"oldest": oldest} | ({"id": id} if id else {}))

    def delete_file(self, file: str) -> None:
        """As if somebody had deleted it."""
        self._control("delete", {"file": file})

    def paid(self, *, wait: float = 10.0) -> dict[str, int]:
        """How often each text was paid in batches, once no batch runs any more."""
        deadline = time.monotonic() + wait
        while (told := self._control("paid"))["running"] and time.monotonic() < deadline:
            time.sleep(0.02)
        return dict(told["paid"])

    def twice(self) -> dict[str, int]:
        """The texts that were paid more than once."""
        return {text: n for text, n in self.paid().items() if n > 1}

    def full_price(self) -> dict[str, int]:
        """How often each text was answered outside of batches."""
        return dict(self._control("paid")["full_price"])

    def batches(self) -> list[dict[str, Any]]:
        """All batches that were created, the oldest first."""
        return list(self._control("batches")["batches"])

    def calls(self) -> dict[str, int]:
        """How many requests there were of each operation."""
        return dict(self._control("paid")["calls"])

    def _control(self, what: str, given: dict[str, Any] | None = None) -> Any:
        data = json.dumps(given or {}).encode()
        request = urllib.request.Request(f"{self.url}/control/{what}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    server = Server(parser.parse_args().port)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
