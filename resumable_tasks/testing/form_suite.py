"""The contract of every form of checkpoint, as a pytest class to inherit from.

A form is tested from outside: a program does units of work ``0 … count-1`` with it, is killed,
interrupted, run twice at once, and run again; then an independent reader checks the results::

    class TestMyForm(FormSuite):
        def program(self, place): ...       # the text of a Python program, see `FormSuite.program`
        def results(self, place): ...       # the units with results, by an independent reader
        def damage(self, place): ...        # damage what was written last
        def fix(self, place): ...           # the documented remedy for that damage

For detailed failures, call ``pytest.register_assert_rewrite(...)`` before the import.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_tasks.errors import EXIT_DONE, EXIT_HELD, EXIT_INTERRUPTED

_PATIENCE = 60.0


class Bench:
    """One checkpoint, the program that works on it, and the units that it has noted."""

    def __init__(self, suite: FormSuite, place: Path) -> None:
        self.suite = suite
        self.place = place
        self._programs: list[subprocess.Popen[str]] = []
        place.mkdir(parents=True, exist_ok=True)
        (place / "program.py").write_text(suite.program(place), "utf-8")

    def start(self, count: int, seconds: float = 0.0) -> subprocess.Popen[str]:
        """Start the program on ``count`` units that take ``seconds`` each."""
        command = [sys.executable, str(self.place / "program.py"), str(count), str(seconds)]
        program = self.suite.start(command, self.place)
        self._programs.append(program)
        return program

    def run(self, count: int) -> int:
        """Run the program on ``count`` units. Returns its exit code."""
        program = self.start(count)
        _, said = program.communicate(timeout=_PATIENCE)
        if program.returncode != EXIT_DONE:
            sys.stderr.write(said)
        return program.returncode

    def wait_for(self, units: int) -> None:
        """Wait until ``units`` calls of `note` have been made."""
        end = time.monotonic() + _PATIENCE
        while len(self.noted()) < units:
            assert time.monotonic() < end, f"only {len(self.noted())} of {units} units were begun"
            time.sleep(0.01)

    def hold(self, units: int) -> None:
        """Let no unit end once more than ``units`` have begun, however slow this process is."""
        (self.place / "held").write_text(str(units), "utf-8")

    def release(self) -> None:
        """Let units end again."""
        self.hold(sys.maxsize)

    def noted(self) -> list[int]:
        """The units that any process has begun, in order."""
        path = self.place / "noted"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def results(self) -> Counter[int]:
        return Counter(self.suite.results(self.place))

    def close(self) -> None:
        for program in self._programs:
            if program.poll() is None:
                program.kill()
            program.communicate()


class FormSuite:
    """The contract of a form of checkpoint: each result is there once, and stays."""

    units = 60
    in_flight = 20
    """The most units that may be repeated after a crash."""
    several_drivers = False
    """Whether two processes may work on one checkpoint at once."""

    def program(self, place: Path) -> str:
        """A program that does units of work, with a checkpoint of this form in this folder.

        It gets two arguments: the number of units, and the seconds that each takes. For each unit
        it calls ``note(unit)`` of `NOTE`, sleeps for that time, and keeps the result in the
        checkpoint. It ends with the exit codes of the library.
        """
        raise NotImplementedError

    def start(self, command: list[str], place: Path) -> subprocess.Popen[str]:
        """Start this command in this folder, with a pipe from its standard error.

        Starts a fresh interpreter that handles Ctrl-C as in a terminal. Override this method to
        start programs faster.
        """
        return subprocess.Popen(  # noqa: S603 - the program under test
            command,
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # The parent of the tests may have disabled Ctrl-C for its child processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def results(self, place: Path) -> list[int]:
        """The units with results, each as often as its result is there, read past the library."""
        raise NotImplementedError

    def damage(self, place: Path) -> None:
        """Damage what was written last, as a disk would. Skips if this form is not in files."""
        raise NotImplementedError

    def fix(self, place: Path) -> None:
        """Carry out the documented remedy for damage."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        found = Bench(self, tmp_path / "bench")
        yield found
        found.close()

    def test_all_is_done_once(self, bench: Bench) -> None:
        assert bench.run(self.units) == EXIT_DONE
        assert bench.results() == once(self.units)
        assert Counter(bench.noted()) == once(self.units)

    def test_what_is_done_is_not_done_again(self, bench: Bench) -> None:
        assert bench.run(self.units) == EXIT_DONE
        assert bench.run(self.units) == EXIT_DONE
        assert len(bench.noted()) == self.units
        assert bench.run(self.units + 10) == EXIT_DONE
        assert Counter(bench.noted()) == once(self.units + 10)
        assert bench.results() == once(self.units + 10)

    @pytest.mark.parametrize("after", [1, 17, 45])
    def test_killed_and_run_again(self, bench: Bench, after: int) -> None:
        program = bench.start(self.units, 0.01)
        bench.wait_for(after)
        program.kill()
        program.wait()
        stood = bench.results()
        assert all(times == 1 for times in stood.values())
        assert len(stood) >= after - self.in_flight
        assert bench.run(self.units) == EXIT_DONE
        assert bench.results() == once(self.units)
        again = Counter(bench.noted()) - once(self.units)
        assert again.total() <= self.in_flight
        assert not stood.keys() & again.keys(), "what stood there was done again"

    def test_killed_again_and_again(self, bench: Bench) -> None:
        for _ in range(4):
            before = len(bench.noted())
            program = bench.start(self.units, 0.005)
            bench.wait_for(min(before + 8, self.units))
            program.kill()
            program.wait()
        assert bench.run(self.units) == EXIT_DONE
        assert bench.results() == once(self.units)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
    def test_interrupted_and_run_again(self, bench: Bench, number: signal.Signals) -> None:
        bench.hold(self.units // 2)
        program = bench.start(self.units, 0.02)
        bench.wait_for(5)
        program.send_signal(number)
        bench.release()
        program.communicate(timeout=_PATIENCE)
        assert program.returncode in self.interrupted_codes(number)
        assert bench.run(self.units) == EXIT_DONE
        assert bench.results() == once(self.units)

    def interrupted_codes(self, number: signal.Signals) -> tuple[int, ...]:
        """The exit codes that a program may have after this signal."""
        return (EXIT_INTERRUPTED,)

    def test_two_at_once(self, bench: Bench) -> None:
        bench.hold(self.units // 2)
        first = bench.start(self.units, 0.15)
        bench.wait_for(3)
        second = bench.start(self.units, 0.15)
        if self.several_drivers:
            bench.release()
            assert second.wait(_PATIENCE) == EXIT_DONE
        else:
            assert second.wait(_PATIENCE) == EXIT_HELD
            bench.release()
        assert first.wait(_PATIENCE) == EXIT_DONE
        assert bench.run(self.units) == EXIT_DONE
        assert bench.results() == once(self.units)
        assert Counter(bench.noted()) == once(self.units)

    def test_damage_is_not_taken_for_what_was_written(self, bench: Bench) -> None:
        program = bench.start(self.units, 0.01)
        bench.wait_for(self.units // 2)
        program.kill()
        program.wait()
        self.damage(bench.place)
        bench.run(self.units)  # reports the damage, or works without the damaged part
        self.fix(bench.place)
        assert bench.run(self.units) == EXIT_DONE
        assert bench.results() == once(self.units)


NOTE = r"""
import os, sys, time
COUNT, SECONDS = int(sys.argv[1]), float(sys.argv[2])
def note(unit):
    handle = os.open("noted", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, f"{unit}\n".encode())
    os.close(handle)
    while os.path.exists("held"):
        with open("noted") as noted, open("held") as held:
            if len(noted.readlines()) <= int(held.read() or 0):
                break
        time.sleep(0.01)
"""
"""The first lines of a program. They define ``COUNT``, ``SECONDS`` and ``note``, which may wait."""


def once(count: int) -> Counter[int]:
    """Each unit once."""
    return Counter(range(count))


def flip(path: Path, offset: int = -20) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= 0xFF
    os.chmod(path, 0o600)
    path.write_bytes(bytes(data))
