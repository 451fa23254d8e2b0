"""Looks into errors that contain others: an ``ExceptionGroup`` is treated as its members."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

_MOST_CAUSES = 5
_MOST_MEMBERS = 100
_MOST_NAMED = 3


def leaves(error: BaseException) -> list[BaseException]:
    """Return the members of a group, at any depth; for another error, the error itself."""
    return list(islice(_leaves(error), _MOST_MEMBERS))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from _leaves(each)


def chains(error: BaseException) -> list[tuple[BaseException, ...]]:
    """Return the error with its causes; one such chain for each member of a group."""
    return list(islice(_chains(error, _MOST_CAUSES), _MOST_MEMBERS))


def _chains(error: BaseException, most: int) -> Iterator[tuple[BaseException, ...]]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _chains(each, most)
    elif error.__cause__ is None or most == 1:
        yield (error,)
    else:
        for causes in _chains(error.__cause__, most - 1):
            yield (error, *causes)


def name_of(error: BaseException) -> str:
    """Return the name of an error's class; for a group, of its members if they share one."""
    names = {type(each).__name__ for each in leaves(error)}
    return names.pop() if len(names) == 1 else type(error).__name__


def message_of(error: BaseException) -> str:
    """Return the message of an exception; never raises, even if its ``__str__`` does."""
    if isinstance(error, BaseExceptionGroup):
        members = leaves(error)
        named = dict.fromkeys(f"{type(each).__name__}: {message_of(each)}" for each in members)
        more = ", …" if len(named) > _MOST_NAMED else ""
        return "; ".join(list(named)[:_MOST_NAMED]) + more
    if isinstance(error, SystemExit):
        return f"the handler called sys.exit({error.code!r})"
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001
        return f"(its message cannot be read: {type(broken).__name__})"
