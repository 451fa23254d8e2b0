"""Errors that a user sees end with what to do next; the source is read, so that none is missed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import resumable_tasks
from resumable_tasks import errors

ROOT = Path(resumable_tasks.__file__).parent
# What a user has done, or can do something about. A handler's results are recorded by item.
CLASSES = {
    name
    for name, found in vars(errors).items()
    if isinstance(found, type)
    and issubclass(found, errors.UsageError | errors.StoreError | errors.CheckpointHeld)
}
WAYS_OUT = (
    "allow|archive|await|call|choose|correct|create|declare|exclude|fix|free|give|import|install|"
    "keep|leave|let|make|mount|move|name|open|pass|pip install|press|publish|put|raise|read|remove|"
    "rename|repair|return|run|save|say|set|start|stop|try|use|wait|write"
)
# Where a sentence, or what follows a colon, begins with such a verb, or with a condition before it.
WAY_OUT = re.compile(
    rf"(?:^|[.:;,!?)}}`>] |[.:;] (?:here|there|or)[^.:;]*, |\b(?:or|and|then) )(?:{WAYS_OUT})\b",
    re.IGNORECASE,
)


def words(node: ast.expr) -> str:
    """The text of a message as far as the source shows it; what is put in is {}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return words(node.left) + words(node.right)
    if isinstance(node, ast.IfExp):
        return words(node.body)
    return "{}"


def says_what_to_do(call: ast.Call) -> bool:
    if any(keyword.arg in ("remedy", None) for keyword in call.keywords):
        return True
    if not call.args or isinstance(call.args[0], ast.Name | ast.Attribute | ast.Call):
        return True  # made elsewhere, or handed on
    return WAY_OUT.search(words(call.args[0])) is not None


def calls(source: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) or getattr(node.func, "id", "")) in CLASSES
    ]


def test_every_error_says_what_to_do_next() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path in sorted(ROOT.rglob("*.py"))
        if "testing" not in path.relative_to(ROOT).parts
        for call in calls(path.read_text("utf-8"))
        if not says_what_to_do(call)
    ]
    assert not silent, "\n".join(["give these a remedy=:", *silent])


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ('UsageError("a is 0")', False),
        ('UsageError(f"{a}: {b}")', False),
        ('errors.InvalidKey("the name is set, which it must not be")', False),
        ('UsageError("a is 0", remedy="Give 1")', True),
        ('UsageError(f"{a} is 0: give 1")', True),
        ('StoreError("the disk is full. Free some space")', True),
    ],
)
def test_what_says_nothing_is_seen(text: str, fine: bool) -> None:
    (call,) = calls(text)
    assert says_what_to_do(call) is fine
