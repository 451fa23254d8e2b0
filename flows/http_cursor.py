"""Where the reading of an API's pages goes on after a crash: never beyond what is committed.

The cursor is the address of the first page of which not every item is known to be completed. It is
kept in a `Snapshot`, and each time with the journal's record that it rests on: if the journal does
not hold that record any more, or has been repaired since, all pages are read again. So no page is
lost; and since items are known by their keys, none is doubled.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from flows.http_api import HttpApi
from resumable_tasks import (
    CheckpointDamaged,
    CheckpointMismatch,
    ResumableTasksError,
    Snapshot,
    UsageError,
)
from resumable_tasks.checkpoint.directory.driver import RepairHint, read_manifest
from resumable_tasks.checkpoint.directory.journal import Journal, decode, record_name
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.engine.events import Committed, Event
from resumable_tasks.items.keys import canonical, split

log = logging.getLogger("flows.http")

_MENDED = ("repair", "lost")


@dataclass
class _Page:
    url: str
    number: int
    missing: set[bytes] = field(default_factory=set)


class PageCursor:
    """A reading's place among the pages of ``api``, for the items of one checkpoint.

    `page` is called before the items of a page are given out, `listen` with the run's events,
    `finish` once all that was read is done: the next reading then begins with the first page.
    """

    def __init__(
        self, path: str | os.PathLike[str], checkpoint: str | os.PathLike[str], api: HttpApi
    ) -> None:
        self._snapshot = Snapshot(path, every=1)
        self._store = open_store(os.fspath(checkpoint))
        self._about = _about(api)
        self._pages: deque[_Page] = deque()
        self._lock = threading.Lock()
        self._state = State()
        self._rests_on: tuple[int, str] | None = None
        self._mended = 0
        self._kept = True
        self.start: tuple[str, int] | None = None
        """The address and the number of the page to begin with; None: the first."""

    def __enter__(self) -> PageCursor:
        try:
            self._snapshot.__enter__()
        except (CheckpointDamaged, CheckpointMismatch) as error:
            # Only ever a saving: to do without it costs requests, and no item.
            aside = open_store(self._snapshot.path).archive()
            log.warning(
                "the cursor cannot be used, and all pages are read again; what there was of it is "
                "in %s: %s",
                aside,
                error,
            )
            self._snapshot.__enter__()
        try:
            self._find_start(self._snapshot.state)
        except BaseException as error:
            self._snapshot.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._snapshot.__exit__(*error)

    def _find_start(self, found: dict[str, Any]) -> None:
        there = False
        for commit in self._records():
            self._take(commit)
            at = (commit.number, commit.checksum)
            there = there or at == (found.get("record"), found.get("checksum"))
        if not found:
            return
        if there and found["mended"] == self._mended and found["about"] == self._about:
            self.start = (found["url"], found["page"])
            log.info("the reading goes on at page %d, before which all is done", found["page"])
        else:
            log.info("the cursor is not of this checkpoint as it is: all pages are read again")

    def _records(self) -> Iterable[Commit]:
        try:
            manifest = read_manifest(self._store)
        except UsageError:  # the first run
            return
        with RepairHint(self._store):
            yield from Journal(self._store, manifest.id).read_new()

    def _take(self, commit: Commit) -> None:
        self._state.apply(commit)
        self._rests_on = (commit.number, commit.checksum)
        self._mended += commit.kind in _MENDED

    def page(self, url: str, number: int, keys: Iterable[str | int]) -> None:
        """The items of this page are about to be given out."""
        with self._lock:
            lines = {canonical(key) for key in keys}
            missing = {line for line in lines if line not in self._state.done}
            self._pages.append(_Page(url, number, missing))
            self._move()

    def listen(self, event: Event) -> None:
        """An event of the run: what it has committed is taken from its journal."""
        if isinstance(event, Committed):
            name = record_name(event.number)
            commit = decode(self._store.read(name), name)
            lines = set(split(commit.keys))
            with self._lock:
                self._take(commit)
                for page in self._pages:
                    page.missing -= lines
                self._move()

    def _move(self) -> None:
        """Leave behind the pages of which all is committed; the last one that was read stays."""
        before = len(self._pages)
        while len(self._pages) > 1 and not self._pages[0].missing:
            self._pages.popleft()
        if len(self._pages) == before or self._rests_on is None or not self._kept:
            return
        record, checksum = self._rests_on
        self._snapshot.state = {
            "url": self._pages[0].url,
            "page": self._pages[0].number,
            "record": record,
            "checksum": checksum,
            "mended": self._mended,
            "about": self._about,
        }
        try:
            self._snapshot.step()
        except ResumableTasksError as error:
            # Only ever a saving: the cursor that was kept before is as good, and further back.
            self._kept = False
            log.warning("the cursor is not kept any more: %s", error)

    def forget(self) -> None:
        """The API does not know the page any more: begin with the first."""
        with self._lock:
            self.start = None
            self._pages.clear()

    def finish(self) -> None:
        """All that was read is done."""
        with self._lock:
            self._snapshot.state = {}


def _about(api: HttpApi) -> str:
    """What the pages are of: a cursor says nothing about those of another list."""
    asked = [api.url, api.pagination, api.items, api.key, sorted(api.params.items())]
    return blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()
