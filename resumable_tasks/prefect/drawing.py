"""A job in ``flow.visualize()``: draws one node, and runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.form import CommittedRows, Reader
from resumable_tasks.prefect.detect import current_flow_run
from resumable_tasks.results.form import Published
from resumable_tasks.results.result import RunResult

if TYPE_CHECKING:
    import pyarrow.dataset as pads

    from resumable_tasks.items.keys import Key

T = TypeVar("T")


def drawn(job: str, items: Any) -> RunResult | None:
    """A stand-in for a run's result while Prefect draws the flow; otherwise None.

    Adds one node for this job to the picture, below the tasks whose results are its items.
    """
    drawing = sys.modules["prefect.utilities.visualization"]
    if drawing.get_task_viz_tracker() is None or current_flow_run() is not None:
        return None
    result = Drawn(job, "", "", 0, 0, 0, 0, 0, 0.0, reader=_NoRows())
    drawing.track_viz_task(False, job, {"items": items}, viz_return_value=result)
    return result


class _NoRows(Reader):
    def read(self, use: Callable[[CommittedRows], T]) -> T:
        import pyarrow as pa

        return use(CommittedRows(pa.schema([]), lambda: iter(()), None))

    def dataset(self) -> pads.Dataset:
        import pyarrow as pa
        import pyarrow.dataset as pads

        return pads.dataset(pa.table({}))

    def completed_keys(self) -> Iterator[Key]:
        return iter(())


@frozen
class Drawn(RunResult):
    """A result without items or rows, which publishes nothing."""

    def publish(self, dest: str | Path, **_: Any) -> Published:
        """Change nothing at ``dest``."""
        return Published(str(dest), 0, (), 0)
