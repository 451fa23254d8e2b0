"""`hashlib.blake2b` without OpenSSL, which `hashlib` loads and which takes milliseconds at start.

The standard library's ``random`` imports its SHA-512 in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b
else:
    try:
        from _blake2 import blake2b
    except ImportError:  # an interpreter that is built differently
        from hashlib import blake2b

__all__ = ["blake2b"]
