"""What a newcomer tries in the first hour: it works, or words say what does."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import pickle
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import ItemFailure, JobFailed, UsageError, resumable_task
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
        assert "the handler's code has changed" not in caplog.text
        assert Labeller("b").mark.run(ITEMS, checkpoint=place).skipped == 2
    assert "the handler's code has changed" in caplog.text
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
        r"x\(\) takes none: .*one parameter, the list of items",
    ),
    "parameter to run": (
        lambda: ask.run(ITEMS, model="a"),  # type: ignore[call-arg]
        r"model= is a parameter of the handler: give it by ask\.with_parameters\(model=…\)",
    ),
    "misspelt parameter to run": (
        lambda: ask.run(ITEMS, modle="a"),  # type: ignore[call-arg]
        r"no option modle=: did you mean model=\? That is a parameter of the handler",
    ),
    "parameter to with_options": (
        lambda: ask.with_options(model="a"),  # type: ignore[call-arg]
        r"model= is a parameter of the handler: give it by ask\.with_parameters\(model=…\)",
    ),
    "misspelt parameter": (
        lambda: ask.with_parameters(modle="a"),
        r"modle= is not a parameter of the handler, which has \['model', 'effort'\]",
    ),
    "option as a parameter": (
        lambda: ask.with_parameters(batch_size=3),
        r"batch_size= is an option of the job: give it to resumable_task\(\) or with_options\(\)",
    ),
    "option to run": (
        lambda: ask.run(ITEMS, batch_size=3),  # type: ignore[call-arg]
        r"give it to resumable_task\(\), or for this run to ask\.with_options\(batch_size=…\)\.run",
    ),
    "misspelt option to run": (
        lambda: ask.run(ITEMS, batchsize=3),  # type: ignore[call-arg]
        r"did you mean batch_size=\? That is an option of the job: .*with_options",
    ),
    "option of Prefect's": (
        lambda: resumable_task(pair, log_prints=True),  # type: ignore[call-arg]
        r"log_prints= is a Prefect option, .*\. Give it to the @flow",
    ),
}


def letters() -> Iterator[str]:
    yield "a"


def ended() -> Any:
    items = letters()
    list(items)
    return items


def going_on() -> Any:
    future: Future[Any] = Future()
    future.set_result(ITEMS)
    return future


async def load() -> list[Any]:
    return ITEMS


def plain(items: list[Any]) -> list[Any]:
    return items


JOB: Any = resumable_task(plain, key="id", batch_size=1)
JOBS: Any = resumable_task
WRONG |= {
    "no items": (lambda: JOB.run(), r"^items is None, .*Give run\(\) the items\. If a function"),
    "a generator function": (lambda: JOB.run(letters), r"^items is a function, .*Call it: letters"),
    "a generator once more": (lambda: JOB.run(ended()), r"has already been consumed.* a new one"),
    "a coroutine": (lambda: closing(JOB.run, load()), r"^items is a coroutine, .*Await it"),
    "coroutines": (lambda: closing(lambda c: JOB.run([c]), load()), r"^item 0 is a coroutine"),
    "a future": (
        lambda: JOB.run(going_on()),
        r"^items is a Future, .*not its result\. Give its result: \.result",
    ),
    "futures": (
        lambda: JOB.run([going_on()]),
        r"^item 0 is a Future, .*not its result\. Give its result: \.res",
    ),
    "a path": (lambda: JOB.run(Path("a.csv")), r"^items is a PosixPath, .*Give its content"),
    "a number": (lambda: JOB.run(9), r"^items is an int, .*Give range\(9\)"),
    "batches": (
        lambda: JOB.run([ITEMS, ITEMS]),
        r"a list, has no field 'id'\. Give items one by",
    ),
    "pairs": (
        lambda: JOB.run(list(enumerate(ITEMS))),
        r"a tuple, has no field 'id'\. Give dicts or",
    ),
    "strings with a key": (lambda: JOB.run(["a"]), r"a str, has no field 'id'\. Leave key= out"),
    "a class": (lambda: JOB.run(list), r"^items is the class list\. Call it: list\(\)"),
    "a column": (lambda: JOB.run(pa.array([1])), r"a column without a key\. Give the data frame"),
    "a callable that raises": (
        lambda: JOBS(plain, key=lambda item: item["no"]).run(ITEMS),
        r"item 0: key= raised KeyError: 'no'\. Fix the callable",
    ),
    "key is a list": (lambda: JOBS(plain, key=["a", "b"]), r"Give key= a tuple: key=\('a', 'b'\)"),
    "a flag as checkpoint": (
        lambda: JOB.run(ITEMS, checkpoint=True),
        r"True is not a path\. Name a d",
    ),
    "a place by position": (
        lambda: JOB.run(ITEMS, "c"),
        r"'c' is given without a parameter name",
    ),
    "an option by position": (lambda: JOBS(plain, "id"), r"all but the first by name, as in @resu"),
    "a key for a function": (lambda: JOBS("id"), r"not a str\. Give options by name, as in"),
    "a class's method": (lambda: JOBS(classmethod(plain)), r"Write @classmethod above @resumable"),
    "a task of Prefect's": (
        lambda: JOBS(type("Task", (), {"__module__": "prefect.tasks"})()),
        r"not a Prefect Task\. Leave @task or @flow out",
    ),
    "the call of a job": (
        lambda: JOB(ITEMS, checkpoint="c"),
        r"Write plain\.run\(items, checkpoint=",
    ),
    "max_workers": (lambda: JOBS(plain, max_workers=3), r"did you mean concurrency=\?"),
    "a share in words": (lambda: JOBS(plain, tolerated_failures="5%"), r"'5%' is neither a count"),
    "a rate as a number": (lambda: JOBS(plain, rate_limit=60), r'a string such as "60/minute"'),
    "progress in words": (lambda: JOB.run(ITEMS, progress="bar"), r"progress='bar' is not one of"),
    "a flag in words": (lambda: JOB.run(ITEMS, dry_run="no"), r"dry_run='no' is neither True nor"),
}


def closing(call: Any, coroutine: Any) -> None:
    try:
        call(coroutine)
    finally:
        coroutine.close()


FAILING: dict[str, tuple[Any, str]] = {
    "one item": (
        lambda item: {"id": item["id"]},
        r"test_first_hour\.py:\d+\)\. If it treats the batch",
    ),
    "not awaited": (lambda items: load(), r"coroutine load\(\); .*It was never awaited: make the"),
    "each not awaited": (
        lambda items: [load() for _ in items],
        r"contains coroutine load\(\); .*It was never",
    ),
    "a failure alone": (
        lambda items: ItemFailure(1, "bad"),
        r"Return a list with the ItemFailure",
    ),
    "values": (lambda items: [1 for _ in items], r"contains int 1; .* Give values names: {"),
    "no message": (lambda items: raising(ValueError), r"2 × ValueError \(e\.g\. key"),
    "a failure raised": (
        lambda items: raising(ItemFailure(1, "b")),
        r"Do not raise an ItemFailure",
    ),
}


def raising(error: Any) -> None:
    raise error


@pytest.mark.filterwarnings("ignore:coroutine 'load' was never awaited")
@pytest.mark.parametrize("name", FAILING)
def test_a_handler_that_fails_says_where_and_what_is_meant(name: str, place: Path) -> None:
    handler, says = FAILING[name]
    task: Any = resumable_task(handler, name="job", key="id")
    with pytest.raises(JobFailed, match=says):
        task.run(ITEMS, checkpoint=place)


@pytest.mark.parametrize(
    "handler",
    [
        lambda rows: [row["id"] for row in rows],
        lambda rows: [row.get("id") for row in rows],
        lambda frame: frame.assign(label="a"),
        lambda rows: json.dumps(rows),
        lambda rows: [json.dumps(id_) for id_ in rows["id"]],
    ],
    ids=["index", "get", "frame", "json", "json of a value"],
)
def test_a_handler_of_a_table_that_takes_it_for_rows_is_told(handler: Any, place: Path) -> None:
    task: Any = resumable_task(handler, name="job", key="id")
    with pytest.raises(
        JobFailed, match=r'\.py:\d+\)\. If the items come from a table.*="rows" a list'
    ):
        task.run(pa.Table.from_pylist(ITEMS), checkpoint=place)
    structs = pa.array(ITEMS)
    same: Any = resumable_task(lambda rows: rows, name="j", key="id")
    assert same.run(structs, checkpoint=place / "structs").completed == 2


def test_a_job_that_is_called_with_many_items_says_that_nothing_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert JOB(ITEMS[:1]) == ITEMS[:1]
    assert not caplog.text
    assert JOB(ITEMS) == ITEMS
    assert "plain was called as the plain function, with 2 items at once" in caplog.text


@pytest.mark.parametrize("name", WRONG)
def test_what_is_given_in_the_wrong_way_says_the_right_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, says = WRONG[name]
    with pytest.raises(UsageError, match=says):
        wrong()


@pytest.mark.parametrize("name", ["submit", "map", "delay", "apply_async", "serve", "result"])
def test_methods_of_prefects_tasks_say_what_to_call_instead(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"ask is a resumable task.* no \.{name}\(\): .*run"):
        getattr(ask, name)
