"""A service in a folder, for as many processes as like, that counts on its own side what was paid.

What it has begun is a file each, written before `submit` returns, whatever becomes of whoever has
called. `Knobs` say what goes wrong; calls are counted over all processes.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from resumable_tasks import ItemFailure
from resumable_tasks.errors import BadResult
from resumable_tasks.runners.submitted.protocol import (
    CannotTell,
    Collected,
    Ended,
    NotAccepted,
    NotReady,
    Pending,
    QueueFull,
    Undone,
)


@dataclass(frozen=True)
class Knobs:
    """What the service has, and what goes wrong in it. Numbers of calls count from 1.

    ``has`` are its optional methods, ``idempotent_for`` seconds. ``takes`` is how long the work of
    a submission lasts, ``lag`` how long `find` does not see it, ``patience`` what it says of that.
    """

    has: tuple[str, ...] = ("find",)
    idempotent_for: float = 0.0
    takes: float = 0.0
    lag: float = 0.0
    patience: float = 0.2
    request_timeout: float = 0.1
    lose_each: int = 0
    """The answer of each so manieth `submit` is lost."""
    lost_before: int = 0
    """This `submit` fails before anything has begun, and does not say so."""
    act_before: str = ""
    """``2:SIGKILL``: in the second `submit` before it has begun."""
    act_after: str = ""
    act_prepare: str = ""
    cannot_tell: bool = False
    """`find` knows nothing of what runs, but that something does."""
    undone_each: int = 0
    """Each so manieth item is not handled the first time."""
    expires: int = 0
    """Of this submission only 30 % are handled."""
    outage: tuple[int, int] = (0, 0)
    """The calls of any method in between fail."""
    refuses: tuple[int, ...] = ()
    """Items that it does not take."""
    bad_once: tuple[int, ...] = ()
    """Items whose answer cannot be read the first time."""
    most_running: int = 0
    """More than so many submissions do not get into its queue."""
    whole_refused: int = 0
    """This `submit` is refused, for good."""
    never_accepts: bool = False
    gone: int = 0
    """Of this submission it says at `collect` that it has not begun it, and will not."""
    not_ready: int = 0
    """So many calls of `poll` and so many of `collect` come too early."""
    bug: int = 0
    """This `collect` raises KeyError."""
    coroutines: bool = False
    mode: str = "one"
    odd_rows: tuple[int, ...] = ()
    """Items whose row does not fit those of the others."""


class Service:
    """The service, seen from a handler."""

    def __init__(self, home: str | Path, knobs: Knobs | None = None) -> None:
        self.home = Path(home)
        self.knobs = knobs = knobs or Knobs()
        self.patience, self.request_timeout = knobs.patience, knobs.request_timeout
        self.idempotent_for = knobs.idempotent_for
        for name in {"prepare", "find", "fence", "cancel", "price"} - set(knobs.has):
            setattr(self, name, None)
        self.home.mkdir(parents=True, exist_ok=True)
        for name in ("begun", "files"):
            (self.home / name).mkdir(exist_ok=True)
        if knobs.coroutines:
            for name in ("submit", "poll", "collect", *knobs.has):
                setattr(self, name, _coroutine(getattr(self, name)))

    # --- the protocol

    def prepare(self, items: Any, token: str) -> dict[str, str]:
        nth = self._call("prepare", token)
        _act(self.knobs.act_prepare, nth)
        (self.home / "files" / token).write_text("")
        return {"file": token}

    def submit(self, items: Any, token: str, prepared: Any = None) -> dict[str, str]:
        knobs, nth = self.knobs, self._call("submit", token)
        items = items if isinstance(items, list) else items.to_pylist()
        _act(knobs.act_before, nth)
        if nth == knobs.lost_before:
            raise ConnectionError("lost on the way there")
        if nth == knobs.whole_refused or knobs.never_accepts:
            raise NotAccepted("not these", again=knobs.never_accepts)
        with self._locked():
            made = self._begin(items, token, prepared, nth)
        _act(knobs.act_after, nth)
        if knobs.lose_each and nth % knobs.lose_each == 0:
            raise ConnectionError("lost on the way back")
        return {"id": made}

    def poll(self, handle: dict[str, str]) -> Pending | Ended:
        nth = self._call("poll", handle["id"])
        if nth <= self.knobs.not_ready:
            raise NotReady("no such submission yet")
        begun = self._begun(handle["id"])
        if self._runs(begun):
            return Pending(f"0 of {len(begun['items'])}", again_in=0.01)
        return Ended("ended")

    def collect(self, handle: dict[str, str]) -> Any:
        knobs, nth = self.knobs, self._call("collect", handle["id"])
        if nth <= knobs.not_ready:
            raise NotReady("no results yet")
        begun = self._begun(handle["id"])
        if nth == knobs.bug:
            raise KeyError("answer")
        if begun["gone"]:
            raise NotAccepted("it was not begun", again=True)
        if knobs.mode == "none":
            return Collected([Undone(key) for key in begun["undone"]] or None, cost=1.0)
        found: list[Any] = []
        for item in begun["items"]:
            key = item["id"]
            if key in begun["undone"]:
                found += [Undone(key, "expired")] if key % 2 or knobs.mode == "many" else []
            elif key in knobs.refuses:
                found.append(ItemFailure(key, ValueError("400: not this")))
            elif key in begun["bad"]:
                found.append(ItemFailure(key, BadResult("no JSON")))
            else:
                found += self.rows(item)
        return Collected(found[::-1], cost=1.0)

    def rows(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        value: Any = value_of(item["id"]) + 1000 * item.get("edition", 0)
        if item["id"] in self.knobs.odd_rows:
            value = f"odd {value}"
        times = 2 if self.knobs.mode == "many" else 1
        return [{"id": item["id"], "value": value}] * times

    def find(self, token: str, prepared: Any) -> dict[str, str] | None:
        self._call("find", token)
        for begun in self.all():
            if begun["token"] == token and time.time() - begun["at"] >= self.knobs.lag:
                return {"id": begun["id"]}
            if self.knobs.cannot_tell and self._runs(begun):
                raise CannotTell("something runs, and may be it")
        return None

    def fence(self, token: str, prepared: Any) -> None:
        self._call("fence", token)
        with self._locked():
            (self.home / "files" / token).unlink(missing_ok=True)
            self._note("fenced", token)

    def cancel(self, handle: dict[str, str]) -> None:
        self._call("cancel", handle["id"])
        self._note("cancelled", handle["id"])

    def price(self, items: Any) -> float:
        return 1.0 * len(items)

    # --- what it looks at from inside

    def all(self) -> list[dict[str, Any]]:
        """All that was ever begun, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.home.glob("begun/*.json"))]

    def paid(self) -> Counter[int]:
        """How often each item was paid."""
        found: Counter[int] = Counter()
        for begun in self.all():
            if not begun["gone"]:
                handled = {item["id"] for item in begun["items"]} - set(begun["undone"])
                found.update(handled - set(self.knobs.refuses))
        return found

    def calls(self, method: str = "") -> list[tuple[str, str]]:
        """All calls in order: the method, and the token or the handle's id."""
        each = [line.split() for line in self._noted("calls")]
        return [(name, of) for name, of, _ in each if not method or name == method]

    def _begin(self, items: list[dict[str, Any]], token: str, prepared: Any, nth: int) -> str:
        knobs, before = self.knobs, self.all()
        if knobs.idempotent_for:
            for each in before:
                if each["token"] == token and time.time() - each["at"] < knobs.idempotent_for:
                    return str(each["id"])
        if "prepare" in knobs.has and not (self.home / "files" / prepared["file"]).exists():
            raise NotAccepted("no such file")
        if token in self._noted("fenced"):
            raise NotAccepted("fenced")
        if knobs.most_running and sum(map(self._runs, before)) >= knobs.most_running:
            raise QueueFull("the queue is full", retry_after=0.02)
        known = {item["id"] for each in before for item in each["items"] if not each["gone"]}
        each = [item["id"] for item in items]
        undone = [key for key in each if knobs.undone_each and key % knobs.undone_each == 0]
        undone = [key for key in undone if key not in known]
        number = len(before) + 1
        if number == knobs.expires:
            undone = each[len(each) * 3 // 10 :]
        made = f"{number:05d}"
        begun = {
            "id": made,
            "token": token,
            "items": items,
            "undone": undone,
            "bad": [key for key in each if key in knobs.bad_once and key not in known],
            "gone": number == knobs.gone,
            "at": time.time(),
            "by": os.getpid(),
        }
        path = self.home / "begun" / f"{made}.json"
        path.with_suffix(".part").write_text(json.dumps(begun))
        path.with_suffix(".part").rename(path)
        return made

    def _begun(self, made: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "begun" / f"{made}.json").read_text())
        return found

    def _runs(self, begun: dict[str, Any]) -> bool:
        cancelled = begun["id"] in self._noted("cancelled")
        return time.time() - begun["at"] < self.knobs.takes and not cancelled

    def _call(self, method: str, of: str) -> int:
        """Note a call; the how manieth of this method it is. Raises during an outage."""
        # Without a lock, which a process that was stopped would keep.
        mine = f"{method} {of} {uuid4().hex}"
        self._note("calls", mine)
        calls = self._noted("calls")
        calls = calls[: calls.index(mine) + 1]
        first, last = self.knobs.outage
        if first <= len(calls) <= last:
            raise ConnectionError("the service is down")
        return sum(line.startswith(f"{method} ") for line in calls)

    def _note(self, name: str, line: str) -> None:
        handle = os.open(self.home / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, f"{line}\n".encode())
        os.close(handle)

    def _noted(self, name: str) -> list[str]:
        path = self.home / name
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.home / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def value_of(key: int) -> int:
    return key * key + 7


def _act(when: str, nth: int) -> None:
    at, _, how = when.partition(":")
    if when and nth == int(at):
        if how == "SIGSTOP":
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        else:
            os.kill(os.getpid(), getattr(signal, how))


def _coroutine(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def called(*given: Any) -> Any:
        await asyncio.sleep(0)
        return method(*given)

    return called
