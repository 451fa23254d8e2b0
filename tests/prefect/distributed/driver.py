"""A driver to be killed:

``python -m tests.prefect.distributed.driver TASK_RUNNER PLACE FOLDER COUNT``.

TASK_RUNNER is an expression.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow

from tests.prefect.distributed.handlers import items, work


def main() -> None:
    task_runner, place, folder, count = sys.argv[1:]

    def job() -> None:
        many = work.with_options(concurrency=3)
        many.run(items(Path(folder), int(count), seconds=0.1), checkpoint=place)

    flow(job, name="killed", task_runner=eval(task_runner))()


if __name__ == "__main__":
    main()
