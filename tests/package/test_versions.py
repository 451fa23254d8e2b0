"""The versions that are tested: said in the pages, allowed in pyproject.toml, pinned, run by CI."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def found(pattern: str, text: str) -> list[str]:
    return re.findall(pattern, text, flags=re.M)


def in_file(pattern: str, name: str) -> list[str]:
    return found(pattern, (ROOT / name).read_text("utf-8"))


PYTHONS = found(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]))
(OLDEST,) = found(r"^prefect>=([\d.]+),<4$", "\n".join(PROJECT["optional-dependencies"]["prefect"]))
(NEWEST,) = in_file(r"^prefect==(.*)$", "constraints.txt")


def test_the_versions_of_python_are_those_that_ci_runs() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert in_file(r"^version=(\S+)", ".ci/newest-python") == [PYTHONS[-1]]
    assert in_file(r"Python (3\.\d+ to 3\.\d+)", "README.md") == [f"{PYTHONS[0]} to {PYTHONS[-1]}"]


@pytest.mark.parametrize("page", ["README.md", "docs/prefect.md", "docs/design/0006-prefect.md"])
def test_a_page_says_which_versions_of_prefect_are_tested(page: str) -> None:
    said = in_file(r"Prefect (3\.\d+\.\d+)\b.*? to (3\.\d+\.\d+)", page)
    assert said == [(OLDEST, NEWEST)]


def test_the_oldest_prefect_is_the_one_that_make_test_oldest_installs() -> None:
    assert in_file(r"^OLDEST_PREFECT = (\S+)", "Makefile") == [OLDEST]


@pytest.mark.xdist_group("groups")
def test_the_workers_of_pytest_know_the_groups_of_tests(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not spread over workers by group")
    # With versions that do not fit each other, each worker sets up what one is to set up for all.
    assert request.node.nodeid.endswith("@groups")
