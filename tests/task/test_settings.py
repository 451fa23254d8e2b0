"""Options: written once, checked where they are given; old spellings name the new ones."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from resumable_tasks import (
    Adaptive,
    AnthropicBatch,
    Budget,
    Changes,
    Failing,
    OpenAIBatch,
    Pending,
    Retry,
    Snapshot,
    SqlCheckpoint,
    UsageError,
    resumable_task,
)
from resumable_tasks.results.publish import publish
from resumable_tasks.runners.submitted.check import check_pending
from resumable_tasks.runners.usage import Used
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions
from resumable_tasks.task.task import ResumableTask

REPOSITORY = Path(__file__).parents[2]


def handler(rows: list[Any]) -> list[Any]:
    return rows


# --- written once


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (resumable_task, JobOptions),
        (ResumableTask.with_options, JobOptions),
        (ResumableTask.run, RunArguments),
        (ResumableTask.arun, RunArguments),
    ],
    ids=lambda each: each.__name__,
)
def test_help_and_signature_say_what_the_options_say(function: Any, options: type) -> None:
    given = list(inspect.signature(function).parameters.values())[1:]
    assert given == list(inspect.signature(options).parameters.values())
    shown = pydoc.plain(pydoc.render_doc(function))
    fields = {field.name for field in dataclasses.fields(options)}
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n {6}.*)*)", inspect.getdoc(options) or "", re.M))
    assert set(texts) == fields
    for name, text in texts.items():
        lines = [line.strip() for line in f"{name}: {text}".splitlines()]
        assert all(line in shown for line in lines), name


WRONG = """
import asyncio
from typing import Any, assert_type
from resumable_tasks import Budget, RunResult, resumable_task
from resumable_tasks.base.frozen import frozen

def plain(rows: list[str]) -> list[int]:
    return []

@resumable_task(name="job", batch_size="x", concurrency="adaptive")  # wrong: batch_size
def decorated(rows: list[str]) -> list[int]:
    return []

@resumable_task(name="job", batch_sise=3)  # wrong: batch_sise
def misspelt(rows: list[str]) -> list[int]:
    return []

called = resumable_task(plain, name="job", timeout="soon")  # wrong: timeout
changed = called.with_options(name="other", runner="cloud")  # wrong: runner
called.run([], checkpoint="place", takeover="yes")  # wrong: takeover
called.run([], checkpoint="place", on_version_change="ignore")  # wrong: on_version_change
called.run([], checkpoints="place")  # wrong: checkpoints

async def both() -> None:
    await called.arun([], checkpoint=3, partition="a")  # wrong: checkpoint
    assert_type(await called.arun([]), RunResult)

@resumable_task
def bare(rows: list[str]) -> list[int]:
    return []

@resumable_task(name="job", batch_size=3, budget=Budget(items=3))
def right(rows: list[str]) -> list[int]:
    return []

assert_type(bare(["a"]), list[int])
assert_type(right(["a"]), list[int])
assert_type(called.with_options(batch_size=3)(["a"]), list[int])
assert_type(right.run(items=["a"], progress=False), RunResult)
right(["a"], 3)  # wrong: Too many arguments


@frozen
class Point:
    x: int


Point(1).x = 2  # wrong: Property "x" defined in "Point" is read-only
Point("1")  # wrong: has incompatible type "str"; expected "int"
"""


def test_a_type_checker_names_the_one_wrong_argument(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "wrong.py"
    file.write_text(WRONG, "utf-8")
    # With the settings of the project, and so with what `make lint` has found out before.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--hide-error-context", "--no-pretty", str(file)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=280,
    )
    errors = re.findall(r"wrong\.py:(\d+): error: (.*)", done.stdout)
    marked = [
        (str(number), line.partition("# wrong: ")[2])
        for number, line in enumerate(WRONG.splitlines(), 1)
        if "# wrong: " in line
    ]
    assert [number for number, _ in errors] == [number for number, _ in marked], done.stdout
    for (_, message), (_, name) in zip(errors, marked, strict=True):
        assert name in message
        assert "overload" not in message


# --- checked where they are given


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Retry(-1), "Retry: times=-1"),
        (lambda: Retry(1, delay="1 s"), "Retry: delay='1 s'"),  # type: ignore[arg-type]
        (lambda: Retry(1, delay=[1, -1]), r"Retry: delay=\[1, -1\]"),
        (lambda: Retry(1, on="KeyError"), "Retry: on='KeyError'"),  # type: ignore[arg-type]
        (lambda: Retry(1, on=int), "Retry: on="),  # type: ignore[arg-type]
        (lambda: Failing(isolate=1), "isolate=1 is neither True"),  # type: ignore[arg-type]
        (lambda: Failing(pause_after=0), "Failing: pause_after=0 .* from 1, or None"),
        (lambda: Failing(give_up_after=-1), "Failing: give_up_after=-1"),
        (lambda: Failing(max_attempts=0), "Failing: max_attempts=0"),
        (lambda: Budget(items=0), "Budget: items=0"),
        (lambda: Budget(seconds=0), "Budget: seconds=0"),
        (lambda: Budget(cost=-1), "Budget: cost=-1"),
        (lambda: Changes(""), "Changes: by=''"),
        (lambda: Adaptive("1"), "Adaptive: lowest='1'"),  # type: ignore[arg-type]
        (lambda: Adaptive(1, 2.5), "Adaptive: highest=2.5"),  # type: ignore[arg-type]
        (lambda: Adaptive(5, 2), "give bounds with"),
        (lambda: Changes("etag", then="ask"), "then='ask'"),  # type: ignore[arg-type]
    ],
)
def test_a_settings_object_checks_itself(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


NO_NUMBERS = [float("nan"), float("inf"), -float("inf"), 10**400]
NUMBERS: list[tuple[str, Any]] = [
    ("timeout", lambda value: resumable_task(handler, timeout=value)),
    ("linger", lambda value: resumable_task(handler, linger=value)),
    ("grace_seconds", lambda value: resumable_task(handler, grace_seconds=value)),
    ("wait", lambda value: resumable_task(handler).run([], wait=value)),
    ("Budget: seconds", lambda value: Budget(seconds=value)),
    ("Failing: give_up_after", lambda value: Failing(give_up_after=value)),
    ("Retry: delay", lambda value: Retry(1, delay=value)),
    ("Retry: delay", lambda value: Retry(1, delay=[1, value])),
    ("claim_seconds", lambda value: SqlCheckpoint("x", table="t", key="k", claim_seconds=value)),
    ("again_in", lambda value: check_pending(Pending(again_in=value))),
]
AMOUNTS: list[tuple[str, Any]] = [
    ("Budget: cost", lambda value: Budget(cost=value)),
    ("Budget: total", lambda value: Budget(total=value)),
    ("tolerated_failures", lambda value: resumable_task(handler, tolerated_failures=value)),
    ("tokens", lambda value: Used().add(tokens=value)),
    ("target_bytes", lambda value: publish(cast(Any, None), "x", target_bytes=value)),
]


# At once, to the end, in one file.
MEANT = [("again_in", -float("inf")), ("wait", True), ("target_bytes", 10**400)]


@pytest.mark.parametrize(
    ("name", "give", "value"),
    [
        (name, give, value)
        for each, values in (
            (NUMBERS, [*NO_NUMBERS, sys.maxsize, "1", True]),
            (AMOUNTS, [*NO_NUMBERS, "1"]),
        )
        for name, give in each
        for value in values
        if (name, value) not in MEANT
    ],
    ids=lambda each: str(each)[:20],
)
def test_what_is_no_number_or_longer_than_a_wait_can_be_is_refused(
    name: str, give: Any, value: Any
) -> None:
    with pytest.raises(UsageError, match=rf"{name}\W"):
        give(value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Retry(tims=3), "Retry: .* tims=: did you mean times="),
        (lambda: Failing(pause_aftr=3), "Failing: .* pause_aftr=: did you mean pause_after="),
        (lambda: Budget(item=3), "Budget: .* item=: did you mean items="),
        (lambda: Budget(xyzzy=3), r"Budget: .* xyzzy=\. .* has items, seconds, cost, total"),
        (lambda: Changes("etag", than="keep"), "Changes: .* than=: did you mean then="),
        (lambda: Changes(bye="etag"), "Changes: .* bye=: did you mean by="),
        (lambda: Adaptive(1, higest=3), "Adaptive: .* higest=: did you mean highest="),
        (lambda: SqlCheckpoint("x", tabel="t", key="k"), "SqlC.* tabel=: did you mean table="),
        (lambda: Snapshot("x", evry=3), "Snapshot: .* evry=: did you mean every="),
        (lambda: OpenAIBatch(print, print, price=3), "OpenAIB.* price=: did you mean prices="),
        (lambda: AnthropicBatch(print, print, price=3), "Anth.* price=: did you mean prices="),
    ],
)
def test_a_misspelt_option_of_an_object_says_the_nearest(make: Any, says: str) -> None:
    for _ in range(25):  # what is made often is compiled
        Retry(1), Failing(), Budget(), Changes("a"), Adaptive()
        with pytest.raises(UsageError, match=says):
            make()
    assert str(inspect.signature(Retry)).startswith("(times: 'int' = 0, delay")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"listeners": print}, "listeners=.* is not a list of callables"),
        ({"listeners": [print, 5]}, "listeners=.* is not a list of callables"),
        ({"on_progress": [print]}, "on_progress=.* is not callable"),
        ({"task_runs": 0}, "task_runs=0"),
        ({"wait": "soon"}, "wait='soon' is neither"),
    ],
)
def test_a_run_checks_its_arguments(arguments: Any, says: str, tmp_path: Path) -> None:
    task = resumable_task(lambda rows: rows, name="job")
    with pytest.raises(UsageError, match=says):
        task.run([1], checkpoint=tmp_path / "c", **arguments)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retries": -1}, "retries=-1 is neither a whole number from 0 nor a Retry"),
        ({"retries": True}, "retries=True"),
        ({"failing": False}, r"failing=False is not a Failing: give failing=Failing\("),
        ({"budget": 5}, r"give budget=Budget\("),
        ({"changes": "etag"}, r"give changes=Changes\("),
        ({"tolerated_failures": 1.5}, "tolerated_failures=1.5"),
        ({"tolerated_failures": True}, "tolerated_failures=True"),
        ({"grace_seconds": -1}, "grace_seconds=-1"),
        ({"fail_fast": "no"}, "fail_fast='no' is neither True nor False"),
        ({"name": 5}, "name=5 cannot name a job"),
        ({"version": None}, "version=None is neither a string nor a whole number"),
        ({"version": 1.10}, r"version=1.1 is neither .* 1\.10 would be 1\.1"),
        ({"cost": ""}, "cost='' is neither a field's name"),
        ({"tags": None}, "tags=None is not a list of strings"),
        ({"tags": "paid"}, "tags='paid' is not a list of strings"),
        ({"json_columns": 5}, "json_columns=5 is not a list of strings"),
    ],
)
def test_an_option_of_the_wrong_kind_says_what_to_give(options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resumable_task(handler, **options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budget": 5}, r"give budget=Budget\("),
        ({"on_version_change": "ignore"}, "on_version_change='ignore'"),
        ({"task_runs": 0}, "task_runs=0"),
    ],
)
def test_a_parameter_of_the_wrong_kind_says_what_to_give(arguments: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resumable_task(handler).run([], **arguments)


# --- spelt otherwise


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("retry_delay", "retries=Retry(times, delay=…)"),
        ("retry_delay_seconds", "retries=Retry(times, delay=…)"),
        ("retry_on", "retries=Retry(times, on=…)"),
        ("timeout_seconds", "timeout="),
        ("isolate", "failing=Failing(isolate=…)"),
        ("pause_after", "failing=Failing(pause_after=…)"),
        ("give_up_after", "failing=Failing(give_up_after=…)"),
        ("max_attempts", "failing=Failing(max_attempts=…)"),
        ("retry_failed", "failing=Failing(retry_failed=…)"),
        ("keep_failed_items", "failing=Failing(keep_items=…)"),
        ("max_items", "budget=Budget(items=…)"),
        ("max_seconds", "budget=Budget(seconds=…)"),
        ("max_cost", "budget=Budget(cost=…)"),
        ("fingerprint", "changes=Changes(by=…)"),
        ("on_change", "changes=Changes(by, then=…)"),
    ],
)
def test_an_old_spelling_is_refused_by_the_new_one(old: str, new: str) -> None:
    task: Any = resumable_task(handler)
    for give in (
        lambda: resumable_task(handler, **{old: 1}),
        lambda: task.with_options(**{old: 1}),
        lambda: task.run([], **{old: 1}),
    ):
        with pytest.raises(UsageError) as error:
            give()
        assert f"handler: {old}= is now {new}" in str(error.value)


def test_an_option_in_the_wrong_place_says_the_right_one() -> None:
    task: Any = resumable_task(handler)
    for name in ("on_version_change", "task_runs", "checkpoint"):
        with pytest.raises(
            UsageError, match=rf"{name}= is a parameter of a run: give it to run\(\) or arun"
        ):
            task.with_options(**{name: 1})
    with pytest.raises(UsageError, match=r"batch_size= is an option of the job"):
        task.run([], batch_size=3)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("keep_items", "failing=Failing(…, keep_items=…)"),
        ("total", "budget=Budget(…, total=…)"),
        ("seconds", "budget=Budget(…, seconds=…)"),
        ("delay", "retries=Retry(…, delay=…)"),
        ("then", "changes=Changes(…, then=…)"),
        ("highest", "concurrency=Adaptive(…, highest=…)"),
    ],
)
def test_a_field_of_a_setting_says_the_setting(name: str, given: str) -> None:
    task: Any = resumable_task(handler)
    for give in (lambda: task.with_options(**{name: 1}), lambda: task.run([], **{name: 1})):
        with pytest.raises(UsageError) as error:
            give()
        assert f"handler: {name}= is a field of another option: give {given}" in str(error.value)


def test_what_a_job_and_a_run_take_is_sent_to_neither() -> None:
    task: Any = resumable_task(handler)
    for give in (task.with_options, lambda **budget: task.run([], **budget)):
        with pytest.raises(UsageError, match=r"budgets=: did you mean budget=\? Correct"):
            give(budgets=1)
    with pytest.raises(UsageError, match=r"items= is a parameter of a run"):
        task.with_options(items=[])


def test_a_misspelt_option_says_the_nearest() -> None:
    task: Any = resumable_task(handler)
    with pytest.raises(UsageError, match=r"no option batchsize=: did you mean batch_size=\?"):
        task.with_options(batchsize=3)
    with pytest.raises(UsageError, match=r"no option chekpoint=: did you mean checkpoint=\?"):
        task.run([], chekpoint="here")
    with pytest.raises(UsageError, match=r"no option xyzzy=\. Correct"):
        resumable_task(handler, xyzzy=1)  # type: ignore[call-arg]


def test_the_budget_of_a_run_counts_where_it_names_a_limit() -> None:
    job = Budget(items=10, cost=5.0)
    assert job.overridden_by(Budget(items=3)) == Budget(items=3, cost=5.0)
    assert job.overridden_by(Budget(seconds=1)) == Budget(items=10, seconds=1, cost=5.0)
