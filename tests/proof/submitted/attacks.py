"""What is done to a run of submitted work, for the tests and for the mutants."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from tests.proof.submitted.child import Spec
from tests.proof.submitted.launcher import (
    HELD,
    SERVICES,
    Launcher,
    kill,
    paid_once,
    recut,
    sound,
    stopped,
    to_end,
)


def spec_of(place: Path, service: str, **knobs: object) -> Spec:
    return Spec(str(place), knobs={**SERVICES[service], "lag": 0.1, **knobs})


def killed_at(launch: Launcher, spec: Spec, fault: str = "") -> None:
    """Die there, or by a knob of the service; run to the end in other batches."""
    kill(launch, replace(spec, faults=fault))
    to_end(launch, recut(sound(spec)))
    paid_once(spec)


def overtaken(launch: Launcher, spec: Spec, fault: str = "") -> None:
    """Fall asleep there, or by a knob; be overtaken; wake up."""
    # One at a time, so that no other thread sleeps with the service's lock.
    alone = replace(spec, concurrency=1, faults=fault and f"{fault}:stop")
    first = stopped(launch, alone)
    to_end(launch, replace(recut(sound(spec)), takeover=True))
    first.signal(signal.SIGCONT)
    code = first.wait()
    paid_once(spec)
    assert code == HELD, f"{code}: {first.says()}"


def settled_without_saying_so(launch: Launcher, spec: Spec) -> None:
    """All is committed and no submission settled, as where such a record was lost."""
    mutant = "the_rest_is_submitted_before_its_commit_settles"
    to_end(launch, replace(spec, mutant=mutant))
    assert len(spec.service.all()) > 3
    to_end(launch, spec)
    paid_once(spec)
