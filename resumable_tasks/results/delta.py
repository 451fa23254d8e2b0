"""A Delta table that holds the rows of a checkpoint, each exactly once.

The table records its contents: each commit has, as application transactions of Delta,

- ``resumable-tasks/<checkpoint>``: the number of the checkpoint's records,
- ``resumable-tasks/of``: a digest of the checkpoint's id,
- ``resumable-tasks/rows``: a digest of the rows that the table holds from then on,
- ``resumable-tasks/count``: the number of these rows.

A publisher reads the table, and commits through the same object: Delta refuses the commit if
another one of the same application has come in between. After an error, or without an answer, the
publisher reads the table again. See ``docs/design/0024-forms-of-publish.md``.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from resumable_tasks.base import log, panics, text
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.hanging import interruptible
from resumable_tasks.base.text import clean, without_secrets
from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.checkpoint.store import clients, disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import is_url
from resumable_tasks.errors import ResumableTasksError, StoreError, UsageError
from resumable_tasks.items.keys import shorten
from resumable_tasks.results.deltatypes import delta_schema, to_delta
from resumable_tasks.results.form import Form, Held, Published
from resumable_tasks.results.rows import Wanted

if TYPE_CHECKING:
    import pyarrow as pa
    import tenacity
    from deltalake import CommitProperties, DeltaTable

INSTALL = 'pip install "resumable-tasks[delta]"'
T = TypeVar("T")
_APP = "resumable-tasks"
_ROWS, _COUNT, _OF = f"{_APP}/rows", f"{_APP}/count", f"{_APP}/of"
_LOG = "_delta_log"
_COLOUR = re.compile(r"\x1b\[\d*m")
_RETRIED = re.compile(
    r" in [0-9.]+m?s(, after \d+ retries, max_retries: \d+, retry_timeout: \S+)? +-"
)
# Characters that a path cannot contain, by experiment with deltalake 1.6.
_CHARACTERS = re.compile(r"[\x00-\x1f\x7f%\[\]|^\\]")
_TRIES = 12
_PATIENCE = 60.0
# After this many seconds without success, the log tells the reason for the wait.
_UNTOLD = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """The next commit to a table: all rows, or the rows after the first ``after`` pieces."""

    mode: Literal["append", "overwrite"]
    after: int = 0


class Copy:
    """The rows to publish, with the digests by which a table identifies them.

    ``digests`` are those of the first 0, 1, … pieces; the last one is that of all rows. Rows
    without pieces get a unique digest and the count -1.
    """

    def __init__(self, rows: CommittedRows, schema: pa.Schema) -> None:
        checkpoint = rows.identity.get("checkpoint")
        self._app = f"{_APP}/{checkpoint}" if checkpoint else None
        self._of = _number_of(str(checkpoint))
        self._records = int(rows.identity.get("records", 0))
        self._digests = [_number(secrets.token_bytes(8))]
        self._count = -1
        self.rows, self.schema = rows, schema
        if rows.after is not None:
            known = (str(checkpoint), rows.schema.to_string(truncate_metadata=False), str(schema))
            whole = blake2b("\n".join(known).encode(), digest_size=8)
            self._digests = [_number(whole.digest())]
            for piece in rows.pieces:
                whole.update(f"\n{piece.name}".encode())
                self._digests.append(_number(whole.digest()))
            self._count = sum(piece.rows for piece in rows.pieces)

    def step(self, table: DeltaTable) -> Step | None:
        """The commit that turns the table into this copy; None if it is this or a later one."""
        held = table.transaction_version(_ROWS)
        if held == self._digests[-1]:
            return None
        published = table.transaction_version(self._app) if self._app else None
        if published is not None and published > self._records:
            return None
        if held in self._digests:
            return Step("append", self._digests.index(held))
        return Step("overwrite")

    def tables(self, step: Step, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the rows that a step writes, with the types of Delta."""
        after = self.rows.after
        some = after is not None and step.mode == "append"
        for part in after(step.after) if after and some else wanted.tables(self.rows):
            yield to_delta(part, self.schema)

    def transactions(self) -> CommitProperties:
        """The transactions by which a commit records the table's contents from then on."""
        named = {_ROWS: self._digests[-1], _COUNT: self._count, _OF: self._of}
        return _properties(named | ({self._app: self._records} if self._app else {}))


class Delta(Form):
    """A Delta table that holds nothing else.

    A reader sees the complete rows of one version. Rows that are new since the last publication are
    appended; if some were retracted, replaced or retyped since, all rows are written again in one
    commit. The table holds each row once, even if publishers run at once, die or get no answer.
    Refuses ``ordered``, because the rows of a table have no order.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dest = store.url

    def check(self, wanted: Wanted) -> None:
        if find_spec("deltalake") is None:
            raise UsageError(f"{self.dest}: a Delta table needs deltalake", remedy=INSTALL)
        if wanted.ordered:
            raise UsageError(
                "ordered=True: rows of a Delta table have no order",
                remedy="Sort them when reading, or publish Parquet",
            )
        wrong = sorted(set(_CHARACTERS.findall(self.dest)))
        if wrong:
            raise UsageError(
                f"{clean(self.dest)}: deltalake cannot open a table with {clean(wrong[0])!r} in "
                "its path; name another place"
            )
        self._trying(lambda: self._look(None))

    def write(self, rows: CommittedRows, wanted: Wanted) -> Published:
        copy = Copy(rows, delta_schema(rows.schema))
        return self._trying(lambda: self._bring_up(copy, wanted))

    def held(self, checkpoint: str) -> Held | None:
        if find_spec("deltalake") is None:
            raise UsageError(f"{self.dest}: a Delta table needs deltalake", remedy=INSTALL)
        return self._trying(lambda: self._held(checkpoint))

    def _held(self, checkpoint: str) -> Held | None:
        import pyarrow as pa

        table = self._table()
        if table is None or table.transaction_version(_OF) != _number_of(checkpoint):
            return None
        count = table.transaction_version(_COUNT)
        if count is not None and count >= 0 and table.count() != count:
            return None  # others have written to it since
        there = self._store.list("")
        files = pa.table(table.get_add_actions()).select(["path", "size_bytes"]).to_pylist()
        if any(there.get(each["path"]) != each["size_bytes"] for each in files):
            return None
        return Held(table.transaction_version(f"{_APP}/{checkpoint}") or 0, table.count())

    def _bring_up(self, copy: Copy, wanted: Wanted) -> Published:
        """Read the table, and write the rows that it lacks, if any."""
        from deltalake import WriterProperties, write_deltalake

        table = self._look(copy.schema)
        assert table is not None
        step = copy.step(table)
        if step is None:
            return self._published(table)
        self._check_conditions(table)
        fault_point("publish.looked")
        source = _Source(copy.tables(step, wanted))
        try:
            write_deltalake(
                table,
                source.reader(copy.schema),
                mode=step.mode,
                schema_mode="overwrite" if step.mode == "overwrite" else None,
                target_file_size=wanted.target_bytes,
                writer_properties=WriterProperties(compression="ZSTD"),
                commit_properties=copy.transactions(),
            )
        finally:
            source.raise_own()
        fault_point("publish.exchanged")
        return self._published(table)

    def _look(self, schema: pa.Schema | None) -> DeltaTable | None:
        """The table as it is now. If there is none, creates an empty one, or returns None.

        Raises `UsageError` if others have written to it.
        """
        if os.path.isfile(self.dest):
            raise UsageError(
                f"{self.dest} is a file; a Delta table is a folder",
                remedy="Name a folder of its own, which need not exist yet",
            )
        table = self._table()
        if table is None:
            self._refuse_foreign_files()
            if schema is None:
                return None
            # First, so that every other step begins with a table that was read.
            self._create(schema)
            table = self._table()
            assert table is not None
        _refuse_foreign_commits(table, self.dest)
        return table

    def _table(self) -> DeltaTable | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        # Not `is_deltatable`, which would block all other Python threads.
        try:
            return DeltaTable(self.dest, storage_options=_options(self.dest))
        except TableNotFoundError:
            return None

    def _create(self, schema: pa.Schema) -> None:
        """Create the empty table, unless another publisher has created it meanwhile.

        If two create it at once, deltalake appends the second one's commit after the first one's
        commits. So the log is created elsewhere, and put in place if that is free.
        """
        from deltalake import DeltaTable

        local = isinstance(self._store, LocalStore)
        if local:
            os.makedirs(self.dest, exist_ok=True)
        where = self.dest if local else None
        with tempfile.TemporaryDirectory(prefix=f"{_LOG}.", dir=where) as begun:
            DeltaTable.create(begun, schema, commit_properties=_properties({_ROWS: 0, _COUNT: 0}))
            if not local:
                first = f"{_LOG}/{0:020}.json"
                self._store.create(first, Path(begun, first).read_bytes())
                return
            try:
                Path(begun, _LOG).rename(Path(self.dest, _LOG))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def _check_conditions(self, table: DeltaTable) -> None:
        """Raise `StoreError` if a bucket's put-if-absent replaces an object.

        There, two publishers could both commit. This puts the same bytes, so nothing is lost.
        """
        if isinstance(self._store, LocalStore):
            return
        name = f"{_LOG}/{table.version():020}.json"
        if self._store.create(name, self._store.read(name)):
            raise StoreError(
                f"the service of {self.dest} ignores If-None-Match, so two simultaneous publishers "
                "would duplicate rows",
                safe="Nothing was written",
                remedy="Publish Parquet (without form='delta'), or use another service",
            )

    def _refuse_foreign_files(self) -> None:
        names = disk.names(self._store, "")
        found = sorted(name for name in names if not name.startswith(_LOG))
        # The files may be those of a table that was created meanwhile.
        if found and self._table() is None:
            raise UsageError(
                f"{self.dest} holds {shorten(found[0])}, and is not a Delta table; name a place of "
                "its own"
            )

    def _published(self, table: DeltaTable) -> Published:
        import pyarrow as pa

        files = pa.table(table.get_add_actions()).select(["path", "size_bytes"]).to_pydict()
        return Published(self.dest, table.count(), tuple(files["path"]), sum(files["size_bytes"]))

    def _trying(self, call: Callable[[], T]) -> T:
        """Call, and retry after any error of deltalake; raise our own errors.

        Raises `StoreError` if retries do not help.
        """
        import tenacity

        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_after_delay(_PATIENCE),
            wait=tenacity.wait_random_exponential(0.05, max=2),
            retry=tenacity.retry_if_exception(_is_others),
            before_sleep=self._teller(),
        )
        try:
            with panics.caught():
                # A call to a bucket may take long, and must not delay Ctrl-C.
                return tries((lambda: interruptible(call)) if is_url(self.dest) else call)
        except tenacity.RetryError as error:
            raise StoreError(
                f"cannot publish to {self.dest}: {_said(error.last_attempt.exception())}",
                safe="The table is unchanged or has all rows: publishing again finds out",
                remedy="Fix the cause and publish again",
            ) from None
        except panics.Panicked as error:
            raise StoreError(
                f"cannot publish to {self.dest}: deltalake has panicked: {_said(error)}",
                remedy="If this process was forked after deltalake was used, start it with spawn",
            ) from None

    def _teller(self) -> Callable[[tenacity.RetryCallState], None]:
        """A callback that logs the reason of failing tries once they take long."""
        told = False

        def tell(state: tenacity.RetryCallState) -> None:
            nonlocal told
            since = state.seconds_since_start or 0.0
            if told or since < _UNTOLD or state.outcome is None:
                return
            told = True
            why, left = _said(state.outcome.exception()), text.duration(_PATIENCE - since)
            log.warning("%s: %s. Trying again for up to %s", self.dest, why, left)

        return tell


def _is_others(error: BaseException) -> bool:
    """True for an error after which the table is read again."""
    ours = isinstance(error, ResumableTasksError) and not isinstance(error, CreateUnknown)
    return isinstance(error, Exception) and not ours


def _refuse_foreign_commits(table: DeltaTable, dest: str) -> None:
    """Raise `UsageError` for a table that others have created or written to."""
    count = table.transaction_version(_COUNT)
    if count is None:
        raise UsageError(
            f"{dest} is a Delta table that publish did not create; name a place of its own"
        )
    if count >= 0 and table.count() != count:
        raise UsageError(
            f"{dest} holds {text.count(table.count(), 'row')} but publish wrote {count:,}: another "
            "program writes to this table",
            safe="Nothing was written",
            remedy="Publish to a place of its own, or restore the version that publish wrote",
        )


class _Source:
    """A stream of tables that remembers its own error, which deltalake turns into text."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._error: Exception | None = None

    def reader(self, schema: pa.Schema) -> pa.RecordBatchReader:
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for table in self._tables:
                yield from table.to_batches()
        except Exception as error:
            self._error = error
            raise
        fault_point("publish.staged")

    def raise_own(self) -> None:
        """Raise the error that has ended the stream, if one has."""
        if self._error is not None:
            raise self._error


def _number_of(checkpoint: str) -> int:
    return _number(blake2b(checkpoint.encode(), digest_size=8).digest())


def _number(digest: bytes) -> int:
    """A digest as a Delta transaction version: a nonzero integer of 63 bits."""
    return int.from_bytes(digest, "big") >> 1 or 1


def _options(dest: str) -> dict[str, str] | None:
    """The options of deltalake's client, in addition to the environment.

    Commits use put-if-absent; an environment that forbids this leads to an error.
    """
    if not is_url(dest):
        return None
    # Retries get less time than one request, so that we retry a silent service ourselves.
    common = {"timeout": "30s", "connect_timeout": "5s"}
    common |= {"max_retries": "4", "retry_timeout": "15s"}
    scheme = dest.partition("://")[0]
    plain = clients.endpoint(scheme).startswith("http://")
    conditional = {"conditional_put": "etag"} if scheme == "s3" else {}
    return common | conditional | ({"allow_http": "true"} if plain else {})


def _properties(versions: Mapping[str, int]) -> CommitProperties:
    from deltalake import CommitProperties, Transaction

    named = [Transaction(app, version) for app, version in versions.items()]
    return CommitProperties(app_transactions=named)


def _said(error: BaseException | None) -> str:
    """The message of a deltalake error as one line, without colours and traces."""
    lines = [line.strip(" ↳") for line in _COLOUR.sub("", str(error)).splitlines()]
    told = itertools.takewhile(lambda line: not line.startswith(("0:", "stack backtrace")), lines)
    line = _RETRIED.sub(":", ": ".join(filter(None, told)))
    return clean(without_secrets(line or type(error).__name__), 300)
