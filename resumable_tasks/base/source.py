"""Source text of Python: parsed, and looked into without running it."""

from __future__ import annotations

import ast
import threading

_MOST_BYTES = 1_000_000
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Python 3.11 raises SystemError where two threads parse at once (gh-106905), as runs do that
# begin together; what other code parses meanwhile is not ours to hold back.
_PARSING = threading.Lock()


def parse(text: str) -> ast.Module:
    """Parse the text. Raises whatever `ast.parse` does; SystemError: see `_PARSING`."""
    with _PARSING:
        return ast.parse(text)


def parse_file(path: str) -> ast.Module | None:
    """Parse a file; None if it is larger than source is. Raises as `parse`, and OSError."""
    with open(path, encoding="utf-8") as file:
        text = file.read(_MOST_BYTES + 1)
    return parse(text) if len(text) <= _MOST_BYTES else None


def defines(path: str, function: str) -> bool:
    """True if the file can be read and defines a function of this qualified name."""
    try:
        found: ast.AST | None = parse_file(path)
    except (OSError, SyntaxError, ValueError, RecursionError, SystemError):
        return False
    for name in function.split("."):
        if name != "<locals>" and found is not None:
            inside = (node for node in ast.walk(found) if isinstance(node, _DEFINITION))
            found = next((node for node in inside if node.name == name), None)
    return found is not None
