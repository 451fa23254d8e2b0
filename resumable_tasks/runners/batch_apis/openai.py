"""OpenAI's Batch API, and those of servers that are compatible with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.base.naming import named_options
from resumable_tasks.items.keys import Key
from resumable_tasks.runners.batch_apis.answers import Answers, parsed
from resumable_tasks.runners.batch_apis.refusals import RequestFailed, failed_whole, not_accepted
from resumable_tasks.runners.batch_apis.shared import (
    NOT_FOUND,
    BatchApi,
    as_handle,
    batch_of,
    json_lines,
    not_ready,
)
from resumable_tasks.runners.submitted.protocol import Ended, Handle, NotReady, Pending

_ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
_ENDED = ("completed", "failed", "expired", "cancelled")
_NOT_HANDLED = ("batch_expired", "batch_cancelled")
_OK = 200
# The clocks of a provider's services may differ.
_SLACK = 3600


@named_options
class OpenAIBatch(BatchApi):
    """The OpenAI batch API as a handler: each text is paid for once, at half the price.

    For `resumable_task`, whose batches become batches of the API; answers arrive within a day.
    However often the process is killed meanwhile, no text is paid for twice. With
    ``runner="local"`` the same object is a plain handler at full price, one request per item.

    Args:
        request: takes an item and returns the body of its request: ``model``, ``messages`` … The
            body is sent unchanged. With ``per_request`` above 1, takes a list of items.
        row: takes an item's key and the body of the answer, a dict; returns the item's row, with
            its key. Raises `BadResult` for an unusable answer: the item fails, and ``retries``
            requests it again. With ``per_request`` above 1, takes a list of keys and returns a list
            of rows.
        prices: the full prices per million tokens, in and out. Needed for a budget with a cost.
        client: the ``openai.OpenAI`` to use; the default one reads OPENAI_API_KEY.
        base_url: the address of a compatible server.
        per_request: number of items per request.
        endpoint: "/v1/chat/completions", "/v1/responses" or "/v1/embeddings".

    Raises:
        UsageError: the package ``openai`` is not installed, or an argument does not fit.
    """

    sdk = "openai"
    max_requests = 50_000
    max_bytes = 200_000_000

    def __init__(
        self,
        request: Callable[[Any], Any],
        row: Callable[[Any, Any], Any],
        *,
        prices: tuple[float, float] | None = None,
        client: Any = None,
        base_url: str | None = None,
        per_request: int = 1,
        endpoint: str = "/v1/chat/completions",
    ) -> None:
        super().__init__(
            *(request, row),
            prices=prices,
            client=client,
            base_url=base_url,
            per_request=per_request,
        )
        checks.choice("OpenAIBatch: endpoint", endpoint, _ENDPOINTS)
        self.endpoint = endpoint
        if endpoint == "/v1/embeddings":  # the limit counts inputs, and there are no output tokens
            self.max_items = self.max_requests
            if self._money is not None:
                self._money.out = 0.0

    def prepare(self, items: Any, token: str) -> Any:
        """Upload the file of requests, which neither starts nor costs anything."""
        made = self._requests(items, token)
        content = b"\n".join(made.lines) + b"\n"
        file = self._client.files.create(file=(f"{token}.jsonl", content), purpose="batch")
        # By the provider's clock, as the times of its batches are.
        uploaded = file.created_at or int(time.time())
        return {"file": file.id, "uploaded": uploaded, **self._noted(made)}

    def submit(self, items: Any, token: str, prepared: Any) -> Handle:
        """Create the batch from the uploaded file: one request, never repeated automatically."""
        try:
            batch = self._once.batches.create(
                input_file_id=prepared["file"],
                endpoint=self.endpoint,
                completion_window="24h",
                metadata={"token": token},
                timeout=self.request_timeout,
            )
        except Exception as error:
            if (certain := not_accepted(error)) is not None:
                raise certain from error
            raise
        return self._handle(batch.id, token, prepared)

    def find(self, token: str, prepared: Any) -> Handle | None:
        """Return the handle of the batch with this token, or with the file uploaded for it."""
        if prepared is None:  # nothing was uploaded, so nothing was submitted
            return None
        for batch in self._client.batches.list(limit=100):
            named = (batch.metadata or {}).get("token") == token
            if named or batch.input_file_id == prepared["file"]:
                return self._handle(batch.id, token, prepared)
            if batch.created_at < prepared["uploaded"] - _SLACK:
                break
        return None

    def fence(self, token: str, prepared: Any) -> None:
        """Delete the uploaded file, so that no batch can be created from it any more."""
        if prepared is not None:
            with _unless_gone():
                self._client.files.delete(prepared["file"])

    def poll(self, handle: Handle) -> Pending | Ended:
        """Check how far the batch is."""
        batch = self._batch(handle)
        if batch.status in _ENDED:
            return Ended(batch.status)
        counts = batch.request_counts
        if counts is None or not counts.total:
            return Pending(batch.status)
        return Pending(f"{counts.completed + counts.failed} of {counts.total}")

    def cancel(self, handle: Handle) -> None:
        """Ask the API to end the batch; what is done by then is collected, and paid for."""
        try:
            self._client.batches.cancel(batch_of(handle))
        except Exception:
            if not isinstance(self.poll(handle), Ended):
                raise

    def collect(self, handle: Handle, keys: Sequence[Key]) -> Any:
        """Return the rows of an ended batch, however it ended: what is done was charged."""
        handle = as_handle(handle)
        batch = self._batch(handle)
        if batch.status not in _ENDED:
            raise NotReady(f"batch {batch.id} is {batch.status}")
        answers = self._answers(keys, handle)
        for file in (batch.output_file_id, batch.error_file_id):
            for line in self._lines(file, batch.id) if file else ():
                _sort(answers, line)
        counts = batch.request_counts
        charged = counts is not None and counts.completed > 0
        if not answers.lines and (batch.status == "completed" or charged):
            raise NotReady(f"batch {batch.id} is {batch.status}, and its results are not there")
        if batch.status == "failed" and not answers.answered:
            self._failed(batch, answers, handle)
        return self._collected(answers, handle, f"batch {batch.id} {batch.status}: no line")

    def _failed(self, batch: Any, answers: Answers, handle: Any) -> None:
        """Fail the requests that the provider names. Raises `NotAccepted` if it names none."""
        errors = (batch.errors.data if batch.errors else None) or []
        named = [each for each in errors if each.line is not None]
        whole = failed_whole(batch.id, errors)
        if whole.again or not named:
            raise whole
        failed = handle.get("failed", {})
        sent = [number for number in range(answers.requests) if str(number) not in failed]
        for each in named:
            if 1 <= each.line <= len(sent):  # lines of the file count from 1
                error = RequestFailed(f"{each.code}: {each.message}", code=each.code or "")
                answers.fail(sent[each.line - 1], error)

    def _batch(self, handle: Handle) -> Any:
        with not_ready(f"batch {batch_of(handle)} is not known yet"):
            return self._client.batches.retrieve(batch_of(handle))

    def _lines(self, file: str, batch: str) -> Iterator[Any]:
        with (
            not_ready(f"file {file} of batch {batch} is not there yet"),
            self._client.files.with_streaming_response.content(file) as response,
        ):
            for line in json_lines(response.iter_bytes()):
                yield parsed(line, batch)

    def _entry(self, custom_id: str, body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": body}

    def _ask(self, body: Any) -> Any:
        return self._once.post(self.endpoint.removeprefix("/v1"), body=body, cast_to=object)

    def _made(self, sdk: Any) -> Any:
        return sdk.OpenAI(base_url=self._base_url)


def _sort(answers: Answers, line: Any) -> None:
    """Pass a line of either file to the answers."""
    number = answers.number_of(line.get("custom_id"))
    if number is None:
        return
    response, error = line.get("response") or {}, line.get("error") or {}
    status, body = response.get("status_code"), response.get("body")
    if status == _OK and isinstance(body, dict):
        answers.take(number, body)
        return
    code = str(error.get("code") or "")
    if code in _NOT_HANDLED:
        answers.undone(number, code)
        return
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        error = body["error"]
        code = str(error.get("code") or error.get("type") or "")
    if not status and not code:
        answers.undone(number, "the line has neither an answer nor an error")
        return
    what = f"{status or ''} {code}: {error.get('message') or body}".strip()
    answers.refused(number, RequestFailed(what, status_code=status or 0, code=code))


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if getattr(error, "status_code", None) != NOT_FOUND:
            raise
