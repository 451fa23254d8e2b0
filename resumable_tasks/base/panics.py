"""Panics of extensions in Rust, which no ``except Exception`` catches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Panicked(Exception):
    """A fault of an extension itself. Whether it has done what it was asked is not known."""


@contextmanager
def caught() -> Iterator[None]:
    """Raise `Panicked` for a panic in here. PyO3 makes a class for them that no module has."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Panicked(str(error)) from None
