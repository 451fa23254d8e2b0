"""The pages, and the blocks of code in them.

HTML comments before a block tell what the tests do with it:

* ``file: NAME`` – the block is saved for the commands after it;
* ``continues`` – a python block that goes on with the one before it;
* ``run`` – a console block whose commands are run and whose output is compared; with
  ``run: numbers vary`` numbers and digests may differ. ``…`` stands for anything;
* ``it warns`` – a python block that writes to standard error;
* ``not run: WHY`` – a console or sh block that is only to be read.

Python blocks without a comment are run, each by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
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

    @property
    def how(self) -> str:
        """The marker without its detail."""
        return self.marker.partition(":")[0]


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


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
