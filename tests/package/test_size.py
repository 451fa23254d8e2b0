"""What one can hold in mind: the length of files and functions, the attributes of a class.

How many ways lead through a function is for ruff to say (C901).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import resumable_tasks

PACKAGE = Path(resumable_tasks.__file__).parent
FILE, FUNCTION, ATTRIBUTES = 600, 60, 15


def sizes() -> Iterator[tuple[str, int, int]]:
    """What, how large, how large at most."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        text = path.read_text("utf-8")
        # The conformance suites are lists of tests, to be read one by one.
        yield name, len(text.splitlines()), 750 if "testing" in path.parts else FILE
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}:{node.name}", lines_of(node), FUNCTION
            elif isinstance(node, ast.ClassDef):
                yield f"{name}:{node.name}", len(attributes_of(node)), ATTRIBUTES


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function that do something: without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def attributes_of(node: ast.ClassDef) -> set[str]:
    """What its methods set on ``self``: the state of an object, but for a record's fields."""
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }


def test_nothing_is_larger_than_one_can_hold_in_mind() -> None:
    assert {what: size for what, size, most in sizes() if size > most} == {}
