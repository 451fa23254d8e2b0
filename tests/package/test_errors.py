from __future__ import annotations

import inspect
import pickle
import sys
from typing import Any

import pytest

import resumable_tasks
from resumable_tasks import errors
from resumable_tasks.base import exits
from resumable_tasks.results.result import RunResult

CLASSES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, BaseException) and member.__module__ == errors.__name__
]
RESULT = RunResult("job", "/c", "run", 3, 1, 1, 1, 0, 0.5)
CONTEXT: dict[str, Any] = {"result": RESULT, "holder": {"pid": 7}, "files": ("a",)}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_survives_a_pickle_round_trip(cls: type[BaseException]) -> None:
    takes = getattr(cls.__init__, "__kwdefaults__", None) or {}
    error = cls("what, where, what next", **{k: v for k, v in CONTEXT.items() if k in takes})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert "what, where, what next" in str(copy)
    assert copy.__dict__ == error.__dict__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_says_what_what_is_safe_and_what_to_do(cls: type[Any]) -> None:
    known = {"safe": "nothing is lost"} if cls is not errors.CheckpointDamaged else {}
    error = cls("the disk is full", remedy="free some space", **known)
    assert error.parts == {
        "what": "the disk is full",
        "safe": known.get("safe", ""),
        "remedy": "free some space",
    }
    assert str(error) == ". ".join(part for part in error.parts.values() if part)
    assert str(cls("only this")) == "only this"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_damage_names_the_checkpoint_the_file_and_the_commands() -> None:
    error = errors.CheckpointDamaged("it is missing", files=("a", "b"), place="/my c")
    assert error.what == "the checkpoint /my c is damaged: a: it is missing"
    assert error.remedy.startswith("`resumable verify '/my c'` lists all damage")
    assert error.files == ("a", "b")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_is_public_and_drawn_in_the_tree(cls: type[BaseException]) -> None:
    assert cls.__name__ in resumable_tasks.__all__
    assert cls.__name__ in (errors.__doc__ or "")
    assert cls.exit_code in {1, 2, 3, 4, 5, 75}


def test_an_interrupt_is_not_swallowed_by_except_exception() -> None:
    assert issubclass(errors.Interrupted, KeyboardInterrupt)
    assert not issubclass(errors.Interrupted, Exception)


def test_the_hook_of_a_framework_for_uncaught_errors_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*_: object) -> None:
        """A framework's."""

    monkeypatch.setattr(sys, "excepthook", theirs)
    exits.use_exit_codes()
    assert sys.excepthook is theirs
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    exits.use_exit_codes()
    assert sys.excepthook is not sys.__excepthook__


def test_an_error_at_decoration_ends_a_script_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(errors.UsageError) as wrong:
        resumable_tasks.resumable_task(print, batch_size=0)
    with pytest.raises(SystemExit) as end:
        sys.excepthook(wrong.type, wrong.value, wrong.tb)
    assert end.value.code == 2
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    sys.excepthook(wrong.type, wrong.value, wrong.tb)
    assert capsys.readouterr().err.count("batch_size=0 is not a whole number") == 2
