"""No room, no right to write, no folder: a clear error, nothing lost, and on it goes after."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.proof.crash import attacks, oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher, until


def test_writes_are_short_and_then_fail(launch: Launcher, place: Path) -> None:
    attacks.fill_the_disk(launch, Spec(str(place)))


def test_the_next_run_in_the_same_process_goes_on(launch: Launcher, place: Path) -> None:
    """What a notebook does: make room, and call run again."""
    spec = Spec(str(place))
    # Not less: room for the holder's file, so that the run begins.
    child = launch.fork(replace(spec, file_limit=700, again=True))
    assert child.wait() == 0, child.says()
    assert "first: StoreError" in child.says()
    oracle.complete(spec)


@pytest.mark.sample
@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EMFILE"])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "link", "replace"])
@pytest.mark.parametrize("nth", [3, 7, 9])
def test_a_call_fails(launch: Launcher, place: Path, name: str, nth: int, code: str) -> None:
    """The same as by strace, where there is none."""
    if (name, nth) in {("link", 9), ("replace", 9), ("replace", 7), ("open", 3)}:
        nth = 4
    attacks.fail_a_call(launch, Spec(str(place)), f"{name}:{nth}:{code}")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 200 kB."""
    path = tmp_path / "small"
    path.mkdir()
    mount(path, "-t", "tmpfs", "-o", "size=200k", "none")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def mount(path: Path, *options: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")


def test_the_disk_is_full(launch: Launcher, place: Path, mounted: Path) -> None:
    spec = Spec(str(place), checkpoint=str(mounted / "checkpoint"), items=300)
    ballast = mounted / "ballast"
    ballast.write_bytes(bytes(140_000))
    child = launch.fork(spec)
    assert child.wait() == 75, child.says()
    assert "No space left" in child.says()
    assert "Nothing that was committed is lost" in child.says()
    found = oracle.consistent(spec)
    assert len(found.all_keys) < spec.items
    ballast.unlink()
    before = oracle.handled(spec)
    launch.to_end(replace(spec, batch_size=50))
    oracle.complete(spec)
    assert all(oracle.handled(spec)[key] == before[key] for key in found.all_keys)


@pytest.mark.parametrize("begun", [False, True])
def test_the_folder_is_read_only(launch: Launcher, place: Path, begun: bool) -> None:
    spec = Spec(str(place), checkpoint="disk/checkpoint")
    disk = place / "disk"
    disk.mkdir()
    if begun:
        assert launch.fork(replace(spec, faults="commit.done:2")).wait() == -signal.SIGKILL
    before = sorted(path.name for path in disk.rglob("*"))
    mount(disk, "--bind", str(disk))
    try:
        mount(disk, "-o", "remount,ro,bind")
        child = launch.fork(spec)
        assert child.wait() == 2, child.says()
        assert "read-only" in child.says()
        assert "CheckpointUnusable" in child.says()
        assert sorted(path.name for path in disk.rglob("*")) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    launch.to_end(spec)
    oracle.complete(spec)


def test_the_folder_becomes_immutable_in_the_middle(launch: Launcher, place: Path) -> None:
    spec = attacks.gated(Spec(str(place), items=400), 200)
    child = launch.fork(spec)
    until("some is committed", lambda: attacks.oracle_lines(spec, "acked") > 2)
    shards = place / "checkpoint" / "shards"
    done = subprocess.run(["chattr", "+i", str(shards)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"chattr is not permitted here: {done.stderr.strip()}")
    attacks.gated(spec, 400)
    try:
        assert child.wait() == 2, child.says()
        assert "no permission" in child.says()
        found = oracle.consistent(spec)
        assert 0 < len(found.all_keys) < spec.items
    finally:
        subprocess.run(["chattr", "-i", str(shards)], check=True)
    launch.to_end(spec)
    oracle.complete(spec)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that an ordinary user can reach; pytest's own are for one user alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def test_there_is_no_right_to_write(launch: Launcher, open_place: Path) -> None:
    """As an ordinary user, for whom modes count."""
    above = open_place / "above"
    above.mkdir()
    above.chmod(0o755 if os.geteuid() == 0 else 0o555)
    spec = Spec(str(open_place), checkpoint="above/checkpoint", user=65534)
    child = launch.fork(spec)
    assert child.wait() == 2, child.says()
    assert "no permission" in child.says()
    above.chmod(0o777)
    launch.to_end(spec)
    oracle.complete(spec)


def test_the_path_is_a_file(launch: Launcher, place: Path) -> None:
    spec = Spec(str(place))
    (place / "checkpoint").write_text("mine")
    child = launch.fork(spec)
    assert child.wait() == 2, child.says()
    assert "is a file" in child.says()
    assert (place / "checkpoint").read_text() == "mine"
    (place / "checkpoint").unlink()
    launch.to_end(spec)
    oracle.complete(spec)


def test_a_part_of_the_path_is_a_file(launch: Launcher, place: Path) -> None:
    spec = Spec(str(place), checkpoint="file/checkpoint")
    (place / "file").write_text("mine")
    child = launch.fork(spec)
    assert child.wait() == 2, child.says()
    assert "is a file" in child.says()
    (place / "file").unlink()
    launch.to_end(spec)
    oracle.complete(spec)


def test_the_folder_holds_other_things(launch: Launcher, place: Path) -> None:
    spec = Spec(str(place))
    (place / "checkpoint").mkdir()
    (place / "checkpoint" / "thesis.tex").write_text("mine")
    child = launch.fork(spec)
    assert child.wait() == 2, child.says()
    assert "thesis.tex" in child.says()
    assert [path.name for path in (place / "checkpoint").iterdir()] == ["thesis.tex"]


def test_the_disk_of_worker_processes_is_full(launch: Launcher, place: Path) -> None:
    """Workers write shards themselves; a full disk is no failure of the items."""
    spec = Spec(str(place), runner="processes", items=40)
    child = launch.fork(replace(spec, worker_fail="write:2:ENOSPC"))
    assert child.wait() == 75, f"{child.code}: {child.says()}"
    found = oracle.consistent(spec)
    assert found.failed == []
    launch.to_end(replace(spec, runner="threads"))
    oracle.complete(spec)


def test_a_folder_above_may_not_be_entered(launch: Launcher, open_place: Path) -> None:
    above = open_place / "above"
    above.mkdir()
    above.chmod(0o700 if os.geteuid() == 0 else 0o000)
    spec = Spec(str(open_place), checkpoint="above/checkpoint", user=65534)
    child = launch.fork(spec)
    assert child.wait() == 2, child.says()
    assert "no permission" in child.says()


def test_the_temporary_folder_is_full(launch: Launcher, place: Path) -> None:
    """Which is nothing to a checkpoint that lies elsewhere."""
    spec = Spec(str(place), no_temporary=True)
    launch.to_end(spec)
    oracle.complete(spec)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("nth", range(2, 9))
def test_a_disk_that_fails_at_the_start(launch: Launcher, place: Path, nth: int) -> None:
    """It is not held by what has failed: the same process can go on."""
    spec = Spec(str(place))
    child = launch.fork(replace(spec, fail=f"fsync:{nth}:EIO", again=True))
    assert child.wait() == 0, child.says()
    oracle.complete(spec)
