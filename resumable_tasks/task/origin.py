"""The origin of a handler: its file, its function, and a digest of its code.

The digest covers the source text of the function and of everything that it uses from its own file,
without comments, decorators and docstrings. So it is the same in every process, and changes after
an edit of the function, a helper, or a constant such as a prompt.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

from resumable_tasks.base.hashes import blake2b
from resumable_tasks.base.source import parse, read_file
from resumable_tasks.checkpoint.form import Origin
from resumable_tasks.runners.submitted.kind import is_submitted

_PLAIN = (str, int, float, bool, type(None))
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITION = (*_FUNCTION, ast.ClassDef)


def origin_of(fn: Callable[..., Any], *, named: bool) -> Origin:
    """The origin of this handler; parts that cannot be known are None.

    ``named``: the user has named the job or its checkpoint, and so declared that they belong
    together.
    """
    function, bound = _unwrapped(fn)
    path = source_file(fn)
    return Origin(
        _portable(path) if path is not None else _notebook(function),
        getattr(function, "__qualname__", None),
        _digest(function, path, bound),
        named,
        path,
    )


def source_file(fn: Callable[..., Any]) -> str | None:
    """The path of the file that defines the function; None if there is none."""
    code = getattr(_unwrapped(fn)[0], "__code__", None)
    path = os.path.realpath(code.co_filename) if code is not None else ""
    return path if os.path.isfile(path) else None


def is_gone(fn: Callable[..., Any], function: str) -> bool:
    """True if this handler's module no longer has a function of that qualified name."""
    found: Any = sys.modules.get(str(getattr(_unwrapped(fn)[0], "__module__", None)))
    if found is None or "<" in function:
        return False
    for name in function.split("."):
        if not hasattr(found, name):
            return True
        found = getattr(found, name)
    return False


def _unwrapped(fn: Any) -> tuple[Any, tuple[Any, ...]]:
    """The innermost function, and the values bound to it."""
    bound: tuple[Any, ...] = ()
    while True:
        if isinstance(fn, functools.partial):
            bound += (*fn.args, *sorted(fn.keywords.items()))
            fn = fn.func
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif inspect.ismethod(fn):
            if not isinstance(fn.__self__, type):
                bound += tuple(sorted(getattr(fn.__self__, "__dict__", {}).items()))
            fn = fn.__func__
        elif not hasattr(fn, "__code__") and is_submitted(fn):
            fn = getattr(fn.submit, "__func__", fn.submit)  # the service's own values are no code
        elif not hasattr(fn, "__code__") and hasattr(type(fn).__call__, "__code__"):
            fn = type(fn).__call__
        else:
            return fn, bound


def _portable(path: str) -> str:
    """The path below the working directory; only the name for files elsewhere."""
    here = os.path.realpath(os.getcwd())
    inside = os.path.commonpath([here, path]) == here if path.startswith(os.sep) else False
    return os.path.relpath(path, here).replace(os.sep, "/") if inside else os.path.basename(path)


def _notebook(function: Any) -> str | None:
    """The name of the notebook that defines the function, if its host tells it."""
    main = sys.modules.get("__main__")
    if getattr(function, "__module__", None) != "__main__" or hasattr(main, "__file__"):
        return None
    name = str(os.environ.get("JPY_SESSION_NAME") or getattr(main, "__vsc_ipynb_file__", ""))
    return os.path.basename(name) if name.endswith(".ipynb") else None


def _digest(function: Any, path: str | None, bound: tuple[Any, ...]) -> str | None:
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    try:
        parts = _parts(function, code, path)
    except (OSError, SyntaxError, ValueError, RecursionError, SystemError):
        # Without readable source the code is unknown. SystemError: see `parse`.
        return None
    parts += [repr(value) for value in (*bound, *_closed_over(function)) if _is_plain(value)]
    text = "\n".join(parts).encode(errors="surrogatepass")
    # The output of `ast` differs between versions of Python.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{version}:{blake2b(text, digest_size=8).hexdigest()}" if parts else None


def _closed_over(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not set yet
            yield cell.cell_contents


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _parts(function: Any, code: CodeType, path: str | None) -> list[str]:
    """The source of the function, and of each name of its file that it uses, in order."""
    text = read_file(path) if path is not None else None
    if text is None:
        import textwrap

        text, path = textwrap.dedent(inspect.getsource(function)), None
    return _source(text).parts(code.co_name, code.co_firstlineno if path is not None else 1)


# Cached, because a process often runs jobs of one file repeatedly.
@functools.lru_cache(maxsize=1)
def _source(text: str) -> _Source:
    return _Source(text)


class _Source:
    """The text of a file, parsed, without decorators and docstrings."""

    def __init__(self, text: str) -> None:
        tree = parse(text)
        self._definitions = _definitions(tree.body)
        self._functions: dict[tuple[str, int], ast.AST] = {}
        self._naming = threading.Lock()
        for node in list(ast.walk(tree)):
            if isinstance(node, _FUNCTION):
                lines = [node.lineno, *(each.lineno for each in node.decorator_list)]
                self._functions.setdefault((node.name, min(lines)), node)
            elif isinstance(node, ast.Lambda):
                self._functions.setdefault(("<lambda>", node.lineno), node)
            if isinstance(node, _DEFINITION):
                node.decorator_list = []
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]

    def parts(self, name: str, line: int) -> list[str]:
        """The text of this function, whatever its name, and of each name of the file it uses."""
        root = self._functions.get((name, line))
        if root is None:
            return []
        with self._naming:
            if isinstance(root, _FUNCTION):
                root.name = "_"
            try:
                used = self._used_by(root)
                return [ast.unparse(root), *(used[each] for each in sorted(used))]
            finally:
                if isinstance(root, _FUNCTION):
                    root.name = name

    def _used_by(self, root: ast.AST) -> dict[str, str]:
        seen: set[str] = set()
        left = [root]
        found: dict[str, str] = {}
        while left:
            names = {node.id for node in ast.walk(left.pop()) if isinstance(node, ast.Name)} - seen
            seen |= names
            for name in names & self._definitions.keys():
                for number, node in enumerate(self._definitions[name]):
                    if node is not root:
                        found[f"{name} {number}"] = ast.unparse(node)
                        left.append(node)
        return found


def _definitions(body: Iterable[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """The statements that define each name of a module, also in ``if``, ``try`` and ``with``."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, _DEFINITION):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for each in (each for target in targets for each in ast.walk(target)):
                if isinstance(each, ast.Name):
                    found.setdefault(each.id, []).append(node)
        else:
            for inner in ("body", "orelse", "handlers", "finalbody"):
                for name, nodes in _definitions(getattr(node, inner, ())).items():
                    found.setdefault(name, []).extend(nodes)
    return found
