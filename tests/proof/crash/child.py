"""The process under attack: one run of a small job, as its specification says.

Run as ``python -m <package>.child '<json of a Spec>'``, or forked with its imports behind it
(`tests.warm`). What it handles it notes down by one appending write per batch *before* it does
anything else, and every record that it is told of as committed likewise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import errno
import functools
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

# What a run loads must not be among its system calls.
import resumable_tasks.checkpoint.directory.archive
import resumable_tasks.checkpoint.directory.rows
import resumable_tasks.engine.feeder
import resumable_tasks.task.running
from resumable_tasks import Changes, ResumableTask, resumable_task
from resumable_tasks.checkpoint.directory import folding, holder, journal, merging, segments
from resumable_tasks.checkpoint.store import clients
from resumable_tasks.engine import committer, window
from resumable_tasks.engine.events import Committed, Event, RunStarted, Stopping
from resumable_tasks.errors import CheckpointHeld
from resumable_tasks.testing import faults

SPEC = "CRASH_SPEC"
DRIVER = "RESUMABLE_TASKS_TEST_DRIVER"


@dataclass(frozen=True)
class Spec:
    """What a child is to do. ``place`` is the test's folder; everything lies in it."""

    place: str
    checkpoint: str = "checkpoint"
    items: int = 60
    batch_size: int = 5
    concurrency: int = 2
    runner: str = "threads"
    pause_ms: tuple[float, float] = (4.5, 4.5)
    """How long a batch takes: by default not so short that more than the runner's window is out."""
    gate: bool = False
    """Batches end only up to the item whose number the file ``gate`` has; later ones wait."""
    hang_seconds: float = 0.0
    """How long the batch with item 0 takes, and every other, if not 0."""
    grace_seconds: float = 25.0
    retries: int = 0
    edition: int = -1
    """The fingerprint of every seventh item; without one if negative."""
    takeover: bool = False
    faults: str = ""
    worker_faults: str = ""
    mutant: str = ""
    publish: str = ""
    publish_only: bool = False
    target_bytes: int = 0
    wait: bool = False
    """Wait for a line on standard input once everything is imported."""
    committer_first: bool = False
    """Commit in the main thread, which strace watches, and do all else in another."""
    trace: str = ""
    kill_at_op: int = 0
    kill_at_ack: int = 0
    interrupt_at: int = 0
    count_lines: bool = False
    file_limit: int = 0
    fail: str = ""
    """``name:nth:code``: let this call of a function of ``os`` fail, without doing anything."""
    flush_seconds: float = 0.0
    """How much longer every fsync takes."""
    no_temporary: bool = False
    """No folder for temporary files has room."""
    worker_fail: str = ""
    ignore_interrupts: bool = False
    user: int = 0
    """Become this user first, if not 0."""
    again: bool = False
    """After an error, run once more in the same process, with the faults gone."""
    elsewhere: bool = False
    """On another machine, as far as the library can see: of another name, boot and clock."""
    beat_seconds: float = 0.0
    """How long a driver's sign of life is apart from the next, if not 0."""
    silence: float = 0.0
    """After so many seconds, if not 0, a bucket that says nothing is asked again."""
    fewest: int = 0
    """So many small shards are merged, if not 0, and what was merged is deleted at once."""
    folds: int = 0
    """So many records go into a segment, if not 0, and their own files are deleted at once."""
    version: str = "1"
    on_version_change: str = "error"

    def path(self, name: str) -> str:
        return os.path.join(self.place, name)

    @property
    def checkpoint_path(self) -> str:
        return self.checkpoint if "://" in self.checkpoint else self.path(self.checkpoint)


def value_of(key: int) -> int:
    return key * key + 7


def append(path: str, text: str) -> None:
    """One write, which no other process's write can come into."""
    handle = _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _write(handle, text.encode())
    _close(handle)


_open, _write, _close = os.open, os.write, os.close  # not those that a recorder puts there


def _spec() -> Spec:
    return Spec(**json.loads(os.environ[SPEC]))


@functools.cache
def _arm_worker() -> None:
    """In a worker process: what is to go wrong in it."""
    if os.environ[DRIVER] != str(os.getpid()):
        _be_impatient(_spec().silence)
        faults.install(faults.parse(_spec().worker_faults))
        if _spec().worker_fail:
            _fail(*_spec().worker_fail.split(":"))


def _begin(items: list[dict[str, int]]) -> float:
    """Note down what is handled; the seconds to take for it."""
    spec = _spec()
    _arm_worker()
    handled = [item["id"] for item in items]
    pid = os.getpid()
    append(spec.path("handled"), f"{pid} {' '.join(map(str, handled))}\n")
    if spec.hang_seconds:
        return spec.hang_seconds
    low, high = spec.pause_ms
    return random.Random(handled[0]).uniform(low, high) / 1000


def items_of(spec: Spec) -> list[dict[str, int]]:
    if spec.edition < 0:
        return [{"id": key} for key in range(spec.items)]
    return [{"id": key, "edition": spec.edition * (key % 7 == 3)} for key in range(spec.items)]


def _rows(items: list[dict[str, int]]) -> list[dict[str, int]]:
    return [item | {"value": value_of(item["id"])} for item in items]


def _is_held(items: list[dict[str, int]]) -> bool:
    spec = _spec()
    return spec.gate and items[0]["id"] >= int(Path(spec.path("gate")).read_text() or 0)


def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
    time.sleep(_begin(items))
    while _is_held(items):
        time.sleep(0.005)
    return _rows(items)


async def ahandle(items: list[dict[str, int]]) -> list[dict[str, int]]:
    await asyncio.sleep(_begin(items))
    while _is_held(items):
        await asyncio.sleep(0.005)
    return _rows(items)


def make(spec: Spec) -> ResumableTask[Any]:
    task: ResumableTask[Any] = resumable_task(
        ahandle if spec.runner == "async" else handle,
        name="crash",
        key="id",
        batch_size=spec.batch_size,
        concurrency=spec.concurrency,
        runner="processes" if spec.runner == "processes" else "auto",
        grace_seconds=spec.grace_seconds,
        retries=spec.retries,
        changes=Changes("edition") if spec.edition >= 0 else None,
        version=spec.version,
    )
    return task


def run(spec: Spec) -> None:
    """Carry a specification out, in a process that does nothing else."""
    os.environ[SPEC], os.environ[DRIVER] = json.dumps(asdict(spec)), str(os.getpid())
    if spec.ignore_interrupts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if spec.user and os.geteuid() == 0:
        "".encode("unicode_escape")  # whoever is nobody may not read it later
        os.setgroups([])
        os.setgid(spec.user)
        os.setuid(spec.user)
    if spec.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spec.file_limit, resource.RLIM_INFINITY))
    if spec.mutant:
        from tests.proof.crash.mutants import MUTANTS

        MUTANTS[spec.mutant]()
    if spec.trace:
        from tests.proof.crash.powerloss import record

        record(spec.place, spec.path(spec.trace), kill_at=spec.kill_at_op)
    if spec.wait:
        # Seen once all of it is over: whoever traces this process begins to count then.
        append(spec.path("ready.part"), f"{os.getpid()}\n")
        os.rename(spec.path("ready.part"), spec.path("ready"))
        while not os.path.exists(spec.path("go")):
            time.sleep(0.002)
    if spec.no_temporary:
        tempfile.tempdir = None
        tempfile._candidate_tempdir_list = lambda: ["/proc/self/fdinfo"]  # type: ignore[attr-defined]
    if spec.flush_seconds:
        flush = os.fsync
        os.fsync = lambda handle: (time.sleep(spec.flush_seconds), flush(handle))[1]
    if spec.fail:
        _fail(*spec.fail.split(":"))
    if spec.beat_seconds:
        holder.BEAT_SECONDS = spec.beat_seconds
    _be_impatient(spec.silence)
    if "://" in spec.checkpoint:
        _keep_the_window()
    if spec.fewest:
        merging.FEWEST, merging.GRACE_SECONDS = spec.fewest, 0.0
    if spec.folds:
        folding.MOST_RECORDS = segments.MOST_RECORDS = spec.folds
        folding.FEWEST = folding.FEWEST_AT_FIRST = 3
        folding._NEWEST, folding.GRACE_SECONDS = 1, 0.0
        # The claim of the second run refuses a sleeper that does not look, those after it do not.
        journal.LOOKED_AT_FROM = 16
    if spec.elsewhere:
        _move_elsewhere()
    faults.install(faults.parse(spec.faults))
    body = functools.partial(_publish if spec.publish_only else _job, spec)
    if spec.committer_first:
        body = functools.partial(_committer_first, body)
    if not spec.again:
        body()
        return
    try:
        body()
    except BaseException as error:
        sys.settrace(None)
        print(f"first: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, CheckpointHeld):
            raise
    else:
        print("first: ended well", file=sys.stderr, flush=True)
    sys.settrace(None)
    faults._armed.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spec = replace(spec, hang_seconds=0.0, interrupt_at=0)
    os.environ[SPEC], os.environ[DRIVER] = json.dumps(asdict(spec)), str(os.getpid())
    _job(spec)


def _be_impatient(seconds: float) -> None:
    if seconds:
        clients._SILENCE = timedelta(seconds=seconds)
        clients._client.cache_clear()


def _keep_the_window() -> None:
    """Have no more in flight than on a disk: how much that is hangs on how busy the machine is."""
    here = window.Window
    window.Window = lambda runner, _: here(runner)  # type: ignore[assignment, misc]


def _move_elsewhere() -> None:
    """Let this process be on another machine, whose clock is two hours ahead."""
    from resumable_tasks.base import clock

    here, real = os.uname(), clock.datetime

    class Ahead(real):  # type: ignore[valid-type,misc]
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return real.now(zone) + timedelta(hours=2)

    other = os.uname_result((here[0], "elsewhere", *here[2:]))
    os.uname = lambda: other
    clock.datetime = Ahead  # type: ignore[misc]
    with contextlib.suppress(ImportError):
        process = importlib.import_module("resumable_tasks.base.process")
        process.machine = lambda: "another boot"  # type: ignore[attr-defined]


def _fail(name: str, nth: str, code: str) -> None:
    real, number, passed = getattr(os, name), getattr(errno, code), 0

    def failing(*arguments: Any, **more: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == int(nth):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    setattr(os, name, failing)


def _job(spec: Spec) -> None:
    acks = 0

    def listen(event: Event) -> None:
        nonlocal acks
        if isinstance(event, RunStarted):
            append(spec.path("started"), f"{os.getpid()} {event.epoch}\n")
        elif isinstance(event, Stopping):
            append(spec.path("stopping"), f"{os.getpid()} {event.reason}\n")
        elif isinstance(event, Committed):
            acks += 1
            append(spec.path("acked"), f"{event.number} {event.completed}\n")
            if spec.trace:
                from tests.proof.crash.powerloss import note_ack

                note_ack(event.number)
            if acks == spec.kill_at_ack:
                os.kill(os.getpid(), 9)

    lines = None
    if spec.interrupt_at or spec.count_lines:
        lines = _interrupt(spec.interrupt_at)
    result = make(spec).run(
        items_of(spec),
        checkpoint=spec.checkpoint_path,
        takeover=spec.takeover,
        on_version_change=spec.on_version_change,
        listeners=[listen],
        progress=False,
    )
    if lines is not None:
        sys.settrace(None)
        append(spec.path("lines"), f"{lines()}\n")
    if spec.publish:
        result.publish(spec.publish, **_target(spec))


def _publish(spec: Spec) -> None:
    from resumable_tasks.checkpoint.directory.place import Directory
    from resumable_tasks.results.publish import publish

    reader = Directory(spec.checkpoint_path).reader()
    publish(reader, spec.publish, **_target(spec))


def _target(spec: Spec) -> dict[str, int]:
    return {"target_bytes": spec.target_bytes} if spec.target_bytes else {}


def _interrupt(at: int) -> Callable[[], int]:
    """Raise KeyboardInterrupt at this line of the library, counted as the main thread goes."""
    library = os.path.dirname(os.path.abspath(resumable_tasks.__file__))
    passed = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        if not frame.f_code.co_filename.startswith(library):
            return None
        if event == "line" and not _leaves_with(frame):
            passed += 1
            if passed == at:
                where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                print(f"interrupted at {where}", file=sys.stderr, flush=True)
                sys.settrace(None)
                raise KeyboardInterrupt(where)
        return trace

    sys.settrace(trace)
    return lambda: passed


def _leaves_with(frame: FrameType) -> bool:
    """Whether the line is that of a ``with`` whose body has ended.

    No signal's handler runs between the body and ``__exit__``: Python looks for signals at the
    end of calls and at jumps back.
    """
    code = _instructions(frame.f_code)
    at = next(n for n, each in enumerate(code) if each.offset == frame.f_lasti)
    none = ("LOAD_CONST", None)
    return [(each.opname, each.argval) for each in code[at : at + 3]] == [none] * 3


@functools.cache
def _instructions(code: CodeType) -> list[dis.Instruction]:
    return list(dis.get_instructions(code))


def _committer_first(body: Callable[[], None]) -> None:
    """Run the engine's committer in this thread and the body in another."""
    handover: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    done = threading.Event()

    class Handed:
        def __init__(self, target: Callable[..., None], args: Any = (), **_: Any) -> None:
            self._target = functools.partial(target, *args)
            self._started = False

        def start(self) -> None:
            self._started = True
            handover.put(self._target)

        def is_alive(self) -> bool:
            return self._started and not done.is_set()

        def join(self, timeout: float | None = None) -> None:
            done.wait(timeout)

    failed: list[BaseException] = []

    def rest() -> None:
        try:
            body()
        except BaseException as error:
            failed.append(error)
        finally:
            handover.put(None)

    committer.threading = SimpleNamespace(Thread=Handed)  # type: ignore[assignment]
    thread = threading.Thread(target=rest)
    thread.start()
    target = handover.get()
    if target is not None:
        target()
    done.set()
    thread.join()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    from importlib import import_module

    # By its own name, so that worker processes find the handler.
    real = import_module(f"{__package__}.child")
    real.run(real.Spec(**json.loads(sys.argv[1])))
