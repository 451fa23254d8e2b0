"""Reports repeated failures once when they begin, and once when they are over."""

from __future__ import annotations

from resumable_tasks.base import log


class Outage:
    """Something that is tried repeatedly; its failures in a row are logged as one message."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lasts = False

    def failed(self, error: Exception) -> None:
        """Log a warning, unless the previous try failed too."""
        if not self._lasts:
            log.warning("%s could not be written: %s", self._what, error)
        self._lasts = True

    def succeeded(self) -> None:
        """Log that it works again, if the previous try failed."""
        if self._lasts:
            log.info("%s is written again", self._what)
        self._lasts = False
