"""The heartbeat of a run in a database that goes away for a while."""

from __future__ import annotations

import logging
import threading

import pytest

pytest.importorskip("sqlalchemy")
import sqlalchemy as sa

from resumable_tasks.checkpoint.sql import claims
from resumable_tasks.checkpoint.sql.absence import Absence
from resumable_tasks.checkpoint.sql.claims import Heartbeat
from resumable_tasks.errors import StoreError


def test_an_outage_is_said_when_it_begins_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = threading.Event()
    left = iter("xxx..x.")

    def beat() -> bool:
        match next(left, ""):
            case "x":
                raise StoreError("no answer")
            case "":
                done.set()
        return True

    with caplog.at_level(logging.INFO, logger="resumable_tasks"):
        alive = Heartbeat(beat, 0.01, Absence("a table", 0.01))
        assert done.wait(30)
        alive.stop()
    assert [text.partition(":")[0] for text in caplog.messages] == [
        "the heartbeat could not be written",
        "the heartbeat is written again",
    ] * 2


def test_a_sign_of_life_that_could_not_be_given_is_given_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before others, who wait a little, take what this run has claimed."""
    monkeypatch.setattr(claims, "_AGAIN_SECONDS", 0.01)
    done = threading.Event()
    left = iter("x" * 20)

    def beat() -> bool:
        if next(left, ""):
            error = sa.exc.OperationalError("", None, Exception("connection refused"))
            raise StoreError("no answer") from error
        done.set()
        return True

    with caplog.at_level(logging.INFO, logger="resumable_tasks"):
        alive = Heartbeat(beat, 8.0, Absence("a table", 8.0))
        assert done.wait(30)  # else each try takes two seconds
        alive.stop()
    assert [text.partition(":")[0] for text in caplog.messages] == [
        "a table does not respond",
        "a table responds again",
    ]
