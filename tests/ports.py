"""Ports for servers that a test starts."""

from __future__ import annotations

import secrets
import socket

# Below those from which systems choose one for each client: a client of any test would now and then
# take the port before the server has it.
_LOWEST, _MOST = 20_000, 12_000


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, for a server that is about to be started."""
    while True:
        port = _LOWEST + secrets.randbelow(_MOST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
