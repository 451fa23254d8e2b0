"""What a service has is not lost by a reset, a new version, a pruning, a repair."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from resumable_tasks import prune
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.errors import CheckpointMismatch, UsageError
from tests.cli.test_cli import cli, document
from tests.submitted.jobs import COUNT, assert_all_paid_once, job, left_out
from tests.submitted.service import FileService, items


def tokens(place: Path) -> list[str]:
    return [each["token"] for each in document("submissions", place)["each"]]


def record(place: Path, kind: str) -> Path:
    """The last record of this kind."""
    found = [
        path
        for path in sorted((place / "journal").iterdir())
        if path.read_text().startswith(f'{{"kind":"{kind}"')
    ]
    return found[-1]


def test_a_reset_is_refused_while_something_is_out(tmp_path: Path) -> None:
    left_out(tmp_path)
    place = tmp_path / "c"
    refused = cli("reset", place, "--yes")
    assert refused.exit_code == 2
    assert "70 items out in 3 submissions" in refused.stderr
    assert all(token in refused.stderr for token in tokens(place))
    assert '{"number": 1}' in refused.stderr
    assert "--lose-submissions" in refused.stderr
    assert_all_paid_once(tmp_path)
    assert cli("reset", place, "--yes").exit_code == 0


def test_a_reset_says_what_it_loses(tmp_path: Path) -> None:
    left_out(tmp_path)
    (token, *_) = tokens(tmp_path / "c")
    done = document("reset", tmp_path / "c", "--yes", "--lose-submissions")
    assert token in done["lost"]
    assert not (tmp_path / "c").exists()


def test_another_version_does_not_start_over_while_something_is_out(tmp_path: Path) -> None:
    left_out(tmp_path)
    place, service = tmp_path / "c", FileService(tmp_path / "home")
    (token, *_) = tokens(place)
    for options in ({}, {"dry_run": True}):
        with pytest.raises(CheckpointMismatch) as refused:
            job(service, version="2").run(
                items(COUNT), checkpoint=place, on_version_change="restart", **options
            )
        assert token in str(refused.value)
        assert f"`resumable reset {place} --lose-submissions`" in str(refused.value)
    with pytest.raises(CheckpointMismatch, match=token):
        job(service, version="2").run(items(COUNT), checkpoint=place)
    assert len(tokens(place)) == 3
    result = job(service, version="2").run(
        items(COUNT), checkpoint=place, on_version_change="reuse"
    )
    assert (result.completed, service.paid) == (COUNT, Counter(range(COUNT)))
    again = job(service, version="3").run(
        items(COUNT), checkpoint=place, on_version_change="restart"
    )
    assert again.completed == COUNT, "nothing is out any more"


def test_a_partition_with_work_out_is_not_pruned_without_being_told(tmp_path: Path) -> None:
    service = left_out(tmp_path / "jobs", 10)
    (tmp_path / "jobs" / "c").rename(tmp_path / "jobs" / "2026-01-01")
    service.end_all()
    place = tmp_path / "jobs"
    told = {"keep": 1, "unfinished": True, "unpublished": True, "damaged": True}
    job(FileService(tmp_path / "other")).run(items(1), checkpoint=place, partition="2026-01-02")
    kept = prune(place, **told)  # type: ignore[arg-type]
    assert kept.removed == ()
    assert "10 items out in 1 submission" in kept.kept[0].why
    text = cli(
        *("prune", place, "--keep", 1, "--unfinished", "--unpublished", "--lose-submissions"),
        "--dry-run",
    ).stdout
    assert "remove  2026-01-01" in text
    gone = prune(place, lose_submissions=True, **told)  # type: ignore[arg-type]
    assert [each.name for each in gone.removed] == ["2026-01-01"]


def test_a_lost_intent_is_named_by_its_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left_out(tmp_path, 10)
    place = tmp_path / "c"
    (token,) = tokens(place)
    record(place, "submitting").unlink()
    verified = cli("verify", place)
    assert verified.exit_code == 4
    assert f"submission {token}" in verified.stdout
    assert "paid for, again" in verified.stdout
    repaired = cli("repair", place)
    assert f"submission {token}" in repaired.stdout
    assert "a lost record may have named items that a service has" in repaired.stdout
    assert document("verify", place)["strays"] == {token: {"number": 1}}
    service = FileService(tmp_path / "home")
    with caplog.at_level("WARNING", "resumable_tasks"):
        job(service).run(items(10), checkpoint=place)
    assert f"`resumable submissions {place} withdraw {token}` forgets it" in caplog.text
    assert service.paid == dict.fromkeys(range(10), 2), "as it was said"


def test_a_lost_commit_is_collected_again(tmp_path: Path) -> None:
    """The submission that it had settled is out again: nothing is submitted twice."""
    place, service = tmp_path / "c", FileService(tmp_path / "home")
    job(service).run(items(COUNT), checkpoint=place)
    record(place, "commit").unlink()
    assert cli("repair", place).exit_code == 0
    assert document("status", place)["out"] > 0
    assert_all_paid_once(tmp_path)
    assert len(FileService(tmp_path / "home").submissions) == 3


def test_a_lost_commit_whose_rest_was_submitted_again(tmp_path: Path) -> None:
    """Only what nothing else has completed is taken from what is collected again."""
    place, service = tmp_path / "c", FileService(tmp_path / "home", undone=7)
    job(service, concurrency=1).run(items(30), checkpoint=place)
    assert [len(each["ids"]) for each in service.submissions] == [30, 4]
    (place / "journal" / record_of_first_commit(place)).unlink()
    cli("repair", place)
    assert document("submissions", place)["each"][0]["pending"] == 26
    assert_all_paid_once(tmp_path, 30)


def record_of_first_commit(place: Path) -> str:
    each = sorted((place / "journal").iterdir())
    return next(p.name for p in each if p.read_text().startswith('{"kind":"commit"'))


def test_a_lost_withdrawal_after_which_all_was_submitted_again(tmp_path: Path) -> None:
    """Two submissions are out that have the same items: each row is taken once."""
    left_out(tmp_path, 10)
    place = tmp_path / "c"
    (token,) = tokens(place)
    cli("submissions", place, "withdraw", token, "--yes")
    with pytest.raises(KeyboardInterrupt):
        job(FileService(tmp_path / "home", takes=None)).run(items(10), checkpoint=place, wait=False)
    record(place, "withdrawn").unlink()
    cli("repair", place)
    assert len(tokens(place)) == 2
    service = FileService(tmp_path / "home")
    result = job(service).run(items(10), checkpoint=place)
    assert sorted(result.table().column("id").to_pylist()) == list(range(10))
    assert service.paid == dict.fromkeys(range(10), 2), "by the withdrawal"
    assert tokens(place) == []


def test_a_lost_handle_is_looked_for(tmp_path: Path) -> None:
    left_out(tmp_path, 10)
    record(tmp_path / "c", "submitted").unlink()
    cli("repair", tmp_path / "c")
    assert document("submissions", tmp_path / "c")["each"][0]["state"] == "intended"
    assert_all_paid_once(tmp_path, 10)


def test_a_redo_says_what_a_service_has(tmp_path: Path) -> None:
    from resumable_tasks import Changes

    place, service = tmp_path / "c", FileService(tmp_path / "home")
    options = {"changes": Changes(lambda item: item.get("of", 0)), "batch_size": 5}
    job(service, **options).run(items(10), checkpoint=place)
    service.takes = None
    changed = [{"id": 3, "of": 1}, {"id": 20}]
    with pytest.raises(KeyboardInterrupt):
        job(service, **options).run(changed, checkpoint=place, wait=False)
    assert "a service has 1 of them" in cli("redo", place, "--key", 3, "--key", 4).stdout
    refused = cli("redo", place, "--key", 20)
    (token,) = tokens(place)
    assert f"a service has it, in submission {token}" in refused.stderr
    done = FileService(tmp_path / "home")
    result = job(done, **options).run([*items(10), *changed[1:]], checkpoint=place)
    assert sorted(result.table().column("id").to_pylist()) == [*range(10), 20]


def test_what_is_cancelled_is_collected_as_far_as_it_was_done(tmp_path: Path) -> None:
    service = left_out(tmp_path)
    place = tmp_path / "c"
    assert job(service).cancel_submissions(checkpoint=place) == 3
    done = sum(service.paid.values())
    assert done == 35
    result = job(FileService(tmp_path / "home")).run(items(COUNT), checkpoint=place)
    assert sorted(result.table().column("id").to_pylist()) == list(range(COUNT))
    assert service.paid == Counter(range(COUNT))
    assert job(service).cancel_submissions(checkpoint=place) == 0


def test_what_cannot_be_cancelled(tmp_path: Path) -> None:
    left_out(tmp_path, 10)
    without = FileService(tmp_path / "home", without=("cancel",))
    with pytest.raises(UsageError, match=r"no cancel\(handle\)"):
        job(without).cancel_submissions(checkpoint=tmp_path / "c")
    assert Reader.at(str(tmp_path / "c")).state.out.items == 10
