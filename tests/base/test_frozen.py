"""Values that do not change: dataclasses in all that the library does with them."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from dataclasses import KW_ONLY, asdict, field, replace
from pathlib import Path

import pytest

from resumable_tasks.base.frozen import frozen


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


def test_type_checkers_refuse_a_change(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        "from resumable_tasks.base.frozen import frozen\n\n\n"
        "@frozen\nclass Point:\n    x: int\n\n\nPoint(1).x = 2\nPoint('1')\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-pretty", str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 'Property "x" defined in "Point" is read-only' in ended.stdout
    assert 'has incompatible type "str"; expected "int"' in ended.stdout


def test_its_init_is_compiled_when_it_is_first_used() -> None:
    @frozen
    class Unused:
        """Not made yet."""

        x: int
        names: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            self.names.append("after")

    assert not inspect.isfunction(vars(Unused)["__init__"])
    assert list(inspect.signature(Unused).parameters) == ["x", "names"]
    assert inspect.isfunction(vars(Unused)["__init__"])
    assert Unused(1).names == ["after"]
    with pytest.raises(TypeError, match=r"Unused\.__init__\(\) missing 1 required"):
        Unused()  # type: ignore[call-arg]


def test_one_that_inherits_fields_takes_them_too() -> None:
    @frozen
    class Named(OfItself):
        """With a field more."""

        name: str = "none"

    assert (Named(1).x, Named(2, "two").name) == (1, "two")
    assert repr(OfItself(3)) == "of itself: 3"
