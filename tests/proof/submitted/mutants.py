"""One rule of submitted work switched off at a time, by a patch, in a child."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from resumable_tasks.checkpoint.directory import driver, outstanding
from resumable_tasks.items import keys
from resumable_tasks.items.submission import Submission, Transition
from resumable_tasks.runners.submitted.calls import Calls
from resumable_tasks.runners.submitted.life import Life

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(patch: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[patch.__name__] = patch
    return patch


def _not_recorded(kind: str) -> None:
    record = driver.DirectoryCheckpoint.record

    def but(self: driver.DirectoryCheckpoint, transition: Transition) -> None:
        if transition.kind != kind:
            record(self, transition)

    driver.DirectoryCheckpoint.record = but  # type: ignore[method-assign]


@mutant
def the_intent_is_not_recorded() -> None:
    _not_recorded("submitting")


@mutant
def the_handle_is_not_recorded_before_the_poll() -> None:
    _not_recorded("submitted")


@mutant
def nobody_looks() -> None:
    def withdrawn(self: Life, submission: Submission, error: object) -> Any:
        self._withdraw(submission, "never mind")
        return None
        yield

    Life._look_for = withdrawn  # type: ignore[method-assign]


@mutant
def no_patience() -> None:
    seconds = Calls.seconds
    Calls.seconds = lambda self, name, default: (  # type: ignore[method-assign]
        0.0 if name == "patience" else seconds(self, name, default)
    )


@mutant
def no_fence() -> None:
    has = Calls.has
    Calls.has = lambda self, name: name != "fence" and has(self, name)  # type: ignore[method-assign]


@mutant
def no_lease() -> None:
    Life._lease = property(lambda self: 1e9)  # type: ignore[assignment, method-assign]


@mutant
def the_rest_is_forgotten() -> None:
    collected = Life._collected

    def whole(self: Life, submission: Submission) -> Any:
        done = yield from collected(self, submission)
        return replace(done, rest=None)  # type: ignore[type-var]

    Life._collected = whole  # type: ignore[method-assign]


@mutant
def the_rest_is_submitted_before_its_commit_settles() -> None:
    driver.DirectoryUnit.settle = lambda self, token: None  # type: ignore[method-assign]


@mutant
def results_of_what_was_completed_since_are_kept() -> None:
    outstanding.unanswered = lambda submission, done: submission


@mutant
def what_is_out_is_planned() -> None:
    from resumable_tasks.items.out import ItemsOut

    ItemsOut.hold = lambda self, lines: lines  # type: ignore[method-assign]


@mutant
def what_is_left_undone_stays_out() -> None:
    from resumable_tasks.items.out import ItemsOut

    def forget(self: ItemsOut, lines: Any) -> None:
        self.answered(keys.join(lines))

    ItemsOut.release = forget  # type: ignore[assignment, method-assign]


@mutant
def sent_again_under_another_token() -> None:
    call = Calls.call

    def other(self: Calls, name: str, *given: Any, **more: Any) -> Any:
        if name == "submit" and more["batch"].submission is not None:
            given = (given[0], given[1][::-1])
        return call(self, name, *given, **more)

    Calls.call = other  # type: ignore[method-assign]
