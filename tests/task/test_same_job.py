"""What is the same job: its function, its code, its key, and where its checkpoint is."""

from __future__ import annotations

import ast
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    CheckpointMismatch,
    ResumableTask,
    RunResult,
    resumable_task,
)

ITEMS = [{"id": n} for n in range(30)]
JOB = """
from resumable_tasks import resumable_task

PROMPT = "say {}"


def ask(item):
    return PROMPT.format(item["id"])


@resumable_task(key="id", batch_size=7)
def process(items):
    # what it does
    return [{"id": item["id"], "text": ask(item)} for item in items]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(path: Path, text: str = JOB, name: str = "process") -> ResumableTask[Any]:
    """The job of a script with this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    job: ResumableTask[Any] = getattr(module, name)
    return job


def warnings_of(caplog: pytest.LogCaptureFixture, run: Callable[[], object]) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "resumable_tasks"):
        run()
    return [text for text in caplog.messages if "temporary directory" not in text]


def test_two_scripts_with_a_function_of_one_name_share_nothing_silently(here: Path) -> None:
    load(here / "a.py").run(ITEMS)
    other = load(here / "b.py")
    for dry_run in (True, False):
        with pytest.raises(CheckpointMismatch) as caught:
            other.run(ITEMS, dry_run=dry_run)
        assert "process in a.py\n  this run:   process in b.py" in str(caught.value)
    assert other.with_options(name="of_b").run(ITEMS).completed == 30
    assert load(here / "a.py").run(ITEMS).skipped == 30


def test_a_script_that_was_renamed_goes_on_once_its_checkpoint_is_named(here: Path) -> None:
    load(here / "a.py").run(ITEMS)
    (here / "a.py").unlink()
    moved = load(here / "jobs" / "b.py")
    assert moved.run(ITEMS, checkpoint=".resumable/process/default").skipped == 30
    assert moved.run(ITEMS).skipped == 30


def test_a_job_that_has_a_name_may_stand_anywhere(here: Path) -> None:
    named = JOB.replace('key="id"', 'key="id", name="texts"')
    load(here / "a.py", named).run(ITEMS)
    assert load(here / "b.py", named.replace("def process", "def p"), "p").run(ITEMS).skipped == 30


def test_functions_within_functions_are_told_apart() -> None:
    def one() -> ResumableTask[Any]:
        def process(items: list[Any]) -> None:
            pass

        return resumable_task(process, key="id", results="none")

    def two() -> ResumableTask[Any]:
        def process(items: list[Any]) -> None:
            pass

        return resumable_task(process, key="id", results="none")

    one().run(ITEMS)
    with pytest.raises(CheckpointMismatch, match=r"one.<locals>.process"):
        two().run(ITEMS)


SUNG = JOB.replace("say", "sing")
NAMED = {
    "another script": ("a.py", "b.py", JOB, SUNG, "refused"),
    "a copy": ("a.py", "b.py", JOB, JOB, "nothing"),
    "another of one name in two folders": ("a/job.py", "b/job.py", JOB, SUNG, "both files"),
    "an edit": ("a.py", "a.py", JOB, SUNG, "one file"),
}


@pytest.mark.parametrize("change", NAMED)
def test_two_scripts_that_name_one_checkpoint_share_nothing_silently(
    here: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    first, second, before, now, said = NAMED[change]
    load(here / first, before).run(ITEMS, checkpoint="out")
    other = load(here / second, now)
    if said == "refused":
        for dry_run in (True, False):
            with pytest.raises(CheckpointMismatch) as caught:
                other.run(ITEMS, checkpoint="out", dry_run=dry_run)
            assert "process in a.py, which is still there" in str(caught.value)
            assert "this run:   process in b.py" in str(caught.value)
        assert load(here / first, before).run(ITEMS, checkpoint="out").skipped == 30
        return
    found = warnings_of(caplog, lambda: other.run(ITEMS, checkpoint="out"))
    assert len(found) == (said != "nothing")
    both = [f"process in {first}" in each and f"process in {second}" in each for each in found]
    assert both == [said == "both files"] * len(found)
    assert warnings_of(caplog, lambda: other.run(ITEMS, checkpoint="out")) == []


def test_one_word_lets_another_script_go_on_with_a_named_checkpoint(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(here / "a.py").run(ITEMS, checkpoint="out")
    other = load(here / "b.py", SUNG)

    def reuse() -> object:
        return other.run(ITEMS, checkpoint="out", on_version_change="reuse")

    found = warnings_of(caplog, reuse)
    assert len(found) == 1
    assert "process in a.py; now: process in b.py" in found[0]
    assert other.run([*ITEMS, {"id": 30}], checkpoint="out").skipped == 30
    assert load(here / "a.py").run(ITEMS, checkpoint="out").skipped == 30


@pytest.mark.parametrize("edited", [False, True])
def test_a_script_that_moved_goes_on_with_a_named_checkpoint(
    here: Path, caplog: pytest.LogCaptureFixture, edited: bool
) -> None:
    load(here / "a.py").run(ITEMS, checkpoint="out")
    (here / "a.py").unlink()
    moved = load(here / "jobs" / "b.py", SUNG if edited else JOB)
    found = warnings_of(caplog, lambda: moved.run(ITEMS, checkpoint="out"))
    assert len(found) == edited
    assert all("process in a.py; now: process in jobs/b.py" in each for each in found)
    assert all("another job" in each and "checkpoint= of its own" in each for each in found)


def test_a_name_that_two_scripts_give_their_job_is_a_word(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = JOB.replace('key="id"', 'key="id", name="texts"')
    load(here / "a.py", named).run(ITEMS, checkpoint="out")
    other = load(here / "b.py", named.replace("say", "sing"))
    assert len(warnings_of(caplog, lambda: other.run(ITEMS, checkpoint="out"))) == 1


def test_functions_within_functions_are_told_apart_where_the_checkpoint_is_named() -> None:
    def one() -> ResumableTask[Any]:
        def process(items: list[Any]) -> list[Any]:
            return [{"a": 1} for _ in items]

        return resumable_task(process, key="id")

    def two() -> ResumableTask[Any]:
        def process(items: list[Any]) -> list[Any]:
            return [{"b": 2} for _ in items]

        return resumable_task(process, key="id")

    one().run(ITEMS, checkpoint="out")
    with pytest.raises(CheckpointMismatch, match=r"two.<locals>.process"):
        two().run(ITEMS, checkpoint="out")


def test_nothing_is_another_functions_that_completed_nothing(here: Path) -> None:
    load(here / "a.py").run([])
    assert load(here / "b.py").run(ITEMS).completed == 30


EDITS = {
    "the function": (JOB.replace("ask(item)}", "ask(item).upper()}"), True),
    "a helper": (JOB.replace("PROMPT.format", "PROMPT.upper().format"), True),
    "a constant": (JOB.replace('"say {}"', '"sing {}"'), True),
    "a comment": (JOB.replace("# what it does", "# what else"), False),
    "an option": (JOB.replace("batch_size=7", "batch_size=8"), False),
    "its place": (JOB.replace("PROMPT =", "\n\nx = 1\nPROMPT ="), False),
    "a docstring": (JOB.replace("    # what", '    "What."\n    # what'), False),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_handler_is_said_once_with_what_to_do(
    here: Path, caplog: pytest.LogCaptureFixture, edit: str
) -> None:
    text, said = EDITS[edit]
    load(here / "a.py").run(ITEMS)
    found = warnings_of(caplog, lambda: load(here / "a.py", text).run([*ITEMS, {"id": 30}]))
    assert len(found) == said
    assert all("`resumable redo" in each and "--before" in each for each in found)
    assert warnings_of(caplog, lambda: load(here / "a.py", text).run(ITEMS)) == []


def test_a_file_is_parsed_once_for_all_runs_of_its_jobs(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = ast.parse

    def counted(text: str, *rest: Any) -> ast.AST:
        parsed.append(text)
        return parse(text, *rest)

    monkeypatch.setattr(ast, "parse", counted)
    other = load(
        here / "a.py", JOB + "\n\n@resumable_task\ndef other(items):\n    return items\n", "other"
    )
    first = load(here / "a.py", (here / "a.py").read_text())
    for job in (first, other.with_options(key="id"), first):
        job.run(ITEMS)
    assert parsed.count((here / "a.py").read_text()) == 1


def test_a_new_version_says_itself_that_the_handler_is_another(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(here / "a.py").run(ITEMS)
    edited = load(here / "a.py", EDITS["a helper"][0]).with_options(version=2)
    assert warnings_of(caplog, lambda: edited.run(ITEMS, on_version_change="reuse")) == []


@pytest.mark.parametrize("values", [("de", "fr"), ("de", "de")])
def test_what_a_handler_closes_over_is_code_too(
    caplog: pytest.LogCaptureFixture, values: tuple[str, str]
) -> None:
    def to(language: str) -> ResumableTask[Any]:
        def translate(items: list[Any]) -> list[Any]:
            return [{"id": item["id"], "in": language} for item in items]

        return resumable_task(translate, key="id")

    to(values[0]).run(ITEMS)
    found = warnings_of(caplog, lambda: to(values[1]).run(ITEMS))
    assert len(found) == len(set(values)) - 1


RENAMED = JOB.replace("def process", "def classify")
ELSEWHERE = {
    "the function was renamed": ("a.py", RENAMED, "classify", ".", True),
    "and edited": ("a.py", RENAMED.replace("say", "sing"), "classify", ".", True),
    "and moved": ("b.py", RENAMED, "classify", ".", True),
    "started in a folder below": ("a.py", JOB, "process", "below", True),
    "started in another folder": ("a.py", JOB, "process", "../other", True),
    "another job of the same items": (
        "b.py",
        RENAMED.replace("say", "sing"),
        "classify",
        ".",
        False,
    ),
    "another job of the same file": (
        "a.py",
        JOB + '\n\n@resumable_task(key="id")\ndef label(items):\n    return items\n',
        "label",
        ".",
        False,
    ),
}


@pytest.mark.parametrize("change", ELSEWHERE)
def test_a_new_checkpoint_says_that_its_items_are_completed_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    file, text, name, folder, said = ELSEWHERE[change]
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(home)
    load(home / "a.py").run(ITEMS)
    job = load(home / file, text, name)
    monkeypatch.chdir(home / folder)
    calls: list[int] = []
    seen_before: list[bool] = []

    def counted(items: list[Any]) -> Any:
        calls.append(len(items))
        seen_before.append("are already completed in" in caplog.text)
        return job.fn(items)

    counted.__wrapped__ = job.fn  # type: ignore[attr-defined]
    counted.__name__ = name
    watched = resumable_task(counted, key="id")
    found = warnings_of(caplog, lambda: watched.run(iter(ITEMS)))
    assert len(found) == said
    assert set(seen_before) == {said}
    if said:
        assert "/home/.resumable/process/default" in found[0]
    caplog.clear()
    assert warnings_of(caplog, lambda: watched.run(ITEMS)) == []


def test_other_keys_and_other_partitions_are_other_work(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(here / "a.py").run(ITEMS, partition="mon")
    other = load(here / "a.py", RENAMED, "classify")
    assert warnings_of(caplog, lambda: other.run(ITEMS, partition="tue")) == []
    items = [{"id": n + 1000} for n in range(30)]
    assert warnings_of(caplog, lambda: other.run(items, partition="mon")) == []


def by_id(item: dict[str, Any]) -> Any:
    return item["id"]


def of_key(key: Any, items: list[Any] = ITEMS, **arguments: Any) -> RunResult:
    def work(items: list[Any]) -> list[Any]:
        return [{"n": 1} for _ in items]

    return resumable_task(work, name="work", key=key).run(items, **arguments)


def test_a_key_function_that_moved_is_said_to_be_the_same() -> None:
    of_key(by_id)
    with pytest.raises(CheckpointMismatch, match="same_key=True"):
        of_key(lambda item: item["id"])
    assert of_key(lambda item: item["id"], same_key=True).skipped == 30
    more = [{"id": 99}, *ITEMS]
    run = of_key(lambda item: item["id"], more)  # it is known from now on
    assert (run.skipped, run.completed, run.table().num_rows) == (30, 1, 31)
    with pytest.raises(CheckpointMismatch):
        of_key(by_id)


@pytest.mark.parametrize("make", [list, iter])
def test_a_key_function_that_is_not_the_same_is_found_out(make: Callable[[Any], Any]) -> None:
    of_key(by_id)
    for _ in range(2):
        with pytest.raises(CheckpointMismatch, match="none of the 30 items checked has a key"):
            of_key(lambda item: f"n{item['id']}", make(ITEMS), same_key=True)
    assert of_key(by_id).skipped == 30


def test_the_sample_looks_behind_new_items() -> None:
    of_key(by_id, ITEMS[:1])
    items = [{"id": n} for n in range(300, -1, -1)]
    assert of_key(lambda item: item["id"], items, same_key=True).skipped == 1


def test_a_key_in_a_column_of_its_own_is_another_key() -> None:
    of_key(by_id)
    with pytest.raises(CheckpointMismatch) as caught:
        of_key("id", same_key=True)
    assert "same_key" not in str(caught.value)
