"""Detects that a flow run started by a script was cancelled in Prefect, which sends no signal."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.states import Cancelled

from resumable_tasks.base import log

EVERY_SECONDS = 10.0


class CancelWatch:
    """While entered, polls the API for a cancel of the flow run.

    Not if a worker or ``serve`` has started the flow run, because those send signals.
    """

    def __init__(self, flow_run: str, request_stop: Callable[[str, bool], None]) -> None:
        self._flow_run = UUID(flow_run)
        self._request_stop = request_stop
        self._over = threading.Event()
        self.cancelled = False

    def __enter__(self) -> CancelWatch:
        if "PREFECT__FLOW_RUN_ID" not in os.environ:
            threading.Thread(target=self._look, name="resumable-cancels", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            try:
                # A new client for each look, to survive an API that is away or moves.
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(self._flow_run).state
            except Exception:  # noqa: BLE001, S112 - a run goes on without its API
                continue
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                self.cancelled = True
                self._request_stop("a cancel in Prefect", False)
                return

    def confirm(self) -> None:
        """Tell Prefect that the flow run has ended as requested."""
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self._flow_run, Cancelled(), force=True)
        except Exception as error:  # noqa: BLE001 - the run has ended anyway
            log.warning("could not report to Prefect that this flow run is cancelled: %r", error)
