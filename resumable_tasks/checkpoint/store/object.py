"""A store in a bucket: S3 and compatible services, Google Cloud Storage, Azure.

The keys of a checkpoint are below its URL, as files are in a directory. A reset cannot move them.
Instead it begins the next *incarnation*, whose keys are below ``@1``, ``@2``, …. So a run that
sleeps through a reset wakes up among its own keys.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.store import clients
from resumable_tasks.checkpoint.store.ahead import in_order
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.checkpoint.store.clients import Bucket
from resumable_tasks.checkpoint.store.disk import Files, Incarnations, Patient
from resumable_tasks.checkpoint.store.requests import Requests
from resumable_tasks.errors import CheckpointUnusable, Fenced

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow.fs

_AHEAD = 32
_A_PAGE = 1000  # of a listing, as S3 gives them
_FOLDERS_A_PAGE = 100
_MOST_DELETED = 1000  # by one request, as S3 takes them
_NUMBERED = re.compile(r"@([0-9]{1,9})(\.json)?")

Look = tuple[dict[str, int], set[str]]
"""The names directly below a prefix with their sizes, and the folders there."""


class ObjectStore(Store, Files, Incarnations, Patient):
    """Objects below a prefix of a bucket. Exactly one of any number of racing `create` wins.

    Retries after errors of the service for a minute, a `patient` store for 15 minutes. Works in
    threads and in spawned processes. Takes its credentials from the environment.
    """

    def __init__(self, bucket: Bucket, prefix: str, *, fresh: bool = False) -> None:
        """``prefix`` has no slash at its ends. If it ends in ``/@2``, it names that incarnation.

        ``@0`` is the first one, whose keys have no such part. ``fresh``: the prefix was never used.
        """
        self.url = f"{bucket.scheme}://{bucket.name}" + (f"/{prefix}" if prefix else "")
        self._bucket = bucket
        root, _, last = prefix.rpartition("/")
        named = re.fullmatch(r"@([0-9]{1,9})", last)
        self._root = root if named else prefix
        self._named = int(named[1]) if named else None
        self._incarnation = 0 if fresh else self._named
        self._folders: set[str] = set()
        self._resolving = threading.Lock()
        self._requests = Requests(bucket, self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._parts(at_work=self._requests.at_work)

    def patient(self) -> ObjectStore:
        self._resolve()
        return _again(*self._parts(at_work=True))

    def _parts(self, *, at_work: bool) -> tuple[Bucket, str, str, int | None, int | None, bool]:
        return self._bucket, self.url, self._root, self._named, self._incarnation, at_work

    # The five of a store

    def read(self, name: str) -> bytes:
        return self._requests.read(self._key(name), name)

    def list(self, folder: str) -> dict[str, int]:
        top = self._resolve()
        if not folder:
            return top if top is not None else self._listed(self._key(""))[0]
        found = self._listed(self._key(folder))[0]
        return {f"{folder}/{name}": size for name, size in found.items()}

    def create(self, name: str, data: bytes) -> bool:
        self._refuse_writes()
        return self._requests.create(self._key(name), name, data)

    def put(self, name: str, data: bytes | memoryview) -> None:
        self._refuse_writes()
        self._requests.put(self._key(name), name, data)

    def delete(self, name: str) -> None:
        self._delete([name])

    def is_empty(self, folders: Iterable[str]) -> bool:
        top = self._resolve()
        here, inside = self._listed(self._key("")) if top is None else (top, self._folders)
        return not here and not inside

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        self._resolve()
        return in_order(self.read, names, _AHEAD)

    def delete_all(self, names: Iterable[str]) -> None:
        rest = iter(names)
        while some := list(islice(rest, _MOST_DELETED)):
            self._delete(some)

    def _delete(self, names: Sequence[str]) -> None:
        self._refuse_writes()
        keys = [self._key(name) for name in names]
        try:
            self._requests.ask("delete", names[0], lambda obs, client: obs.delete(client, keys))
        except FileNotFoundError:  # raised by Azure and Google
            for name in names if len(names) > 1 else ():
                self.delete(name)

    # Used only by `resumable check`

    def fresh(self, name: str) -> ObjectStore:
        """The place of this name below this one; the name was never used."""
        return ObjectStore(self._bucket, _joined(self._root, name), fresh=True)

    def written(self, name: str) -> tuple[datetime, bool]:
        """The object's time by the service's clock, and whether the service kept its metadata."""
        return self._requests.written(self._key(name), name)

    # Files and incarnations

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return clients.filesystem(self._bucket), f"{self._bucket.name}/{self._key('')}".rstrip("/")

    def archive(self) -> str:
        # If the marker exists, a faster process has archived the same incarnation.
        return f"{self.url}/@{self._begin_next(pruned=False)}"

    def discard(self) -> ObjectStore:
        number = self._named
        if number is None:
            number = self._begin_next(pruned=True)
            if not self._marker(number).get("pruned"):
                raise Fenced(
                    f"the checkpoint {self.url} was reset meanwhile",
                    remedy="Run the same command again",
                )
        elif not self.discarded:
            marker = self._marker(number)
            if not marker:
                raise CheckpointUnusable(
                    f"{self.url} is not archived, so it is not removed",
                    remedy="Name the checkpoint itself, without the last part",
                )
            key = _joined(self._root, f"@{number + 1}.json")
            self._requests.put(key, key, json.dumps(marker | {"pruned": True}).encode())
        url = f"{self._bucket.scheme}://{_joined(self._bucket.name, self._root, f'@{number}')}"
        return _again(self._bucket, url, self._root, None, number, False)

    @property
    def discarded(self) -> bool:
        return self._named is not None and bool(self._marker(self._named).get("pruned"))

    def _begin_next(self, *, pruned: bool) -> int:
        """Create the next incarnation's marker if it does not exist. Returns this one's number."""
        self._refuse_writes()
        self._resolve()
        assert self._incarnation is not None
        here, following = self._incarnation, self._incarnation + 1
        told = {"incarnation": following, "after": here, "time": now()}
        name = f"@{following}.json"
        marker = json.dumps(told | ({"pruned": True} if pruned else {})).encode()
        try:
            self._requests.create(_joined(self._root, name), name, marker)
        except CreateUnknown:
            if self._requests.head(_joined(self._root, name), name) is None:
                raise
        fault_point("store.set_aside")
        self._incarnation = None
        return here

    def _marker(self, number: int) -> dict[str, Any]:
        """The contents of the marker that archived this incarnation; empty if there is none."""
        key = _joined(self._root, f"@{number + 1}.json")
        try:
            found = json.loads(self._requests.read(key, key))
        except FileNotFoundError:
            return {}
        except ValueError:
            found = None  # made by a person
        return found if isinstance(found, dict) and found else {"incarnation": number + 1}

    def way_back(self, archived: str) -> str:
        number = int(archived.rpartition("/@")[2]) + 1
        return f"delete the object {self.url}/@{number}.json before the next run starts there"

    def _refuse_writes(self) -> None:
        if self._named is not None:
            raise CheckpointUnusable(
                f"{self.url} is an old incarnation of a checkpoint and can only be read",
                remedy="Name the checkpoint itself, without the last part",
            )

    def look(self, below: str) -> Look:
        """The names directly below this path of the place, whatever the incarnation."""
        return self._listed(_joined(self._root, below))

    def outlines(self, below: str, count: int) -> dict[str, Look]:
        """`look` for many of the ``count`` folders below this path, by few requests.

        A removed checkpoint leaves a marker in a folder of its own, and one page of a flat listing
        shows a thousand of those. Reads one page for each hundred folders, and returns the folders
        that these show completely. An object that stands for an empty folder counts as a name.
        """
        prefix, pages = _joined(self._root, below), count // _FOLDERS_A_PAGE
        if not pages:
            return {}

        def listed(obs: Any, client: Any) -> Any:
            each = obs.list(client, prefix or None, chunk_size=_A_PAGE)
            return [*chain.from_iterable(islice(each, pages))]

        objects = self._requests.ask("list", below, listed)
        found: dict[str, Look] = {}
        paths = [each["path"] for each in objects]
        if paths != sorted(paths, key=str.encode):  # a few services list in another order
            return found
        for path, each in zip(paths, objects, strict=True):
            folder, _, name = path[len(prefix) + 1 if prefix else 0 :].partition("/")
            first, _, deeper = name.partition("/")
            if not name:
                continue
            names, folders = found.setdefault(_joined(below, folder), ({}, set()))
            if deeper:
                folders.add(first)
            else:
                names[name] = each["size"]
        if found and len(paths) == pages * _A_PAGE:
            found.popitem()  # the last folder may continue on the next page
        return found

    def check_current(self) -> None:
        if self._named is not None or self._incarnation is None:
            return
        marker = self._marker(self._incarnation)
        if marker:
            kept = f"Everything this run committed is in {self.url}/@{self._incarnation}"
            pruned = bool(marker.get("pruned"))
            raise Fenced(
                f"the checkpoint {self.url} was {'pruned' if pruned else 'reset'} while this run "
                "was at work on it",
                safe="" if pruned else kept,
                remedy="Run the same command again; it starts from scratch",
            )

    def _resolve(self) -> dict[str, int] | None:
        """Find the current incarnation, once. Returns the names at its top if known from that."""
        with self._resolving:
            if self._incarnation is not None:
                return None
            top, folders = self._listed(self._root)
            self._folders = folders
            numbered = [_NUMBERED.fullmatch(name) for name in (*top, *folders)]
            self._incarnation = max((int(n[1]) for n in numbered if n), default=0)
            if self._incarnation:
                return None
            return top

    def _key(self, name: str) -> str:
        self._resolve()
        numbered = f"@{self._incarnation}" if self._incarnation else ""
        return _joined(self._root, numbered, name)

    def _listed(self, prefix: str) -> Look:

        def listed(obs: Any, client: Any) -> Any:
            return obs.list_with_delimiter(client, prefix or None)

        found = self._requests.ask("list", prefix.removeprefix(self._root).strip("/"), listed)
        start = len(prefix) + 1 if prefix else 0
        # Consoles create an object with the name of the folder itself, as the folder's marker.
        objects = {o["path"][start:]: o["size"] for o in found["objects"] if o["path"][start:]}
        return objects, {path[start:] for path in found["common_prefixes"]}


def _again(
    bucket: Bucket,
    url: str,
    root: str,
    named: int | None,
    incarnation: int | None,
    at_work: bool,
) -> ObjectStore:
    """Unpickle a store: it keeps its incarnation, whatever was reset meanwhile."""
    found = ObjectStore(bucket, root)
    found.url, found._named, found._incarnation = url, named, incarnation
    found._requests = Requests(bucket, url, at_work=at_work)
    return found


def _joined(*parts: str) -> str:
    return "/".join(filter(None, parts))
