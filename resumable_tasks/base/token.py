"""Random names."""

from __future__ import annotations

import os


def token(size: int) -> str:
    """Return ``size`` random bytes as hexadecimal digits.

    Like ``secrets.token_hex``, whose module imports seven others.
    """
    return os.urandom(size).hex()
