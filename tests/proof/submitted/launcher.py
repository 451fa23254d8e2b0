"""Starts children of `tests.proof.submitted.child`; what is paid and what is there, at the end."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace

from resumable_tasks.checkpoint.directory.place import Directory
from tests.proof.crash import launcher
from tests.proof.crash.launcher import Child, until
from tests.proof.submitted.child import Spec, items_of
from tests.proof.submitted.service import value_of

HELD, INTERRUPTED = 3, 75
KILLED = -signal.SIGKILL
SERVICES = {
    "fence": {"has": ["prepare", "find", "fence"]},
    "lease": {"has": ["find"]},
    "idempotent": {"has": [], "idempotent_for": 600.0},
}


class Launcher(launcher.Launcher):
    """Starts the children of one test."""

    module = "tests.proof.submitted.child"


def rows(spec: Spec) -> Counter[int]:
    """How many rows each item has, whoever has written them."""
    table = Directory(spec.checkpoint_path).reader().dataset().to_table()
    return Counter(table.column("id").to_pylist())


def paid_once(spec: Spec, *, but: frozenset[int] = frozenset()) -> None:
    """Every item is once in the results, and was paid once."""
    paid, found = spec.service.paid(), rows(spec)
    wanted = {item["id"] for item in items_of(spec)} - but
    twice = sorted(key for key, count in paid.items() if count > 1)
    assert not twice, f"paid twice: {twice[:10]} ({len(twice)})"
    assert not (lost := wanted - set(paid)), f"never paid: {sorted(lost)[:10]}"
    assert not (lost := wanted - set(found)), f"paid, and not in the results: {sorted(lost)[:10]}"
    double = sorted(key for key, count in found.items() if count > 1)
    assert not double, f"twice in the results: {double[:10]}"
    for row in Directory(spec.checkpoint_path).reader().dataset().to_table().to_pylist():
        assert row["value"] == value_of(row["id"])


def recut(spec: Spec) -> Spec:
    """The same items in other batches, another order, more of them at once."""
    return replace(spec, batch_size=spec.batch_size // 2 + 2, order=7, concurrency=3, faults="")


def sound(spec: Spec) -> Spec:
    """The same service, in which nothing kills any more."""
    kept = {name: value for name, value in spec.knobs.items() if not name.startswith("act_")}
    return replace(spec, knobs=kept, faults="")


def to_end(launch: Launcher, spec: Spec, most: int = 1) -> None:
    """Run to the end, which has to be a good one; again up to so many times where asked to."""
    for left in reversed(range(most)):
        child = launch.fork(spec)
        code = child.wait()
        if code != INTERRUPTED or not left:
            assert code == 0, f"exit code {code}: {child.says()}"
            return


def kill(launch: Launcher, spec: Spec) -> None:
    """It has to be killed by what its specification says, at every child of this kind."""
    child = launch.fork(spec)
    code = child.wait()
    assert code == KILLED, f"{code}: {child.says()}"


def stopped(launch: Launcher, spec: Spec) -> Child:
    child = launch.fork(spec)
    until("it is stopped", child.stopped)
    return child
