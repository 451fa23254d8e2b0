"""The numbers that only ever shrink: ``python -m tests.package.numbers``."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def numbers() -> dict[str, int]:
    """What is counted, and how often it is there."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    rooms = tools["importlinter"]["contracts"][0]
    listed = tools["ruff"]["lint"]["per-file-ignores"]
    library, flows = texts("resumable_tasks"), texts("flows")
    complex_files = [name for name, codes in listed.items() if codes == ["C901"]]
    marks = [text.count("noqa: C901") for text in (*library, *flows)]
    return {
        "arrows up that ignore_imports lists": len(rooms.get("ignore_imports", [])),
        "files and functions excused from C901": len(complex_files) + sum(marks),
        "imports inside functions": sum(map(imports_in_functions, (*library, *flows))),
        "lines of resumable_tasks/": lines(library),
        "of these in resumable_tasks/testing/": lines(texts("resumable_tasks/testing")),
        "lines of flows/": lines(flows),
    }


def texts(folder: str) -> list[str]:
    return [path.read_text("utf-8") for path in sorted((ROOT / folder).rglob("*.py"))]


def lines(found: list[str]) -> int:
    return sum(len(text.splitlines()) for text in found)


def imports_in_functions(text: str) -> int:
    """Statements that import, anywhere in a function; each once, also where functions nest."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)

    def within(node: ast.AST, inside: bool) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if inside and isinstance(child, (ast.Import, ast.ImportFrom)):
                yield child
            yield from within(child, inside or isinstance(child, functions))

    return len(list(within(ast.parse(text), False)))


if __name__ == "__main__":
    for what, count in numbers().items():
        print(f"{count:>7,}  {what}")
