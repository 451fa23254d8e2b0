"""The site of `resumable serve`: a list of checkpoints and their reports, read-only.

Shows pages only for checkpoints that a listing of the place has found, so no address leads
elsewhere. Checks each request before reading anything: its method, the host name that it asks for
(which differs if a page of another site makes a browser ask), and the token, if one is needed.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from resumable_tasks.base import log
from resumable_tasks.base.text import without_secrets
from resumable_tasks.checkpoint.directory import finding
from resumable_tasks.checkpoint.directory.finding import Found
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import ResumableTasksError, UsageError
from resumable_tasks.results.report import facts, folder, page

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PIP = 'pip install "resumable-tasks[serve]"'
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_COOKIE = "resumable_token"
# Seconds for which a page is reused, and the number of pages to keep.
_FRESH_SECONDS, _KEPT = 2.0, 8
_REFRESH_LIST, _REFRESH_RUNNING = 30, 5
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Scope = Mapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(slots=True)
class Pages:
    """The pages of the checkpoints below a place, each made at most every few seconds.

    Without a place, the checkpoints that `resumable ls` finds from the working directory.
    """

    place: str | None
    _made: dict[str, tuple[float, str]] = field(default_factory=dict)
    _found: dict[str, Found] = field(default_factory=dict)
    _sources: dict[str, facts.Source] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def list(self) -> str:
        """The page with the list of current checkpoints."""
        return self._page("", self._list)

    def report(self, name: str) -> str | None:
        """The report of the checkpoint with this name in the list; None if there is none."""
        with self._lock:
            known = name in self._found
        if not known:
            with self._lock:
                self._look()
        found = self._found.get(name)
        return None if found is None else self._page(f"/{name}", lambda: self._report(found))

    def _page(self, name: str, make: Callable[[], str]) -> str:
        # One at a time, so that many simultaneous requests cost one reading.
        with self._lock:
            made, text = self._made.get(name, (0.0, ""))
            if not text or time.monotonic() - made > _FRESH_SECONDS:
                text = make()
                self._made[name] = time.monotonic(), text
                _forget_oldest(self._made)
            return text

    def _look(self) -> None:
        found = _find(self.place)
        self._found = {folder.below(each, self.place) or "-": each for each in found}

    def _list(self) -> str:
        self._look()
        links = {each.place: name for name, each in self._found.items()}
        return folder.render(
            self.place,
            self._found.values(),
            link=lambda each: f"/report/{folder.quoted(links[each.place])}",
            refresh=_REFRESH_LIST,
        )

    def _report(self, found: Found) -> str:
        source = self._sources.pop(found.place, None)
        source = source or facts.Source(lambda: open_store(found.place))
        self._sources[found.place] = source
        _forget_oldest(self._sources)
        told = source.read()
        refresh = _REFRESH_RUNNING if told.status == "running" else _REFRESH_LIST
        return page.render(told, refresh=refresh, back="/")


def _forget_oldest(kept: dict[str, Any]) -> None:
    if len(kept) > _KEPT:
        del kept[next(iter(kept))]


def application(place: str | None, *, hosts: Collection[str] = LOOPBACK, token: str = "") -> App:
    """The site as an ASGI application that answers only GET and HEAD, and changes nothing.

    ``hosts``: the host names that requests may ask for. ``token``: if not empty, requests must
    show it; then they may also ask for the site by a numeric address. Raises `UsageError` if the
    extra is not installed, or the place is not a folder.
    """
    page.check()
    app = _routes(Pages(place))
    next(iter(_find(place)), None)
    return Guard(app, hosts, token)


def _find(place: str | None) -> Iterator[Found]:
    return finding.find_here(_tell) if place is None else finding.find(place, _tell)


def _tell(error: OSError) -> None:
    log.warning("cannot read %s: %s", error.filename, error.strerror)


def _routes(pages: Pages) -> Starlette:
    try:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, PlainTextResponse
        from starlette.routing import Route
    except ImportError as error:
        raise UsageError(
            f"the site is served by Starlette and uvicorn: {error}", remedy=f"Run: {PIP}"
        ) from error

    def shown(make: Callable[[], str | None]) -> Response:
        try:
            text = make()
        except (ResumableTasksError, OSError) as error:
            message = without_secrets(str(error))
            log.warning("%s", message)
            return PlainTextResponse(message, 500)
        if text is None:
            return PlainTextResponse("there is no checkpoint with this name", 404)
        return HTMLResponse(text)

    # Plain functions, because Starlette calls those in threads: one that reads blocks no other.
    def index(_: Request) -> Response:
        return shown(pages.list)

    def report(request: Request) -> Response:
        return shown(lambda: pages.report(request.path_params["name"]))

    return Starlette(routes=[Route("/", index), Route("/report/{name:path}", report)])


class Guard:
    """Passes allowed requests on to a site, and adds security headers to each answer."""

    def __init__(self, app: App, hosts: Collection[str], token: str) -> None:
        self._app = app
        self._hosts = frozenset(map(str.lower, hosts))
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> App | None:
        """The answer to a request that is refused; None if it is allowed."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        if scope["type"] != "http":
            return PlainTextResponse("only HTTP is supported here", 400)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("nothing can be changed here", 405, {"Allow": "GET, HEAD"})
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not self._is_ours(headers.get(b"host", "")):
            return PlainTextResponse("this host name is not served here", 421)
        if not self._token or self._is_shown(headers):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not _same(dict(query).get("token", ""), self._token):
            return PlainTextResponse(
                "a token is needed: open the address that the server printed", 401
            )
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        answer = RedirectResponse(
            "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else ""), 303
        )
        # As a cookie the token is no longer in addresses, which histories and logs keep.
        answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="lax")
        return answer

    def _is_ours(self, host: str) -> bool:
        before, _, port = host.rpartition(":")
        name = before if before and port.isdigit() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        return name in self._hosts or (bool(self._token) and _is_number(name))

    def _is_shown(self, headers: Mapping[bytes, str]) -> bool:
        kind, _, told = headers.get(b"authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(told.strip(), self._token):
            return True
        try:
            cookies = SimpleCookie(headers.get(b"cookie", ""))
        except CookieError:
            return False
        return _COOKIE in cookies and _same(cookies[_COOKIE].value, self._token)


def _same(told: str, token: str) -> bool:
    return hmac.compare_digest(told.encode("utf-8", "replace"), token.encode())


def _is_number(host: str) -> bool:
    """True for a numeric address. A foreign name can be made to resolve here, a number cannot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def run(site: App, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM comes. Raises `UsageError` without uvicorn."""
    try:
        import uvicorn
    except ImportError as error:
        raise UsageError(
            f"the site is served by uvicorn, which is not installed: {error}",
            remedy=f"Run: {PIP}",
        ) from error
    # Its access log would contain the token.
    config = uvicorn.Config(
        site,
        access_log=False,
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
