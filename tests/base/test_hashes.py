"""The hash of the format is that of the standard library."""

from __future__ import annotations

import hashlib

from resumable_tasks.base.hashes import blake2b


def test_it_is_the_blake2b_of_hashlib() -> None:
    # Also where an interpreter is built without a module of its own for it.
    assert blake2b is hashlib.blake2b
    of_abc = "cf4ab791c62b8d2b2109c90275287816"
    assert blake2b(b"abc", digest_size=16).hexdigest() == of_abc
