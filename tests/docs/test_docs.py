"""What the pages show is so: their code runs, and their commands print what is shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.docs.pages import BLOCKS, PAGES, Block


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
    """What a script prints, but for lines of progress, and the warning of a temporary folder."""
    unasked = r"^(\d\d:\d\d:\d\d \S+: |.*in a temporary (folder|directory)).*\n"
    return re.sub(unasked, "", output, flags=re.M)


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
    if "Batch(" in text:
        env |= request.getfixturevalue("batch_api_env")
    if prefect:
        env |= request.getfixturevalue("prefect_env")
    # The README's as a user has them, in an interpreter of their own.
    fresh = script[0].page.name == "README.md" and not prefect
    also = warm.SDKS if "Batch(" in text and not prefect else ()
    run: Any = subprocess.run if fresh else partial(warm.run, prefect=prefect, also=also)
    done = run(
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


# What a newcomer starts, is started as by a newcomer, in a shell and in interpreters of its own.
FRESH = ("README.md",)


def program(command: str) -> list[str] | None:
    """The words of a command that starts a program of Python and asks nothing else of a shell."""
    first, *words = shlex.split(command, comments=True)
    if first not in ("python", "resumable") or set(command.partition("#")[0]) & set("&|;<>$*`("):
        return None
    python = Path(sys.executable)
    return [str(python if first == "python" else python.with_name(first)), *words]


KILLED = shlex.join([sys.executable, str(Path(__file__).with_name("killed.py"))])


def story(page: Path) -> list[Block]:
    """The files and commands of a page, in their order: they build on each other."""
    return [
        block
        for block in BLOCKS
        if block.page == page and (block.marker.startswith("file: ") or block.how == "run")
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
            command = re.sub(r"^timeout --signal=KILL \d+", KILLED, command)
            warmed = None if page.name in FRESH else program(command)
            run: Any = warm.run if warmed else subprocess.run
            done = run(
                warmed or ["bash", "-c", f"{command}\nexit $?"],
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
    assert [b for b in shell if b.language == "console" and b.how == "run"]
    for block in shell:
        how, _, why = block.marker.partition(":")
        assert how == "run" or (how == "not run" and why.strip()), str(block)
        assert how != "run" or block.language == "console", str(block)
    for block in BLOCKS:
        if block.language == "python":
            assert block.marker.split(":")[0] in ("", "file", "continues", "it warns"), str(block)
