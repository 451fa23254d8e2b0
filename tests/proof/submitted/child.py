"""The process under attack: one run of a small job of submitted work, as its `Spec` says.

Run as ``python -m tests.proof.submitted.child '<json of a Spec>'``, forked with its imports behind
it (`tests.warm`). Pauses are short there: what takes a service hours takes it a moment.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from random import Random
from typing import Any

from resumable_tasks import Changes, ResumableTask, resumable_task
from resumable_tasks.runners.submitted import life
from resumable_tasks.testing import faults
from tests.proof.crash.child import _move_elsewhere
from tests.proof.submitted.service import Knobs, Service


@dataclass(frozen=True)
class Spec:
    """What a child is to do. ``place`` is the test's folder; everything lies in it.

    ``order`` shuffles the items, if it is not 0. ``knobs`` are those of the service.
    """

    place: str
    checkpoint: str = "checkpoint"
    items: int = 40
    batch_size: int = 10
    concurrency: int = 2
    order: int = 0
    knobs: dict[str, Any] = field(default_factory=dict)
    faults: str = ""
    mutant: str = ""
    lease: float = 0.3
    takeover: bool = False
    edition: int = -1
    retries: int = 0
    results: str = "one"
    wait: float | None = None
    elsewhere: bool = False
    """On another machine, as far as the library can see: of another name, boot and clock."""

    @property
    def checkpoint_path(self) -> str:
        there = "://" in self.checkpoint
        return self.checkpoint if there else os.path.join(self.place, self.checkpoint)

    @property
    def service(self) -> Service:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in self.knobs.items()}
        return Service(os.path.join(self.place, "service"), Knobs(**given))


def items_of(spec: Spec) -> list[dict[str, int]]:
    items = [{"id": key} for key in range(spec.items)]
    if spec.edition >= 0:
        items = [item | {"edition": spec.edition * (item["id"] % 7 == 3)} for item in items]
    if spec.order:
        Random(spec.order).shuffle(items)
    return items


def make(spec: Spec) -> ResumableTask[Any]:
    task: ResumableTask[Any] = resumable_task(
        spec.service,
        name="submitted",
        key="id",
        batch_size=spec.batch_size,
        concurrency=spec.concurrency,
        retries=spec.retries,
        results=spec.results,
        changes=Changes("edition") if spec.edition >= 0 else None,
    )
    return task


def be_quick(lease: float = 0.3) -> None:
    """Wait for moments where a service would be waited for for minutes."""
    life.LEASE_SECONDS = lease
    life._FIRST_PAUSE, life._LAST_PAUSE, life._LONGEST_LOOK = 0.02, 0.1, 0.1


def run(spec: Spec) -> None:
    be_quick(spec.lease)
    if spec.mutant:
        from tests.proof.submitted.mutants import MUTANTS

        MUTANTS[spec.mutant]()
    if spec.elsewhere:
        _move_elsewhere()
        os.chdir("/")
    faults.install(faults.parse(spec.faults))
    make(spec).run(
        items_of(spec),
        checkpoint=spec.checkpoint_path,
        takeover=spec.takeover,
        progress=False,
        wait=spec.wait,
    )


if __name__ == "__main__":
    from tests.proof.submitted import child

    child.run(child.Spec(**json.loads(sys.argv[1])))
