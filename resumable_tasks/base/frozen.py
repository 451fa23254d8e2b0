"""Values that do not change, at an eighth of what `dataclass(frozen=True)` costs at import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

_LOOKED_FOR = ("__module__", "__qualname__", "__doc__", "__post_init__")


class _Init:
    """The ``__init__`` of a class, compiled when it is first asked for: that of most is not."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls

    def __get__(self, instance: object, owner: type) -> Callable[..., None]:
        cls, all_of_it = self._cls, fields(self._cls)
        # A class that has the same fields, and what an __init__ of them looks for.
        same = {name: getattr(cls, name) for name in _LOOKED_FOR if hasattr(cls, name)}
        same["__annotations__"] = {each.name: each.type for each in all_of_it}
        same |= {each.name: each for each in all_of_it}
        made = type(cls.__name__, (), same)
        init = dataclass(eq=False, repr=False, match_args=False)(made).__dict__["__init__"]
        cls.__init__ = init
        return init.__get__(instance, owner)  # type: ignore[no-any-return]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a dataclass with slots, whose instances type checkers keep from being changed.

    `dataclass(frozen=True)` compiles six methods for each class, half a millisecond at each start
    of a program; of these, this compiles ``__init__`` alone, when it is first used. Settings, which
    a program may share between jobs, are frozen while it runs, too: they stay with the dataclass.
    """
    made = dataclass(init=False, eq=False, repr=False, slots=True)(cls)
    all_of_it = fields(made)  # type: ignore[arg-type] # it is a dataclass by now
    names = [each.name for each in all_of_it if each.repr]
    values = attrgetter("__class__", *(each.name for each in all_of_it if each.compare))

    def shown(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({values})"

    def same(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def hashed(self: Any) -> int:
        return hash(values(self))

    for name, method in (("__repr__", shown), ("__eq__", same), ("__hash__", hashed)):
        if name not in cls.__dict__:
            setattr(made, name, method)
    made.__init__ = _Init(made)  # type: ignore[method-assign, assignment]
    return made
