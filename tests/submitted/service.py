"""A service of submitted work, in a folder: what it is asked for is there when everybody has died.

It is deterministic, counts for each item how often it was paid, and takes the same token twice: who
submits something twice pays twice. Programs of their own make one by `FileService.of_environment`.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from resumable_tasks.runners.submitted.protocol import Ended, Pending, Undone

Row = dict[str, Any]
_NUMBERS = ("takes", "lose", "die", "undone")


class FileService:
    """Doubles each item's ``id``.

    ``takes``: seconds from a submission to its end; None: until `end_all`. ``lose``: each so
    many-th submission begins, and its answer is lost. ``die``: at the so many-th the program dies,
    after the service has begun. ``undone``: each so many-th item of a submission is not done, and
    not paid, the first time. ``without`` names optional methods that this service has not. A
    submission that is cancelled before its end has done, and is paid for, the first half of its
    items.
    """

    patience = 0.5

    def __init__(
        self,
        home: Path,
        *,
        takes: float | None = 0.0,
        lose: int = 0,
        die: int = 0,
        undone: int = 0,
        without: tuple[str, ...] = (),
    ) -> None:
        self.home = Path(home)
        self.takes, self.lose, self.die, self.undone = takes, lose, die, undone
        self.home.mkdir(parents=True, exist_ok=True)
        for name in without:
            setattr(self, name, None)

    @classmethod
    def of_environment(cls) -> FileService:
        """The service of ``SERVICE_HOME``; ``SERVICE_TAKES``, ``SERVICE_LOSE`` and so on."""
        given = {name: os.environ.get(f"SERVICE_{name.upper()}") for name in _NUMBERS}
        numbers: dict[str, Any] = {name: json.loads(text) for name, text in given.items() if text}
        without = os.environ.get("SERVICE_WITHOUT", "").split()
        return cls(Path(os.environ["SERVICE_HOME"]), without=tuple(without), **numbers)

    def submit(self, items: list[Row], token: str) -> Row:
        ids = [item["id"] for item in items]
        earlier = {each for told in self.submissions for each in told["undone"]}
        undone = [
            each
            for at, each in enumerate(ids, 1)
            if self.undone and at % self.undone == 0 and each not in earlier
        ]
        told = {"token": token, "ids": ids, "undone": undone, "at": time.time()}
        number = self._put(told)
        if number == self.die:
            os._exit(9)
        if self.lose and number % self.lose == 0:
            raise ConnectionError("the answer is lost")
        return {"number": number}

    def find(self, token: str) -> Row | None:
        found = [told["number"] for told in self.submissions if told["token"] == token]
        return {"number": found[0]} if found else None

    def fence(self, token: str) -> None:
        """Nobody sleeps in the middle of `submit` here."""

    def poll(self, handle: Row) -> Pending | Ended:
        return Ended() if self._has_ended(self._told(handle)) else Pending("at work")

    def collect(self, handle: Row) -> list[Any]:
        told = self._told(handle)
        assert self._has_ended(told)
        undone = self._undone(told)
        return [
            Undone(each, "not this time") if each in undone else {"id": each, "v": 2 * each}
            for each in told["ids"]
        ]

    def cancel(self, handle: Row) -> None:
        if not self._has_ended(self._told(handle)):
            self._mark(handle["number"], "cancelled")

    @property
    def submissions(self) -> list[Row]:
        """All that was ever submitted, in its order."""
        found = []
        for path in sorted(self.home.glob("*.json")):
            found.append(json.loads(path.read_text()) | {"number": int(path.stem)})
        return found

    @property
    def paid(self) -> Counter[Any]:
        """How often each item was, or will be, paid."""
        return Counter(
            each
            for told in self.submissions
            for each in told["ids"]
            if each not in self._undone(told)
        )

    def end_all(self) -> None:
        """Come to the end of all that is there by now."""
        for told in self.submissions:
            self._mark(told["number"], "ended")

    def _put(self, told: Row) -> int:
        """Durable under the next number, whoever else asks at the same time."""
        written = self.home / f"{told['token']}-{time.monotonic_ns()}.tmp"
        written.write_text(json.dumps(told))
        number = 1 + len(self.submissions)
        while True:
            try:
                os.link(written, self.home / f"{number:06d}.json")
                written.unlink()
                return number
            except FileExistsError:
                number += 1

    def _told(self, handle: Row) -> Row:
        path = self.home / f"{handle['number']:06d}.json"
        return json.loads(path.read_text()) | handle

    def _mark(self, number: int, what: str) -> None:
        (self.home / f"{number:06d}.{what}").touch()

    def _is(self, told: Row, what: str) -> bool:
        return (self.home / f"{told['number']:06d}.{what}").exists()

    def _has_ended(self, told: Row) -> bool:
        over = self.takes is not None and time.time() - told["at"] >= self.takes
        return over or self._is(told, "ended") or self._is(told, "cancelled")

    def _undone(self, told: Row) -> list[Any]:
        if self._is(told, "cancelled"):
            return told["ids"][len(told["ids"]) // 2 :]
        return told["undone"]


def items(count: int) -> list[Row]:
    return [{"id": number} for number in range(count)]
