"""Panics of Rust extensions, which ``except Exception`` does not catch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Panicked(Exception):
    """A bug in an extension. Whether the operation was carried out is unknown."""


@contextmanager
def caught() -> Iterator[None]:
    """Turn a panic into `Panicked`. It is recognised by name: no module exports PyO3's class."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Panicked(str(error)) from None
