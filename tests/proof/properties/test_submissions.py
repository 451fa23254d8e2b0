"""Submissions are as their last record says, whatever the checkpoint goes through."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from resumable_tasks.checkpoint.directory.driver import DirectoryUnit
from resumable_tasks.checkpoint.directory.outstanding import Outstanding
from resumable_tasks.items.out import ItemsOut
from tests.proof.properties.submissions import SubmissionMachine
from tests.proof.properties.test_machine import (
    FOUND,
    QUICK,
    QUIET,
    exchange,
    fenced_runs_try_again,
)


def test_what_is_out_is_known_and_comes_back_once() -> None:
    run_state_machine_as_test(
        SubmissionMachine,
        settings=settings(max_examples=6, stateful_step_count=20, phases=QUICK, **QUIET),
    )


@pytest.mark.long
def test_what_is_out_is_known_and_comes_back_once_at_length() -> None:
    examples = int(os.environ.get("RESUMABLE_TASKS_EXAMPLES", "5000"))
    run_state_machine_as_test(
        SubmissionMachine, settings=settings(max_examples=examples, stateful_step_count=50, **QUIET)
    )


# A function, and a few of its words that are exchanged for others.
FAULTS = {
    "what is settled stays out": (Outstanding.apply, 'commit.info.get("settled", ())', "()"),
    "what is out is planned": (ItemsOut.hold, "self._keys.add_lines(new)", "pass"),
    "a handle is forgotten by the next record": (
        Outstanding._follow,
        "replace(self.each[token], prepared=",
        "replace(self.each[token], handle=None, prepared="),
    "snapshots keep no handles": (
        Outstanding.told, "asdict(submission)", "asdict(submission) | {'handle': None}"),
    "snapshots keep no fingerprints": (
        Outstanding.told, "asdict(submission)", "asdict(submission) | {'fingerprints': b''}"),
    "a commit settles nothing": (
        DirectoryUnit.settle, "self._settled.append(token)", "pass"),
    "what is left undone is not planned again": (
        ItemsOut.release, "self._keys.remove(line)", "pass"),
    "an answer is not taken from what may be planned": (
        ItemsOut.take_out, "self._keys.missing(chunk.lines)", "range(len(chunk))"),
    "what a withdrawal names stays out": (
        Outstanding.apply, 'commit.kind != "withdrawn"', "True"),
}  # fmt: skip


OTHERS_WRITE = "a run that was overtaken writes transitions"
# Found within a few examples.
AT_ONCE = {"what is settled stays out"}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in AT_ONCE else pytest.mark.long)
        for fault in (*FAULTS, OTHERS_WRITE)
    ],
)
def test_the_machine_finds(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == OTHERS_WRITE:
        fenced_runs_try_again(monkeypatch)
    else:
        exchange(monkeypatch, *FAULTS[fault])
    with pytest.raises(FOUND):
        run_state_machine_as_test(
            SubmissionMachine,
            settings=settings(
                max_examples=500,
                stateful_step_count=20,
                phases=[Phase.generate],
                database=None,
                derandomize=True,
                report_multiple_bugs=False,
                **QUIET,
            ),
        )
