"""Stands between a driver and PostgreSQL, and cuts the connection at its COMMIT."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

When = Literal["before", "after", "half"]


class Proxy:
    """Forwards bytes until the ``nth`` COMMIT of a transaction that updates ``word``'s table.

    ``when``: ``before`` it is passed on, or ``after``, so that it lands and nobody is told. With
    ``half`` it is not passed on, and the server is not told that its client is gone. ``again``:
    whether others may connect after that.
    """

    def __init__(self, port: int, word: bytes, nth: int, when: When, *, again: bool = True) -> None:
        self._target = port
        self._word, self._left, self._when = word, nth, when
        self._again = again
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # An accept in another thread is not ended by a close.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for work in (self._up, self._down):
                    thread = threading.Thread(target=work, args=(client, server), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        seen = False
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                seen = seen or self._word in data
                if b"ROLLBACK" in data and b"ROLLBACK TO" not in data:
                    seen = False
                if b"COMMIT" in data and seen:
                    seen = False
                    self._left -= 1
                    if self._left == 0:
                        if not self._again:
                            self._leave_alone(client, server)
                        client.shutdown(socket.SHUT_RDWR)
                        self.cut.set()
                        if self._when == "half":
                            return
                        if self._when == "after":
                            server.sendall(data)
                            server.settimeout(1.0)
                            server.recv(65_536)
                        break
                server.sendall(data)
        # Another thread reads from it, so that a close alone would not be sent.
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _leave_alone(self, client: socket.socket, server: socket.socket) -> None:
        """Let nobody ask the server by another connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            if each not in (client, server):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
