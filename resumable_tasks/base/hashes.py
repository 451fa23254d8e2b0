"""`hashlib.blake2b`, without OpenSSL, which `hashlib` loads: milliseconds at each start.

The way in which ``random`` of the standard library takes its SHA-512.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b
else:
    try:
        from _blake2 import blake2b
    except ImportError:  # an interpreter that is built in another way
        from hashlib import blake2b

__all__ = ["blake2b"]
