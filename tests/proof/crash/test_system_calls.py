"""Killed, or refused, at the system calls of a run: nothing lost, nothing twice, no lies."""

from __future__ import annotations

import errno
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.proof.crash import oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher
from tests.proof.crash.system_calls import Point, points, traced

pytestmark = [
    pytest.mark.strace,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]
SEED = 11
# What a failed run may end with: the disk is to be fixed, or the place is no good.
OURS = {75: ("StoreError", "CommitStateUnknown", "CreateUnknown"), 2: ("CheckpointUnusable",)}


def spec_of(place: Path) -> Spec:
    return Spec(str(place), items=30, batch_size=5, concurrency=1, pause_ms=(2.5, 2.5))


def killed(launch: Launcher, place: Path, point: Point) -> None:
    place.mkdir()
    spec = spec_of(place)
    attacked = replace(spec, committer_first=point.committer)
    child, _ = traced(launch, attacked, f"{point.call}:signal=KILL:when={point.nth}")
    assert child.code in (0, -signal.SIGKILL), f"{point}: {child.code}: {child.says()}"
    oracle.consistent(spec)
    launch.to_end(spec)
    oracle.complete(spec)
    oracle.little_was_redone(spec, kills=1)


def refused(launch: Launcher, place: Path, point: Point, code: str, for_good: bool) -> None:
    place.mkdir()
    spec = spec_of(place)
    attacked = replace(spec, committer_first=point.committer)
    when = f"{point.nth}+" if for_good else str(point.nth)
    child, _ = traced(launch, attacked, f"{point.call}:error={code}:when={when}")
    about = f"{point} {code} {when}: exit code {child.code}: {child.says()}"
    found = oracle.consistent(spec)
    # An interpreter that cannot write to standard error either ends with this code.
    unheard = {120} if for_good and point.call == "write" else set()
    assert child.code in {0, *OURS, *unheard}, about
    if child.code == 0:
        missing = set(range(spec.items)) - set(found.all_keys)
        assert not missing, f"{about}: said to be done, but {sorted(missing)[:10]} are missing"
    elif child.code in OURS and "Traceback" in child.says():  # or that was refused, too
        assert any(name in child.says() for name in OURS[child.code]), about
    launch.to_end(spec)
    oracle.complete(spec)


def sample(launch: Launcher, place: Path, count: int | None, seed: int = SEED) -> list[Point]:
    place.mkdir()
    every = points(launch, spec_of(place))
    print(f"{len(every)} points, seed {seed}")
    return every if count is None else Random(seed).sample(every, count)


def all_of(attack: Callable[..., None], cases: list[tuple[Any, ...]]) -> None:
    """Carry out each, and say of all that have failed which they were."""
    failed = []
    for number, case in enumerate(cases):
        try:
            attack(number, *case)
        except AssertionError as error:
            failed.append(f"{case}: {error}")
    assert not failed, f"{len(failed)} of {len(cases)}:\n" + "\n".join(failed)


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_system_calls(launch: Launcher, tmp_path: Path, part: int) -> None:
    cases = [(point,) for point in sample(launch, tmp_path / "count", 7, SEED + part)]
    all_of(lambda n, point: killed(launch, tmp_path / str(n), point), cases)


@pytest.mark.long
def test_killed_at_every_system_call(launch: Launcher, tmp_path: Path) -> None:
    cases = [(point,) for point in sample(launch, tmp_path / "count", None)]
    all_of(lambda n, point: killed(launch, tmp_path / str(n), point), cases)


ERRORS = {
    "write": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "fsync": (errno.EIO, errno.ENOSPC),
    "openat": (errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES),
    "linkat": (errno.EIO, errno.ENOSPC, errno.EPERM),
    "renameat": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.EIO, errno.ENOSPC, errno.EROFS),
    "mkdirat": (errno.EIO, errno.ENOSPC, errno.EROFS),
    "unlinkat": (errno.EIO,),
    "close": (errno.EIO,),
    "flock": (errno.EIO, errno.ENOLCK),
}


def errors(every: list[Point]) -> list[tuple[Point, str, bool]]:
    return [
        (point, errno.errorcode[code], for_good)
        for point in every
        for code in ERRORS.get(point.call, ())
        for for_good in (False, True)
    ]


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.long)])
def test_system_calls_that_fail(launch: Launcher, tmp_path: Path, part: int) -> None:
    every = errors(sample(launch, tmp_path / "count", None))
    random = Random(SEED + part)
    cases = []
    for call in ERRORS:  # one of each
        cases += random.sample([each for each in every if each[0].call == call], 1)
    all_of(lambda n, *case: refused(launch, tmp_path / str(n), *case), cases)


@pytest.mark.long
def test_every_system_call_fails(launch: Launcher, tmp_path: Path) -> None:
    every = errors(sample(launch, tmp_path / "count", None))
    all_of(lambda n, *case: refused(launch, tmp_path / str(n), *case), every)
