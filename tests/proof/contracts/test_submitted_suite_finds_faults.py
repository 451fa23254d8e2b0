"""The suite of submitted work is worth something: each of these breaks a promise, and is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Ended
from resumable_tasks.errors import ResumableTasksError
from resumable_tasks.testing.submitted_suite import Bench, SubmittedSuite
from tests.proof.submitted.service import Knobs, Service

FENCED = Knobs(has=("prepare", "find", "fence", "cancel"))
IDEMPOTENT = Knobs(has=(), idempotent_for=60.0)
FOUND = (AssertionError, pytest.fail.Exception, ResumableTasksError, LookupError, OSError)


class HandleIsNoJson(Service):
    def submit(self, *given: Any) -> Any:
        return set(super().submit(*given).items())


class ForgetsTheHandle(Service):
    def submit(self, *given: Any) -> Any:
        super().submit(*given)


class HandleOfOneProcess(Service):
    mine: Any = {"id": "of another"}  # noqa: RUF012

    def submit(self, *given: Any) -> Any:
        self.mine = super().submit(*given)
        return {"id": "mine"}

    def poll(self, handle: Any) -> Any:
        return super().poll(self.mine)

    def collect(self, handle: Any) -> Any:
        return super().collect(self.mine)


class CollectsOnce(Service):
    def collect(self, handle: Any) -> Any:
        found = super().collect(handle).results
        if self._noted(f"collected-{handle['id']}"):
            return found[1:]
        self._note(f"collected-{handle['id']}", "1")
        return found


class OtherRowsTheSecondTime(Service):
    def rows(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._note("rows", "1")
        return [{"id": item["id"], "value": len(self._noted("rows"))}]


class LeavesOneOut(Service):
    def collect(self, handle: Any) -> Any:
        return super().collect(handle).results[1:]


class AnswersForOthers(Service):
    def collect(self, handle: Any) -> Any:
        return [row | {"id": row["id"] + 1} for row in super().collect(handle).results]


class CollectsTheNewest(Service):
    def collect(self, handle: Any) -> Any:
        return super().collect({"id": self.all()[-1]["id"]})


class NeverEnds(Service):
    def poll(self, handle: Any) -> Any:
        return None


class EndsTooSoon(Service):
    def poll(self, handle: Any) -> Any:
        return Ended()

    def collect(self, handle: Any) -> Any:
        begun, found = self._begun(handle["id"]), super().collect(handle)
        return found if not self._runs(begun) else found.results[:1]


class SubmitsTwice(Service):
    def submit(self, *given: Any) -> Any:
        super().submit(*given)
        return super().submit(*given)


class PrepareSubmits(Service):
    def prepare(self, items: Any, token: str) -> Any:
        prepared = super().prepare(items, token)
        super().submit(items, token, prepared)
        return prepared


class FindsNothing(Service):
    def find(self, token: str, prepared: Any) -> Any:
        return None


class FindsTheNewest(Service):
    def find(self, token: str, prepared: Any) -> Any:
        return {"id": self.all()[-1]["id"]} if self.all() else None


class FindsItsOwn(Service):
    own: tuple[str, ...] = ()

    def submit(self, items: Any, token: str, prepared: Any = None) -> Any:
        self.own = (*self.own, token)
        return super().submit(items, token, prepared)

    def find(self, token: str, prepared: Any) -> Any:
        return super().find(token, prepared) if token in self.own else None


class FindsWhatIsPrepared(Service):
    def find(self, token: str, prepared: Any) -> Any:
        return {"id": "00001"}


class FenceIsNone(Service):
    def fence(self, token: str, prepared: Any) -> None:
        pass


class FenceFailsTwice(Service):
    def fence(self, token: str, prepared: Any) -> None:
        if token in self._noted("fenced"):
            raise AssertionError("it is fenced already")
        super().fence(token, prepared)


class FenceDestroys(Service):
    def fence(self, token: str, prepared: Any) -> None:
        super().fence(token, prepared)
        for path in (self.home / "begun").glob("*.json"):
            path.unlink()


class TokenIsForgotten(Service):
    def _begin(self, *given: Any) -> str:
        sound, self.knobs = self.knobs, replace(self.knobs, idempotent_for=0.0)
        try:
            return super()._begin(*given)
        finally:
            self.knobs = sound


class CancelDoesNothing(Service):
    def cancel(self, handle: Any) -> None:
        pass


CASES: list[tuple[Callable[..., Any], Knobs, str]] = [
    (HandleIsNoJson, FENCED, "every_item_is_answered_under_its_key"),
    (ForgetsTheHandle, FENCED, "every_item_is_answered_under_its_key"),
    (NeverEnds, FENCED, "every_item_is_answered_under_its_key"),
    (AnswersForOthers, FENCED, "a_single_item_is_answered"),
    (EndsTooSoon, replace(FENCED, takes=0.3), "every_item_is_answered_under_its_key"),
    (LeavesOneOut, FENCED, "every_item_is_answered_under_its_key"),
    (HandleOfOneProcess, FENCED, "another_process_collects_by_what_the_journal_has"),
    (CollectsOnce, FENCED, "the_results_can_be_collected_again"),
    (OtherRowsTheSecondTime, FENCED, "the_results_can_be_collected_again"),
    (CollectsTheNewest, FENCED, "two_submissions_are_kept_apart"),
    (SubmitsTwice, FENCED, "one_submit_begins_one_submission"),
    (PrepareSubmits, FENCED, "one_submit_begins_one_submission"),
    (FindsNothing, FENCED, "what_was_submitted_is_found_under_its_token"),
    (FindsItsOwn, FENCED, "what_was_submitted_is_found_under_its_token"),
    (FindsTheNewest, FENCED, "each_submission_is_found_under_its_own_token"),
    (FindsTheNewest, FENCED, "nothing_is_found_before_it_was_submitted"),
    (FindsWhatIsPrepared, FENCED, "nothing_is_found_before_it_was_submitted"),
    (FenceIsNone, FENCED, "what_was_fenced_does_not_begin_any_more"),
    (FenceFailsTwice, FENCED, "what_was_fenced_does_not_begin_any_more"),
    (FenceDestroys, FENCED, "a_fence_does_not_lose_what_has_begun"),
    (TokenIsForgotten, IDEMPOTENT, "a_token_begins_nothing_twice"),
    (CancelDoesNothing, replace(FENCED, takes=60.0), "what_is_cancelled_ends"),
    (FindsNothing, FENCED, "a_run_whose_answers_are_lost_pays_once"),
    (TokenIsForgotten, IDEMPOTENT, "a_run_whose_answers_are_lost_pays_once"),
    (FindsItsOwn, FENCED, "a_run_that_dies_with_an_answer_pays_once"),
    (TokenIsForgotten, IDEMPOTENT, "a_run_that_dies_with_an_answer_pays_once"),
]


@pytest.mark.parametrize(
    ("kind", "knobs", "test"),
    [pytest.param(*case, id=f"{case[0].__name__}-{n}") for n, case in enumerate(CASES)],
)
def test_the_suite_finds(kind: Callable[..., Any], knobs: Knobs, test: str, tmp_path: Path) -> None:
    """First that the same test finds nothing in a sound service."""
    for kind_, place in ((Service, tmp_path / "sound"), (kind, tmp_path / "broken")):
        place.mkdir()

        class Suite(SubmittedSuite):
            seconds = 1.0
            made: Any = staticmethod(kind_)

            def make_service(self, place: Path) -> Any:
                return self.made(place / "service", knobs)

            def count_started(self, place: Path) -> int:
                return len(Service(place / "service", knobs).all())

        suite, bench = Suite(), Bench(Suite(), place)
        given = (bench, place) if "run" in test else (bench,)
        if kind_ is Service:
            getattr(suite, f"test_{test}")(*given) if knobs.takes < 1 else None
            continue
        with pytest.raises(FOUND):
            getattr(suite, f"test_{test}")(*given)


def test_every_test_of_the_suite_finds_something() -> None:
    tests = {name.removeprefix("test_") for name in vars(SubmittedSuite) if name[:5] == "test_"}
    assert tests - {test for _, _, test in CASES} == {"it_is_submitted_work"}
