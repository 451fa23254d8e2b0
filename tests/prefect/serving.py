"""The command `prefect` for a server on SQLite, which leaves garbage to a thread of its own.

A cursor of SQLite that is garbage waits for its connection. Where the server's event loop finds it,
as it does within seconds under load, and that connection waits for a lock of another one, which the
event loop would have to go on with, all stand still until SQLite gives up: for 60 seconds.
"""

from __future__ import annotations

import gc
import threading
import time

_SECONDS = 5.0


def _collect() -> None:
    while True:
        time.sleep(_SECONDS)
        gc.collect()


if __name__ == "__main__":
    from prefect.cli import app

    gc.disable()
    threading.Thread(target=_collect, daemon=True).start()
    app()
