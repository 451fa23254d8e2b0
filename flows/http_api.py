"""What has to be known of a paginated HTTP JSON API to take all its items: `HttpApi`.

    HttpApi("https://api.example.org/orders", pagination="cursor", items="data", token_env="ORDERS")

The same fields, as a JSON object, are what ``--api`` takes, and the parameter ``api`` of the flow.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from urllib.parse import quote, urlsplit

from resumable_tasks import UsageError

Pagination = Literal["link", "cursor", "page"]
Unchanged = Literal["etag", "modified", "never"]
ColumnType = Literal["string", "int64", "float64", "bool", "timestamp", "json"]

RECORD = "record"  # the column that holds the whole record, where there is no schema
_DATE = "{date}"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Parameters are kept and shown by whoever starts the flow; secrets have no place in them.
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "x-api-key"}


class BadHttpApi(UsageError, ValueError):
    """A field of `HttpApi` is wrong. A ``ValueError`` too, so that Prefect names the parameter."""


@dataclass(frozen=True)
class HttpApi:
    """A list of JSON records, page by page. Nothing is left out: what cannot be read is an error.

    Attributes:
        url: of the first page. ``{date}`` in it, or in a value of ``params``, is the date that
            is ingested. It is logged and shown: no secrets.
        pagination: how the next page is found. ``"link"``: by the header ``Link`` with
            ``rel="next"``; ``"cursor"``: by what stands in the answer at ``cursor_field``, given
            as ``cursor_param``, or followed if it is a whole URL; ``"page"``: by counting
            ``page_param`` up from ``first_page`` until a page is empty. It has no default, since
            the wrong one would take the first page for all. With ``"page"``, an item may go
            unseen if one before it is deleted while pages are read; the others are safer.
        items: where in an answer the list of items is, such as ``"data.orders"``; by default the
            answer is the list.
        key: the field of an item that is its key.
        schema: the type of each column of the results, by the name of its field. Without it a
            row is the key and the whole item as JSON text, in a column ``record``.
        detail_url: where more of an item is fetched, with ``{id}`` (the name of the key's field)
            for its key. Its fields are added to the item's.
        params: further query parameters of every page.
        headers: further request headers; no credentials.
        token_env: the *name* of an environment variable that holds a bearer token.
        page_param, first_page, cursor_param, cursor_field: see ``pagination``.
        unchanged: whether pages are asked for on the condition that they have changed, and taken
            from the last time if not: ``"etag"``, where the server gives an ``ETag``;
            ``"modified"``, by ``Last-Modified`` too, which is safe only where a *deleted* item
            makes its page newer; ``"never"``.
        resume: after a crash, go on with the page where the reading was, instead of asking for
            all pages again. Only for ``"link"`` and ``"cursor"``, and only right where a page's
            address names the same place in the list later on: what was inserted before it in
            the meantime is seen by the next whole reading, not by this one.
        timeout: seconds for one request, from its start to the last byte of the answer.
        retries: further requests after one that met an answer of 408, 429 or 5xx, no answer, or
            half of one.
        retry_pause: seconds before the first of them; it doubles, up to a minute, and a random
            half of it is taken off.
        longest_wait: seconds; an API that asks for a longer pause by ``Retry-After`` ends the run.
    """

    # Prefect checks a parameter that is a dict with pydantic, which would let a misspelt field go.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str
    pagination: Pagination
    items: str = ""
    key: str = "id"
    schema: Mapping[str, ColumnType] | None = None
    detail_url: str | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    token_env: str | None = None
    page_param: str = "page"
    first_page: int = 1
    cursor_param: str = "cursor"
    cursor_field: str = "next_cursor"
    unchanged: Unchanged = "etag"
    resume: bool = False
    timeout: float = 60.0
    retries: int = 5
    retry_pause: float = 1.0
    longest_wait: float = 600.0

    def __post_init__(self) -> None:
        self._check_urls()
        for name, choices in (("pagination", Pagination), ("unchanged", Unchanged)):
            if getattr(self, name) not in get_args(choices):
                raise self._wrong(name, f"is none of {', '.join(get_args(choices))}")
        if type(self.resume) is not bool:
            raise self._wrong("resume", "is neither true nor false")
        if self.resume and self.pagination == "page":
            raise self._wrong(
                "resume", 'does not go with pagination="page", whose pages move; leave it out'
            )
        for name in ("key", "page_param", "cursor_param", "cursor_field"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise self._wrong(name, "is no name of a field")
        if not isinstance(self.items, str):
            raise self._wrong("items", 'is no path such as "data.orders"')
        for name, least in (("first_page", None), ("retries", 0)):
            value = getattr(self, name)
            if type(value) is not int or (least is not None and value < least):
                raise self._wrong(name, f"is no whole number{'' if least is None else ' from 0'}")
        for name in ("timeout", "retry_pause", "longest_wait"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise self._wrong(name, "is no number of seconds")
        if self.timeout == 0:
            raise self._wrong("timeout", "leaves no time for an answer")
        self._check_schema()
        self._check_params_and_headers()
        if self.token_env is not None and not (
            isinstance(self.token_env, str) and _VARIABLE.fullmatch(self.token_env)
        ):
            # What was given is not shown: it may be the token itself.
            raise BadHttpApi(
                "token_env is not the name of an environment variable. Put the token into a "
                'variable, and give its name, such as token_env="API_TOKEN"'
            )

    def _check_urls(self) -> None:
        for name in ("url", "detail_url"):
            url = getattr(self, name)
            if name == "detail_url" and url is None:
                continue
            try:
                parts = urlsplit(url if isinstance(url, str) else "")
                good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:
                good = False
            if not good:
                raise self._wrong(name, "is no address that begins with http:// or https://")
            if "@" in parts.netloc:
                raise BadHttpApi(f"{name} holds a user or a password; give them as token_env")
        if self.detail_url is not None and f"{{{self.key}}}" not in self.detail_url:
            raise self._wrong("detail_url", f"has no {{{self.key}}} in it, for the key of an item")

    def _check_schema(self) -> None:
        if self.schema is None:
            if self.key == RECORD:
                raise self._wrong("key", "is also the column of the whole record; give a schema")
            return
        if not isinstance(self.schema, Mapping) or not self.schema:
            raise self._wrong("schema", 'is no mapping such as {"price": "float64"}')
        for name, kind in self.schema.items():
            if not isinstance(name, str) or not name or kind not in get_args(ColumnType):
                raise BadHttpApi(
                    f"schema[{name!r}]={kind!r} is none of {', '.join(get_args(ColumnType))}"
                )
        if self.schema.get(self.key, "string") not in ("string", "int64"):
            raise BadHttpApi(f"schema[{self.key!r}] is the key's, which is string or int64")

    def _check_params_and_headers(self) -> None:
        if not isinstance(self.params, Mapping) or not all(
            isinstance(name, str) and type(value) in (str, int)
            for name, value in self.params.items()
        ):
            raise self._wrong("params", 'is no mapping such as {"per_page": 100}')
        own = {"page": self.page_param, "cursor": self.cursor_param}.get(self.pagination)
        if own in self.params:
            raise BadHttpApi(f"params has {own!r}, which is set from page to page; leave it out")
        if not isinstance(self.headers, Mapping):
            raise BadHttpApi('headers is no mapping such as {"X-Version": "2"}')
        for name, value in self.headers.items():
            if not isinstance(name, str) or not _HEADER.fullmatch(name):
                raise BadHttpApi(f"headers has {name!r}, which is no name of a header")
            if name.lower() in _SECRET_HEADERS:
                raise BadHttpApi(
                    f"headers has {name!r}, whose value would be kept with the parameters; give "
                    "the token by token_env, the name of an environment variable"
                )
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise BadHttpApi(f"headers[{name!r}] is no line of printable ASCII")

    def _wrong(self, name: str, what: str) -> BadHttpApi:
        return BadHttpApi(f"{name}={getattr(self, name)!r} {what}")

    def for_date(self, date: datetime.date) -> HttpApi:
        """The same API with ``{date}`` filled in."""
        return dataclasses.replace(
            self,
            url=self.url.replace(_DATE, str(date)),
            params={
                name: value.replace(_DATE, str(date)) if isinstance(value, str) else value
                for name, value in self.params.items()
            },
        )

    def detail_of(self, key: str | int) -> str | None:
        """Where the detail of the item with this key is."""
        if self.detail_url is None:
            return None
        return self.detail_url.replace(f"{{{self.key}}}", quote(str(key), safe=""))

    @property
    def version(self) -> str:
        """What the rows are made from and how: rows of another version may not join them."""
        schema = sorted(self.schema.items()) if self.schema is not None else None
        made = repr((self.items, schema, self.detail_url)).encode()
        return f"{self.url.split('?')[0]} {blake2b(made, digest_size=4).hexdigest()}"


def read_http_api(text: str) -> HttpApi:
    """`HttpApi` from a JSON object of its fields, or from the file of this name that holds one."""
    where = "--api"
    if not text.lstrip().startswith("{"):
        where = text
        try:
            text = Path(text).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise BadHttpApi(
                f"{where} is neither a JSON object nor a file of one: {error}"
            ) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadHttpApi(f"{where} is no JSON: {error}") from None
    names = [each.name for each in dataclasses.fields(HttpApi)]
    if not isinstance(found, dict):
        raise BadHttpApi(f"{where} is no JSON object of: {', '.join(names)}")
    if unknown := sorted(found.keys() - set(names)):
        raise BadHttpApi(f"{where}: there is no field {unknown[0]!r}, only {', '.join(names)}")
    for name in ("url", "pagination"):
        if name not in found:
            raise BadHttpApi(f"{where}: {name} is missing, e.g. {_EXAMPLE}")
    try:
        return HttpApi(**found)
    except BadHttpApi as error:
        raise BadHttpApi(f"{where}: {error}") from None


_EXAMPLE = '{"url": "https://api.example.org/orders", "pagination": "link"}'
