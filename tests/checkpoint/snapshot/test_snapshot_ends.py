"""However a snapshot's block ends, the last step is there, and nobody else's state is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from resumable_tasks import Fenced, Interrupted, Snapshot, StoreError, UsageError
from resumable_tasks.base.signals import Interrupts
from resumable_tasks.checkpoint.snapshot import snapshot
from resumable_tasks.checkpoint.store.base import CreateUnknown
from tests.checkpoint.snapshot.test_snapshot import loaded, make

PACKAGE = str(Path(snapshot.__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent)}


# Others who save.


FORKED = """
import os, sys, time
from resumable_tasks import Snapshot, UsageError
with Snapshot(sys.argv[1], initial={"n": 0}) as s:
    s.state["n"] = 1
    s.step()
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        os.read(read, 1)  # the parent has gone
        for use in (s.step, s.save, lambda: s.state, lambda: setattr(s, "state", {})):
            try:
                use()
            except UsageError as error:
                assert "was forked from it" in str(error), error
            else:
                raise AssertionError
        print("refused", flush=True)
        sys.exit(0)
    for n in range(2, 11):
        s.state["n"] = n
        s.step()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_saves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, tmp_path / "s"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,  # open until the child has ended too
        timeout=60,
        check=True,
    )
    assert done.stdout == b"refused\n"
    assert loaded(tmp_path / "s") == {"n": 10}
    assert len(list((tmp_path / "s").glob("*.json"))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    taken = Snapshot(tmp_path)
    with taken:
        child = os.fork()
        if child == 0:
            taken.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert taken._store.locked("lock")


@pytest.mark.parametrize("ends", ["by the error", "by another", "well"])
def test_fenced_is_final(tmp_path: Path, ends: str) -> None:
    """Somebody has deleted the lock, and another process has saved."""
    with contextlib.suppress(Fenced, KeyError), Snapshot(tmp_path, every=2) as first:
        first.state["n"] = 1
        first.save()
        (tmp_path / "lock").unlink()
        make(tmp_path, {"other": 1})
        first.state["n"] = 2
        with pytest.raises(Fenced, match="another process saved generation 2"):
            first.save()
        for again in (first.save, first.step):
            with pytest.raises(Fenced):
                again()
        if ends == "by the error":
            first.save()
        elif ends == "by another":
            raise KeyError
    assert loaded(tmp_path) == {"other": 1}
    with first:
        assert first.state == {"other": 1}
        first.state["n"] = 3
    assert loaded(tmp_path) == {"other": 1, "n": 3}


def test_who_was_overtaken_learns_it_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as caught, Snapshot(tmp_path) as first:  # noqa: PT012
        first.state["n"] = 1
        first.step()
        (tmp_path / "lock").unlink()
        make(tmp_path, {"other": 1})
        raise KeyError
    assert "another process saved" in caught.value.__notes__[0]
    assert loaded(tmp_path) == {"other": 1}


@pytest.mark.parametrize("rival", [False, True])
def test_a_save_that_was_cut_off_is_only_counted_if_it_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: bool
) -> None:
    with contextlib.suppress(Fenced), Snapshot(tmp_path) as taken:
        create = taken._store.create

        def interrupted(name: str, data: bytes) -> bool:
            monkeypatch.undo()
            (tmp_path / "lock").unlink()
            if rival:
                make(tmp_path, {"other": 1})
            else:
                create(name, data)
            raise KeyboardInterrupt

        monkeypatch.setattr(taken._store, "create", interrupted)
        taken.state["n"] = 1
        with pytest.raises(KeyboardInterrupt):
            taken.save()
        taken.state["n"] = 2
        taken.save()
    assert loaded(tmp_path) == ({"other": 1} if rival else {"n": 2})


@pytest.mark.parametrize("rival", [False, True])
def test_a_save_of_which_the_disk_could_not_tell_may_be_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: bool
) -> None:
    with contextlib.suppress(Fenced), Snapshot(tmp_path) as taken:

        def unknown(name: str, data: bytes) -> bool:
            monkeypatch.undo()
            if rival:
                (tmp_path / "lock").unlink()
                make(tmp_path, {"other": 1})
            raise CreateUnknown("who knows")

        monkeypatch.setattr(taken._store, "create", unknown)
        taken.state["n"] = 1
        with pytest.raises(StoreError, match="who knows"):
            taken.save()
        taken.state["n"] = 2
        taken.save()
    assert loaded(tmp_path) == ({"other": 1} if rival else {"n": 2})


# The last save.


def test_a_final_state_that_cannot_be_saved_costs_no_steps(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of type set"), Snapshot(tmp_path) as taken:  # noqa: PT012
        for number in range(60):
            taken.state["n"] = number
            taken.step()
        taken.state["summary"] = {1, 2}
    assert loaded(tmp_path) == {"n": 59}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_a_final_save_that_is_cut_off_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), Snapshot(tmp_path) as taken:  # noqa: PT012

        def interrupted(*_: object) -> bool:
            monkeypatch.undo()
            raise kind

        for number in range(60):
            taken.state["n"] = number
            taken.step()
        monkeypatch.setattr(taken._store, "create", interrupted)
    assert loaded(tmp_path) == {"n": 59}


# Copies at the steps.


@pytest.mark.parametrize(("characters", "saved"), [(16_000, 199), (17_000, 100)])
def test_a_small_state_is_copied_at_each_step_and_a_large_one_when_it_is_saved(
    tmp_path: Path, characters: int, saved: int
) -> None:
    with pytest.raises(KeyError), Snapshot(tmp_path, every=1000, seconds=None) as taken:  # noqa: PT012
        taken.state["text"] = "x" * characters
        for number in range(200):
            taken.state["n"] = number
            taken.step()
            if number == 100:
                taken.save()
        raise KeyError
    assert loaded(tmp_path)["n"] == saved


# SIGTERM.


STOPPED = """
import os, signal, sys, time
from resumable_tasks import Snapshot
with Snapshot(sys.argv[1]) as s:
    for n in range(1, 8):
        s.state["n"] = n
        s.step()
    s.state["n"] = "half"
    {then}
"""
KILL = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
CHILD = """
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    sys.exit(5)
"""


@pytest.mark.parametrize(("then", "code"), [(KILL, 143), (CHILD, 5)], ids=["it", "its child"])
def test_sigterm_saves_the_last_step(tmp_path: Path, then: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.format(then=then), tmp_path / "s"],
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.returncode == code
    assert loaded(tmp_path / "s") == {"n": 7}


def test_sigterm_is_as_it_was_afterwards(tmp_path: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with Snapshot(tmp_path / "a"):
        ours = signal.getsignal(signal.SIGTERM)
        assert ours is not signal.SIG_DFL
        with Snapshot(tmp_path / "b"):
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_programs_own_stays(tmp_path: Path) -> None:
    def own(number: int, frame: FrameType | None) -> None:
        """Nothing."""

    try:
        with Snapshot(tmp_path):
            signal.signal(signal.SIGTERM, own)
        assert signal.getsignal(signal.SIGTERM) is own, "it came in the block"
        with Snapshot(tmp_path):
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_in_another_thread_there_are_no_signals(tmp_path: Path) -> None:
    found: list[Any] = []

    def work() -> None:
        with Snapshot(tmp_path) as taken:
            taken.state["n"] = 1
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
    assert loaded(tmp_path) == {"n": 1}


def test_a_run_in_the_block_still_stops_in_its_own_order(tmp_path: Path) -> None:
    asked: list[str] = []
    with Snapshot(tmp_path):
        ours = signal.getsignal(signal.SIGTERM)
        with (
            pytest.raises(Interrupted, match="by SIGTERM"),
            Interrupts(lambda name, at_once: asked.append(name)),
        ):
            signal.raise_signal(signal.SIGTERM)
        assert asked == ["SIGTERM"]
        assert signal.getsignal(signal.SIGTERM) is ours


# Ctrl-C at any line.


def interrupted_at(line: int, body: Callable[[], None]) -> int:
    """Run it with a KeyboardInterrupt at this line of the library; how many lines were run."""
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            passed += 1
            if passed == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        body()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return passed


# A lock that is lost sight of in the middle is released with its file object.
@pytest.mark.sample(one_in=2)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("error", [False, True], ids=["ends well", "ends by an error"])
def test_an_interrupt_at_any_line_loses_no_save_and_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # there is no power loss
    monkeypatch.setattr(
        "resumable_tasks.checkpoint.snapshot.snapshot.in_temporary_folder", lambda _: False
    )
    saved, stepped = [0], [0]

    def work(place: Path) -> None:
        with contextlib.suppress(ZeroDivisionError), Snapshot(place, every=2, keep=2) as taken:
            for number in range(1, 6):
                taken.state["squares"] = [at * at for at in range(number)]
                taken.state["n"] = number
                if taken.step():
                    saved[0] = number
                stepped[0] = number
            if error:
                taken.state["n"] = "half"
                raise ZeroDivisionError

    lines = interrupted_at(0, lambda: work(tmp_path / "all"))
    assert loaded(tmp_path / "all")["n"] == 5
    assert lines > 300
    lost = 0
    for line in range(1, lines + 1):
        place, saved[0], stepped[0] = tmp_path / str(line), 0, 0
        assert interrupted_at(line, lambda place=place: work(place)) == line
        with Snapshot(place) as found:  # nobody holds it
            n = found.state.get("n", 0)
            assert n in range(saved[0], 6), line
            assert found.state.get("squares", []) == [at * at for at in range(n)], line
            lost += n < stepped[0]
        assert not list(place.glob(".*.tmp"))
        assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, snapshot.signals._exit)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Python may hand over Ctrl-C before the first line of `__exit__`: nothing can be done then.
    assert lost <= 2, "an interrupt costs steps that an exception would not"


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("with Snapshot('s'), Snapshot('s'): pass", 3),
        ("with Snapshot('s'): pass\nopen('s/00000000000000000001.json', 'w')\nopened()", 4),
        ("with Snapshot('s', version=2): pass\nopened()", 2),
    ],
)
def test_an_error_that_nobody_catches_ends_with_its_exit_code(
    tmp_path: Path, code: str, ends: int
) -> None:
    script = "from resumable_tasks import Snapshot\ndef opened():\n    with Snapshot('s'): pass\n"
    ended = subprocess.run(
        [sys.executable, "-c", script + code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (ends, True)
