"""Prefect's global concurrency limits, as a rate that all flow runs share."""

from __future__ import annotations

from dataclasses import dataclass

from prefect.concurrency import asyncio as async_limits
from prefect.concurrency import sync as limits

from resumable_tasks.base.stopping import Stopping

# Prefect waits without looking whether the run is stopping.
_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class GlobalLimit:
    """A slot of Prefect's global concurrency limit of this name, for each call of the handler.

    The limit has to be there, and to have a slot decay: slots then come back by themselves. The
    slot is taken where the call is made, also on a worker's machine. See
    https://docs.prefect.io/v3/concepts/global-concurrency-limits
    """

    name: str

    def enter(self, stopping: Stopping) -> bool:
        """Wait for a slot; False if the run is stopping."""
        while not stopping.is_set():
            try:
                limits.rate_limit(self.name, timeout_seconds=_SECONDS, strict=True)
            except TimeoutError:
                continue
            return True
        return False

    async def aenter(self, stopping: Stopping) -> bool:
        """The same, in an event loop."""
        while not stopping.is_set():
            try:
                await async_limits.rate_limit(self.name, timeout_seconds=_SECONDS, strict=True)
            except TimeoutError:
                continue
            return True
        return False
