"""The store that a path or URL names."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from resumable_tasks.base import text
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMES = ("s3", "gs", "az")
# Compiled when used, since few places need them.
_SQUEEZED = r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)"
_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}"


def is_url(place: str | Path) -> bool:
    """True if the place has a URL scheme and so is not a path."""
    return "://" in os.fspath(place)


def open_store(place: str | Path, what: str = "checkpoint") -> Store:
    """The store at a place. Reads nothing. Raises `UsageError` for an invalid place.

    The URL of a bucket is taken literally: nothing in it is decoded, and its path is the prefix of
    the keys.
    """
    named = os.fspath(place)
    if not named:
        raise UsageError(f"{what} is an empty path", remedy="Name a directory, or a URL")
    if ":/" in named and (squeezed := re.match(_SQUEEZED, named)):
        raise UsageError(
            f"{what} {text.without_secrets(named)!r} was a URL, which Path() turned into a path",
            remedy=f"Give it as a string: {squeezed[1]}://…; for a directory of that name, write "
            f"./{named}",
        )
    if not is_url(named):
        return LocalStore(expanded(named))
    scheme, _, rest = named.partition("://")
    scheme = scheme.lower()
    if scheme == "file":
        return LocalStore.at_url(named)
    if scheme not in SCHEMES:
        raise UsageError(
            f"{what} {text.without_secrets(named)!r}: only directories and buckets are supported",
            remedy="Give a path, or s3://bucket/prefix, gs://… or az://container/prefix (of a "
            "database: SqlCheckpoint, `resumable sql`)",
        )
    bucket, _, prefix = rest.partition("/")
    wrong = _wrong(bucket, prefix)
    if wrong:
        raise UsageError(
            f"{what} {text.without_secrets(named)!r}: {wrong}",
            remedy=f"Write {scheme}://bucket/prefix; the endpoint and credentials come from the "
            "environment; see docs/buckets.md",
        )
    from resumable_tasks.checkpoint.store.clients import Bucket
    from resumable_tasks.checkpoint.store.object import ObjectStore

    return ObjectStore(Bucket(scheme, bucket), prefix.removesuffix("/"))


def expanded(path: str) -> str:
    """The path with ``~`` expanded. Raises `UsageError` if there is no such user."""
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found == path:
        raise UsageError(
            f"{path} starts with a user's home directory, which does not exist",
            remedy=f"Give the full path; for a folder of this name, write ./{path}",
        )
    return found


def _wrong(bucket: str, prefix: str) -> str:
    """What is wrong with this place in a bucket; empty if it is valid."""
    if "@" in bucket:
        return "it must not contain a user or password"
    if any(sign in bucket + prefix for sign in "?#"):
        return "it must not contain a query"
    if not re.fullmatch(_BUCKET, bucket):
        return f"{bucket!r} cannot name a bucket"
    if not prefix.isprintable() or "\\" in prefix:
        return "its path has a character that an object's name cannot have"
    parts = prefix.removesuffix("/").split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts):
        return "its path has a part that is empty or consists of dots"
    return ""
