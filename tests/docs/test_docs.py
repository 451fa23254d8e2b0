"""The README and the pages of docs/ say what is so: their code runs, their links lead somewhere.

HTML comments before a block say what is done with it:

* ``file: NAME`` – a python block that is saved for the commands after it;
* ``continues`` – a python block that goes on with the one before it;
* ``run`` – a console block whose commands are run and whose output is compared; with
  ``run: numbers vary`` numbers and digests may be others. ``…`` stands for anything;
* ``not run: WHY`` – a console or sh block that is only to be read.

Python blocks without one are run each by itself.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest

import resumable_tasks
from resumable_tasks import errors
from resumable_tasks.task.options import JobOptions

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "deployments/README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
EVERYTHING = "\n".join(page.read_text("utf-8") for page in PAGES)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    numbered = iter(enumerate(lines, 1))
    marker = ""
    for number, line in numbered:
        if comment := re.fullmatch(r"<!-- (.*) -->", line):
            marker = comment[1]
        elif opened := re.fullmatch(r"```(\w*)", line):
            body = takewhile(lambda entry: entry[1] != "```", numbered)
            text = "".join(f"{line}\n" for _, line in body)
            yield Block(page, number, opened[1], marker, text)
            marker = ""
        elif line:
            assert not marker, f"{page}:{number}: a comment without a block: {marker}"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def scripts() -> Iterator[list[Block]]:
    """The python blocks that are run by themselves, each with those that go on with it."""
    chain: list[Block] = []
    for block in BLOCKS:
        if block.language != "python" or block.marker.startswith("file: "):
            continue
        if block.marker == "continues":
            chain.append(block)
            continue
        if chain:
            yield chain
        chain = [block]
    if chain:
        yield chain


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}


def without_place(output: str) -> str:
    """What a script prints, but for the warning that the tests run in a temporary folder."""
    return re.sub(r"^.*lies in a temporary folder.*\n", "", output, flags=re.M)


def is_of_prefect(text: str) -> bool:
    """Whether this is run against a Prefect server, and may warn: not all of it is ours."""
    return re.search(r"^\s*(from|import) prefect", text, flags=re.M) is not None


@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: str(script[0]))
def test_the_code_runs(script: list[Block], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "here").mkdir()
    # Line numbers in a traceback are those of the page, if it is one block.
    text = "\n" * (script[0].line if len(script) == 1 else 0)
    text += "\n\n".join(block.text for block in script)
    (tmp_path / "script.py").write_text(text, "utf-8")
    prefect = is_of_prefect(text)
    env = environment()
    if prefect:
        env |= request.getfixturevalue("prefect_env")
    done = subprocess.run(
        [sys.executable, *([] if prefect else ["-W", "error"]), tmp_path / "script.py"],
        cwd=tmp_path / "here",
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    stderr = without_place(done.stderr)
    if script[0].marker == "it warns":
        assert stderr
        assert "Traceback" not in stderr
    else:
        assert prefect or stderr == ""


def story(page: Path) -> list[Block]:
    """The files and commands of a page, in their order: they build on each other."""
    return [
        block
        for block in BLOCKS
        if block.page == page
        and (block.marker.startswith("file: ") or block.marker.split(":")[0] == "run")
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if story(page)], ids=lambda page: page.name
)
def test_the_commands_do_what_is_shown(page: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    env = environment()
    for block in story(page):
        if block.marker.startswith("file: "):
            (here / block.marker.removeprefix("file: ")).write_text(block.text, "utf-8")
            continue
        for command, shown in commands(block):
            wanted = re.search(r"# exit code (\d+)$", command)
            done = subprocess.run(
                ["bash", "-c", f"{command}\nexit $?"],
                cwd=here,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
            about = f"{block}: $ {command}\n{done.stdout}"
            assert done.returncode == (int(wanted[1]) if wanted else 0), about
            # What a terminal shows as "Killed" has the shell's name before it in a script.
            output = re.sub(r"^bash: line \d+: +\d+ (\w+) .*", r"\1", done.stdout, flags=re.M)
            output = without_place(output)
            pattern = pattern_of(shown, vary=block.marker == "run: numbers vary")
            assert re.fullmatch(pattern, output), f"{about}\nis not what is shown:\n{shown}"


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output that is shown for it."""
    first, *parts = re.split(r"^\$ ", block.text, flags=re.M)
    assert not first, f"{block}: output before the first command"
    for part in parts:
        command, _, shown = part.partition("\n")
        yield command, shown


NUMBER = re.compile(r"\b[0-9a-f]{12,}\b|\d[\d.,]*")


def pattern_of(shown: str, *, vary: bool) -> str:
    r"""A regular expression for an output as it is shown."""
    parts = []
    for line in shown.splitlines():
        if line == "…":
            parts.append("(.*\n)*")
            continue
        pieces = (
            r"(?:[0-9a-f]{12,}|\d[\d.,]*)".join(map(re.escape, NUMBER.split(piece)))
            if vary
            else re.escape(piece)
            for piece in line.split("…")
        )
        parts.append(".*".join(pieces) + "\n")
    return "".join(parts)


def test_outputs_are_compared() -> None:
    def same(shown: str, output: str, vary: bool) -> bool:
        return re.fullmatch(pattern_of(shown, vary=vary), output) is not None

    assert same("a\n…\nb\n", "a\nx\ny\nb\n", vary=False)
    assert same("at …/b\n", "at /x/y/b\n", vary=False)
    assert same("1,200 done, 3.5 s\n", "7 done, 12 s\n", vary=True)
    assert same("id 0123456789abcdef.\n", "id abcdefabcdefabcdef.\n", vary=True)
    assert not same("1 done\n", "2 done\n", vary=False)
    assert not same("1 done\n", "many done\n", vary=True)
    assert not same("1 done\n", "1 done\nand more\n", vary=True)
    assert not same("", "something\n", vary=True)


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    shell = [block for block in BLOCKS if block.language in ("console", "sh")]
    assert [b for b in shell if b.language == "console" and b.marker.split(":")[0] == "run"]
    for block in shell:
        how, _, why = block.marker.partition(":")
        assert how == "run" or (how == "not run" and why.strip()), str(block)
        assert how != "run" or block.language == "console", str(block)
    for block in BLOCKS:
        if block.language == "python":
            assert block.marker.split(":")[0] in ("", "file", "continues", "it warns"), str(block)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in anchors(target), link


def test_every_command_that_is_mentioned_exists_and_every_one_that_exists_is_mentioned() -> None:
    from resumable_tasks.cli import main

    mentioned = set(re.findall(r"(?:`|^\$ |\| )resumable ([a-z]+)", EVERYTHING, flags=re.M))
    assert mentioned
    assert mentioned <= set(main.commands)  # type: ignore[attr-defined]
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    for name in main.commands:  # type: ignore[attr-defined]
        assert f"| `resumable {name}` |" in readme, name


def test_every_make_target_that_is_mentioned_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), flags=re.M)
    mentioned = set(re.findall(r"`make ([\w-]+)`", EVERYTHING))
    assert {"demo", "test"} <= mentioned
    assert mentioned <= set(targets)


@pytest.mark.parametrize("name", resumable_tasks.__all__)
def test_every_public_name_is_mentioned(name: str) -> None:
    assert re.search(rf"\b{name}\b", EVERYTHING)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the README."""
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    section = readme.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_errors_is_that_of_the_code() -> None:
    documented = {row[0].strip("`"): int(row[1]) for row in rows("Errors")}
    in_code = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and hasattr(kind, "exit_code") and name != "ResumableTasksError"
    }
    assert documented == in_code


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    documented = {int(row[0]) for row in rows("Interrupting a run, and exit codes")}
    assert documented == {code for name, code in vars(errors).items() if name.startswith("EXIT_")}


def test_the_table_of_options_is_that_of_the_code() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows("Options")}
    fields = {field.name: field.default for field in dataclasses.fields(JobOptions)}
    assert set(documented) == set(fields)
    for name, default in fields.items():
        if name not in ("name", "key"):
            shown = documented[name].strip('"')
            assert shown in (str(default), f"{default:g}" if type(default) is float else ""), name


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", EVERYTHING)
    assert len(named) > 20
    for file, name in named:
        assert (REPOSITORY / file).exists(), file
        text = (REPOSITORY / file).read_text("utf-8")
        assert not name or f"def {name}(" in text, f"{file}::{name}"


def test_every_field_of_a_checkpoint_is_described() -> None:
    """The tables of docs/format.md against what a run writes."""
    page = (REPOSITORY / "docs/format.md").read_text("utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M))
    from resumable_tasks.checkpoint.directory.manifest import Manifest
    from resumable_tasks.checkpoint.directory.record import Commit

    manifest = {field.name for field in dataclasses.fields(Manifest)}
    head = {"kind", "number", "epoch", "run", "time", "nonce", "previous", "shards", "schema"}
    head |= {"tracebacks", "info"}
    kinds = set(re.findall(r"'(\w+)'", str(Commit.__dataclass_fields__["kind"].type)))
    kinds = kinds or set(re.findall(r'"(\w+)"', str(Commit.__dataclass_fields__["kind"].type)))
    assert len(kinds) == 6
    assert described == manifest | head | kinds
