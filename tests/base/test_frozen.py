"""Values that do not change: dataclasses in all that the library does with them.

That type checkers know them too, tests/task/test_settings.py asks one.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, field, fields, replace
from typing import Any

import pytest

from resumable_tasks.base.frozen import changing, frozen, locked
from resumable_tasks.errors import UsageError


@frozen
class Point:
    """With a default, a factory, and a field by name alone."""

    x: int
    y: int = 0
    _: KW_ONLY
    names: tuple[str, ...] = field(default_factory=tuple)


@frozen
class Nothing:
    """Without fields."""


@frozen
class OfItself:
    """With words of its own for what it is."""

    x: int

    def __repr__(self) -> str:
        return f"of itself: {self.x}"


def test_equal_and_hashed_by_its_fields() -> None:
    assert Point(1, 2, names=("a",)) == Point(1, 2, names=("a",))
    assert Point(1, 2) != Point(1, 3)
    assert Point(1) != Nothing()
    assert Nothing() == Nothing()
    assert len({Point(1), Point(1, 0), Point(2), Nothing(), Nothing()}) == 3


def test_shown_as_a_dataclass_is_unless_it_says_otherwise() -> None:
    assert repr(Point(1, names=("a",))) == "Point(x=1, y=0, names=('a',))"
    assert repr(Nothing()) == "Nothing()"
    assert repr(OfItself(3)) == "of itself: 3"


def test_replaced_taken_apart_and_pickled() -> None:
    point = replace(Point(1), y=5)
    assert point == Point(1, 5)
    assert asdict(point) == {"x": 1, "y": 5, "names": ()}
    assert pickle.loads(pickle.dumps(point)) == point


def test_it_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 1  # type: ignore[attr-defined]


def with_post_init(decorate: Callable[[type], type]) -> Any:
    class Unused:
        """Not made yet."""

        x: int
        names: list[str] = field(default_factory=list)
        _: KW_ONLY
        z: int = 0

        def __post_init__(self) -> None:
            self.names.append("after")

    return decorate(Unused)


@pytest.mark.parametrize("decorate", [frozen, changing, locked])
def test_its_init_is_compiled_when_it_is_called_often_or_looked_at(
    decorate: Callable[[type], type],
) -> None:
    seen, often = with_post_init(decorate), with_post_init(decorate)
    assert not inspect.isfunction(vars(seen)["__init__"])
    assert list(inspect.signature(seen).parameters) == ["x", "names", "z"]
    assert inspect.isfunction(vars(seen)["__init__"])
    assert seen(1).names == ["after"]
    made = [often(number, z=5) for number in range(30)]
    assert inspect.isfunction(vars(often)["__init__"])
    assert [(each.x, each.names, each.z) for each in made] == [(n, ["after"], 5) for n in range(30)]


@pytest.mark.parametrize("decorate", [frozen, changing, locked])
@pytest.mark.parametrize(
    ("args", "names"),
    [((), {}), ((1, [], 3), {}), ((1,), {"x": 1}), ((1,), {"other": 2}), ((), {"z": 1})],
    ids=["missing", "too many", "twice", "unknown", "another is missing"],
)
def test_wrong_arguments_are_those_of_a_compiled_one(
    decorate: Callable[[type], type], args: tuple[Any, ...], names: dict[str, Any]
) -> None:
    new, compiled = with_post_init(decorate), with_post_init(decorate)
    assert compiled.__init__
    error = UsageError if decorate is locked and "other" in names else TypeError
    with pytest.raises(error) as found:
        new(*args, **names)
    with pytest.raises(error) as expected:
        compiled(*args, **names)
    assert str(found.value) == str(expected.value)


def test_one_that_changes_is_equal_to_itself_alone() -> None:
    @changing
    class Counter:
        """Of something."""

        count: int = 0

    counter = Counter()
    counter.count += 1
    assert counter.count == 1
    assert counter != Counter(1)
    assert len({counter, Counter(1)}) == 2


@locked
class Setting:
    """Shared between jobs."""

    x: int
    unhashed: list[int] = field(default_factory=list, hash=False)


@pytest.mark.parametrize("calls", [1, 30])
def test_a_locked_one_cannot_be_changed(calls: int) -> None:
    for _ in range(calls):
        setting = Setting(1)
    with pytest.raises(FrozenInstanceError, match="Setting: x cannot be changed"):
        setting.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del setting.x  # type: ignore[misc]
    assert setting == Setting(1)
    assert setting != Setting(1, [2])
    assert hash(setting) == hash(Setting(1, [2]))
    assert pickle.loads(pickle.dumps(setting)) == copy.deepcopy(setting) == setting
    assert replace(setting, x=3) == Setting(3)
    assert [each.name for each in fields(setting)] == ["x", "unhashed"]


def test_one_that_inherits_fields_takes_them_too() -> None:
    @frozen
    class Named(OfItself):
        """With a field more."""

        name: str = "none"

    assert (Named(1).x, Named(2, "two").name) == (1, "two")
    assert repr(OfItself(3)) == "of itself: 3"
