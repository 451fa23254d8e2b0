"""Attacks on a run, each of which ends with the oracle. They fail with AssertionError.

The suites call them on the library as it is; the mutants' gate calls them on a library with one
rule of the protocol switched off, and there they must fail.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.dataset as pads

from resumable_tasks import resumable_task
from tests.proof.crash import oracle
from tests.proof.crash.child import Spec, value_of
from tests.proof.crash.launcher import Child, Launcher, until
from tests.proof.crash.powerloss import all_states, read_trace


def kill_at_point(launch: Launcher, spec: Spec, *faults: str) -> None:
    """Die at each of these points, one run after the other; then run to the end."""
    for fault in faults:
        child = launch.fork(replace(spec, faults=fault))
        code = child.wait()
        assert code == -signal.SIGKILL, f"{fault} was not reached: {code}: {child.says()}"
        oracle.consistent(spec)
    launch.to_end(spec)
    oracle.complete(spec)
    oracle.little_was_redone(spec, kills=len(faults))


def kill_at_random(launch: Launcher, spec: Spec, kills: int, seed: int) -> None:
    """SIGKILL the process group at random moments; then run to the end."""
    random = Random(seed)
    print(f"seed {seed}")
    spec = gated(spec, spec.items * 9 // 10)  # none ends before it is killed
    for _ in range(kills):
        started = oracle_lines(spec, "started")
        child = launch.fork(spec)
        if random.random() < 0.8:  # else also while it opens the checkpoint
            until(
                "the run has started",
                lambda: oracle_lines(spec, "started") > started or not child.running(),  # noqa: B023
            )
            time.sleep(random.uniform(0.0, 0.12))
        else:
            time.sleep(random.uniform(0.0, 0.03))
        assert child.running(), child.says()
        child.kill()
        oracle.consistent(spec)
    launch.to_end(gated(spec, spec.items))
    oracle.complete(spec)
    oracle.little_was_redone(spec, kills)


def kill_at_acknowledgement(launch: Launcher, spec: Spec, nth: int) -> None:
    """Die in the moment in which a listener is told of a commit."""
    child = launch.fork(replace(spec, kill_at_ack=nth))
    assert child.wait() == -signal.SIGKILL, child.says()
    assert len(oracle.acked(spec)) == nth
    oracle.consistent(spec)
    launch.to_end(spec)
    oracle.complete(spec)


def wake_a_zombie(launch: Launcher, spec: Spec, fault: str, codes: tuple[int, ...] = (3,)) -> None:
    """Stop a driver at a point, let another take over and end, wake the first up."""
    zombie = launch.fork(replace(spec, faults=f"{fault}:stop"))
    until(f"stopped at {fault}", zombie.stopped)
    second = launch.to_end(replace(spec, takeover=True))
    oracle.complete(spec, tidy=False)
    zombie.signal(signal.SIGCONT)
    code = zombie.wait()
    oracle.complete(spec, tidy=False)
    assert code in codes, f"the zombie ended with {code}: {zombie.says()}"
    if code == 3:
        assert f"pid {second.pid}" in zombie.says(), zombie.says()


def sleep_while_records_are_folded(launch: Launcher, spec: Spec, fault: str) -> None:
    """Sleep at the number of a record that the run before enters since, and that is folded."""
    spec = replace(spec, takeover=True)
    first = launch.fork(replace(spec, faults="journal.created:4:stop"))
    until("the first has committed", first.stopped)
    sleeper = launch.fork(replace(spec, faults=f"{fault}:stop"))
    until(f"stopped at {fault}", sleeper.stopped)
    first.signal(signal.SIGCONT)
    assert first.wait() in (0, 3), first.says()
    for _ in range(2):
        launch.to_end(spec)
    sleeper.signal(signal.SIGCONT)
    assert sleeper.wait() in (0, 3), sleeper.says()
    oracle.complete(spec, tidy=False)


def wake_a_zombie_before_the_sweep(launch: Launcher, spec: Spec, passing: int = 6) -> None:
    """A driver has its record ready when another claims its number; that one has not swept yet."""
    zombie = launch.fork(replace(spec, faults=f"store.temp_written:{passing}:stop"))
    until("the zombie is stopped", zombie.stopped)
    second = launch.fork(replace(spec, takeover=True, faults="checkpoint.claimed:1:stop"))
    until("the second is stopped", second.stopped)
    zombie.signal(signal.SIGCONT)
    code = zombie.wait()
    oracle.consistent(spec)
    second.signal(signal.SIGCONT)
    assert second.wait() == 0, second.says()
    oracle.complete(spec, tidy=False)
    assert code == 3, f"the zombie ended with {code}: {zombie.says()}"
    assert f"pid {second.pid}" in zombie.says(), zombie.says()


def oracle_lines(spec: Spec, name: str) -> int:
    path = Path(spec.path(name))
    return len(path.read_bytes().splitlines()) if os.path.exists(path) else 0


def lose_power(launch: Launcher, spec: Spec, states: Path, seed: int, count: int | None) -> None:
    """Lose power at any moment of a run; what listeners were told of by then is there after."""
    launch.to_end(spec)
    oracle.complete(spec)
    recover_all(spec, read_trace(Path(spec.path(spec.trace))), states, seed, count)


def lose_power_after_a_crash(
    launch: Launcher, spec: Spec, states: Path, seed: int, count: int | None, kill_at: int
) -> None:
    """The same of a run that comes after one that was killed at this operation of its own."""
    child = launch.fork(replace(spec, kill_at_op=kill_at))
    assert child.wait() == -signal.SIGKILL, f"{kill_at}: {child.says()}"
    launch.to_end(replace(spec, trace="trace2"))
    oracle.complete(spec, tidy=False)
    traces = (Path(spec.path(spec.trace)), Path(spec.path("trace2")))
    recover_all(spec, read_trace(*traces), states, seed, count)


def lose_power_at_the_claim(launch: Launcher, spec: Spec, states: Path, fault: str) -> None:
    """Die at this point; then lose power between the next run's first link and its flush."""
    child = launch.fork(replace(spec, faults=fault))
    assert child.wait() == -signal.SIGKILL, f"{fault}: {child.says()}"
    before = read_trace(Path(spec.path(spec.trace)))
    launch.to_end(replace(spec, trace="trace2"))
    after = read_trace(Path(spec.path("trace2")))
    first = next(
        at for at, each in enumerate(after) if each["op"] == "link" and "journal" in each["to"]
    )
    trace = [*before, *after[: first + 1]]
    recover_all(spec, trace, states, 1, None, since=len(trace) - 1)


def recover_all(
    spec: Spec,
    trace: list[dict[str, Any]],
    states: Path,
    seed: int,
    count: int | None,
    since: int = 0,
) -> None:
    """Recover from a sample of the states after so many operations, or from all."""
    keys = oracle.read_journal(Path(spec.checkpoint_path)).keys
    every = [state for state in all_states(trace, seed) if state.after >= since]
    chosen = every if count is None else Random(seed).sample(every, min(count, len(every)))
    print(f"seed {seed}: {len(chosen)} of {len(every)} states")
    for state in chosen:
        state.put_down(states)
        told = {key for number in state.acked for key in keys[number]}
        try:
            recover(replace(spec, place=str(states), trace=""), told)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, power lost after {trace[state.after]} ({state.after}), "
                f"leaving {sorted(state.tree)}: {type(error).__name__}: {error}"
            ) from error
        shutil.rmtree(states)


def recover(spec: Spec, told: set[int]) -> None:
    """Run again, here: it finds no damage, handles nothing that was told, and completes."""
    handled: list[int] = []

    def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        handled.extend(item["id"] for item in items)
        return [{"id": item["id"], "value": value_of(item["id"])} for item in items]

    task = resumable_task(handle, name="crash", key="id", batch_size=12, concurrency=1)
    flush, os.fsync = os.fsync, lambda _: None  # there is no second power loss
    logging.disable()
    try:
        task.run(
            [{"id": key} for key in range(spec.items)],
            checkpoint=spec.checkpoint_path,
            progress=False,
        )
    finally:
        os.fsync = flush
        logging.disable(logging.NOTSET)
    lost = told & set(handled)
    assert not lost, f"told as committed, and lost: {sorted(lost)}"
    oracle.complete(spec, tidy=False)


def commit_while_another_opens(launch: Launcher, spec: Spec) -> None:
    """A second driver stops short of its claim; the first, which it has not fenced, goes on."""
    first = launch.fork(replace(spec, faults="commit.shard_written:2:stop"))
    until("the first is stopped", first.stopped)
    second = launch.fork(replace(spec, takeover=True, faults="journal.before_create:1:stop"))
    until("the second is stopped", second.stopped)
    first.signal(signal.SIGCONT)
    assert first.wait() == 0, first.says()
    second.signal(signal.SIGCONT)
    assert second.wait() == 0, second.says()
    oracle.complete(spec, tidy=False)


def sweep_after_being_fenced(
    launch: Launcher, spec: Spec, at: str = "commit.shard_written:2"
) -> None:
    """A driver that was fenced before it sweeps leaves what the newer one writes alone."""
    first = launch.fork(replace(spec, faults="checkpoint.claimed:1:stop"))
    until("the first is stopped", first.stopped)
    second = launch.fork(replace(spec, takeover=True, faults=f"{at}:stop"))
    until("the second is stopped", second.stopped)
    first.signal(signal.SIGCONT)
    assert first.wait() == 3, first.says()
    second.signal(signal.SIGCONT)
    assert second.wait() == 0, second.says()
    oracle.complete(spec, tidy=False)


def fill_the_disk(launch: Launcher, spec: Spec) -> None:
    """Writes become short, then fail, at every size of file; with room again it goes on."""
    for size in (1700, 1500, 1300, 1100, 900, 700, 500, 400, 300, 200, 100, 1):
        child = launch.fork(replace(spec, file_limit=size))
        # 120: what it says goes to a file, too, and an interpreter that cannot say it ends so.
        assert child.wait() in (75, 0, 120), f"{size}: {child.code}: {child.says()}"
        found = oracle.consistent(spec)
        if child.code == 0:
            assert len(found.all_keys) == spec.items, "said to be done, and is not"
    launch.to_end(spec)
    oracle.complete(spec)


def fail_a_call(launch: Launcher, spec: Spec, fail: str) -> None:
    """Let one call of a function of ``os`` fail; what was told is there, and the rest follows."""
    child = launch.fork(replace(spec, fail=fail))
    assert child.wait() in (0, 75), f"{fail}: {child.code}: {child.says()}"
    found = oracle.consistent(spec)
    if child.code == 0:
        assert len(found.all_keys) == spec.items, f"{fail}: said to be done, and is not"
    launch.to_end(spec)
    oracle.complete(spec)


def interrupt(launch: Launcher, spec: Spec, number: int = signal.SIGINT) -> None:
    """A polite stop: what runs is finished and committed, and the exit code says to run again."""
    child = launch.fork(gated(spec, spec.items // 2))
    stop_amid_work(child, spec, number)
    code = child.wait()
    assert code == 75, f"{code}: {child.says()}"
    assert "un the same command again" in child.says(), child.says()
    found = oracle.consistent(spec)
    assert 0 < len(found.all_keys) < spec.items
    begun = oracle.handled(spec)
    assert set(begun) == set(found.all_keys), "a batch that ran was not committed"
    launch.to_end(spec)
    oracle.complete(spec)
    assert set(oracle.handled(spec).values()) == {1}


def gated(spec: Spec, items: int) -> Spec:
    """The same, of which no batch ends from this item on; `gated` again moves it."""
    Path(spec.path("gate")).write_text(str(items))
    return replace(spec, gate=True)


def stop_amid_work(child: Child, spec: Spec, number: int) -> None:
    """Send a signal to a run that is `gated`, and let it go on once it has heard that."""
    until("some is handled", lambda: oracle_lines(spec, "handled") > 3)
    child.signal(number)
    until("it is stopping", lambda: oracle_lines(spec, "stopping"))
    gated(spec, spec.items)


def kill_publish(launch: Launcher, spec: Spec, fault: str) -> None:
    """Die in the second publishing, under a reader's eyes; then publish to the end."""
    target = Path(spec.path("published"))
    first = replace(spec, publish=str(target))
    launch.to_end(first)
    assert read_dataset(target) == spec.items
    more = replace(first, items=2 * spec.items)
    with Reader(target, retry=spec.target_bytes > 0) as reader:
        child = launch.fork(replace(more, faults=fault))
        assert child.wait() == -signal.SIGKILL, child.says()
        reader.look()
        launch.to_end(replace(more, publish_only=True))
        reader.look()
    wrong = set(reader.seen) - {spec.items, 2 * spec.items}
    assert not wrong, f"a reader saw {sorted(wrong, key=str)}"
    assert not reader.failed, reader.failed[0]
    assert read_dataset(target) == 2 * spec.items
    left = [path.name for path in target.parent.iterdir() if path.name.startswith(".")]
    assert not left, f"left behind: {left}"


def read_dataset(folder: Path) -> int:
    """How many rows a reader sees, each of which is right and there once."""
    rows = pads.dataset(folder, format="parquet").to_table().to_pylist()
    for row in rows:
        assert row["value"] == value_of(row["id"])
    assert len({row["id"] for row in rows}) == len(rows)
    return len(rows)


class Reader:
    """Reads a folder over and over, in a thread.

    ``retry``: files that have gone are no error, be it all of them before they were listed.
    """

    def __init__(self, folder: Path, *, retry: bool = False) -> None:
        self.seen: Counter[int] = Counter()
        self.failed: list[str] = []
        self._folder = folder
        self._retry = retry
        self._looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Wait until it has read once more from beginning to end."""
        wanted = self._looks + 2
        until("read again", lambda: self._looks >= wanted)

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                rows = read_dataset(self._folder)
                if rows or not self._retry:
                    self.seen[rows] += 1
            except FileNotFoundError as error:
                if not self._retry:
                    self.failed.append(repr(error))
            except Exception as error:
                self.failed.append(repr(error))
            self._looks += 1
