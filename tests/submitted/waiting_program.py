"""A run that waits for the service of ``SERVICE_HOME``, to be sent signals: PLACE WAIT SECONDS."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from resumable_tasks import Budget, resumable_task
from resumable_tasks.runners.submitted.protocol import Pending
from tests.submitted.service import FileService, items


class Slow(FileService):
    """Takes some seconds to accept something, and says when it is asked to."""

    seconds = 0.0

    def submit(self, given: list[dict[str, Any]], token: str) -> Any:
        (self.home / f"asked-{token}").touch()
        time.sleep(self.seconds)
        return super().submit(given, token)

    def poll(self, handle: Any) -> Any:
        (self.home / "polled").touch()
        found = super().poll(handle)
        # Nobody would see what it does within its time if it looked each second.
        return Pending(found.progress, 600.0) if isinstance(found, Pending) else found


def main(place: str, wait: str, seconds: str, budget: str) -> None:
    service = Slow.of_environment()
    service.seconds = float(seconds)
    job = resumable_task(service, name="waits", key="id", batch_size=10, concurrency=2)
    limits = Budget(seconds=float(budget)) if float(budget) else None
    job.run(items(20), checkpoint=Path(place), wait=json.loads(wait), budget=limits)


if __name__ == "__main__":
    os.environ.setdefault("SERVICE_TAKES", "null")
    main(*sys.argv[1:])
