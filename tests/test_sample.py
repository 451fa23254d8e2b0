"""A sample leaves no value to the long form of the suite, and no pair where pairs count."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import samples

AXES = {"form": ["disk", "bucket", "table"], "point": [1, 2], "runner": ["threads", "processes"]}


class Item:
    def __init__(self, test: str, params: dict[str, Any], **how: Any) -> None:
        self.nodeid = f"{test}[{params}]"
        self.callspec = SimpleNamespace(params=params)
        self._marks = {"sample": pytest.mark.sample(**how)}

    def get_closest_marker(self, name: str) -> Any:
        return self._marks.get(name)

    def add_marker(self, mark: Any) -> None:
        self._marks[mark.name] = mark


def short(axes: dict[str, list[Any]] = AXES, **how: Any) -> list[dict[str, Any]]:
    every = [dict(zip(axes, each, strict=True)) for each in product(*axes.values())]
    items: list[Any] = [Item(test, each, **how) for test in ("test_a", "test_b") for each in every]
    samples(items)
    left = [item for item in items if item.get_closest_marker("long") is None]
    assert {item.nodeid.partition("[")[0] for item in left} == {"test_a", "test_b"}
    return [item.callspec.params for item in left if item.nodeid.startswith("test_a")]


def test_a_sample_has_each_value_and_is_the_same_each_time() -> None:
    found = short()
    assert found == short()
    assert len(found) == 3
    for name, values in AXES.items():
        assert {each[name] for each in found} == set(values)


def test_a_sample_of_pairs_has_each_two_values_together() -> None:
    found = short(pairs=True)
    assert len(found) < 12
    for one, other in (("form", "point"), ("form", "runner"), ("point", "runner")):
        assert {(e[one], e[other]) for e in found} == set(product(AXES[one], AXES[other]))


def test_a_sample_of_kinds_has_each_point_once() -> None:
    points = ["created:1", "created:2", "created:10", "linked:1", "linked:2"]
    found = short({"fault": points}, kinds=True)
    assert [each["fault"].partition(":")[0] for each in found] == ["created", "linked"]


def test_a_sample_of_one_in_three() -> None:
    assert [each["n"] for each in short({"n": list(range(7))}, one_in=3)] == [1, 4]


def test_a_sample_of_what_has_one_value() -> None:
    assert {each["form"] for each in short(only="bucket")} == {"bucket"}
    assert {each["runner"] for each in short(only="bucket")} == set(AXES["runner"])
    assert len(short(only="bucket", one_in=4)) == 1
