"""The records of a paginated HTTP JSON API, lazily, page by page.

What is read is all that there is: a page that cannot be read is an error, and so is one that
comes again. A page that the API calls unchanged (304) yields the items that it had, from a copy
on the disk; only the last page is always sent whole. Items that two pages have, because the data
moved while they were read, come twice.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import reprlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urldefrag, urlencode, urljoin, urlsplit

from flows.http_client import Answer, ApiRefused, BadAnswer, Client, Stopped
from resumable_tasks.runners.retries import http_date

if TYPE_CHECKING:
    from flows.http_cursor import PageCursor

log = logging.getLogger("flows.http")

_MISSING = object()
_SAME_PAGES = 3  # pages in a row with the same items are no accident
# A page that changed twice within its date's second has the same date. More, as clocks differ.
_SETTLED = datetime.timedelta(seconds=60)


class Record(dict[str, Any]):
    """A record of an API: an item. ``client`` is for the handler to fetch more of it."""

    __slots__ = ("client",)

    def __init__(self, fields: Mapping[str, Any], client: Client) -> None:
        super().__init__(fields)
        self.client = client

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (dict(self), self.client)


def records(
    client: Client,
    *,
    copies: PageCopies | None = None,
    stop: threading.Event | None = None,
    cursor: PageCursor | None = None,
) -> Iterator[Record]:
    """All records of the client's API, at most one page of them in memory.

    With a ``cursor``, those from its page on; all of them if the API does not take it any more.
    Ends early only once ``stop`` is set. Raises `BadAnswer`, which names the address and the
    page, and what `Client.get` raises; what was yielded before it is good.
    """
    pages = _from(client, copies, stop, cursor)
    # `Stopped` is a request that was not made: what comes after it is for the next run.
    with contextlib.suppress(Stopped):
        try:
            for items in pages:
                yield from items
        except (ApiRefused, BadAnswer):
            if copies is not None:
                copies.keep_only(set())  # so that no copy can be the cause a second time
            raise


def _from(
    client: Client,
    copies: PageCopies | None,
    stop: threading.Event | None,
    cursor: PageCursor | None,
) -> Iterator[list[Record]]:
    """The pages from the cursor on, or from the first."""
    if cursor is not None and cursor.start is not None:
        taken = False
        try:
            for items in _Pages(client, copies, stop, cursor):
                taken = True
                yield items
            return
        except (ApiRefused, BadAnswer) as error:
            if taken:
                raise
            log.warning("the page of the cursor is not to be had, so all are read: %s", error)
            cursor.forget()
    yield from _Pages(client, copies, stop, cursor)


class _Pages:
    """One reading of all pages, or of those from the cursor on."""

    def __init__(
        self,
        client: Client,
        copies: PageCopies | None,
        stop: threading.Event | None,
        cursor: PageCursor | None,
    ) -> None:
        self._client, self._api = client, client.api
        self._copies = copies if client.api.unchanged != "never" else None
        self._stop = stop
        self._cursor = cursor
        self._conditional = True
        self._number = 0
        self._where = ""

    def __iter__(self) -> Iterator[list[Record]]:
        url: str | None = self._first()
        start = self._cursor.start if self._cursor is not None else None
        if start is not None:
            url, self._number = start[0], start[1] - 1
        seen: set[str] = set()
        same: deque[int] = deque(maxlen=_SAME_PAGES)
        count = 0
        while url is not None:
            self._number += 1
            name = self._client.name_of(url)
            # Beyond what a name costs, nothing is kept of a page that has gone by.
            seen.add(name)
            answer = self._fetch(url, name)
            items = self._items(answer)
            same.append(hash(tuple(item[self._api.key] for item in items)))
            if items and len(same) == _SAME_PAGES and len(set(same)) == 1:
                raise self._bad(
                    f"it has the same items as the {_SAME_PAGES - 1} pages before. The API does "
                    "not seem to turn the page: look at pagination, and the parameters it needs"
                )
            if self._copies is not None and answer.status == HTTPStatus.OK:
                self._copies.put(name, answer, dated=self._api.unchanged == "modified")
            count += len(items)
            if self._cursor is not None:
                self._cursor.page(url, self._number, [item[self._api.key] for item in items])
            yield items
            url = self._next(answer, items)
            if url is not None and self._client.name_of(url) in seen:
                raise self._bad(
                    f"it names as the next page one that was read already, {url}: "
                    "this would go on for ever. Is it a fault of the API, or in the cursor's "
                    "fields?"
                )
        if self._copies is not None and start is None:
            self._copies.keep_only(seen)
        log.info("%s: %d items on %d pages", self._client.shown(self._api.url), count, self._number)

    def _fetch(self, url: str, name: str) -> Answer:
        """The page, from its copy if the API says that this is what it is."""
        what = f"page {self._number}"
        self._where = f"{what}, {self._client.shown(url)}"
        copy = self._copies.get(name) if self._copies is not None and self._conditional else None
        if copy is None:
            return self._client.get(url, what, stop=self._stop)
        answer = self._client.get(url, what, headers=copy.conditions, stop=self._stop)
        if answer.status != HTTPStatus.NOT_MODIFIED:
            return answer
        same = Answer(url, answer.status, answer.headers, copy.body, json.loads(copy.body))
        if self._next(same, self._items(same)) is not None:
            return same
        # That no page follows is never taken from a copy, which may be of a day when none did:
        # a tag is often of the items alone, and the next page stands in a header, or beside them.
        self._conditional = False
        return self._client.get(url, what, stop=self._stop)

    def _items(self, answer: Answer) -> list[Record]:
        api = self._api
        items = self._at(api.items, answer.json, "items") if api.items else answer.json
        if not isinstance(items, list):
            raise self._bad(
                f"{f'at items={api.items!r} it' if api.items else 'it'} has no list, but "
                f"{_kind(items)}; give items the path to the list"
            )
        for at, item in enumerate(items):
            if not isinstance(item, dict):
                raise self._bad(f"item {at} is no object, but {_kind(item)}")
            if api.key not in item:
                raise self._bad(
                    f"item {at} has no field {api.key!r}, its key, but {_kind(item)}; give key "
                    "the name of the field that is there in each, and different"
                )
            key = item[api.key]
            wanted = {"string": (str,), "int64": (int,)}.get((api.schema or {}).get(api.key, ""))
            if type(key) not in (wanted or (str, int)) or key == "":
                raise self._bad(
                    f"item {at} has as its key {api.key!r} {_kind(key)}, and not a non-empty "
                    "string or an integer" + (", as schema wants it" if wanted else "")
                )
        return [Record(item, self._client) for item in items]

    def _first(self) -> str:
        api = self._api
        own = {api.page_param: api.first_page} if api.pagination == "page" else {}
        return with_params(api.url, {**api.params, **own})

    def _next(self, answer: Answer, items: list[Record]) -> str | None:
        api = self._api
        if api.pagination == "page":
            number = api.first_page + self._number
            return with_params(api.url, {**api.params, api.page_param: number}) if items else None
        if api.pagination == "link":
            target = next_link(answer.headers.get("link", ""))
            if "link" not in answer.headers:
                self._warn_of_an_only_page("it has no header Link")
        else:
            cursor = self._at(api.cursor_field, answer.json, "cursor_field", last_may_miss=True)
            if cursor is _MISSING:
                self._warn_of_an_only_page(f"it has nothing at cursor_field={api.cursor_field!r}")
            if cursor is _MISSING or cursor is None or cursor is False or cursor == "":
                return None
            if type(cursor) not in (str, int):
                raise self._bad(f"at cursor_field={api.cursor_field!r} it has {_kind(cursor)}")
            if not str(cursor).startswith(("http://", "https://")):
                return with_params(api.url, {**api.params, api.cursor_param: cursor})
            target = str(cursor)
        return self._followed(answer.url, target) if target is not None else None

    def _followed(self, base: str, target: str) -> str:
        """The address of a link, if it is safe to ask there: token and headers go with it."""
        try:
            url = urldefrag(urljoin(base, target)).url
            safe = _origin(url) == _origin(self._api.url)
        except ValueError:
            url, safe = target, False
        if not safe:
            raise self._bad(
                f"it names as the next page {url}, which is not of the same protocol, host and "
                f"port as {self._api.url}, so nothing is sent there. If it is right, give url as "
                "the API names it"
            )
        return url

    def _at(self, path: str, found: Any, option: str, *, last_may_miss: bool = False) -> Any:
        """What stands at a dotted path of an answer."""
        names = path.split(".")
        for depth, name in enumerate(names):
            if not isinstance(found, dict) or name not in found:
                if last_may_miss and isinstance(found, dict) and depth == len(names) - 1:
                    return _MISSING
                raise self._bad(
                    f"it has nothing at {option}={path!r}: {name!r} is not in {_kind(found)}"
                )
            found = found[name]
        return found

    def _warn_of_an_only_page(self, why: str) -> None:
        # Right for an API of one page; for any other, all but that page would be missing.
        if self._number == 1:
            log.warning("%s: %s, so it is taken for the only page", self._where, why)

    def _bad(self, what: str) -> BadAnswer:
        return BadAnswer(
            f"{self._where}: {self._client.shown(what)}. What is done is safe: run the same "
            "command again once this is mended"
        )


def _kind(value: Any) -> str:
    """What a piece of JSON is, for a message: an object by its fields."""
    if isinstance(value, dict):
        return f"an object of {', '.join(map(repr, list(value)[:10])) or 'no fields'}"[:300]
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"


def with_params(url: str, params: Mapping[str, str | int]) -> str:
    """The URL with these query parameters, which replace those of the same name."""
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query, True) if pair[0] not in params]
    return parts._replace(query=urlencode([*query, *params.items()]), fragment="").geturl()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)


# RFC 8288: <target>; name=value; name="quoted, value", <target> …
_LINK = re.compile(r'<([^<>]*)>((?:[^",<]|"(?:[^"\\]|\\.)*")*)')
_PARAMETER = re.compile(r';\s*([^\s=;,"]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s;,"]*))?')


def next_link(header: str) -> str | None:
    """The target of the first link whose relation is ``next``; relations are words, in any case.

    A link with an ``anchor`` is about another resource than the page, and does not count.
    """
    for target, rest in _LINK.findall(header):
        given: dict[str, str] = {}
        for name, value in _PARAMETER.findall(rest):
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            given.setdefault(name.lower(), value)  # of several, the first counts
        if "next" in given.get("rel", "").lower().split() and "anchor" not in given:
            return str(target).strip()
    return None


@dataclass(frozen=True)
class PageCopy:
    """What a page was when it was read last, and the headers that ask whether it still is."""

    conditions: Mapping[str, str]
    body: bytes


class PageCopies:
    """Copies of pages in a folder, so that an unchanged one need not be sent again.

    Only ever a saving: a copy that is missing, or not what was written, is none, and then its
    page is asked for without conditions. There are never more than the pages of one reading.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failed = False

    def get(self, name: str) -> PageCopy | None:
        """The copy of this name, if it is whole."""
        try:
            head, _, body = (self._folder / name).read_bytes().partition(b"\n")
            found = json.loads(head)
            if found["digest"] != _digest(body, found["conditions"]):
                return None
            return PageCopy(found["conditions"], body)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def put(self, name: str, answer: Answer, *, dated: bool) -> None:
        """Keep this answer, if it can be recognised by its tag, or if ``dated`` by its date."""
        headers, conditions = answer.headers, {}
        modified = http_date(headers.get("last-modified", ""))
        sent = http_date(headers.get("date", ""))
        if "etag" in headers:
            conditions["If-None-Match"] = headers["etag"]
        elif dated and modified is not None and sent is not None and sent - modified >= _SETTLED:
            conditions["If-Modified-Since"] = headers["last-modified"]
        if not conditions or "no-store" in headers.get("cache-control", "").lower():
            return
        head = {"conditions": conditions, "digest": _digest(answer.body, conditions)}
        data = json.dumps(head).encode() + b"\n" + answer.body
        # The same temporary name for all who write this page: what they mix up, the digest finds.
        temporary = self._folder / f"{name}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with open(file, "wb") as opened:
                opened.write(data)
            temporary.replace(self._folder / name)
        except OSError as error:
            self._say(error)

    def keep_only(self, names: set[str]) -> None:
        """Remove all other copies."""
        try:
            for path in self._folder.iterdir():
                if path.name.removesuffix(".tmp") not in names:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            log.warning("pages are not kept, and will be sent again: %s", error)
        self._failed = True


def _digest(body: bytes, conditions: Mapping[str, str]) -> str:
    asked = json.dumps(conditions, sort_keys=True).encode()
    return blake2b(asked + b"\n" + body, digest_size=16).hexdigest()
