"""The launcher itself: what it is told of a child is not lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import BOUND_SECONDS, Zygote


def test_a_child_that_ends_before_its_start_is_looked_at(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is told while the caller, on a busy machine, still waits for its turn."""
    zygote = Zygote()
    try:
        wait_for = zygote._news.wait_for
        with monkeypatch.context() as late:
            late.setattr(
                zygote._news,
                "wait_for",
                lambda holds, seconds: wait_for(lambda: holds() and zygote.ended, seconds),
            )
            spec = Spec(str(place), trace="trace", kill_at_op=1)
            pid = zygote.fork(spec, tmp_path / "output")
        assert zygote.wait(pid, BOUND_SECONDS) == -signal.SIGKILL
    finally:
        zygote.close()
