from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

import resumable_tasks
from resumable_tasks import errors
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
    assert str(copy) == "what, where, what next"
    assert copy.__dict__ == error.__dict__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_is_public_and_drawn_in_the_tree(cls: type[BaseException]) -> None:
    assert cls.__name__ in resumable_tasks.__all__
    assert cls.__name__ in (errors.__doc__ or "")
    assert cls.exit_code in {1, 2, 3, 4, 75}


def test_an_interrupt_is_not_swallowed_by_except_exception() -> None:
    assert issubclass(errors.Interrupted, KeyboardInterrupt)
    assert not issubclass(errors.Interrupted, Exception)
