"""Programs that a test starts, and that do not outlive it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: Any, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """`subprocess.Popen` of text; killed at the end, if it still runs, and its pipes closed.

    Else one that is left by a test that fails is a warning in whichever test is running when it is
    collected.
    """
    with subprocess.Popen(command, text=True, **how) as process:
        try:
            yield process
        finally:
            process.kill()
