"""The command `prefect` for a server on SQLite, which leaves garbage to a thread of its own.

A cursor of SQLite that is garbage waits for its connection. Where the server's event loop finds it,
as it does within seconds under load, and that connection waits for a lock of another one, which the
event loop would have to go on with, all stand still until SQLite gives up: for 60 seconds.
"""

from __future__ import annotations

import gc
import threading
import time

_SECONDS = 20.0


def _collect() -> None:
    time.sleep(_SECONDS)
    gc.freeze()  # what is there by now, stays
    while True:
        gc.collect()
        time.sleep(_SECONDS)


if __name__ == "__main__":
    from prefect.cli import app

    gc.disable()
    threading.Thread(target=_collect, daemon=True).start()
    app()
