"""What a test sees of its runs: what they noted, and what is in the checkpoint. Without Prefect."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import warm
from tests.prefect.api import until
from tests.proof.crash.oracle import read_journal, read_rows

FLOW = Path(__file__).with_name("flow.py")
BATCH = 5
CONCURRENCY = 2
# For what takes seconds: where all cores are busy, a process with Prefect takes a minute to start.
PATIENCE = 180


@dataclass
class Scene:
    """A folder with one checkpoint, and the notes of all processes that have been at it."""

    place: Path
    scripts: list[warm.Program] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place.mkdir(exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.place / "checkpoint"

    def parameters(self, **more: Any) -> dict[str, Any]:
        return {"place": str(self.place), **more}

    def notes(self, what: str) -> list[dict[str, Any]]:
        path = self.place / "notes"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def began(self, pid: int | None = None) -> list[tuple[int, ...]]:
        """The batches that a handler was called with, by this process or by all."""
        found = self.notes("began")
        return [tuple(note["keys"]) for note in found if pid in (None, note["pid"])]

    def ended(self) -> list[tuple[int, ...]]:
        return [tuple(note["keys"]) for note in self.notes("ended")]

    def wait_for_ended(self, batches: int, seconds: float = PATIENCE) -> None:
        until(lambda: len(self.ended()) >= batches, seconds)

    def wait_for_flow(self, nth: int, seconds: float = PATIENCE) -> dict[str, Any]:
        """The note of the nth execution of a flow, the first being 1."""
        until(lambda: len(self.notes("flow")) >= nth, seconds)
        return self.notes("flow")[nth - 1]

    def committed(self) -> set[int]:
        return set(read_journal(self.checkpoint).all_keys)

    def check(self, items: int | None = None) -> set[int]:
        """Every committed key has one record and one row; if ``items`` is given, these are all."""
        found = read_journal(self.checkpoint)
        named = Counter(found.all_keys)
        assert not [key for key, times in named.items() if times > 1]
        assert read_rows(self.checkpoint, found) == named
        if items is not None:
            assert set(named) == set(range(items))
        return set(named)

    def hurry(self) -> None:
        """From now on no batch takes any time."""
        (self.place / "hurry").touch()

    def kill(self, pid: int, number: int = signal.SIGKILL) -> Death:
        """A signal, and what was done and what was in flight when the process was gone."""
        os.kill(pid, number)
        until(lambda: not alive(pid))
        committed, began = self.check(), self.began()
        flight = {key for keys in began for key in keys} - committed
        assert len(flight) <= 2 * CONCURRENCY * BATCH, "more is out than the window is wide"
        return Death(committed, flight, len(began))

    def check_little_was_redone(self, *deaths: Death) -> None:
        """After each death nothing was handled again but what was in flight."""
        began = self.began()
        for death in deaths:
            again = {key for keys in began[death.began :] for key in keys}
            assert not again & death.committed, "what was committed was handled again"
        calls = Counter(key for keys in began for key in keys)
        most = Counter(key for death in deaths for key in death.flight)
        assert not {key for key, times in calls.items() if times > 1 + most[key]}

    def script(
        self, env: Mapping[str, str], file: Path = FLOW, flow: str = "job", **parameters: Any
    ) -> warm.Program:
        """Start ``python flow.py``."""
        text = json.dumps(self.parameters(**parameters))
        return self.start([sys.executable, str(file), text, flow], env)

    def start(self, command: list[str], env: Mapping[str, str]) -> warm.Program:
        log = (self.place / f"output-{len(self.scripts)}").open("wb")
        with log:
            process = warm.start(
                command, env=dict(env), cwd=self.place, stdout=log, stderr=log, prefect=True
            )
        self.scripts.append(process)
        return process

    def output(self, nth: int = -1) -> str:
        """What the nth of the started processes has said."""
        return (self.place / f"output-{nth % len(self.scripts)}").read_text()

    def close(self) -> None:
        for process in self.scripts:
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass(frozen=True)
class Death:
    committed: set[int]
    flight: set[int]
    began: int


def alive(pid: int) -> bool:
    """Whether a process runs; one that has died and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def run_here(scene: Scene, items: int, **options: Any) -> Any:
    """The same job in this process and outside of Prefect, over what is left."""
    from tests.prefect.recovery.flow import made, source

    task = made(str(scene.place), 0.0, {}, False, options)
    return task.run(source(items), checkpoint=scene.checkpoint, progress=False)
