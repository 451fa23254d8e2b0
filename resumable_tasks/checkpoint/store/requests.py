"""The requests of a store in a bucket, each retried until its outcome is known.

Whatever the answer, or without one, `Requests.create` finds out whether the object exists. Each
object carries a nonce that distinguishes it from another's object: so `create` can tell a lost
reply from a name that was taken. See ``docs/design/0023-buckets.md``.
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
_NONCE = "nonce"  # Azure accepts only identifiers
# Larger objects are sent in parts, few at a time: each must arrive in time on a slow line.
_ONE_REQUEST = 8 << 20
_PART = 5 << 20
_PARTS_AT_ONCE = 2
# Seconds for which a request is retried: by an active run, which loses results otherwise, and by
# any other. Less for denied requests, which rarely succeed later.
_AT_WORK, _ELSE = 900.0, 60.0
_DENIED_AT_WORK, _DENIED_ELSE = 30.0, 3.0
# After this many seconds without success, the log tells the reason for the wait.
_UNTOLD = 5.0
# Seconds after which a request that was given up says nothing about the next one.
_REMEMBERED = 60.0


class Requests:
    """Makes requests about the keys of one bucket. Errors name the file as the store does.

    Every method raises `StoreError`, `CheckpointUnusable` for a place that cannot be used at all,
    and `FileNotFoundError` for a missing key. Ctrl-C interrupts a request of the main thread.
    """

    def __init__(self, bucket: Bucket, url: str, *, at_work: bool = False) -> None:
        """``at_work``: for an active run, which retries longer, since it has results to lose."""
        self._bucket = bucket
        self._url = url
        self.at_work = at_work
        # A denied first request means that the place is unusable; a later one is an incident.
        self._answered = at_work
        self._has_warned = False

    def ask(self, verb: str, name: str, call: Callable[[Any, Any], T]) -> T:
        """Make the call, retrying as long as that can help. Returns its result."""
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
        """The metadata of an object; None if there is no object. Raises `CreateUnknown`."""

        def head(obs: Any, client: Any) -> dict[str, Any]:
            return dict(obs.get(client, key, options={"head": True}).attributes)

        try:
            return self.ask("look at", name, head)
        except FileNotFoundError:
            return None
        except StoreError as error:
            raise CreateUnknown(str(error)) from error

    def written(self, key: str, name: str) -> tuple[datetime, bool]:
        """The object's time by the service's clock, and whether the service kept its metadata."""

        def head(obs: Any, client: Any) -> tuple[datetime, bool]:
            found = obs.get(client, key, options={"head": True})
            return found.meta["last_modified"], _NONCE in found.attributes

        return self.ask("look at", name, head)

    def put(self, key: str, name: str, data: bytes | memoryview) -> None:
        # Arrow's views have signed bytes, which obstore takes for numbers.
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
        """Create the object; False if the key is taken. Raises `CreateUnknown`."""
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
                # The name was taken for a moment and is free again.
                unsure = unsure or answer.unsure
                continue
            if found.get(_NONCE) is not None:
                return bool(found[_NONCE] == nonce)
            # The service has dropped the nonce, or another program made the object.
            if (answer.refused and not unsure) or not self._holds(key, name, data):
                return False
            raise CreateUnknown(
                f"{self._url}/{name} exists, but may be from this run or another: {answer.told}"
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
        except FileNotFoundError:  # removed since it was seen; it may have been this one
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
        """Seconds for which to retry the next request; 0 once the process is to end.

        0 also if another request was given up just before: later ones, such as cleaning up or the
        next of many checkpoints, would fail too. But an active run retries even then, since it may
        have new results that it has not yet tried to store.
        """
        if seconds_left() is not None:
            return 0.0
        if self.at_work:
            return _AT_WORK
        since = time.monotonic() - clients.outage(self._bucket).given_up_at
        return 0.0 if since < _REMEMBERED else _ELSE

    def _is_hopeless(self, answer: Answer, began: float, asked: float) -> bool:
        """True if a refused request was retried long enough. Warns once if other retries take long.

        ``began`` and ``asked`` are the times of its first and its last try. A refused request is
        retried at least once, however long the first try took.
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
