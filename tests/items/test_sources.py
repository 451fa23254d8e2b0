"""Items that come when they come: each is handled when it is there, not when the next one is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import UsageError, resumable_task

PAGE = 20


class Service:
    """Gives a second page once all that is to be handled of the first one has been."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._enough = threading.Event()
        self.handled: list[list[int]] = []
        self.came_in_time = False

    def take(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.handled.append([row["id"] for row in rows])
        if sum(map(len, self.handled)) >= self._expected:
            self._enough.set()
        return rows

    def pages(self) -> Iterator[dict[str, Any]]:
        yield from ({"id": number} for number in range(PAGE))
        self.came_in_time = self._enough.wait(20)
        yield {"id": PAGE}

    async def apages(self) -> AsyncIterator[dict[str, Any]]:
        for number in range(PAGE):
            yield {"id": number}
        self.came_in_time = await asyncio.to_thread(self._enough.wait, 20)
        yield {"id": PAGE}


def run(service: Service, place: Path, way: str, **options: Any) -> Any:
    job = resumable_task(service.take, name="job", key="id", **options)
    items = service.pages() if way.endswith("generator") else service.apages()
    if way.startswith("arun"):
        return asyncio.run(job.arun(items, checkpoint=place))
    return job.run(items, checkpoint=place)


WAYS = ["run a generator", "run async items", "arun a generator", "arun async items"]


@pytest.mark.parametrize("way", WAYS)
def test_whole_batches_do_not_wait_for_the_next_page(place: Path, way: str) -> None:
    service = Service(expected=PAGE)
    result = run(service, place, way, batch_size=5)
    assert service.came_in_time
    assert result.completed == PAGE + 1
    assert [len(batch) for batch in service.handled] == [5, 5, 5, 5, 1]


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_is_not_full_goes_when_it_has_waited_long_enough(
    place: Path, way: str
) -> None:
    service = Service(expected=PAGE)
    result = run(service, place, way, batch_size=8, linger=0.05)
    assert service.came_in_time, "the last four of the page have waited for the next one"
    assert result.completed == PAGE + 1
    assert sorted(number for batch in service.handled for number in batch) == [*range(PAGE + 1)]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_source_raises_comes_after_the_items_before_it(place: Path, way: str) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from ({"id": number} for number in range(7))
        raise OSError("the source has gone")

    async def asource() -> AsyncIterator[dict[str, Any]]:
        for item in source():
            yield item

    service = Service(expected=7)
    service.pages, service.apages = source, asource  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the source has gone"):
        run(service, place, way, batch_size=2, linger=60)
    assert sorted(number for batch in service.handled for number in batch) == [*range(7)]


def test_linger_is_a_time() -> None:
    with pytest.raises(UsageError, match="linger"):
        resumable_task(list, name="job", linger=0)
