"""Whether the green of the other suites is worth anything: each mistake is found by an attack."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.proof.crash import attacks, oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher
from tests.proof.crash.mutants import MUTANTS

Attack = Callable[[Launcher, Path, str], None]


def small(place: Path, mutant: str) -> Spec:
    return Spec(str(place), mutant=mutant)


def killed_at(*faults: str) -> Attack:
    return lambda launch, place, mutant: attacks.kill_at_point(
        launch, small(place, mutant), *faults
    )


def woken_at(fault: str) -> Attack:
    return lambda launch, place, mutant: attacks.wake_a_zombie(launch, small(place, mutant), fault)


def told(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.kill_at_acknowledgement(launch, small(place, mutant), 2)


def power(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.lose_power(launch, traced(place, mutant), place / "states", 1, 40)


def traced(place: Path, mutant: str) -> Spec:
    return Spec(
        str(place),
        checkpoint="a/b/checkpoint",
        items=24,
        batch_size=3,
        concurrency=1,
        trace="trace",
        mutant=mutant,
    )


def overtaken(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.commit_while_another_opens(launch, small(place, mutant))


def before_the_sweep(launch: Launcher, place: Path, mutant: str) -> None:
    # The mutant needs no temporary file to find the probe of the manifest taken.
    attacks.wake_a_zombie_before_the_sweep(launch, small(place, mutant), 5 if mutant else 6)


def slow(launch: Launcher, place: Path, mutant: str) -> None:
    """On a disk that is slower than the handler."""
    spec = replace(small(place, mutant), items=300, flush_seconds=0.02)
    attacks.kill_at_point(launch, spec, "commit.done:2")


def three(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.sweep_after_being_fenced(launch, small(place, mutant))


def full(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.fill_the_disk(launch, small(place, mutant))


def link_fails(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.fail_a_call(launch, small(place, mutant), "link:4:EIO")


def published(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.kill_publish(launch, small(place, mutant), "publish.exchanged")


def interrupted(launch: Launcher, place: Path, mutant: str) -> None:
    attacks.interrupt(launch, replace(small(place, mutant), items=400))


def merged(launch: Launcher, place: Path, mutant: str) -> None:
    """Die when the record of a merge is about to be created, after a claim and three commits."""
    spec = replace(small(place, mutant), fewest=3, concurrency=1, pause_ms=(20.0, 20.0))
    child = launch.fork(replace(spec, faults="journal.before_create:5"))
    assert child.wait() == -signal.SIGKILL, child.says()
    oracle.consistent(spec)


def folding(place: Path, mutant: str) -> Spec:
    return replace(small(place, mutant), folds=4, concurrency=1, pause_ms=(20.0, 20.0))


def folded(launch: Launcher, place: Path, mutant: str) -> None:
    """Die when a segment is about to be created."""
    spec = folding(place, mutant)
    child = launch.fork(replace(spec, faults="segment.before_create:1"))
    assert child.wait() == -signal.SIGKILL, child.says()
    oracle.consistent(spec)


def asleep(fault: str) -> Attack:
    return lambda launch, place, mutant: attacks.sleep_while_records_are_folded(
        launch, folding(place, mutant), fault
    )


CAUGHT_BY: dict[str, Attack] = {
    "a_fenced_driver_goes_on": woken_at("journal.before_create:2"),
    "a_claim_is_not_looked_for_in_segments": asleep("journal.before_create:1"),
    "a_name_that_is_taken_is_taken_for_done": woken_at("journal.before_create:2"),
    "a_short_write_is_taken_for_a_whole_one": full,
    "an_interrupt_is_a_success": interrupted,
    "an_unknown_create_is_taken_for_done": link_fails,
    "batches_are_out_without_limit": slow,
    "checkpoint_folder_is_not_flushed": power,
    "claim_does_not_raise_the_epoch": killed_at("shard.written:2"),
    "commit_before_the_shard_is_durable": killed_at("journal.created:3"),
    "create_by_looking_and_replacing": before_the_sweep,
    "errors_of_write_and_fsync_are_swallowed": full,
    "files_are_not_flushed": power,
    "files_that_refuse_a_sleeper_are_deleted": asleep("journal.before_create:2"),
    "journal_folder_is_not_flushed": power,
    "new_parents_are_not_flushed": power,
    "no_claim": woken_at("commit.shard_written:2"),
    "no_sweep": killed_at("shard.written:2"),
    "parts_are_deleted_before_their_merge_is_recorded": merged,
    "publish_in_place": published,
    "shards_folder_is_not_flushed": power,
    "records_are_deleted_before_their_segment_is_there": folded,
    "sweep_before_the_claim": overtaken,
    "sweep_whatever_the_epoch": three,
    "the_record_is_written_in_place": power,
    "told_before_it_is_created": told,
}


def test_every_mutant_has_its_attack() -> None:
    assert CAUGHT_BY.keys() == MUTANTS.keys()


@pytest.mark.parametrize("mutant", sorted(CAUGHT_BY))
def test_a_mistake_is_found(launch: Launcher, place: Path, mutant: str) -> None:
    sound, broken = place / "sound", place / "broken"
    sound.mkdir()
    broken.mkdir()
    CAUGHT_BY[mutant](launch, sound, "")
    with pytest.raises(AssertionError) as found:
        CAUGHT_BY[mutant](launch, broken, mutant)
    print(str(found.value)[:1000])
