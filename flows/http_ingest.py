"""Take in all records of a paginated HTTP JSON API: one row each, resumable, published in Parquet.

    python -m flows.http_ingest URL [--detail 'https://…/{key}'] [--date DATE]

The pages are read lazily, one after the other; the next one is named by the header ``Link``
(``rel="next"``) or with ``--next-field`` in the answer. A row is the key of a record and the whole
record as JSON text, with its detail merged in if there is one to fetch.

* A run that was killed goes on by the same command: no detail of a record that is done is asked
  for again, and a page that has not changed (``ETag``) is not sent again.
* What fails is asked for again, never before the time that the API names by ``Retry-After``. A
  page that cannot be had ends the run, with what was read before it done; a detail that cannot be
  had fails alone, and is tried again by the next run.
* Records that two pages have, because the data moved while they were read, are one row.

To Prefect it is the flow ``flows/http_ingest.py:http_ingest``; the extra is ``http``.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from flows._command import command, partition_folder
from flows._prefect import Unreachable, as_flow, is_private
from resumable_tasks import (
    InvalidItems,
    ItemFailure,
    RunResult,
    UsageError,
    events,
    resumable_task,
    scheduled_date,
)

with contextlib.suppress(ImportError):  # an extra, which `ingest` asks for
    import httpx

log = logging.getLogger("flows.http")

_SECONDS = 60.0  # for one request, from its start to the last byte of the answer
_RETRIES = 5
_LONGEST_PAUSE = 600.0  # an API that asks for a longer one ends the run
_PAUSE = 1.0  # seconds before a page is asked for again; doubled from time to time
# Another request may be answered, and not this one.
_OF_THE_REQUEST = {400, 404, 405, 406, 409, 410, 414, 422, 451}
_MAY_PASS = {408, 425, 429, *range(500, 600)}


@dataclass(frozen=True)
class Api:
    """An API and how it is asked; see `ingest`."""

    url: str
    key: str
    items: str
    next_field: str
    detail: str
    token: str = field(repr=False)

    def get(self, url: str, headers: dict[str, str] | None = None) -> tuple[httpx.Response, Any]:
        """The answer to a request and the JSON in it; None if it has not changed (304).

        Raises `httpx.HTTPError` for any other status, and for what is no whole JSON in time.
        """
        until = time.monotonic() + _SECONDS
        body = bytearray()
        with client(self.token).stream("GET", url, headers=headers) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED and headers:
                return response, None
            response.raise_for_status()
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > until:  # httpx bounds the wait for each piece alone
                    raise httpx.ReadTimeout(f"{url}: not complete after {_SECONDS:g} s")
        try:
            return response, json.loads(body)
        except (ValueError, RecursionError) as error:
            raise httpx.DecodingError(f"{url}: the answer is not complete JSON: {error}") from None


@cache
def client(token: str) -> httpx.Client:
    """The connections of a process. No redirects: the token is for the address that was given."""
    headers = {"Accept": "application/json", "User-Agent": "resumable-tasks"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(headers=headers, timeout=_SECONDS, limits=httpx.Limits())


@dataclass(frozen=True)
class Pages:
    """One reading of all pages. Iterated over, the records, with one page of them in memory.

    ``copies`` is a folder for pages that came with an ETag. A copy only ever saves a transfer:
    one that is missing or damaged is none. The last page has none: others may follow tomorrow.
    """

    api: Api
    copies: Path
    stop: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Any]:
        url: str | None = self.api.url
        seen: set[str] = set()
        try:
            while url is not None and not self.stop.is_set():
                if url in seen:
                    raise InvalidItems(f"{url}: this page is named again as a later page")
                seen.add(url)
                items, url = self._patiently(url)
                yield from items
        except InvalidItems:
            seen, url = set(), None  # so that no copy can be the cause a second time
            raise
        finally:
            if url is None:
                keep = {self._copy_of(each) for each in seen}
                for path in set(self.copies.glob("*")) - keep:
                    path.unlink(missing_ok=True)

    def listen(self, event: events.Event) -> None:
        """End the reading, and its pauses, when the run is stopping."""
        if isinstance(event, events.Stopping):
            self.stop.set()

    def _patiently(self, url: str) -> tuple[list[Any], str | None]:
        """The page, asked for again while that is of use. Once the run stops, no page."""
        attempt = 0
        while not self.stop.is_set():
            attempt += 1
            try:
                return self._page(url)
            except httpx.HTTPError as error:
                told = seconds_told(error)
                if not may_pass(error):
                    raise InvalidItems(f"{url}: {error}. Check the address and token") from error
                if attempt > _RETRIES or (told or 0) > _LONGEST_PAUSE:
                    later = f"run the same command again, in {told or 60:g} s or later, to resume"
                    raise Unreachable(
                        f"{url}: {error!r}. Completed work is safe: {later}"
                    ) from error
                pause = told if told is not None else _PAUSE * 2**attempt * random.uniform(0.5, 1)
                log.warning("%s: %r at attempt %d; next in %.1f s", url, error, attempt, pause)
            self.stop.wait(pause)
        return [], url

    def _page(self, url: str) -> tuple[list[Any], str | None]:
        """The items of a page, and the address of the next one."""
        kept = _read(self._copy_of(url))
        response, found = self.api.get(url, {"If-None-Match": kept["etag"]} if kept else None)
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return kept["items"], kept["next"]
        items = _at(found, self.api.items)
        if not isinstance(items, list):
            kind = type(items).__name__
            raise InvalidItems(f"{url}: at items={self.api.items!r} is not a list, but {kind}")
        following = self._next(url, response, found)
        if following and (etag := response.headers.get("etag")):
            _write(self._copy_of(url), {"etag": etag, "items": items, "next": following})
        return items, following

    def _next(self, url: str, response: httpx.Response, found: Any) -> str | None:
        link = response.links.get("next", {}).get("url")
        named = _at(found, self.api.next_field) if self.api.next_field else link
        if url == self.api.url and not named:
            log.warning("%s names no next page, so it is treated as the only page", url)
        if not named:
            return None
        following, here = httpx.URL(url).join(str(named)), httpx.URL(url)
        if following.copy_with(raw_path=b"/") != here.copy_with(raw_path=b"/"):
            raise InvalidItems(f"{url}: the next page is {following}, on another server")
        return str(following)

    def _copy_of(self, url: str) -> Path:
        asked = repr((url, self.api)) + self.api.token  # another account may have other pages
        return self.copies / blake2b(asked.encode(), digest_size=16).hexdigest()


def row(api: Api, record: dict[str, Any]) -> dict[str, Any] | ItemFailure:
    """The row of a record, with its detail fetched if there is one."""
    key = record[api.key]
    if api.detail:
        url = api.detail.replace("{key}", quote(str(key), safe=""))
        try:
            detail = api.get(url)[1]
        except httpx.HTTPStatusError as error:
            if error.response.status_code in _OF_THE_REQUEST:
                return ItemFailure(key, error)  # recorded, and tried again by the next run
            raise  # for the library to retry, to wait as it is told, or to halve the batch
        if not isinstance(detail, dict) or str(detail.get(api.key, key)) != str(key):
            return ItemFailure(key, f"{url}: this is not the detail of {key!r}")
        record = {**record, **detail, api.key: key}
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    return {api.key: key, "record": text}


def ingest(
    url: str,
    key: str = "id",
    items: str = "",
    next_field: str = "",
    detail: str = "",
    token_env: str = "",
    date: datetime.date | None = None,
    tz: str | None = None,
    checkpoint: str = ".resumable/http_ingest",
    out: str = "published/http_ingest",
    batch_size: int = 20,
    concurrency: int = 4,
    limit: int | None = None,
    progress: bool | None = None,
) -> RunResult:
    """Take in all records of an API, each once; killed, it is resumed by the next run.

    Args:
        url: of the first page, without secrets; {date} in it is the date.
        key: the field of a record that is its key.
        items: where in an answer the list of records is, such as data.orders; by default the
            answer is the list.
        next_field: where in an answer the address of the next page is, such as meta.next; by
            default it is in the header Link.
        detail: where more of a record is fetched, with {key} for its key.
        token_env: the name of the environment variable that holds a bearer token.
        date: which date; by default that of the scheduled start, and so the same in every retry.
        tz: the time zone of the schedule, such as Europe/Berlin, to tell the date by.
        checkpoint: the folder or URL of the checkpoints, with one a date below it.
        out: the folder of the dataset, with one a date below it.
        batch_size: records a batch, at most.
        concurrency: batches at once.
        limit: only the first so many records.
        progress: whether to show a bar; by default if standard error is a terminal.
    """
    if "httpx" not in sys.modules:
        raise UsageError("httpx is not installed: pip install 'resumable-tasks[http]'")
    _check(url, key, detail, secret=bool(token_env))
    date = date or scheduled_date(tz=tz)
    dated = url.replace("{date}", str(date))
    api = Api(dated, key, items, next_field, detail, _token(token_env))
    # Beside a checkpoint in a bucket no copy is kept.
    nowhere = tempfile.mkdtemp() if "://" in checkpoint else None
    pages = Pages(api, Path(nowhere or checkpoint) / "http-pages")
    job = resumable_task(
        lambda records: [row(api, record) for record in records],
        name="http_ingest",
        key=key,
        version=f"{dated.split('?')[0]} {items} {detail}",  # other rows may not join these
        on_duplicate="skip",
        retries=_RETRIES,
        batch_size=batch_size,
        concurrency=concurrency,
    )
    try:
        result = job.run(
            islice(pages, limit),
            checkpoint=checkpoint,
            partition=date,
            progress=progress,
            listeners=[pages.listen],
        )
    finally:
        client(api.token).close()
        client.cache_clear()
        if nowhere:
            shutil.rmtree(nowhere)
    result.publish(partition_folder(out, date))
    return result


def may_pass(error: BaseException) -> bool:
    """True if the same request may be answered at another time."""
    if isinstance(error, httpx.HTTPStatusError):
        told = "retry-after" in error.response.headers  # some say 403 to who asks too often
        return error.response.status_code in _MAY_PASS or told
    return isinstance(error, httpx.RequestError)


def seconds_told(error: BaseException) -> float | None:
    """Seconds that the API asks to be left alone, by a number or a date; None if it does not."""
    told = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(told))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    return None


def _at(found: Any, path: str) -> Any:
    """The value at a dotted path of an answer; None if there is none."""
    for name in filter(None, path.split(".")):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _read(copy: Path) -> Any:
    """Read what `_write` has written, if it is whole."""
    try:
        digest, _, body = copy.read_bytes().partition(b"\n")
    except OSError:
        return None
    return json.loads(body) if digest == blake2b(body).hexdigest().encode() else None


def _write(copy: Path, page: dict[str, Any]) -> None:
    body = json.dumps(page).encode()
    temporary = copy.with_suffix(f".{os.getpid()}")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(blake2b(body).hexdigest().encode() + b"\n" + body)
        temporary.replace(copy)
    except OSError as error:
        log.warning("a page could not be cached and will be requested again: %s", error)


def _token(variable: str) -> str:
    """The token in the environment. Neither it nor what was given for its name is shown."""
    token = os.environ.get(variable, "").strip() if variable else ""
    if variable and not (token.isascii() and token.isprintable() and len(token.split()) == 1):
        raise UsageError("token_env names no environment variable that holds a token here")
    return token


def _check(url: str, key: str, detail: str, *, secret: bool) -> None:
    for name, address in (("url", url), ("detail", detail or url)):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UsageError(f"{name} must be an http:// or https:// URL without user or password")
        if secret and not is_private(address):
            raise UsageError(
                f"{name} begins with http://, where anyone can read the token; use https://"
            )
    if (detail and "{key}" not in detail) or key == "record":
        raise UsageError("detail has no {key} in it, or key is the column of the whole record")


http_ingest = as_flow(ingest, "http-ingest")
main = command(ingest, http_ingest, unit="records")

if __name__ == "__main__":
    main()
