"""A job whose credentials are canaries, as a script: all that can be had of it is printed.

``python -m tests.proof.buckets.canary URL [flow]``
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from typing import Any

import cloudpickle

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.checkpoint.store import requests
from resumable_tasks.checkpoint.store.urls import open_store


def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
    return items


JOB = resumable_task(handle, name="canary", key="id", batch_size=5, concurrency=2)


def show(what: Any) -> None:
    """As text, and as what crosses to another process."""
    print(what, repr(what), vars(what) if hasattr(what, "__dict__") else "")
    for dumps in (pickle.dumps, cloudpickle.dumps):
        print(dumps(what))


def run(url: str) -> None:
    try:
        result = JOB.run([{"id": n} for n in range(20)], checkpoint=url, takeover=True)
        show(result)
        print(result.table().num_rows, result.dataset().count_rows())
        show(Outbox(open_store(url), 1))
    except BaseException as error:
        show(error)
        # Obstore's client of Azure panics when it is shown; a URL of the caller's is the caller's.
        known = {"capture_locals": not os.environ.get("CANARY_LINES_ALONE")}
        print(*traceback.TracebackException.from_exception(error, **known).format())
        raise


def main(url: str, how: str = "") -> Any:
    logging.basicConfig(level=logging.DEBUG)
    if patience := os.environ.get("CANARY_PATIENCE"):
        requests._ELSE = requests._AT_WORK = requests._DENIED_AT_WORK = float(patience)
    if not how:
        return run(url)
    from prefect import flow

    return flow(run, name="canary")(url)


if __name__ == "__main__":
    main(*sys.argv[1:])
