"""What the pages name exists, and what exists is named."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import resumable_tasks
from resumable_tasks import errors
from tests.docs.pages import EVERYTHING, PAGES, REPOSITORY, prose

# Classes whose methods a user calls.
WITH_METHODS = {"CurrentBatch", "ResumableTask", "RunResult", "Snapshot"}
# Names of others that the pages show as ``name=``: of Prefect, of the flows, of folders.
FOREIGN = {"task_runner", "retry_delay_seconds", "date", "sources", "image", "status", "log_prints"}
FOREIGN |= {"persist_result"}
ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and hasattr(kind, "exit_code")
}


def anchors(page: Path) -> set[str]:
    """The anchors that a site and a forge make of headings."""
    headings = re.findall(r"^#+ (.*)", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        # Anchors in the reference are made when the site is built, which looks at them.
        assert not anchor or "." in anchor or anchor in anchors(target), link


def test_every_command_that_is_mentioned_exists_and_every_one_that_exists_is_mentioned() -> None:
    from resumable_tasks.cli import main

    commands = set(main.commands)  # type: ignore[attr-defined]
    mentioned = set(re.findall(r"(?:`|^\$ |\| )resumable ([a-z]+)", EVERYTHING, flags=re.M))
    assert mentioned == commands
    page = (REPOSITORY / "docs/cli.md").read_text("utf-8")
    assert set(re.findall(r"^\| `resumable (\w+)` \|", page, flags=re.M)) == commands


def test_every_make_target_that_is_mentioned_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), flags=re.M)
    mentioned = set(re.findall(r"`make ([\w-]+)`", EVERYTHING))
    assert {"demo", "docs", "test"} <= mentioned
    assert mentioned <= set(targets)


@pytest.mark.parametrize("name", resumable_tasks.__all__)
def test_every_public_name_is_mentioned(name: str) -> None:
    assert re.search(rf"\b{name}\b", EVERYTHING)


def parameters() -> Iterator[str]:
    """The names of all arguments that a user gives, those of errors aside."""
    for name in set(resumable_tasks.__all__) - set(ERRORS) - {"events"}:
        public = getattr(resumable_tasks, name)
        called = [public]
        if name in WITH_METHODS:
            called += [m for n, m in inspect.getmembers(public, callable) if n[0] != "_"]
        for each in called:
            yield from set(inspect.signature(each).parameters) - {"self", "args", "kwargs"}


def test_every_option_that_is_mentioned_exists() -> None:
    known = set(parameters()) | FOREIGN
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            for name in re.findall(r"(?<![\w.'\"/-])([a-z]\w*)=(?!=)", code):
                assert name in known, f"{page.relative_to(REPOSITORY)}: `{code}`"


def test_every_error_is_sorted_by_its_exit_code() -> None:
    page = (REPOSITORY / "docs/stopping.md").read_text("utf-8")
    section = page.split("\n## Errors\n")[1]
    sorted_by = {
        name: int(code)
        for code, line in re.findall(r"^- .*?\((\d+)\)(.*)$", section, flags=re.M)
        for name in re.findall(r"`(\w+)`", line)
        if name in ERRORS
    }
    in_code = {name: kind.exit_code for name, kind in ERRORS.items()}
    del in_code["ResumableTasksError"]
    assert sorted_by == in_code


def test_every_error_that_is_named_exists() -> None:
    named = set(re.findall(r"`([A-Z]\w+(?:Error|Exit|Interrupt))`", EVERYTHING))
    foreign = {"ConnectError", "RateLimitError"}
    assert {name for name in named if name not in ERRORS and not hasattr(builtins, name)} <= foreign


@pytest.mark.parametrize("page", ["stopping", "cli"])
def test_the_table_of_exit_codes_is_that_of_the_code(page: str) -> None:
    text = (REPOSITORY / f"docs/{page}.md").read_text("utf-8")
    section = text.split("\n## Exit codes\n")[1].split("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section, flags=re.M)}
    assert documented == {code for name, code in vars(errors).items() if name.startswith("EXIT_")}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", EVERYTHING)
    assert len(named) > 20
    for file, name in named:
        assert (REPOSITORY / file).exists(), file
        text = (REPOSITORY / file).read_text("utf-8")
        assert not name or f"def {name}(" in text, f"{file}::{name}"


def test_every_folder_and_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:resumable_tasks|tests|flows|docs)/[\w/.-]*)`", EVERYTHING))
    assert "resumable_tasks/items/" in named
    for path in named:
        assert (REPOSITORY / path).exists(), path


def test_every_module_that_is_run_exists() -> None:
    named = set(re.findall(r"python -m ((?:tests|flows|resumable_tasks)[\w.]*)", EVERYTHING))
    assert named
    for module in named:
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_field_of_a_checkpoint_is_described() -> None:
    """The tables of docs/format.md against what a run writes."""
    page = (REPOSITORY / "docs/format.md").read_text("utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M))
    from resumable_tasks.checkpoint.directory.manifest import Manifest
    from resumable_tasks.checkpoint.directory.record import Commit

    manifest = {field.name for field in dataclasses.fields(Manifest)}
    head = {"kind", "number", "epoch", "run", "time", "nonce", "previous", "shards", "schema"}
    head |= {"tracebacks", "info"}
    kinds = set(re.findall(r"['\"](\w+)['\"]", str(Commit.__dataclass_fields__["kind"].type)))
    assert len(kinds) == 14
    assert described == manifest | head | kinds
