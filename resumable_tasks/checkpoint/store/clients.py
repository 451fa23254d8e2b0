"""Clients of object stores, configured by the environment as each cloud's own tools are.

A client finds its credentials in the process in which it runs, so a store that is pickled to
another process carries no secret.
"""

from __future__ import annotations

import math
import os
import urllib.parse
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.text import without_secrets
from resumable_tasks.errors import CheckpointUnusable, UsageError

if TYPE_CHECKING:
    import pyarrow.fs
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

    Client = S3Store | GCSStore | AzureStore

INSTALL = 'pip install "resumable-tasks[object]"'
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE where boto3 is installed",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to the path of the key's file",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_KEY",
}
# A request without an answer for this long is retried. A large answer arrives in pieces, each of
# which restarts the time; a large request must be sent within it.
_SILENCE = timedelta(seconds=20)
_LONGEST = timedelta(minutes=10)
_RETRIES: RetryConfig = {
    "max_retries": 4,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3)},
}
_NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=60)}
_PREFIXES = ("AWS_", "GOOGLE_", "STORAGE_", "AZURE_")
# If one of these is set, no file needs to be read for credentials.
_AWS_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
# The process that made the first request. A process forked from it would wait forever for threads
# that it does not have.
_first_used_in: int | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of S3 (``s3``), Google Cloud Storage (``gs``) or Azure (``az``) and its name."""

    scheme: str
    name: str


@dataclass(slots=True)
class Outage:
    """What this process knows about a service that does not answer.

    ``given_up_at``: the time (`time.monotonic`) when a request was last given up, if none was
    answered since.
    """

    given_up_at: float = -math.inf


def outage(bucket: Bucket) -> Outage:
    """The one `Outage` of this process for a bucket."""
    return _outage(bucket, _environment())


@lru_cache(maxsize=16)
def _outage(bucket: Bucket, _: bytes) -> Outage:
    return Outage()


def client(bucket: Bucket, *, retries: bool) -> Client:
    """The client of this process for a bucket; with ``retries`` it retries by itself where it can.

    Raises `UsageError` if obstore or credentials are missing, and `CheckpointUnusable` in a process
    forked from one that has used a bucket.
    """
    global _first_used_in
    here = os.getpid()
    if _first_used_in is None:
        _first_used_in = here
    elif _first_used_in != here:
        raise CheckpointUnusable(
            f"{bucket.scheme}://{bucket.name}: this process was forked from one that had already "
            "used a bucket, and would wait forever for threads that exist only in its parent",
            remedy='Start processes with multiprocessing.get_context("spawn") or "forkserver", or '
            "fork before the first use of a bucket",
        )
    return _client(bucket, retries, _environment())


def _environment() -> bytes:
    """A digest of the variables that configure a client; a program may change them as it runs.

    Only a digest, because a traceback may show the values that are kept or passed on.
    """
    names = (name for name in os.environ if name.startswith(_PREFIXES))
    return blake2b(repr([(name, os.environ[name]) for name in names]).encode()).digest()


@lru_cache(maxsize=16)
def _client(bucket: Bucket, retries: bool, _: bytes) -> Client:
    try:
        from obstore import store
        from obstore.exceptions import BaseError
    except ImportError:
        raise UsageError(
            f"{bucket.scheme}://{bucket.name}: a checkpoint in a bucket needs obstore, which is "
            "not installed",
            remedy=INSTALL,
        ) from None
    address = endpoint(bucket.scheme)
    options: ClientConfig = {
        "timeout": _LONGEST,
        "read_timeout": _SILENCE,
        "connect_timeout": timedelta(seconds=5),
    }
    if address.startswith("http://"):
        options["allow_http"] = True  # the user has named an http endpoint explicitly
    # After a silence `Requests` retries, because it keeps the time and reports the wait.
    retry = _RETRIES | {"retry_timeout": 0.75 * _SILENCE} if retries else _NO_RETRIES
    try:
        if bucket.scheme == "s3":
            provider: Any = _provider()
            return store.S3Store(
                bucket.name,
                client_options=options,
                retry_config=retry,
                credential_provider=provider,
                conditional_put="etag",  # not the environment's choice: safety depends on it
            )
        if bucket.scheme == "gs":
            return store.GCSStore(bucket.name, client_options=options, retry_config=retry)
        return store.AzureStore(bucket.name, client_options=options, retry_config=retry)
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"{bucket.scheme}://{bucket.name}: the client's settings from the environment are "
            f"invalid: {without_secrets(str(error).splitlines()[0])[:300]}",
            remedy=f"Set {CREDENTIALS[bucket.scheme]}; see docs/buckets.md",
        ) from None


def endpoint(scheme: str) -> str:
    """The endpoint that the environment names, or ``""``.

    Raises `UsageError` if it is not a URL, which would make the client panic, and if it contains a
    user: the client's errors show the URL and would show the password in it.
    """
    names = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "gs": ("GOOGLE_BASE_URL",),
        "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    }[scheme]
    for name in names:
        found = os.environ.get(name, "")
        if not found:
            continue
        if "@" in found.partition("//")[2].partition("/")[0]:
            found = without_secrets(found)  # a traceback may show this variable
            raise UsageError(
                f"{name} contains a user: {found}",
                remedy="Remove it, and give the credentials in their own environment variables",
            )
        if not _is_address(found):
            found = ""  # it may have a password in it
            raise UsageError(
                f"{name} is not the URL of a service", remedy=f"Write {name}=http://host:9000"
            )
        return found
    return ""


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or out of range
        return False


def _provider() -> Any:
    """A provider of AWS credentials that need boto3 (profiles, SSO); None if it is not needed.

    Raises `UsageError` if the environment names a profile and boto3 is not installed.
    """
    if any(map(os.environ.get, _AWS_KEYS)) or os.environ.get("AWS_SKIP_SIGNATURE"):
        return None
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    if profile is None and not any(os.path.isfile(os.path.expanduser(file)) for file in files):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except ImportError:
        raise UsageError(
            "AWS credentials come from "
            + (f"the profile {profile}" if profile else "~/.aws")
            + ", which the bucket client can read only with boto3",
            remedy='pip install boto3, or put the credentials into the environment: eval "$(aws '
            'configure export-credentials --format env)"',
        ) from None
    except Exception as error:
        raise UsageError(
            f"the AWS credentials{f' of profile {profile}' if profile else ''} cannot be used: "
            f"{without_secrets(str(error).splitlines()[0])[:300]}",
            remedy="`aws sts get-caller-identity` shows whether they work",
        ) from error


def filesystem(bucket: Bucket) -> pyarrow.fs.FileSystem:
    """Arrow's own file system for a bucket, for reading.

    Not one written in Python: that aborts the interpreter at exit (in 23 of 30 short scripts with
    pyarrow 26). It finds credentials by the cloud's default chain.
    """
    import pyarrow.fs as pafs

    address = urllib.parse.urlsplit(endpoint(bucket.scheme))
    if bucket.scheme == "az":
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        named = {"blob_storage_authority": address.netloc} if address.netloc else {}
        if address.scheme == "http":
            named["blob_storage_scheme"] = "http"
        key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
        return pafs.AzureFileSystem(account, account_key=key, **named)
    named = {"endpoint_override": address.netloc + address.path} if address.netloc else {}
    if address.scheme:
        named["scheme"] = address.scheme
    if bucket.scheme == "gs":
        return pafs.GcsFileSystem(**named)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pafs.S3FileSystem(region=region, **named)
