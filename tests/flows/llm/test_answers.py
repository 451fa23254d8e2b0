"""One thing goes wrong at a time: every text gets its label, and little is paid for it."""

from __future__ import annotations

import json
import math

import pytest

from tests.flows.llm.conftest import COST_OF_A_TEXT, Job
from tests.flows.llm.script import BAD, LOST, Rule

FREE = ["429", "500", "503", "drop"]
# Seconds that a request may take, and that the server takes, by far more.
PATIENCE = {"slow": 2.0, "drip": 2.0}
TOO_LONG = 15.0


def total_cost(job: Job) -> float:
    import pyarrow.dataset as pads

    rows = pads.dataset(job.published).to_table(columns=["cost"]).to_pylist()
    return math.fsum(row["cost"] for row in rows)


def test_without_trouble_each_batch_is_one_request(job: Job) -> None:
    result = job.run()
    assert (result.total, result.completed, result.failed) == (40, 40, 0)
    job.check()
    assert job.llm.paid() == len(job.llm.calls) == job.batches
    assert job.llm.most_at_once <= 4
    assert total_cost(job) == pytest.approx(40 * COST_OF_A_TEXT)
    again = job.run()
    assert (again.completed, again.skipped) == (0, 40)
    assert len(job.llm.calls) == job.batches


@pytest.mark.parametrize("do", [*FREE, *sorted(LOST), *sorted(BAD)])
def test_one_request_goes_wrong_and_is_made_again(do: str, job: Job) -> None:
    told = 1 if do == "429" else None
    job.llm.script = [Rule(do, calls=(2,), seconds=TOO_LONG, retry_after=told)]
    assert job.run(timeout=PATIENCE.get(do, 30.0), retries=1).failed == 0
    job.check()
    wrong = job.llm.calls[1]
    (again,) = [each for each in job.llm.calls if each.ids == wrong.ids and each is not wrong]
    assert len(job.llm.calls) == job.batches + 1
    assert job.llm.paid() == job.batches + (do not in FREE)
    # The same key asks for the same answer: one that may have been made and has not come.
    assert (again.key == wrong.key) == (do not in BAD)
    # What a bad answer has cost is in the column as well. Nobody can know the cost of a lost one,
    # nor of one that did not say it.
    known = 45 if do in BAD - {"html"} else 40
    assert total_cost(job) == pytest.approx(known * COST_OF_A_TEXT)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("do", sorted(LOST))
def test_a_server_that_remembers_is_not_paid_twice_for_a_lost_answer(do: str, job: Job) -> None:
    job.llm.remembers = True
    job.llm.script = [Rule(do, calls=(1, 2, 5), seconds=TOO_LONG)]
    assert job.run(timeout=PATIENCE.get(do, 30.0)).failed == 0
    job.check()
    assert job.llm.paid() == job.batches
    assert len(job.llm.calls) == job.batches + 3


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("do", sorted(BAD))
def test_a_server_that_remembers_does_not_say_the_same_bad_thing_for_ever(
    do: str, job: Job
) -> None:
    job.llm.remembers = True
    job.llm.script = [Rule(do, calls=(2,))]
    assert job.run(retries=1).failed == 0
    job.check()
    assert job.llm.paid() == job.batches + 1


def test_a_text_that_is_left_out_is_asked_for_again_without_the_others(job: Job) -> None:
    job.llm.script = [Rule("leave_out", item="t0012", times=1)]
    assert job.run().failed == 0
    job.check()
    asked = [each.ids for each in job.llm.calls if "t0012" in each.ids]
    assert sorted(map(len, asked)) == [1, 5]
    assert job.llm.paid() == job.batches + 1


def test_a_text_that_is_always_left_out_fails_alone(job: Job) -> None:
    job.llm.script = [Rule("leave_out", item="t0012")]
    result = job.run_and_fail()
    assert [(each.key, each.error) for each in result.failures] == [("t0012", "MissingResult")]
    assert result.completed == 39
    assert job.llm.paid() == job.batches + 1
    job.llm.script.clear()
    assert job.run().completed == 1
    job.check()


@pytest.mark.parametrize(
    ("do", "error"),
    [
        ("400", "BadRequestError"),  # such as a text that is too long
        ("refuse", "Refused"),
        ("malformed", "BadAnswer"),
        ("length", "BadAnswer"),
        ("500", "InternalServerError"),
    ],
)
def test_a_text_that_cannot_be_answered_fails_alone(do: str, error: str, job: Job) -> None:
    job.llm.script = [Rule(do, item="t0012")]
    result = job.run_and_fail(retries=1)
    assert [(each.key, each.error) for each in result.failures] == [("t0012", error)]
    assert result.completed == 39
    # The batch of five, its halves, their halves …: those with the text are tried `retries` more
    # times if that is of use, those without it once.
    with_it = [each for each in job.llm.calls if "t0012" in each.ids]
    assert len(with_it) <= 4 * (1 if do in ("400", "refuse") else 2)
    assert len(job.llm.calls) - len(with_it) <= job.batches - 1 + 3
    job.llm.script.clear()
    job.run()
    job.check()


def test_texts_that_fail_may_be_tolerated(job: Job) -> None:
    job.llm.script = [Rule("refuse", item="t0012")]
    ended = job.main("--tolerated-failures", "0.05", "--concurrency", "4")
    assert ended.returncode == 0, ended.stderr
    assert "40 texts: 39 handled now, 0 resumed, 1 failed, in " in ended.stdout
    job.check(without={"t0012"})


def test_an_answer_that_does_not_say_its_cost_is_no_answer(job: Job) -> None:
    job.llm.script = [Rule("no_usage", calls=(3,))]
    assert job.run().failed == 0  # the budget could not be kept without
    job.check()
    assert job.llm.paid() == job.batches + 1


def test_integers_are_ids_and_come_back_as_such(job: Job) -> None:
    job.items = [{"id": i, "text": f"praise {i}"} for i in range(-3, 9)]
    job.file.write_text("".join(json.dumps(item) + "\n" for item in job.items))
    job.run()
    job.check()


def test_a_mix_of_all_with_chance(job: Job) -> None:
    """A third of the requests goes wrong, in all ways at once."""
    for seed in range(3):
        place = job.place / str(seed)
        place.mkdir()
        one = Job(place, job.llm, 200)
        job.llm.calls.clear()
        job.llm.script = [
            Rule(do, share=0.33 / len([*FREE, *LOST, *BAD]), seed=seed, seconds=0.5)
            for do in [*FREE, *sorted(LOST), *sorted(BAD)]
        ]
        assert one.run(timeout=5.0, retries=8).failed == 0
        one.check()
        wrong = [each for each in job.llm.calls if each.did != "answer"]
        assert len(wrong) > 5
        wasted = sum(each.paid for each in wrong if each.did not in ("slow", "drip"))
        assert job.llm.paid() == one.batches + wasted
        assert len(job.llm.calls) <= one.batches + len(wrong)
