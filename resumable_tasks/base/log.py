"""The library's one logger, ``resumable_tasks``; in a flow run, that run's logger instead."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from resumable_tasks.base.text import clean_lines, without_secrets

logger = logging.getLogger("resumable_tasks")

# A context variable, so that two runs in one process log to their own places.
destination: ContextVar[logging.Logger | logging.LoggerAdapter[Any]] = ContextVar(
    "resumable_tasks_logger", default=logger
)


def heard() -> bool:
    """True if someone decided what is logged: a flow run, a handler, or a level for this logger."""
    if destination.get() is not logger:
        return True
    off = logger.manager.disable >= logging.INFO
    return off or logger.hasHandlers() or logger.level != logging.NOTSET


def info(message: str, *values: object) -> None:
    destination.get().info(message, *map(_shown, values), stacklevel=2)


def warning(message: str, *values: object) -> None:
    destination.get().warning(message, *map(_shown, values), stacklevel=2)


def error(message: str, *values: object) -> None:
    destination.get().error(message, *map(_shown, values), stacklevel=2)


def exception(message: str, *values: object) -> None:
    """Log an error with the traceback of the exception that is being handled."""
    destination.get().exception(message, *map(_shown, values), stacklevel=2)


def _shown(value: object) -> object:
    """Return a value without secrets and without characters that could control a terminal."""
    if not isinstance(value, (str, BaseException)):
        return value
    return clean_lines(without_secrets(str(value)))
