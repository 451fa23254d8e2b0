"""Whether the green of this folder is worth anything: each rule that is left out costs something.

That is an item that was paid twice, or is lost, or twice in the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resumable_tasks.errors import CheckpointDamaged
from tests.proof.submitted import attacks
from tests.proof.submitted.launcher import Launcher, paid_once, to_end
from tests.proof.submitted.mutants import MUTANTS

Attack = Callable[[Launcher, Path, str], None]


def killed(service: str, fault: str, **knobs: object) -> Attack:
    return lambda launch, place, mutant: attacks.killed_at(
        launch, replace(attacks.spec_of(place, service, **knobs), mutant=mutant), fault
    )


def asleep(service: str, fault: str, **knobs: object) -> Attack:
    return lambda launch, place, mutant: attacks.overtaken(
        launch, replace(attacks.spec_of(place, service, **knobs), mutant=mutant), fault
    )


def well(launch: Launcher, place: Path, mutant: str) -> None:
    spec = replace(attacks.spec_of(place, "lease", undone_each=4), mutant=mutant)
    to_end(launch, spec)
    paid_once(spec)


def unsettled(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.settled_without_saying_so(
        launch, replace(attacks.spec_of(place, "lease"), mutant=mutant)
    )


CAUGHT_BY: dict[str, Attack] = {
    "the_intent_is_not_recorded": killed("fence", "submission.sent:1"),
    "nobody_looks": killed("lease", "submission.sent:1"),
    "no_patience": killed("fence", "submission.sent:1", lag=0.9, patience=1.5),
    "no_fence": asleep("fence", "", act_before="2:SIGSTOP"),
    "no_lease": asleep("lease", "submission.sending:1"),
    "the_handle_is_not_recorded_before_the_poll": killed(
        "fence", "submission.ended:1", has=[], takes=0.3
    ),
    "the_rest_is_forgotten": well,
    "the_rest_is_submitted_before_its_commit_settles": killed(
        "lease", "submission.sent:3", undone_each=3
    ),
    "results_of_what_was_completed_since_are_kept": unsettled,
    "what_is_out_is_planned": killed("lease", "submission.submitted:1"),
    "what_is_left_undone_stays_out": killed("lease", "submission.ended:1", undone_each=3),
    "sent_again_under_another_token": killed("idempotent", "submission.sent:1"),
}


def test_every_mutant_has_its_attack() -> None:
    assert CAUGHT_BY.keys() == MUTANTS.keys()


@pytest.mark.parametrize("mutant", CAUGHT_BY)
def test_a_mistake_is_found(launch: Launcher, place: Path, mutant: str) -> None:
    sound, broken = place / "sound", place / "broken"
    sound.mkdir()
    broken.mkdir()
    CAUGHT_BY[mutant](launch, sound, "")
    with pytest.raises((AssertionError, CheckpointDamaged)) as found:
        CAUGHT_BY[mutant](launch, broken, mutant)
    print(str(found.value)[:1000])
