"""Anthropic's Message Batches API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from resumable_tasks.base.naming import named_options
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import Key
from resumable_tasks.runners.batch_apis.answers import Answers, parsed
from resumable_tasks.runners.batch_apis.refusals import RequestFailed, not_accepted
from resumable_tasks.runners.batch_apis.shared import (
    BatchApi,
    Requests,
    as_handle,
    batch_of,
    json_lines,
    not_ready,
)
from resumable_tasks.runners.submitted.protocol import (
    CannotTell,
    Ended,
    Handle,
    NotReady,
    Pending,
)

_ENDED = "ended"
_MOST_PREPARED = 8
# The provider's clocks, whose times the batches carry, may differ.
_SLACK = timedelta(minutes=1)


@named_options
class AnthropicBatch(BatchApi):
    """The Anthropic batch API as a handler: each text is paid for once, at half the price.

    For `resumable_task`, whose batches become Message Batches; answers arrive within a day. However
    often the process is killed meanwhile, no text is paid for twice. With ``runner="local"`` the
    same object is a plain handler at full price, one request per item.

    The API has no field for a token. If the response to a batch's creation was lost, the batch is
    recognised by the ids in its results, so only after it has ended.

    Args:
        request: takes an item and returns the parameters of its message: ``model``, ``max_tokens``,
            ``messages`` … They are sent unchanged. With ``per_request`` above 1, takes a list of
            items.
        row: takes an item's key and the message, a dict; returns the item's row, with its key.
            Raises `BadResult` for an unusable answer: the item fails, and ``retries`` requests it
            again. With ``per_request`` above 1, takes a list of keys and returns a list of rows.
        prices: the full prices per million tokens, in and out. Needed for a budget with a cost.
        client: the ``anthropic.Anthropic`` to use; the default one reads ANTHROPIC_API_KEY.
        base_url: the address of a compatible server.
        per_request: number of items per request.

    Raises:
        UsageError: the package ``anthropic`` is not installed, or an argument does not fit.
    """

    sdk = "anthropic"
    max_requests = 100_000
    max_bytes = 256_000_000
    # Longer than usual, because the call contains all requests.
    request_timeout = 300.0

    def __init__(
        self,
        request: Callable[[Any], Any],
        row: Callable[[Any, Any], Any],
        *,
        prices: tuple[float, float] | None = None,
        client: Any = None,
        base_url: str | None = None,
        per_request: int = 1,
    ) -> None:
        super().__init__(
            *(request, row),
            prices=prices,
            client=client,
            base_url=base_url,
            per_request=per_request,
        )
        # The tokens of the batches whose token is known, by the batch's id.
        self._token_of: dict[str, str] = {}
        # The requests that are about to be sent, by token.
        self._prepared: dict[str, list[Any]] = {}

    def prepare(self, items: Any, token: str) -> Any:
        """Record the newest existing batch, and how many requests the new one will have."""
        made = self._requests(items, token)
        newest = next(iter(self._client.messages.batches.list(limit=1)), None)
        after = {} if newest is None else {"after": newest.created_at.isoformat()}
        self._prepared[token] = self._entries(made)
        for old in list(self._prepared)[:-_MOST_PREPARED]:  # these were never sent
            self._prepared.pop(old, None)
        return {"count": len(made.lines), **after, **self._noted(made)}

    def submit(self, items: Any, token: str, prepared: Any) -> Handle:
        """Create the batch: one request, which nothing repeats."""
        # The requests were made in `prepare`: no time may pass after the check of the intent's age.
        requests = self._prepared.pop(token, None) or self._entries(self._requests(items, token))
        if len(requests) != prepared["count"]:
            raise UsageError(
                f"request() made {prepared['count']} requests from the same items before, and "
                f"{len(requests)} now",
                safe="Nothing was sent",
                remedy="Make it depend only on its item",
            )
        try:
            batch = self._once.messages.batches.create(
                requests=requests, timeout=self.request_timeout
            )
        except Exception as error:
            if (certain := not_accepted(error)) is not None:
                raise certain from error
            raise
        self._token_of[batch.id] = token
        return self._handle(batch.id, token, prepared)

    def find(self, token: str, prepared: Any) -> Handle | None:
        """Return the handle of the batch whose results carry this token.

        Raises `CannotTell` while a candidate is running: a newer batch with as many requests.
        """
        if prepared is None:  # nothing is sent before `prepare`
            return None
        running = []
        for batch in self._candidates(prepared):
            known = self._token_of.get(batch.id) or self._token_in(batch)
            if known == token:
                return self._handle(batch.id, token, prepared)
            if known is None:
                running.append(batch.id)
        if running:
            raise CannotTell(
                f"batch {running[-1]} may be submission {token}; its results will show",
                remedy="Wait until the batch has ended",
            )
        return None

    def poll(self, handle: Handle) -> Pending | Ended:
        """Check whether the batch has ended. The API reports no progress before that."""
        batch = self._batch(as_handle(handle))
        return Ended(_ENDED) if batch.processing_status == _ENDED else Pending("in progress")

    def cancel(self, handle: Handle) -> None:
        """Ask the API to end the batch; what is done by then is collected, and paid for."""
        try:
            self._client.messages.batches.cancel(batch_of(handle))
        except Exception:
            if not isinstance(self.poll(handle), Ended):
                raise

    def collect(self, handle: Handle, keys: Sequence[Key]) -> Any:
        """Return the rows of an ended batch, however it ended: what is done was charged."""
        handle = as_handle(handle)
        batch = self._batch(handle)
        if batch.processing_status != _ENDED:
            raise NotReady(f"batch {batch.id} is {batch.processing_status}")
        if getattr(batch, "archived_at", None) is not None:
            raise UsageError(
                f"batch {batch.id} was archived on {batch.archived_at:%Y-%m-%d}; its results are "
                "gone",
                remedy="Withdraw the submission; its items are then submitted, and paid for, again",
            )
        answers = self._answers(keys, handle)
        for line in self._lines(batch):
            _sort(answers, line)
        if not answers.lines:
            raise NotReady(f"batch {batch.id} has ended, and its results are not there")
        return self._collected(answers, handle, f"batch {batch.id} ended: no line")

    def _candidates(self, prepared: Any) -> Iterator[Any]:
        """Yield the batches that may be a submission: not older, and with as many requests."""
        after = prepared.get("after")
        oldest = None if after is None else datetime.fromisoformat(after) - _SLACK
        for batch in self._client.messages.batches.list(limit=1000):
            if oldest is not None and batch.created_at < oldest:
                break
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored
            if total + counts.canceled + counts.expired == prepared["count"]:
                yield batch

    def _token_in(self, batch: Any) -> str | None:
        """Return the token in the results of a batch; None if there are no results yet."""
        if batch.processing_status != _ENDED:
            return None
        try:
            line = next(self._lines(batch), None)
        except NotReady:
            return None
        if line is None:
            return None
        token = str(line.get("custom_id")).rpartition("-")[0]
        self._token_of[batch.id] = token
        return token

    def _batch(self, handle: dict[str, Any]) -> Any:
        name = batch_of(handle)
        with not_ready(f"batch {name} is not known yet"):
            batch = self._client.messages.batches.retrieve(name)
        if "token" in handle:
            self._token_of[name] = handle["token"]
        return batch

    def _lines(self, batch: Any) -> Iterator[Any]:
        if not batch.results_url:
            raise NotReady(f"batch {batch.id} has ended, and its results are not there")
        results = self._client.messages.batches.with_streaming_response.results
        with (
            not_ready(f"the results of batch {batch.id} are not there yet"),
            results(batch.id) as response,
        ):
            for line in json_lines(response.iter_bytes()):
                yield parsed(line, batch.id)

    def _entry(self, custom_id: str, body: Any) -> dict[str, Any]:
        return {"custom_id": custom_id, "params": body}

    @staticmethod
    def _entries(made: Requests) -> list[Any]:
        return [json.loads(line) for line in made.lines]

    def _ask(self, body: Any) -> Any:
        return self._once.post("/v1/messages", body=body, cast_to=object)

    def _made(self, sdk: Any) -> Any:
        return sdk.Anthropic(base_url=self._base_url)


def _sort(answers: Answers, line: Any) -> None:
    """Pass a line of the results to the answers."""
    number = answers.number_of(line.get("custom_id"))
    if number is None:
        return
    result = line.get("result") or {}
    kind, message = result.get("type"), result.get("message")
    if kind == "succeeded" and isinstance(message, dict):
        answers.take(number, message)
    elif kind == "errored":
        error = result.get("error") or {}
        error = error.get("error") or error  # the API wraps its error in an envelope
        code = str(error.get("type") or "")
        answers.refused(number, RequestFailed(f"{code}: {error.get('message')}", code=code))
    else:
        answers.undone(number, str(kind))
