"""The service that other tests count on counts right."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_tasks.runners.submitted.protocol import Ended, Pending, Undone
from tests.submitted.service import FileService, items


def test_what_is_submitted_twice_is_paid_twice(tmp_path: Path) -> None:
    service = FileService(tmp_path)
    service.submit(items(3), "a")
    service.submit(items(2), "a")
    assert service.paid == {0: 2, 1: 2, 2: 1}
    assert [told["number"] for told in service.submissions] == [1, 2]


def test_what_is_undone_is_not_paid_and_done_the_next_time(tmp_path: Path) -> None:
    service = FileService(tmp_path, undone=2)
    first = service.collect(service.submit(items(4), "a"))
    assert [row.key for row in first if isinstance(row, Undone)] == [1, 3]
    second = service.collect(service.submit([{"id": 3}, {"id": 1}], "b"))
    assert [row["id"] for row in second] == [3, 1]
    assert service.paid == dict.fromkeys(range(4), 1)


def test_a_lost_answer_is_found(tmp_path: Path) -> None:
    service = FileService(tmp_path, lose=2)
    service.submit(items(1), "a")
    with pytest.raises(ConnectionError):
        service.submit(items(2), "b")
    assert service.find("b") == {"number": 2}
    assert service.find("c") is None


def test_a_submission_is_at_work_until_its_end_or_until_it_is_cancelled(tmp_path: Path) -> None:
    service = FileService(tmp_path, takes=None)
    one, other = service.submit(items(4), "a"), service.submit([{"id": 9}], "b")
    assert isinstance(service.poll(one), Pending)
    service.cancel(one)
    assert isinstance(service.poll(one), Ended)
    assert [isinstance(row, Undone) for row in service.collect(one)] == [False, False, True, True]
    assert isinstance(service.poll(other), Pending)
    service.end_all()
    assert isinstance(service.poll(other), Ended)
    assert service.paid == {0: 1, 1: 1, 9: 1}
