"""Sends a handler and its items to another process."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

from resumable_tasks.errors import Unfinished, UsageError, WorkerLost
from resumable_tasks.items.batch import Rows
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.handle import Work, failed_whole
from resumable_tasks.runners.outcome import Dropped, Fatal, Outcome


class HandlerReference:
    """A handler that is pickled by its name, even if a decorator has replaced it there."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __call__(self, items: Any) -> Any:
        return self.handler(items)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        handler = self.handler
        if isinstance(handler, functools.partial):
            return _partial, (HandlerReference(handler.func), handler.args, handler.keywords)
        if inspect.ismethod(handler):
            return _bound, (HandlerReference(handler.__func__), handler.__self__)
        if not has_name(self.handler):
            name = getattr(self.handler, "__qualname__", None) or repr(self.handler)
            raise UsageError(
                f"handler {name!r} cannot be sent to another process: it is not defined at the top "
                f"level of its module ({getattr(self.handler, '__module__', None)}). Move it there "
                '(no lambda, no nested function), or use runner="local"'
            )
        if self.handler.__module__ == "__main__" and not _has_file("__main__"):
            raise UsageError(
                f"handler {self.handler.__qualname__!r} cannot be sent to another process: it is "
                "defined in a notebook, at a prompt, by -c or on standard input, where other "
                "processes cannot import it. Move it to a module file and import it, or use "
                'runner="local"'
            )
        return _reference, (self.handler.__module__, self.handler.__qualname__)


def has_name(handler: Callable[..., Any]) -> bool:
    """True if a handler can be found in this process by its module and its qualified name."""
    try:
        return _find(handler.__module__, handler.__qualname__) is handler
    except (ImportError, AttributeError):
        return False


def _has_file(module: str) -> bool:
    """True if another process can import this module, from a file or by its name (``-m``)."""
    found = sys.modules[module]
    if getattr(found, "__spec__", None) is not None:
        return True
    return os.path.exists(getattr(found, "__file__", None) or "")


def _find(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    # The name refers to the task that the decorator made; its ``fn`` is the handler.
    return getattr(found, "fn", found)


def _reference(module: str, name: str) -> HandlerReference:
    return HandlerReference(_find(module, name))


def _partial(
    function: HandlerReference, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> HandlerReference:
    return HandlerReference(functools.partial(function.handler, *args, **keywords))


def _bound(function: HandlerReference, to: Any) -> HandlerReference:
    return HandlerReference(MethodType(function.handler, to))


def shippable(work: Work, handler: Callable[..., Any], processes: int) -> Work:
    """Return the work with this handler for ``processes`` workers, without the driver's parts.

    Workers need only the columns of the key, so a callable key is left out.
    """
    scheme = KeyScheme(None) if callable(work.scheme.spec) else work.scheme
    limits = replace(work.limits, processes=processes) if work.limits is not None else None
    return replace(work, handler=handler, scheme=scheme, limits=limits, trails=None)


def compact(items: Rows) -> Rows:
    """Return the items of a batch in a form that pickles at their own size.

    A pickled slice of a table would contain the whole table.
    """
    if isinstance(items, list):
        return items
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, items.schema) as stream:
        stream.write_batch(items)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


def contain(work: Work, outcome: Outcome) -> Outcome:
    """Return the outcome to send back: a ``SystemExit`` in a worker must not end the driver."""
    match outcome:
        case Dropped(batch, why) if why:
            return Fatal(batch, Unfinished(why))
        case Fatal(batch, error) if not isinstance(error, Exception):
            return failed_whole(work, batch, WorkerLost(f"the handler raised {error!r}"), 1)
    return outcome
