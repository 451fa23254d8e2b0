"""A bucket that does not take a commit: Ctrl-C ends the run all the same, and it is resumed."""

from __future__ import annotations

import signal

import pytest

from tests.proof.buckets.attacks import Attack
from tests.proof.crash.attacks import gated
from tests.proof.crash.launcher import until

CODES = (75,)


@pytest.mark.sample(one_in=4)
@pytest.mark.parametrize("fault", ["503", "hang"])
@pytest.mark.parametrize("key", ["*/journal/*", "*"])
def test_ctrl_c_ends_a_run_that_waits_for_its_commit(attack: Attack, fault: str, key: str) -> None:
    server = attack.bucket.server
    spec = gated(attack.spec(items=400, grace_seconds=1.0), 200)
    child = attack.launch.fork(spec)
    until("some is committed", lambda: attack.lines("acked") >= 2)
    server.fail(fault, key=key, times=-1)
    gated(spec, 400)
    until("a commit waits", lambda: any(seen.fault for seen in server.log))
    child.signal(signal.SIGINT)
    attack.ended_well(child, CODES)
    server.heal()
    attack.consistent(spec)
    attack.launch.to_end(spec)
    attack.complete(spec)
