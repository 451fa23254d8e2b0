"""The common part of all batch APIs: requests out, answers in, rows, prices."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import iscoroutinefunction
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import Key, shorten
from resumable_tasks.runners.batch_apis.answers import Answers
from resumable_tasks.runners.batch_apis.money import Money
from resumable_tasks.runners.batch_apis.refusals import RequestFailed
from resumable_tasks.runners.handle import current_batch
from resumable_tasks.runners.http_signs import looks_like_an_outage
from resumable_tasks.runners.submitted.protocol import Collected, NotAccepted, NotReady, Undone

# The errors of `request` are recorded before anything is sent, and a record has limited space.
_MOST_FAILED = 100
NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Requests:
    """The encoded requests of a submission, one line each.

    ``failed``: the numbers of the requests that could not be made, and why. ``sizes``: the bytes of
    their bodies, in which the provider counts the tokens.
    """

    lines: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(map(len, self.lines)) + len(self.lines)


class BatchApi(ABC):
    """The common part of the batch APIs.

    Requests are numbered within a submission; their ``custom_id`` is ``TOKEN-NUMBER``. Keys are
    never sent to the provider.
    """

    name: str
    sdk: str
    max_requests: int
    max_bytes: int
    patience: float = 120.0
    request_timeout: float = 60.0

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
        """Check the arguments, as far as possible before anything is sent."""
        self.name = type(self).__name__
        for what, given in (("request", request), ("row", row)):
            if not callable(given):
                raise UsageError(
                    f"{self.name}: {what}={shorten(given)} is not a function",
                    remedy=f"Give it as {self.name}(request, row, …)",
                )
        checks.whole_number(f"{self.name}: per_request", per_request, 1)
        if client is not None and base_url is not None:
            raise UsageError(
                f"{self.name} got both client= and base_url=",
                remedy="Give the base_url to the client, or leave client= out",
            )
        if client is None:
            self._check_installed()
        elif iscoroutinefunction(getattr(client, "post", None)):
            raise UsageError(
                f"{self.name}: client={type(client).__name__} is asynchronous",
                remedy=f"Give it {type(client).__name__.removeprefix('Async')}()",
            )
        self._request, self._row = request, row
        self._given, self._base_url = client, base_url
        self.per_request = per_request
        self.max_items = self.max_requests * per_request
        self._money = None if prices is None else Money.of(prices, self.name)
        if self._money is not None:
            self.price: Callable[[Any], float] = self._price

    def __call__(self, items: Any) -> list[Any]:
        """Ask for the items at once, at full price, one request after the other.

        This is the handler of ``runner="local"``. An answer that has come is never thrown away:
        if the service fails in the middle, the rest is left out, and the run asks for it again.
        """
        keys, items = current_batch().keys, _rows_of(items)
        answers = Answers(keys, self.per_request, self._row, None)
        if len(keys) <= self.per_request:  # a single request: the run handles its error best
            return answers.rows_of(keys, self._ask(self._body(items)))
        for number, group in enumerate(self._groups(items)):
            try:
                answer = self._ask(self._body(group))
            except Exception as error:
                if not looks_like_an_outage(error):
                    answers.fail(number, error)
                elif answers.answered:
                    break
                else:
                    raise
            else:
                answers.take(number, answer)
        return [result for result in answers.results() if not isinstance(result, Undone)]

    # --- requests

    def _groups(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for at in range(0, len(items), self.per_request):
            yield items[at : at + self.per_request]

    def _body(self, group: Sequence[Any]) -> Any:
        """Return the body of the request for these items."""
        body = self._request(group[0] if self.per_request == 1 else list(group))
        if not isinstance(body, dict):
            raise UsageError(
                f"request() returned {shorten(body)}",
                remedy="Return the body of a request: a dict with model, messages, …",
            )
        return body

    def _requests(self, items: Any, token: str) -> Requests:
        """Return the requests for these items. Raises `NotAccepted` if they exceed one batch.

        If `request` raises for a few items, only those fail, later, like items that the provider
        refuses. If it raises for more than half of them, its first error is raised: it has a bug.
        """
        made = Requests()
        groups = list(self._groups(_rows_of(items)))
        first: Exception | None = None
        for number, group in enumerate(groups):
            try:
                body = self._body(group)
                made.lines.append(_encoded(self._entry(f"{token}-{number}", body)))
                made.sizes.append(len(_encoded(body)))
            except Exception as error:  # noqa: BLE001 - becomes the failure of these items
                first = first or error
                made.failed[str(number)] = shorten(f"{type(error).__name__}: {error}", 300)
        if first is not None and len(made.failed) > min(len(groups) // 2, _MOST_FAILED):
            first.add_note(f"request() raised for {len(made.failed)} of {len(groups)} requests")
            raise first
        if made.bytes > self.max_bytes:
            raise NotAccepted(
                f"{len(made.lines):,} requests are {made.bytes / 1e6:,.0f} MB; {self.name} accepts "
                f"{self.max_bytes / 1e6:,.0f} MB per batch",
                safe="Nothing was sent",
                remedy=f"Use a smaller batch_size, such as {self._fitting(made)}, or max_weight",
            )
        return made

    def _fitting(self, made: Requests) -> int:
        """Return how many such items fit into a batch, with a fifth to spare."""
        fitting = len(made.lines) * self.max_bytes / made.bytes * 0.8
        return max(1, int(fitting) * self.per_request)

    def _noted(self, made: Requests) -> dict[str, Any]:
        """Return the part of ``prepared`` that the handle needs later."""
        noted: dict[str, Any] = {"per": self.per_request, "bytes": sum(made.sizes)}
        return noted | ({"failed": made.failed} if made.failed else {})

    @staticmethod
    def _handle(batch: str, token: str, prepared: Any) -> dict[str, Any]:
        noted = {name: prepared[name] for name in ("per", "bytes", "failed") if name in prepared}
        return {"batch": batch, "token": token, **noted}

    # --- answers

    def _answers(self, keys: Sequence[Key], handle: Any) -> Answers:
        """Return an empty `Answers` for this submission.

        Raises `UsageError` if it was made with another ``per_request``.
        """
        per = handle.get("per", self.per_request)
        if per != self.per_request:
            raise UsageError(
                f"this submission has {per} items per request, but {self.name} now has "
                f"per_request={self.per_request}",
                safe="Its answers stay with the provider",
                remedy=f"Run once with per_request={per} to collect them",
            )
        answers = Answers(keys, per, self._row, handle.get("token"))
        for number, why in handle.get("failed", {}).items():
            answers.fail(int(number), RequestFailed(f"request() raised {why}"))
        return answers

    def _collected(self, answers: Answers, handle: Any, missing: str) -> Any:
        """Return the results, with their cost if there are prices.

        ``missing``: the reason given for requests without a line.
        """
        results = answers.results(missing)
        if self._money is None:
            return results
        self._money.learn(answers, handle.get("bytes", 0))
        return Collected(results, self._money.cost(answers))

    def _price(self, items: Any) -> float:
        """Return the expected cost of these items in a batch, in the currency of the prices."""
        assert self._money is not None
        bodies = []
        for group in self._groups(_rows_of(items)):
            with contextlib.suppress(Exception):  # `_requests` reports it
                body = self._body(group)
                bodies.append((len(_encoded(body)), body))
        return self._money.expected(bodies)

    # --- the provider

    @abstractmethod
    def _entry(self, custom_id: str, body: Any) -> dict[str, Any]:
        """Return a request in the form of an entry of the batch."""

    @abstractmethod
    def _ask(self, body: Any) -> Any:
        """Send one request at full price; return its answer."""

    @abstractmethod
    def _made(self, sdk: Any) -> Any:
        """Make a client of this SDK."""

    @cached_property
    def _client(self) -> Any:
        if self._given is not None:
            return self._given
        sdk = importlib.import_module(self.sdk)
        try:
            return self._made(sdk)
        except Exception as error:
            raise UsageError(
                f"{self.name} cannot create its client: {error}",
                remedy=f"Set {self.sdk.upper()}_API_KEY, or give client=",
            ) from error

    @cached_property
    def _once(self) -> Any:
        """The client without its own retries, which would pay twice if an answer was lost."""
        return self._client.with_options(max_retries=0)

    def _check_installed(self) -> None:
        if importlib.util.find_spec(self.sdk) is None:
            raise UsageError(
                f"{self.name} needs {self.sdk}, which is not installed",
                remedy=f'pip install "resumable-tasks[{self.sdk}]"',
            )


def batch_of(handle: Any) -> str:
    """Return the provider's id of a batch. A handle attached by a person may be just the id."""
    found = handle.get("batch") if isinstance(handle, dict) else handle
    if not isinstance(found, str) or not found:
        raise UsageError(
            f"the handle {shorten(handle)} names no batch",
            remedy='Give the id of the batch, or {"batch": ID}',
        )
    return found


def as_handle(handle: Any) -> dict[str, Any]:
    """Return a handle with its fields, even if a person attached just the id."""
    return handle if isinstance(handle, dict) else {"batch": batch_of(handle)}


@contextlib.contextmanager
def not_ready(what: str) -> Iterator[None]:
    """Turn a 404 into `NotReady`: a provider's systems may be out of step for a while."""
    try:
        yield
    except Exception as error:
        if getattr(error, "status_code", None) == NOT_FOUND:
            raise NotReady(what) from error
        raise


def json_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a download, split at newlines only: JSON may hold other line breaks."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from filter(None, map(bytes.strip, whole))
    if rest.strip():
        yield rest.strip()


def _encoded(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def _rows_of(items: Any) -> Sequence[Any]:
    """Return the items as a sequence of rows, also if they are an Arrow batch."""
    rows: Sequence[Any] = items.to_pylist() if hasattr(items, "to_pylist") else items
    return rows
