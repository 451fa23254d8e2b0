"""What fails at every try for a while: told when it begins, and when it is over."""

from __future__ import annotations

from resumable_tasks.base import log


class Outage:
    """A thing that is tried again and again, and whose failures are one message, not each one."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lasts = False

    def failed(self, error: Exception) -> None:
        """Log a warning, unless the try before has failed too."""
        if not self._lasts:
            log.warning("%s could not be written: %s", self._what, error)
        self._lasts = True

    def succeeded(self) -> None:
        """Log that it is over, if the try before has failed."""
        if self._lasts:
            log.info("%s is written again", self._what)
        self._lasts = False
