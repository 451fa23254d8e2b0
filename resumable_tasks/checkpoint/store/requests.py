"""The requests of a store in a bucket: each is made until it is clear what has come of it.

Whatever a request is answered, or if it is not: `Requests.create` finds out whether the object is
there. Each object that it makes carries a nonce, by which it knows its own from another's, and a
reply that was lost from a name that was taken. See ``docs/design/0023-buckets.md``.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from resumable_tasks.base import log, panics
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.hanging import interruptible, seconds_left
from resumable_tasks.base.text import duration
from resumable_tasks.checkpoint.store import answers, clients
from resumable_tasks.checkpoint.store.answers import Answer
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.checkpoint.store.clients import Bucket
from resumable_tasks.errors import StoreError

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")
_NONCE = "nonce"  # Azure takes only what could name a variable
# What is larger is sent in parts, few at a time: on a slow line each has to be through in time.
_ONE_REQUEST = 8 << 20
_PART = 5 << 20
_PARTS_AT_ONCE = 2
# How long a request is tried again: one of a run at work, whose results are lost without it, and
# any other. Refusals of whoever asks are not so often over soon.
_AT_WORK, _ELSE = 900.0, 60.0
_DENIED_AT_WORK, _DENIED_ELSE = 30.0, 3.0
# After so many seconds without success whoever waits is told why.
_UNTOLD = 5.0
# A request that was given up longer ago says nothing of the next one.
_REMEMBERED = 60.0


class Requests:
    """Makes the requests about keys of one bucket. An error names the file, as the store does.

    All raise `StoreError`, `CheckpointUnusable` for a place that cannot be used at all, and
    `FileNotFoundError` for a key that is not there. A request of the main thread obeys Ctrl-C.
    """

    def __init__(self, bucket: Bucket, url: str, *, at_work: bool = False) -> None:
        """``at_work``: for a run, whose results are lost without an answer; tried for longer."""
        self._bucket = bucket
        self._url = url
        self.at_work = at_work
        # A first request that is denied is a place that cannot be used; a later one, an incident.
        self._answered = at_work
        self._has_warned = False

    def ask(self, verb: str, name: str, call: Callable[[Any, Any], T]) -> T:
        """What the call returns for obstore and a client, tried again as long as it may help."""
        client = clients.client(self._bucket, retries=True)
        import obstore

        answer: Answer | None = None
        for began in answers.tries(self._patience):
            asked = time.monotonic()
            try:
                with panics.caught():
                    found = interruptible(lambda: call(obstore, client))
                self._heard()
                return found
            except answers.foreign() as error:
                answer = answers.of(error)
            if answer.missing:
                self._heard()
                raise FileNotFoundError(f"{self._url}/{name}") from None
            if self._is_hopeless(answer, began, asked):
                break
        assert answer is not None
        raise self._failed(verb, name, answer) from None

    def read(self, key: str, name: str) -> bytes:
        return self.ask("read", name, lambda obs, client: bytes(obs.get(client, key).bytes()))

    def head(self, key: str, name: str) -> dict[str, Any] | None:
        """The metadata of an object, None if there is none. Raises `CreateUnknown`."""

        def head(obs: Any, client: Any) -> dict[str, Any]:
            return dict(obs.get(client, key, options={"head": True}).attributes)

        try:
            return self.ask("look at", name, head)
        except FileNotFoundError:
            return None
        except StoreError as error:
            raise CreateUnknown(str(error)) from error

    def written(self, key: str, name: str) -> tuple[datetime, bool]:
        """When that was by the service's clock, and whether it keeps an object's metadata."""

        def head(obs: Any, client: Any) -> tuple[datetime, bool]:
            found = obs.get(client, key, options={"head": True})
            return found.meta["last_modified"], _NONCE in found.attributes

        return self.ask("look at", name, head)

    def put(self, key: str, name: str, data: bytes | memoryview) -> None:
        # Arrow's views are of signed bytes, which obstore takes for numbers.
        plain = memoryview(data).cast("B")

        def put(obs: Any, client: Any) -> None:
            in_parts = len(plain) > _ONE_REQUEST
            obs.put(
                *(client, key, plain),
                use_multipart=in_parts,
                chunk_size=_PART,
                max_concurrency=_PARTS_AT_ONCE,
            )

        self.ask("write", name, put)

    def create(self, key: str, name: str, data: bytes) -> bool:
        """Make the object; False if the key is taken. Raises `CreateUnknown`."""
        nonce = secrets.token_hex(8)
        unsure = False
        answer: Answer | None = None
        for began in answers.tries(self._patience):
            asked = time.monotonic()
            try:
                self._put_new(key, data, nonce)
                return True
            except answers.foreign() as error:
                answer = answers.of(error)
            fault_point("object.unsettled")
            found = self.head(key, name)
            if found is None:
                if self._is_hopeless(answer, began, asked):
                    break
                # A name that was taken and is free again was in the way for a moment only.
                unsure = unsure or answer.unsure
                continue
            if found.get(_NONCE) is not None:
                return bool(found[_NONCE] == nonce)
            # The service has dropped the nonce, or another program has made the object.
            if (answer.refused and not unsure) or not self._holds(key, name, data):
                return False
            raise CreateUnknown(
                f"{self._url}/{name} is there, and may be this run's or another's: {answer.told}"
            )
        assert answer is not None
        if unsure:
            raise CreateUnknown(
                f"cannot tell whether {self._url}/{name} was created: {answer.told}"
            )
        raise self._failed("write", name, answer) from None

    def _holds(self, key: str, name: str, data: bytes) -> bool:
        try:
            return self.read(key, name) == data
        except FileNotFoundError:  # somebody has removed it since it was seen, and may have made it
            return True

    def _put_new(self, key: str, data: bytes, nonce: str) -> None:
        import obstore

        client = clients.client(self._bucket, retries=False)
        kept: Any = {_NONCE: nonce}
        with panics.caught():
            interruptible(
                lambda: obstore.put(
                    *(client, key, data), mode="create", attributes=kept, use_multipart=False
                )
            )
        self._heard()

    def _heard(self) -> None:
        self._answered = True
        self._has_warned = False
        clients.outage(self._bucket).given_up_at = -math.inf

    @property
    def _patience(self) -> float:
        """For how long the next request is tried again.

        Once, where another was given up just before, or interrupted: whatever comes after it, such
        as cleaning up, or the next checkpoint of many, would fail as well. A run at work may have
        results by then that it has not tried to keep.
        """
        if seconds_left() is not None:
            return 0.0
        if self.at_work:
            return _AT_WORK
        since = time.monotonic() - clients.outage(self._bucket).given_up_at
        return 0.0 if since < _REMEMBERED else _ELSE

    def _is_hopeless(self, answer: Answer, began: float, asked: float) -> bool:
        """True if a request that has failed since it began is not to be tried again.

        ``asked``: when it was tried last. However long that took, one such try follows the first.
        """
        if answer.final:
            return asked - began > (_DENIED_AT_WORK if self.at_work else _DENIED_ELSE)
        since = time.monotonic() - began
        left = self._patience - since
        if since > _UNTOLD and left > 0 and not self._has_warned:
            self._has_warned = True
            log.warning("%s: %s. Trying again for up to %s", self._url, answer.told, duration(left))
        return False

    def _failed(self, verb: str, name: str, answer: Answer) -> Exception:
        clients.outage(self._bucket).given_up_at = -math.inf if answer.final else time.monotonic()
        where = f"{self._url}/{name}" if name else self._url
        return answer.error(verb, where, self._bucket, answered=self._answered)
