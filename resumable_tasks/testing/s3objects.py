"""The objects and the request handling of `s3server`, without a network.

Requests are applied one after the other, each as a whole or not at all. Two conditional puts of one
name never both succeed.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import threading
import time
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

PART = 5 * 2**20  # the smallest part of an upload, except the last
_KEPT = ("content-type", "cache-control", "content-disposition", "content-language")
_META = ("x-amz-meta-", "x-goog-meta-")
_PAST = "\U0010ffff"  # sorts after every name with the same prefix
_CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "content-md5": lambda data: hashlib.md5(data).digest(),  # noqa: S324 - the header's
    "x-amz-checksum-crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "x-amz-checksum-sha1": lambda data: hashlib.sha1(data).digest(),  # noqa: S324 - the header's
    "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
}


@dataclass
class Options:
    """The behaviour of the service; may be changed while it runs."""

    latency: float = 0.0
    """Seconds that each request takes before it is applied."""
    page: int = 1000
    """The most names and prefixes in one page of a listing."""
    conditions: bool = True
    """False: conditional puts overwrite, as on servers that ignore the headers."""
    metadata: bool = True
    """False: user metadata is dropped, as some gateways do."""
    access_key: str = ""
    """Requests with another access key (or bearer token) get 403; empty: all are accepted."""
    clock: float = 0.0
    """Seconds by which the clock is ahead; signed requests that are 15 minutes off get 403."""


@dataclass
class Request:
    """One request, with its body decoded."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: Message
    body: bytes = b""

    @property
    def google(self) -> bool:
        """True if it uses the names of Google's storage."""
        return (self.headers["authorization"] or "").startswith("Bearer ")

    @property
    def kind(self) -> str:
        """The kind for counting: ``CREATE`` is a put-if-absent, ``UPDATE`` a put-if-match."""
        if not self.key:
            special = {"GET": "LIST", "POST": "DELETE-MANY"}
            return special.get(self.method, f"{self.method}-BUCKET")
        if "uploadId" in self.query:
            return {"PUT": "PART", "POST": "COMPLETE"}.get(self.method, "ABORT")
        if self.method != "PUT":
            return "UPLOAD" if self.method == "POST" else self.method
        if self.headers["if-none-match"] or self.headers["x-goog-if-generation-match"] == "0":
            return "CREATE"
        updates = self.headers["if-match"] or self.headers["x-goog-if-generation-match"]
        return "UPDATE" if updates else "PUT"


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """An error of the service, with its documented status and code."""

    @property
    def reply(self) -> Reply:
        status, code = str(self).split()
        inside = f"<Code>{code}</Code><Message>{code}</Message>"
        return Reply(int(status), f"<Error>{inside}</Error>".encode())  # in no namespace


@dataclass
class Stored:
    """One version of an object."""

    data: bytes
    headers: dict[str, str]
    etag: str
    generation: int
    modified: float

    def reply(self, status: int = 200) -> Reply:
        described = {
            "ETag": self.etag,
            "Last-Modified": formatdate(self.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "x-goog-generation": str(self.generation),
        }
        return Reply(status, self.data, self.headers | described)


@dataclass
class Bucket:
    objects: dict[str, Stored] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def put(self, key: str, stored: Stored) -> None:
        if key not in self.objects:
            insort(self.names, key)
        self.objects[key] = stored

    def delete(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            del self.names[bisect_left(self.names, key)]


@dataclass
class Upload:
    """A multipart upload that is neither complete nor aborted."""

    key: str
    headers: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class Objects:
    """All buckets. One lock, so that each request is entirely before or after any other."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.buckets: dict[str, Bucket] = {}
        self.uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()
        self._count = 0

    def now(self) -> float:
        return time.time() + self.options.clock

    def apply(self, request: Request) -> Reply:
        """Answer any request; a refusal is an answer too."""
        try:
            with self._lock:
                self._authorise(request)
                _check(request)
                return self._of_object(request) if request.key else self._of_bucket(request)
        except Refused as refused:
            return refused.reply

    def snapshot(self, bucket: str) -> dict[str, bytes]:
        """The names in a bucket with their bytes, read without a request."""
        with self._lock:
            return {name: each.data for name, each in self.buckets[bucket].objects.items()}

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Put an object without a request."""
        with self._lock:
            self._store(self.buckets[bucket], key, data, {}, _etag(data))

    def _authorise(self, request: Request) -> None:
        wanted = self.options.access_key
        given = request.headers["authorization"] or request.query.get("X-Amz-Credential", "")
        if wanted and f"Credential={wanted}/" not in given and given != f"Bearer {wanted}":
            raise Refused("403 InvalidAccessKeyId")
        if signed := request.headers["x-amz-date"]:
            at = calendar.timegm(time.strptime(signed, "%Y%m%dT%H%M%SZ"))
            if abs(at - self.now()) > 900:
                raise Refused("403 RequestTimeTooSkewed")

    # Buckets

    def _of_bucket(self, request: Request) -> Reply:
        if request.method == "PUT":
            if request.bucket in self.buckets:
                raise Refused("409 BucketAlreadyOwnedByYou")
            self.buckets[request.bucket] = Bucket()
            return Reply()
        bucket = self._bucket(request)
        if request.method == "HEAD":
            return Reply()
        if request.method == "GET" and request.query.get("list-type") == "2":
            return self._page(bucket, request.bucket, request.query)
        if request.method == "POST" and "delete" in request.query:
            return _delete_many(bucket, request.body)
        raise Refused("501 NotImplemented")

    def _bucket(self, request: Request) -> Bucket:
        try:
            return self.buckets[request.bucket]
        except KeyError:
            raise Refused("404 NoSuchBucket") from None

    def _page(self, bucket: Bucket, name: str, query: Mapping[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(int(query.get("max-keys", 1000)), self.options.page)
        token = query.get("continuation-token", "")
        after = base64.urlsafe_b64decode(token).decode() if token else query.get("start-after", "")
        at = max(bisect_left(bucket.names, prefix), bisect_right(bucket.names, after))
        quoted = quote if query.get("encoding-type") == "url" else escape
        shown: list[str] = []
        while at < len(bucket.names) and bucket.names[at].startswith(prefix) and len(shown) < most:
            key = bucket.names[at]
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folder = prefix + head + delimiter
                shown.append(f"<CommonPrefixes><Prefix>{quoted(folder)}</Prefix></CommonPrefixes>")
                after = folder + _PAST
                at = bisect_left(bucket.names, after)
            else:
                shown.append(_contents(quoted(key), bucket.objects[key]))
                after = key
                at += 1
        more = at < len(bucket.names) and bucket.names[at].startswith(prefix)
        head = (
            f"<Name>{name}</Name><Prefix>{quoted(prefix)}</Prefix><KeyCount>{len(shown)}</KeyCount>"
        )
        head += f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
        head += "<EncodingType>url</EncodingType>" * (quoted is quote)
        if more:
            token = base64.urlsafe_b64encode(after.encode()).decode()
            head += f"<NextContinuationToken>{token}</NextContinuationToken>"
        return Reply(200, _xml("ListBucketResult", head + "".join(shown)))

    # Objects

    def _of_object(self, request: Request) -> Reply:
        bucket = self._bucket(request)
        if "uploads" in request.query or "uploadId" in request.query:
            return self._multipart(bucket, request)
        if request.method == "PUT":
            return self._put(bucket, request)
        if request.method == "DELETE":
            if request.google and request.key not in bucket.objects:
                raise Refused("404 NoSuchKey")
            bucket.delete(request.key)
            return Reply(204)
        if request.method not in ("GET", "HEAD"):
            raise Refused("501 NotImplemented")
        stored = bucket.objects.get(request.key)
        if stored is None:
            raise Refused("404 NoSuchKey")
        if request.headers["if-match"] not in (None, "*", stored.etag):
            raise Refused("412 PreconditionFailed")
        if request.headers["if-none-match"] in ("*", stored.etag):
            raise Refused("304 NotModified")
        return _ranged(stored, request.headers["range"])

    def _put(self, bucket: Bucket, request: Request) -> Reply:
        if request.headers["x-amz-copy-source"] or request.headers["x-goog-copy-source"]:
            raise Refused("501 NotImplemented")
        self._demand(bucket, request)
        headers, etag = self._described(request), _etag(request.body)
        reply = self._store(bucket, request.key, request.body, headers, etag).reply()
        reply.body = b""
        return reply

    def _store(
        self, bucket: Bucket, key: str, data: bytes, headers: dict[str, str], etag: str
    ) -> Stored:
        self._count += 1
        stored = Stored(data, headers, etag, self._count, self.now())
        bucket.put(key, stored)
        return stored

    def _described(self, request: Request) -> dict[str, str]:
        """The headers to keep; metadata is returned by the names of both services."""
        kept = {"content-type": "binary/octet-stream"}
        kept |= {name: value for name in _KEPT if (value := request.headers[name])}
        for name, value in request.headers.items() if self.options.metadata else ():
            for meta in _META:
                if name.lower().startswith(meta):
                    kept |= {each + name.lower()[len(meta) :]: value for each in _META}
        return kept

    def _demand(self, bucket: Bucket, request: Request) -> None:
        """Check the conditions of a put, or of an upload's end, against the current object."""
        if not self.options.conditions:
            return
        stored = bucket.objects.get(request.key)
        absent, etag = request.headers["if-none-match"], request.headers["if-match"]
        generation = request.headers["x-goog-if-generation-match"]
        if absent not in (None, "*"):
            raise Refused("501 NotImplemented")
        if etag and stored is None:
            raise Refused("404 NoSuchKey")
        there = stored.generation if stored else 0
        if (absent and stored) or (stored and etag not in (None, "*", stored.etag)):
            raise Refused("412 PreconditionFailed")
        if generation is not None and generation != str(there):
            raise Refused("412 PreconditionFailed")

    # Uploads in parts

    def _multipart(self, bucket: Bucket, request: Request) -> Reply:
        identity = request.query.get("uploadId", "")
        if not identity:
            self._count += 1
            identity = f"upload-{self._count}"
            self.uploads[identity] = Upload(request.key, self._described(request))
            inside = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
            inside += f"<UploadId>{identity}</UploadId>"
            return Reply(200, _xml("InitiateMultipartUploadResult", inside))
        upload = self.uploads.get(identity)
        if upload is None or upload.key != request.key:
            raise Refused("404 NoSuchUpload")
        if request.method == "PUT":
            upload.parts[int(request.query["partNumber"])] = request.body
            return Reply(200, b"", {"ETag": _etag(request.body)})
        if request.method == "POST":
            return self._complete(bucket, request, upload, identity)
        del self.uploads[identity]
        return Reply(204)

    def _complete(self, bucket: Bucket, request: Request, upload: Upload, identity: str) -> Reply:
        named = [
            (int(part.findtext("{*}PartNumber", "0")), part.findtext("{*}ETag", "").strip('"'))
            for part in _parsed(request.body).findall("{*}Part")
        ]
        numbers = [number for number, _ in named]
        if numbers != sorted(set(numbers)):
            raise Refused("400 InvalidPartOrder")
        if any(_etag(upload.parts.get(n, b"?")).strip('"') != etag for n, etag in named):
            raise Refused("400 InvalidPart")
        parts = [upload.parts[number] for number in numbers]
        if any(len(part) < PART for part in parts[:-1]):
            raise Refused("400 EntityTooSmall")
        self._demand(bucket, request)
        digests = b"".join(bytes.fromhex(etag) for _, etag in named)
        etag = f'"{_etag(digests)[1:-1]}-{len(parts)}"'
        stored = self._store(bucket, request.key, b"".join(parts), upload.headers, etag)
        del self.uploads[identity]
        inside = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
        inside += f"<ETag>{escape(etag)}</ETag>"
        headers = {"x-goog-generation": str(stored.generation)}
        return Reply(200, _xml("CompleteMultipartUploadResult", inside), headers)


def _xml(tag: str, inside: str) -> bytes:
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0" encoding="UTF-8"?><{tag} xmlns="{space}">{inside}</{tag}>'.encode()


def _parsed(body: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - from a test
    except ElementTree.ParseError:
        raise Refused("400 MalformedXML") from None


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'  # noqa: S324 - as S3 makes it


def _contents(key: str, stored: Stored) -> str:
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified))
    return (
        f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified>"
        f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.data)}</Size></Contents>"
    )


def _delete_many(bucket: Bucket, body: bytes) -> Reply:
    request = _parsed(body)
    keys = [each.findtext("{*}Key", "") for each in request.findall("{*}Object")]
    if not 0 < len(keys) <= 1000:
        raise Refused("400 MalformedXML")
    for key in keys:
        bucket.delete(key)
    quiet = request.findtext("{*}Quiet") == "true"
    gone = "" if quiet else "".join(f"<Deleted><Key>{escape(k)}</Key></Deleted>" for k in keys)
    return Reply(200, _xml("DeleteResult", gone))


def _ranged(stored: Stored, asked: str | None) -> Reply:
    if not asked or not asked.startswith("bytes=") or "," in asked:
        return stored.reply()
    size = len(stored.data)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise Refused("416 InvalidRange")
    reply = stored.reply(206)
    reply.body = stored.data[start:end]
    reply.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return reply


def _check(request: Request) -> None:
    """Refuse a body that does not match its headers."""
    for header, digest in _CHECKSUMS.items():
        wanted = request.headers[header]
        if wanted and base64.b64decode(wanted) != digest(request.body):
            raise Refused("400 BadDigest")
