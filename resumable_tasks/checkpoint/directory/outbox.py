"""The outbox: a remote worker leaves a batch's outcome here until the driver commits it.

Rows go into shards. The outcomes that name them do not go through the orchestrator either: they can
be large, and a scheduler that forgets a result, or reruns a task whose worker has died, must
neither lose a batch that was paid for nor have it handled twice. So a worker puts each outcome
into the checkpoint's ``outbox`` folder, in the format of a journal record with a checksum. It does
not count before the driver has committed it. The files for the driver of epoch 3::

    outbox/e3-open       exists while this driver wants batches to begin
    outbox/e3-t7         exists while it waits for its task run 7
    outbox/e3-t7-begun   created by the worker that began task run 7; no other worker begins it
    outbox/e3-t7-alive   the heartbeat of that worker, written every few seconds
    outbox/e3-42         the outcome of batch 42

A worker checks the first two before every batch. They are removed when the driver stops, gives the
task run up, or is succeeded by another driver, which sweeps everything of older epochs. Whatever
process dies at any moment, a batch is committed by one driver or handled again:

* before its shard, or between the shard and the outcome: handled again; the shard is an orphan;
* between the outcome and its commit: the worker's death changes nothing; after the driver's death
  it is handled again, and outcome and shard are swept;
* between the commit and the removal of the outcome: the outcome is swept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, field, replace
from typing import Any

from resumable_tasks import errors
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import schemas
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import decode, encode, record_name
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import CheckpointDamaged, ResumableTasksError, StoreError
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch, Cause, ErrorKind
from resumable_tasks.runners.outcome import Done, Failed, Fatal, Times

FOLDER = "outbox"


def epoch_of(path: str) -> int:
    """The epoch in the path of any file in the outbox; 0 if there is none."""
    digits = path.removeprefix(f"{FOLDER}/e").partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


@frozen
class Outbox:
    """The outbox of one driver's run. It is pickled and sent to workers.

    By the ``token`` a worker recognises this driver's checkpoint. Without it, a worker could take
    a checkpoint under the same path on its own disk for it.
    """

    store: Store
    epoch: int
    token: str = field(default_factory=lambda: token(8))

    def open(self) -> None:
        """Let workers begin. The driver calls this before it sends the first batch."""
        disk.prepare(self.store, (FOLDER,))
        self.store.put(self._path("open"), self.token.encode())

    def close(self) -> None:
        """Stop workers from beginning another batch."""
        self.store.delete(self._path("open"))

    def is_open(self) -> bool:
        """True while this driver wants more batches; False also if its checkpoint is not here."""
        return self._read("open") == self.token.encode()

    def expect(self, task_run: int) -> None:
        """Let this task run begin. The driver calls this before it submits the task run."""
        self.store.put(self._path(f"t{task_run}"), b"")

    def expects(self, task_run: int) -> bool:
        """True if the driver wants this task run to begin another batch."""
        return self._read(f"t{task_run}") is not None and self.is_open()

    def begin(self, task_run: int) -> bool:
        """True for one worker only, however often a scheduler starts this task run."""
        name, mine = f"t{task_run}-begun", token(8).encode()
        try:
            return self.store.create(self._path(name), mine)
        except CreateUnknown as error:
            there = self._read(name)
            if there is None or not error.readable_is_durable:
                raise
            return there == mine

    def has_begun(self, task_run: int) -> bool:
        """True once a worker has begun this task run."""
        return self._read(f"t{task_run}-begun") is not None

    def beat(self, task_run: int, number: int) -> None:
        """Write a heartbeat of the worker that has begun this task run, each with a new number."""
        self.store.put(self._path(f"t{task_run}-alive"), b"%d" % number)

    def last_beat(self, task_run: int) -> bytes | None:
        """The last heartbeat; None if there was none."""
        return self._read(f"t{task_run}-alive")

    def withdraw(self, task_run: int) -> None:
        """Stop workers from beginning this task run, or another batch of it."""
        # In this order, a worker can at no moment begin it a second time.
        self.store.delete(self._path(f"t{task_run}"))
        self.store.delete(self._path(f"t{task_run}-begun"))
        self.store.delete(self._path(f"t{task_run}-alive"))

    def put(self, outcome: Done | Failed | Fatal) -> None:
        """Leave the outcome of a batch, durable on return. Raises `StoreError`."""
        number = outcome.batch.number
        record = Commit(kind="commit", epoch=self.epoch, run="", number=number)
        record = replace(record, **_fields(outcome))
        self.store.put(self._path(str(number)), encode(record)[0])

    def numbers(self) -> set[int]:
        """The numbers of the batches whose outcomes are here."""
        prefix = self._path("")
        names = (name.removeprefix(prefix) for name in self.store.list(FOLDER))
        return {int(name) for name in names if name.isascii() and name.isdigit()}

    def take(self, batch: Batch) -> Done | Failed | Fatal | None:
        """The outcome of a batch; None if it is missing or damaged, and must be done again."""
        data = self._read(str(batch.number))
        if data is None:
            return None
        try:
            record = decode(data, record_name(batch.number))
        except CheckpointDamaged:
            return None
        if record.info["fatal"]:
            return Fatal(batch, _error(*record.info["fatal"]))
        if sorted(_lines(record)) != sorted(batch.lines.split(b"\n")):
            return None  # not the outcome of this batch
        return _outcome(batch, record)

    def remove(self, number: int) -> None:
        """Forget a batch's outcome; no error if it is not here."""
        self.store.delete(self._path(str(number)))

    def clear(self) -> None:
        """Remove everything of this run."""
        for name in self.store.list(FOLDER):
            if epoch_of(name) == self.epoch:
                self.store.delete(name)

    def _read(self, name: str) -> bytes | None:
        try:
            return self.store.read(self._path(name))
        except FileNotFoundError:
            return None

    def _path(self, name: str) -> str:
        return f"{FOLDER}/e{self.epoch}-{name}"


def _fields(outcome: Done | Failed | Fatal) -> dict[str, Any]:
    """The outcome as fields of a record."""
    match outcome:
        case Fatal(error=error):
            return {"info": {"fatal": [type(error).__name__, str(error)]}}
        case Failed(error=kind):
            info = {**_numbers(outcome), "error": _kind_as_json(kind)}
            return {"failures": outcome.failures, "info": info}
        case Done(shard=shard, schema=schema):
            return {
                "keys": outcome.done,
                "key_count": outcome.completed,
                "shards": (shard,) if shard is not None else (),
                "schema": schemas.schema_to_text(schema) if schema is not None else None,
                "failures": outcome.failures,
                "info": {
                    **_numbers(outcome),
                    "left_out": outcome.left_out,
                    "left_by": _kind_as_json(outcome.left_by),
                },
            }


def _numbers(outcome: Done | Failed) -> dict[str, Any]:
    return {"fatal": None, "error": None, "cost": outcome.cost, "times": asdict(outcome.times)}


def _outcome(batch: Batch, record: Commit) -> Done | Failed:
    """Rebuild an outcome; the reverse of `_fields`."""
    info = record.info
    failed = tuple((name, seconds) for name, seconds in info["times"]["failed"])
    cost, times = info["cost"], Times(**{**info["times"], "failed": failed})
    if (found := info["error"]) is not None:
        return Failed(batch, _kind_of(found), record.failures, cost, times)
    return Done(
        batch,
        done=record.keys,
        completed=record.key_count,
        shard=record.shards[0] if record.shards else None,
        schema=schemas.schema_from_text(record.schema) if record.schema else None,
        failures=record.failures,
        left_out=tuple(info["left_out"]),
        left_by=None if info["left_by"] is None else _kind_of(info["left_by"]),
        cost=cost,
        times=times,
    )


def _kind_as_json(kind: ErrorKind | None) -> dict[str, Any] | None:
    return None if kind is None else {**asdict(kind), "cause": kind.cause.value}


def _kind_of(found: dict[str, Any]) -> ErrorKind:
    return ErrorKind(**{**found, "cause": Cause(found["cause"])})


def _lines(record: Commit) -> Iterator[bytes]:
    """The keys in a record, done or failed."""
    if record.keys:
        yield from record.keys.split(b"\n")
    for failure in record.failures:
        yield keys.canonical(failure.key)


def _error(name: str, message: str) -> BaseException:
    """Rebuild the error that ends the run: ours with its class, any other as `StoreError`."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ResumableTasksError):
        return kind(message)
    return StoreError(f"{name}: {message}", remedy="Run the same command again")
