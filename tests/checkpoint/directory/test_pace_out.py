"""What a flow run has used of its budget counts what a service has for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from resumable_tasks.checkpoint.directory.pace import Pace
from resumable_tasks.checkpoint.directory.record import Commit


def record(kind: str, lines: int = 0, **info: Any) -> Commit:
    out = b"\n".join(b"%d" % number for number in range(lines))
    return Commit(kind=kind, epoch=1, run="r", out=out, info=info)


def done(lines: int, *settled: str) -> Commit:
    keys = b"\n".join(b"%d" % number for number in range(lines))
    return Commit(
        kind="commit", epoch=1, run="r", keys=keys, key_count=lines, info={"settled": list(settled)}
    )


def test_items_count_once_from_their_submission_on() -> None:
    pace = Pace()
    pace.apply(record("claim", flow_run="f"))
    pace.apply(record("submitting", 10, token="a"))
    pace.apply(record("submitting", 5, token="b"))
    assert pace.used.items == 15
    pace.apply(record("claim", flow_run="f"))  # it has left, and has come back
    assert pace.used.items == 15
    pace = Pace.of_told(json.loads(json.dumps(asdict(pace))))
    pace.apply(done(8, "a"))  # two are undone, and may be submitted again
    assert pace.used.items == 13
    pace.apply(record("withdrawn", token="b", settled=["b"]))
    assert pace.used.items == 8


def test_what_another_flow_run_has_submitted_is_its_own() -> None:
    pace = Pace()
    pace.apply(record("claim", flow_run="f"))
    pace.apply(record("submitting", 10, token="a"))
    pace.apply(record("claim", flow_run="g"))
    assert pace.used.items == 0
    pace.apply(record("withdrawn", token="a", settled=["a"]))
    assert pace.used.items == 0
