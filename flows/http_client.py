"""Asks an API for JSON, patiently: with retries, never before it is allowed to, within bounds."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flows.http_api import HttpApi
from resumable_tasks import Interrupted, InvalidItems, ResumableTasksError, UsageError
from resumable_tasks.runners.retries import retry_after

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("flows.http")

_LONGEST_PAUSE = 60.0
_MOST_BYTES = 64_000_000  # of one answer: memory is bounded by it
_EXCERPT_CHARS = 200
_ASKS_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


class ApiRefused(UsageError):
    """The API will not answer this request, however often it is made (4xx, a redirect)."""


class BadAnswer(InvalidItems):
    """The API answered, and the answer is not what it should be."""


class ApiUnavailable(ResumableTasksError):
    """The API did not answer within the retries. Run the same command again, later, to resume."""

    exit_code = Interrupted.exit_code


class Stopped(Exception):
    """The run is stopping; this request was not made."""


class _Trouble(Exception):
    """What may be over at the next request."""

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        final: type[ResumableTasksError] = ApiUnavailable,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.final = final


@dataclass(frozen=True)
class Answer:
    """``json`` is what ``body`` says; both are empty if the page is unchanged (``status`` 304)."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    json: Any = None


class Client:
    """Requests to one API. May be used from several threads; close it, or use it in ``with``.

    In another process it is, unpickled, that process's own client of the same API.
    """

    def __init__(self, api: HttpApi) -> None:
        httpx = _import_httpx()
        self.api = api
        self._token = _token(api)
        headers = {"Accept": "application/json", "User-Agent": "resumable-tasks", **api.headers}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        self._http = httpx.Client(
            headers=headers,
            timeout=api.timeout,
            follow_redirects=False,  # the token and the headers are for the address that was given
            limits=httpx.Limits(max_connections=None),
        )
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._down = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _client_of_this_process, (_Same(self.api),)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def name_of(self, url: str) -> str:
        """A name for the answer to this URL: another one for another account, or other headers."""
        asked = repr((url, sorted(self.api.headers.items()), self._token))
        return blake2b(asked.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    def shown(self, text: str) -> str:
        """Text from elsewhere, fit for a message: on one line, and without the token."""
        if self._token:
            text = text.replace(self._token, "***")
        return "".join(c if c.isprintable() else " " for c in text)

    def get(
        self,
        url: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        stop: threading.Event | None = None,
    ) -> Answer:
        """The answer to a request: JSON, or 304 if ``headers`` made it conditional.

        No request is made before the time that the API has told by ``Retry-After``, whichever
        thread it was told. ``what`` names the request in messages. Once ``stop`` is set, no
        further request is made.

        Raises:
            ApiRefused: an answer of 4xx, or a redirect.
            BadAnswer: an answer that is no JSON.
            ApiUnavailable: 5xx, 429, or no answer, after all retries; or it asks for a pause
                longer than ``longest_wait``.
            Stopped: ``stop`` is set.
        """
        where = f"{what}, {self.shown(url)}"
        # Once it is known to be down, each request is tried once: a thousand items that fail must
        # not take a thousand times the pauses of one.
        attempts = 1 if self._down else self.api.retries + 1
        attempt = 0
        while True:
            attempt += 1
            self._wait_until_allowed(where, stop)
            try:
                answer = self._ask(url, where, headers or {})
            except _Trouble as trouble:
                pause = self._pause_after(trouble, where, attempt, attempts)
                log.warning(
                    "%s: %s; attempt %d of %d, the next in %.1f s",
                    *(where, trouble, attempt, attempts, pause),
                )
                _sleep(pause, stop)
            else:
                self._down = False
                return answer

    def _wait_until_allowed(self, where: str, stop: threading.Event | None) -> None:
        _sleep(0, stop)
        while (left := self._not_before - time.monotonic()) > 0:
            if left > self.api.longest_wait:
                raise ApiUnavailable(
                    f"{where}: the API asks (by Retry-After) to be left alone for another "
                    f"{left:,.0f} s, and longest_wait is {self.api.longest_wait:g} s. What is done "
                    "is safe: run the same command again then, to resume"
                )
            _sleep(left + random.uniform(0, 0.1), stop)  # not all threads at the same instant

    def _pause_after(self, trouble: _Trouble, where: str, attempt: int, attempts: int) -> float:
        """How long to wait after a request that met trouble; raises if it was the last."""
        told, longest = trouble.retry_after or 0.0, self.api.longest_wait
        if told:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + told)
        if attempt >= attempts or told > longest:
            self._down = trouble.final is ApiUnavailable
            too_long = f", to come again in {told:,.0f} s (longest_wait is {longest:g} s)"
            raise trouble.final(
                f"{where}: {trouble}{too_long if told > longest else ''}, at attempt {attempt} of "
                f"{attempts}. What is done is safe: run the same command again to resume"
            )
        growing = self.api.retry_pause * 2.0 ** min(attempt - 1, 10)
        return max(told, min(_LONGEST_PAUSE, growing) * random.uniform(0.5, 1))

    def _ask(self, url: str, where: str, headers: Mapping[str, str]) -> Answer:
        """One request. Raises `_Trouble` for what is worth another one."""
        import httpx

        try:
            with self._http.stream("GET", url, headers=dict(headers)) as response:
                body = self._read(response, where)
        except httpx.RequestError as error:  # refused, reset, timed out, cut off, badly packed
            text = self.shown(f"{type(error).__name__}: {error}")
            raise _Trouble(f"no answer ({text})") from None
        except httpx.InvalidURL as error:
            raise BadAnswer(f"{where}: this is no address: {error}") from None
        status = response.status_code
        if status == HTTPStatus.NOT_MODIFIED and headers:
            return Answer(url, status, response.headers)
        if status != HTTPStatus.OK:
            raise self._bad_status(response, body, where)
        try:
            return Answer(url, status, response.headers, body, json.loads(body))
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "")
            text = f"the answer is no JSON ({kind or 'no content type'}): {error}"
            text += f": {self._excerpt(body)}"
            if "json" in kind:  # half of it, perhaps
                raise _Trouble(text, final=BadAnswer) from None
            raise BadAnswer(f"{where}: {text}. Is it the address of the API?") from None

    def _read(self, response: httpx.Response, where: str) -> bytes:
        import httpx

        began = time.monotonic()
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise BadAnswer(
                    f"{where}: the answer is longer than {_MOST_BYTES:,} bytes; ask for smaller "
                    "pages, by params"
                )
            # httpx bounds the wait for each piece, and not for all of them.
            if time.monotonic() - began > self.api.timeout:
                raise httpx.ReadTimeout(f"not complete after {self.api.timeout:g} s")
        return bytes(body)

    def _bad_status(self, response: httpx.Response, body: bytes, where: str) -> Exception:
        status = response.status_code
        text = f"HTTP {status} {response.reason_phrase}".rstrip()
        if body:
            text += f": {self._excerpt(body)}"
        told = "retry-after" in response.headers
        # Some say 403, with the time, to those who ask too often.
        if status in _ASKS_AGAIN or status >= 500 or (status == HTTPStatus.FORBIDDEN and told):
            return _Trouble(text, retry_after(response.headers))
        return ApiRefused(f"{where}: {text}. {self._what_to_do(response)}")

    def _what_to_do(self, response: httpx.Response) -> str:
        status, variable = response.status_code, self.api.token_env
        if response.has_redirect_location:
            return f"It has moved to {self.shown(response.headers['location'])}: give that address"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            if variable is None:
                return "If it wants a token, give token_env the name of the variable that holds it"
            return (
                f"Look at the token in the environment variable {variable}: is it valid for this?"
            )
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            return "Look at the address: is it right, and is what it names still there?"
        if status < 400:
            return "Only an answer of 200 with JSON is of use: is it the address of the API?"
        return "Look at the address, params and headers; the API's documentation has its codes"

    def _excerpt(self, body: bytes) -> str:
        text = self.shown(body[: 20 * _EXCERPT_CHARS].decode("utf-8", "replace")).strip()
        return text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 1] + "…"


def _sleep(seconds: float, stop: threading.Event | None) -> None:
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise Stopped


def _import_httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise UsageError(
            "an HTTP API as the source needs httpx, which is not installed: pip install httpx"
        ) from None
    return httpx


def _token(api: HttpApi) -> str | None:
    """The bearer token. No message shows it."""
    if api.token_env is None:
        return None
    token = os.environ.get(api.token_env, "").strip()
    if not token:
        raise UsageError(
            f"token_env: the environment variable {api.token_env} is not set here; set it where "
            "this runs"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"token_env: what the environment variable {api.token_env} holds cannot be a token: "
            "it has spaces, line breaks or letters beyond ASCII in it"
        )
    return token


@dataclass(frozen=True)
class _Same:
    """An API that is found again by what it says: it holds mappings, which have no hash."""

    api: HttpApi

    def __hash__(self) -> int:
        return hash(repr(self.api))


@cache
def _client_of_this_process(same: _Same) -> Client:
    return Client(same.api)
