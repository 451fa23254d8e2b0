"""A job with its checkpoint in a bucket: run, killed, stopped, and looked at past the network."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resumable_tasks.checkpoint.directory.archive import archive
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store
from tests.conftest import Bucket
from tests.proof.crash import oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Child, Launcher, until
from tests.proof.crash.oracle import Found


@dataclass(frozen=True)
class Attack:
    """The oracle is that of directories: the objects are copied into one, and read there."""

    bucket: Bucket
    place: Path
    launch: Launcher

    def spec(self, **how: Any) -> Spec:
        """A run of the small job. No one waits to see whether the one before it is dead."""
        return Spec(str(self.place), checkpoint=self.bucket.url, **{"takeover": True, **how})

    def mirror(self, incarnation: int = 0) -> Path:
        """A copy of what is in the bucket now, of one incarnation, as a directory."""
        folder = self.place / f"mirror-{incarnation}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "holder.lock").touch()  # as a directory has it
        start = f"@{incarnation}/" if incarnation else ""
        for name, data in self.bucket.stored().items():
            if name.startswith(start) and name[len(start) :][:1] != "@":
                path = folder / name[len(start) :]
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
        return folder

    def _mirrored(self, spec: Spec, incarnation: int) -> Spec:
        return replace(spec, checkpoint=str(self.mirror(incarnation)))

    def consistent(self, spec: Spec, incarnation: int = 0) -> Found:
        """What holds at every moment; see `oracle.consistent`."""
        return oracle.consistent(self._mirrored(spec, incarnation))

    def complete(self, spec: Spec, incarnation: int = 0, *, tidy: bool = True) -> Found:
        """What holds after a run that has ended well; see `oracle.complete`."""
        return oracle.complete(self._mirrored(spec, incarnation), tidy=tidy)

    def kill_at_point(self, spec: Spec, *faults: str) -> None:
        """Die at each of these points, one run after the other; then run to the end."""
        for fault in faults:
            child = self.launch.fork(replace(spec, faults=fault))
            code = child.wait()
            assert code == -signal.SIGKILL, f"{fault} was not reached: {code}: {child.says()}"
            self.consistent(spec)
        self.launch.to_end(spec)
        self.complete(spec)
        if self.bucket.server.options.metadata:  # without, commits take longer, and more is out
            oracle.little_was_redone(spec, kills=len(faults))

    def stopped_at(self, spec: Spec, fault: str) -> Child:
        """A run that sleeps at this point."""
        child = self.launch.fork(replace(spec, faults=f"{fault}:stop"))
        until(f"stopped at {fault}", child.stopped)
        return child

    def reset(self) -> None:
        """Begin the next incarnation, as `resumable reset` does."""
        archive(open_store(self.bucket.url), "of-the-test")
        (self.place / "acked").unlink(missing_ok=True)  # what it tells of is archived

    def verify(self) -> None:
        """Have the library read all that counts, and find no damage."""
        assert not verify(open_store(self.bucket.url)).damages

    def lines(self, name: str) -> int:
        """The number of lines that the children have written to a file of this name."""
        path = self.place / name
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def ended_well(self, child: Child, codes: Collection[int], seconds: float = 120.0) -> None:
        """It ends with one of these codes, by itself or by an error of the library's own."""
        assert child.wait(seconds) in codes, child.says()
        assert "Traceback" not in child.says(), child.says()
        assert "WorkerLost" not in child.says(), child.says()

    def wake(self, zombie: Child) -> int:
        """Let one that sleeps go on, to its end; its exit code."""
        zombie.signal(signal.SIGCONT)
        return zombie.wait()
