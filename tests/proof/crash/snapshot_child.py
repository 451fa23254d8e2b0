"""A process that steps a snapshot along, and notes down what it was told is saved.

Run as ``python -m <package>.snapshot_child FOLDER STEPS EVERY [TRACE KILL_AT]``. The faults are
those of the environment; with a trace, what it does to files is recorded for `powerloss`.
"""

from __future__ import annotations

import sys

from resumable_tasks import Snapshot
from resumable_tasks.testing import faults
from tests.proof.crash import powerloss
from tests.proof.crash.child import append


def main(folder: str, steps: int, every: int, trace: str = "", kill_at: int = 0) -> None:
    faults.install_from_env()
    with Snapshot(f"{folder}/a/snapshot", every=every, seconds=None) as snapshot:
        append(f"{folder}/found", f"{snapshot.state.get('n', 0)}\n")
        while snapshot.state.get("n", 0) < steps:
            n = snapshot.state["n"] = snapshot.state.get("n", 0) + 1
            snapshot.state["squares"] = [at * at for at in range(n)]
            if snapshot.step():
                if trace:
                    powerloss.note_ack(n)
                append(f"{folder}/told", f"{n}\n")
    append(f"{folder}/told", f"{steps}\n")


if __name__ == "__main__":
    folder, steps, every, *more = sys.argv[1:]
    if more:
        powerloss.record(folder, more[0], kill_at=int(more[1]))
    main(folder, int(steps), int(every), *more[:1])
