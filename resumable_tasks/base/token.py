"""Random names."""

from __future__ import annotations

import os


def token(size: int) -> str:
    """So many random bytes in hexadecimal digits.

    As ``secrets.token_hex``, whose module loads seven others.
    """
    return os.urandom(size).hex()
