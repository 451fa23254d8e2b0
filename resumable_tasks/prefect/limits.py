"""Prefect's global concurrency limits, as a rate that all flow runs share."""

from __future__ import annotations

from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.concurrency import asyncio as async_limits
from prefect.concurrency import sync as limits
from prefect.exceptions import ObjectNotFound

from resumable_tasks.base.stopping import Stopping
from resumable_tasks.base.text import shell_words
from resumable_tasks.errors import UsageError

# Kept short, because Prefect's wait does not notice that the run is stopping.
_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class GlobalLimit:
    """Takes a slot of Prefect's global concurrency limit of this name for each handler call.

    If the job has a ``weight=``, a call takes as many slots as it weighs.

    The limit must exist and have a slot decay, by which slots come back by themselves. The slot is
    taken where the call is made, also on a worker's machine. See
    https://docs.prefect.io/v3/concepts/global-concurrency-limits
    """

    name: str
    most: int = 0

    def checked(self) -> GlobalLimit:
        """The limit with its number of slots, as it is in Prefect.

        Raises `UsageError`, with the command to fix it, if no slot can be taken.
        """
        decay = "--slot-decay-per-second 1"
        try:
            with get_client(sync_client=True) as client:
                found = client.read_global_concurrency_limit_by_name(self.name)
        except ObjectNotFound:
            raise UsageError(
                f"Prefect has no global concurrency limit {self.name!r}, which rate_limit= names",
                remedy=f"For 60 calls a minute: `prefect gcl create {shell_words(self.name)} "
                f"--limit 60 {decay}`",
            ) from None
        if not found.slot_decay_per_second:
            raise UsageError(
                f"Prefect's global concurrency limit {self.name!r} has no slot decay, so it is not "
                "a rate",
                remedy=f"For one a second: `prefect gcl update {shell_words(self.name)} {decay}`",
            )
        return GlobalLimit(self.name, found.limit)

    def _refuse_heavy(self, slots: int) -> None:
        """Raise `UsageError` for a call that would wait forever."""
        if 0 < self.most < slots:
            raise UsageError(
                f"a call weighs {slots:,} by weight=, but Prefect's global concurrency limit "
                f"{self.name!r} is {self.most:,}",
                remedy="Give a smaller batch_size=, or max_weight=, or raise the limit",
            )

    def enter(self, stopping: Stopping, slots: int = 1) -> bool:
        """Wait for this many slots; False if the run is stopping. Raises `UsageError`."""
        self._refuse_heavy(slots)
        while not stopping.is_set():
            try:
                limits.rate_limit(self.name, occupy=slots, timeout_seconds=_SECONDS, strict=True)
            except TimeoutError:
                continue
            return True
        return False

    async def aenter(self, stopping: Stopping, slots: int = 1) -> bool:
        """`enter` for an event loop."""
        self._refuse_heavy(slots)
        while not stopping.is_set():
            try:
                await async_limits.rate_limit(
                    self.name, occupy=slots, timeout_seconds=_SECONDS, strict=True
                )
            except TimeoutError:
                continue
            return True
        return False
