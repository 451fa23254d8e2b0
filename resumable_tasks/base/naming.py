"""Suggests the right name when an unknown option is given to a class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


def named_options(cls: type[T]) -> type[T]:
    """Make a class raise `UsageError` for an unknown option, with a suggestion."""
    init: Any = cls.__init__
    code = init.__code__
    known = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    @wraps(init)
    def checked(self: Any, /, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in known:
                _refuse(cls.__name__, name, known)
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[method-assign, assignment]
    return cls


def _refuse(of: str, name: str, known: Sequence[str]) -> None:
    import difflib

    from resumable_tasks.errors import UsageError

    near = difflib.get_close_matches(name, known, 1)
    hint = f": did you mean {near[0]}=?" if near else ""
    raise UsageError(
        f"{of}: there is no option {name}={hint}",
        remedy=f"Correct its name; {of} has {', '.join(known)}",
    )
