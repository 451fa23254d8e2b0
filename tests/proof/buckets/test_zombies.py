"""Runs that sleep, are overtaken from another machine, or reset, and wake up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.proof.buckets.attacks import Attack
from tests.proof.buckets.test_kills import EVERY, every
from tests.proof.crash.oracle import handled

# Before its claim a run has nothing to lose: it may find all done, and end well.
UNCLAIMED = ("journal.before_create:1",)
CODES = {fault: ((0, 3) if fault in UNCLAIMED else (3,)) for fault in EVERY}


@pytest.mark.sample
@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize("fault", [every(fault) for fault in EVERY])
def test_a_run_that_sleeps_is_overtaken_from_another_machine(attack: Attack, fault: str) -> None:
    """Of another name and boot, with a clock two hours ahead."""
    spec = attack.spec()
    zombie = attack.stopped_at(spec, fault)
    attack.launch.to_end(replace(spec, elsewhere=True))
    attack.complete(spec, tidy=False)
    code = attack.wake(zombie)
    assert code in CODES[fault], zombie.says()
    found = attack.complete(spec, tidy=False)
    if code == 3:
        assert "on elsewhere" in zombie.says()
    hosts = {head["info"]["host"] for head in found.heads if head["kind"] == "claim"}
    assert "elsewhere" in hosts


@pytest.mark.sample
@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize("record", [0, 1])
@pytest.mark.parametrize("kind", ["500-after", "reset-before"])
def test_a_run_that_sleeps_while_a_create_is_unsettled(
    attack: Attack, kind: str, record: int
) -> None:
    """Its claim, or a commit, was applied or not; whoever overtakes it sees what holds."""
    server = attack.bucket.server
    server.heal()  # of what else would be unsettled
    server.fail(kind, method="PUT", key=f"*/journal/*{record}.jsonl")
    spec = attack.spec()
    zombie = attack.stopped_at(spec, "object.unsettled:2")  # the first is the manifest's probe
    attack.launch.to_end(replace(spec, elsewhere=True))
    attack.complete(spec, tidy=False)
    assert attack.wake(zombie) in ((3,) if record else (0, 3)), zombie.says()
    attack.complete(spec, tidy=False)


@pytest.mark.sample(one_in=6)
@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize("fault", [every(fault) for fault in EVERY])
def test_a_run_that_sleeps_is_reset(attack: Attack, fault: str) -> None:
    spec = attack.spec()
    zombie = attack.stopped_at(spec, fault)
    before = attack.bucket.stored()
    attack.reset()
    attack.launch.to_end(replace(spec, elsewhere=True))
    new = attack.complete(spec, 1)
    code = attack.wake(zombie)
    assert code == 3, zombie.says()
    assert attack.complete(spec, 1) == new, "it has changed what is not its own"
    attack.verify()
    after = attack.bucket.stored()
    assert all(after[name] == before[name] for name in before if name.startswith("journal/"))
    attack.consistent(replace(spec, place=str(attack.place / "archived")))


@pytest.mark.sample(one_in=6)
@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize("fault", [every(fault) for fault in EVERY])
def test_a_run_that_sleeps_is_restarted_in_another_version(attack: Attack, fault: str) -> None:
    spec = attack.spec()
    zombie = attack.stopped_at(spec, fault)
    attack.launch.to_end(replace(spec, elsewhere=True, version="2", on_version_change="restart"))
    new = attack.complete(spec, 1)
    assert attack.wake(zombie) == 3, zombie.says()
    assert attack.complete(spec, 1) == new, "it has changed what is not its own"
    attack.verify()
    attack.consistent(replace(spec, place=str(attack.place / "archived")))


def test_one_that_opens_wakes_up_after_two_resets(attack: Attack) -> None:
    spec = attack.spec()
    zombie = attack.stopped_at(spec, "journal.before_create:1")
    attack.reset()
    attack.launch.to_end(spec)
    attack.reset()
    attack.launch.to_end(spec)
    assert attack.wake(zombie) == 3, zombie.says()
    attack.complete(replace(spec, place=str(attack.place / "archived")), 1, tidy=False)
    attack.complete(spec, 2, tidy=False)
    attack.verify()
    marker = json.loads(attack.bucket.stored()["@2.json"])
    assert marker["after"] == 1


def test_a_reset_that_sleeps_resets_nothing_that_came_after_it(attack: Attack) -> None:
    """Two are asked to restart; the slower one finds it done, and goes on with what is there."""
    spec = attack.spec()
    attack.launch.to_end(spec)
    (attack.place / "acked").unlink()
    again = replace(spec, version="2", on_version_change="restart")
    slow = attack.stopped_at(again, "journal.created:1")
    attack.launch.to_end(replace(again, elsewhere=True))
    new = attack.complete(spec, 1)
    assert attack.wake(slow) in (0, 3), slow.says()
    assert set(attack.complete(spec, 1, tidy=False).all_keys) == set(new.all_keys)
    assert "@2.json" not in attack.bucket.stored()
    assert set(handled(spec).values()) == {2}
    attack.verify()
