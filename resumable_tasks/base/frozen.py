"""Dataclasses with slots, at an eighth of the import time of `dataclass`.

`dataclass` compiles up to six methods per class, which takes half a millisecond at each start of a
program. The classes made here compile only ``__init__``, and only once it is called often; they
share all other methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

from resumable_tasks.base.naming import named_options

T = TypeVar("T")

_LOOKED_FOR = ("__module__", "__qualname__", "__doc__", "__post_init__")
# Compiling takes as long as some dozen calls save. Most classes have few instances, or none.
_FEW = 20


class _Init:
    """The ``__init__`` of a class until it is called often or accessed on the class."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls
        self._calls = 0

    def __get__(self, instance: Any, owner: type) -> Callable[..., None]:
        self._calls += 1
        if instance is None or self._calls > _FEW:
            return self._compiled().__get__(instance, owner)  # type: ignore[no-any-return]
        return partial(self._fill, instance)

    def _fill(self, instance: Any, /, *args: Any, **kwargs: Any) -> None:
        """Do the same as the compiled ``__init__``, which is called to report wrong arguments."""
        all_of_it = fields(self._cls)
        by_place = (each.name for each in all_of_it if each.init and not each.kw_only)
        left = {**dict(zip(by_place, args, strict=False)), **kwargs}
        fits = len(left) == len(args) + len(kwargs)
        for each in all_of_it:
            if each.init and each.name in left:
                value = left.pop(each.name)
            elif each.default_factory is not MISSING:
                value = each.default_factory()
            else:
                value = each.default
            fits = fits and value is not MISSING
            object.__setattr__(instance, each.name, value)
        if left or not fits:
            self._compiled()(instance, *args, **kwargs)
        elif hasattr(instance, "__post_init__"):
            instance.__post_init__()

    def _compiled(self) -> Any:
        cls, all_of_it = self._cls, fields(self._cls)
        # Make a class with the same fields and the attributes that its __init__ uses.
        same = {name: getattr(cls, name) for name in _LOOKED_FOR if hasattr(cls, name)}
        same["__annotations__"] = {each.name: each.type for each in all_of_it}
        same |= {each.name: each for each in all_of_it}
        made = type(cls.__name__, (), same)
        is_locked = cls.__setattr__ is not object.__setattr__
        made = dataclass(eq=False, repr=False, match_args=False, frozen=is_locked)(made)
        cls.__init__ = made.__dict__["__init__"]
        return (named_options(cls) if is_locked else cls).__init__


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def changing(cls: type[T]) -> type[T]:
    """Make a dataclass with slots, compared by identity."""
    made = dataclass(init=False, eq=False, repr=False, slots=True)(cls)
    made.__init__ = _Init(made)  # type: ignore[method-assign, assignment]
    return made


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a dataclass with slots, whose instances are immutable for type checkers only."""
    made = changing(cls)
    all_of_it = fields(made)  # type: ignore[arg-type] # it is a dataclass by now
    names = [each.name for each in all_of_it if each.repr]
    values = attrgetter("__class__", *(each.name for each in all_of_it if each.compare))
    hashable = attrgetter("__class__", *(each.name for each in all_of_it if _is_hashed(each)))

    def shown(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({values})"

    def same(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def hashed(self: Any) -> int:
        return hash(hashable(self))

    for name, method in (("__repr__", shown), ("__eq__", same), ("__hash__", hashed)):
        if name not in cls.__dict__:
            setattr(made, name, method)
    return made


def _is_hashed(each: Field[Any]) -> bool:
    return each.compare if each.hash is None else each.hash


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def locked(cls: type[T]) -> type[T]:
    """Make a dataclass like `frozen`, whose instances are immutable at run time too.

    For settings, which a program may share between jobs.
    """
    made: Any = frozen(cls)
    made.__setattr__, made.__delattr__, made.__setstate__ = _no_change, _no_change, _restore
    return made  # type: ignore[no-any-return]


def _no_change(self: object, name: str, value: object = None) -> None:
    raise FrozenInstanceError(f"{type(self).__qualname__}: {name} cannot be changed")


def _restore(self: object, state: tuple[None, dict[str, Any]]) -> None:
    """Set the state for `pickle` and `copy`, which cannot use ``__setattr__`` here."""
    for name, value in state[1].items():
        object.__setattr__(self, name, value)
