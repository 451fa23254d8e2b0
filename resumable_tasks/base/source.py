"""Parses Python source text and inspects it without running it."""

from __future__ import annotations

import ast
import threading

_MOST_BYTES = 1_000_000
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Python 3.11 may raise SystemError if two threads parse at once (gh-106905), for example in runs
# that begin together. The lock does not cover parsing by other code.
_PARSING = threading.Lock()
# Parsing takes two seconds at most. An interrupt just before the release would leave the lock held.
_PARSING_SECONDS = 5.0


def parse(text: str) -> ast.Module:
    """Parse the text. Raises the errors of `ast.parse`; for SystemError see `_PARSING`."""
    held = _PARSING.acquire(timeout=_PARSING_SECONDS)
    try:
        return ast.parse(text)
    finally:
        if held:
            _PARSING.release()


def read_file(path: str) -> str | None:
    """Read a file; None if it is too large for source text. Raises OSError and ValueError."""
    with open(path, encoding="utf-8") as file:
        text = file.read(_MOST_BYTES + 1)
    return text if len(text) <= _MOST_BYTES else None


def defines(path: str, function: str) -> bool:
    """True if the file can be read and defines a function of this qualified name."""
    try:
        text = read_file(path)
        found: ast.AST | None = parse(text) if text is not None else None
    except (OSError, SyntaxError, ValueError, RecursionError, SystemError):
        return False
    for name in function.split("."):
        if name != "<locals>" and found is not None:
            inside = (node for node in ast.walk(found) if isinstance(node, _DEFINITION))
            found = next((node for node in inside if node.name == name), None)
    return found is not None
