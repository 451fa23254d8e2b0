"""Reading the source of handlers."""

from __future__ import annotations

import threading

import pytest

from resumable_tasks.base import source


def test_a_lock_that_an_interrupt_has_left_shut_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shut = threading.Lock()
    shut.acquire()
    monkeypatch.setattr(source, "_PARSING", shut)
    monkeypatch.setattr(source, "_PARSING_SECONDS", 0.1)
    assert len(source.parse("a = 1\nb = 2").body) == 2
    assert shut.locked()
