"""A checkpoint with all that a report can show, made in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Budget, ItemFailure, JobFailed, resumable_task

HOSTILE = (
    "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    "\x1b[31mred\u202e\n" + "k" * 10_000
)
BAD = {*range(20, 25), 31}


def handle(rows: list[Any]) -> list[Any]:
    found: list[Any] = []
    for row in rows:
        if row["id"] == HOSTILE or row["n"] in BAD:
            kind = TypeError if row["n"] == 50 else ValueError if row["n"] % 2 else KeyError
            found.append(ItemFailure(row["id"], kind("<b>no</b> text\x9b" + "m" * 5_000)))
        else:
            odd = "three" if row["n"] == 40 else row["n"]
            found.append(
                {
                    "id": row["id"],
                    "words": odd,
                    "<th>": "<u>cell</u>\x1b" + "c" * 5_000,
                    "cost": 0.01,
                }
            )
    return found


def items(stop_at: int | None = None) -> Iterator[dict[str, Any]]:
    for n in range(60):
        if n == stop_at:
            raise OSError("the source has gone")
        yield {"id": HOSTILE if n == 50 else f"lesson-{n:03}", "n": n}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that recorded no end, and one that ended with failures: as after two kills."""
    place = tmp_path_factory.mktemp("report") / "classify"
    job = resumable_task(
        handle,
        name="classify",
        key="id",
        batch_size=5,
        concurrency=1,
        budget=Budget(total=2.0),
        cost="cost",
    )
    run: Callable[..., Any] = job.run
    for stop_at in (20, 35):
        with pytest.raises(OSError, match="has gone"):
            run(items(stop_at), checkpoint=place)
    with pytest.raises(JobFailed):
        run(list(items()), checkpoint=place)
    return place
