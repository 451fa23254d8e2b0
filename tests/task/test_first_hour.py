"""What a newcomer tries in the first hour: it works, or words say what does."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import UsageError, resumable_task
from resumable_tasks.runners.pickling import HandlerReference

ITEMS = [{"id": 1}, {"id": 2}]


class Labeller:
    def __init__(self, label: str) -> None:
        self.label = label

    @resumable_task(key="id")
    def mark(self, items: list[Any]) -> list[Any]:
        return [{"id": item["id"], "label": self.label} for item in items]

    @resumable_task(key="id")
    async def amark(self, items: list[Any]) -> list[Any]:
        return [{"id": item["id"], "label": self.label} for item in items]

    @staticmethod
    @resumable_task(key="id")
    def plain(items: list[Any]) -> list[Any]:
        return items


@resumable_task(key="id")
def ask(items: list[Any], model: str, effort: int = 1) -> list[Any]:
    return [{"id": item["id"], "label": f"{model} {effort}"} for item in items]


def labels(run: Any) -> set[str]:
    return set(run.table()["label"].to_pylist())


def test_a_method_is_a_job_of_its_instance(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert labels(Labeller("a").mark.run(ITEMS, checkpoint=place)) == {"a"}
    assert labels(Labeller("c").amark.run(ITEMS, checkpoint=place / "c")) == {"c"}
    assert Labeller("a").mark(ITEMS)[0]["label"] == "a"
    assert Labeller("a").plain.run(ITEMS, checkpoint=place / "d").completed == 2
    # Another instance goes on with the same checkpoint, and one that differs is told of.
    with caplog.at_level(logging.WARNING, "resumable_tasks"):
        assert Labeller("a").mark.run(ITEMS, checkpoint=place).skipped == 2
        assert "the handler's code is not what it was" not in caplog.text
        assert Labeller("b").mark.run(ITEMS, checkpoint=place).skipped == 2
    assert "the handler's code is not what it was" in caplog.text
    monkeypatch.chdir(place)
    assert Path(Labeller("a").mark.run(ITEMS).checkpoint) == place / ".resumable/mark/default"


def test_parameters_of_a_handler_are_given_by_with_parameters(place: Path) -> None:
    job = ask.with_parameters(model="small")
    assert labels(job.run(ITEMS, checkpoint=place)) == {"small 1"}
    more = job.with_parameters(effort=3).with_options(batch_size=1)
    assert labels(more.run(ITEMS, checkpoint=place / "more")) == {"small 3"}
    assert labels(Labeller("x").mark.with_parameters().run(ITEMS, checkpoint=place / "x")) == {"x"}
    assert resumable_task(functools.partial(ask.fn, model="small"), key="id").name == "ask"


@pytest.mark.parametrize(
    "handler",
    [Labeller("a").mark.fn, Labeller("a").amark.fn, ask.with_parameters(model="a", effort=0).fn],
    ids=["method", "coroutine method", "parameters"],
)
def test_a_method_and_parameters_cross_to_another_process(handler: Any) -> None:
    there = pickle.loads(pickle.dumps(HandlerReference(handler))).handler
    assert inspect.iscoroutinefunction(there) == inspect.iscoroutinefunction(handler)
    if not inspect.iscoroutinefunction(there):
        assert there(ITEMS) == handler(ITEMS)


def test_a_temporary_folder_is_warned_of_once(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resumable_tasks.checkpoint.store.local._TEMPORARY", (str(place.parent),))
    for _ in range(2):
        Labeller("a").mark.run(ITEMS, checkpoint=place)
    assert caplog.text.count("is in a temporary directory") == 1


def test_a_job_can_be_copied_and_has_no_names_of_others() -> None:
    assert copy.copy(ask).options == ask.options
    assert pickle.loads(pickle.dumps(ask.options)) == ask.options
    assert not hasattr(ask, "submit")
    assert not hasattr(ask, "__arrow_c_stream__")


def pair(items: list[Any], model: str) -> list[Any]:
    return items


WRONG: dict[str, tuple[Any, str]] = {
    "method of a class": (lambda: Labeller.mark.run(ITEMS), r"Call it on an instance, as object\."),
    "two parameters": (
        lambda: resumable_task(pair).run(ITEMS),
        r"pair\(items.*missing a required argument: 'model'.* by pair\.with_parameters\(…\)\.run",
    ),
    "no parameter": (
        lambda: resumable_task(lambda: 1, name="x").run(ITEMS),
        r"x\(\) does not take: .*one parameter, the list of items",
    ),
    "parameter to run": (
        lambda: ask.run(ITEMS, model="a"),  # type: ignore[call-arg]
        r"model= is a parameter of the handler: ask\.with_parameters\(model=…\) gives it",
    ),
    "misspelt parameter to run": (
        lambda: ask.run(ITEMS, modle="a"),  # type: ignore[call-arg]
        r"no option modle=: do you mean model=\? That is a parameter of the handler",
    ),
    "parameter to with_options": (
        lambda: ask.with_options(model="a"),  # type: ignore[call-arg]
        r"model= is a parameter of the handler: ask\.with_parameters\(model=…\)",
    ),
    "misspelt parameter": (
        lambda: ask.with_parameters(modle="a"),
        r"modle= is no parameter of the handler, which has \['model', 'effort'\]",
    ),
    "option as a parameter": (
        lambda: ask.with_parameters(batch_size=3),
        r"batch_size= is an option of the job: resumable_task\(\) or with_options\(\) takes it",
    ),
    "option to run": (
        lambda: ask.run(ITEMS, batch_size=3),  # type: ignore[call-arg]
        r"give it to resumable_task\(\), or for this run to ask\.with_options\(batch_size=…\)\.run",
    ),
    "misspelt option to run": (
        lambda: ask.run(ITEMS, batchsize=3),  # type: ignore[call-arg]
        r"do you mean batch_size=\? That is an option of the job: .*with_options",
    ),
    "option of Prefect's": (
        lambda: resumable_task(pair, log_prints=True),  # type: ignore[call-arg]
        r"log_prints= is an option of Prefect's, .*\. Give it to the @flow",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_given_in_the_wrong_way_says_the_right_one(name: str) -> None:
    wrong, says = WRONG[name]
    with pytest.raises(UsageError, match=says):
        wrong()


@pytest.mark.parametrize("name", ["submit", "map", "delay", "apply_async", "serve", "result"])
def test_methods_of_prefects_tasks_say_what_to_call_instead(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"ask is a resumable task.* no \.{name}\(\): .*run"):
        getattr(ask, name)
