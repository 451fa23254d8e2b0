"""What an import has left open is named by the first run, and from then on as fixed as ever."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_import import cli, file, handled_after, take

from resumable_tasks import CheckpointMismatch, resumable_task
from resumable_tasks import manifest as manifests
from resumable_tasks.checkpoint import Checkpoint, open_store
from resumable_tasks.journal import Journal
from resumable_tasks.manifest import Manifest

POLICIES = ("error", "reuse", "restart")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_version_that_is_open_differs_from_none(
    tmp_path: Path, policy: Any, dry_run: bool
) -> None:
    take(file(tmp_path, '{"id":"a"}\n{"id":"b"}\n'), job=None)
    task = resumable_task(
        lambda items: None,
        name="job",
        key="id",
        version=7,
        results="none",
        on_version_change=policy,
    )
    run = task.run(
        [{"id": key} for key in "abc"], checkpoint=tmp_path / "checkpoint", dry_run=dry_run
    )
    assert run.skipped == 2
    assert [path.name for path in tmp_path.glob("checkpoint.*")] == []


@pytest.mark.parametrize(("policy", "skipped"), [("reuse", 1), ("restart", 0)])
def test_once_it_is_named_another_version_is_another(
    tmp_path: Path, policy: Any, skipped: int
) -> None:
    take(file(tmp_path, '{"id":"a"}\n'), job=None)
    assert handled_after(tmp_path, ["a"], version="1") == []
    with pytest.raises(CheckpointMismatch, match="another version"):
        handled_after(tmp_path, ["a"], version="2")
    options: Any = {"name": "job", "key": "id", "version": "2", "results": "none"}
    task = resumable_task(lambda items: None, **options, on_version_change=policy)
    for dry_run in (True, False):
        run = task.run([{"id": "a"}], checkpoint=tmp_path / "checkpoint", dry_run=dry_run)
        assert run.skipped == skipped


def test_the_names_outlive_the_claim_that_gave_them(tmp_path: Path) -> None:
    take(file(tmp_path, '{"id":"a"}\n'), job=None)
    place = tmp_path / "checkpoint"
    for _ in range(2):
        assert handled_after(tmp_path, ["a"], name="mine", version="7") == []
    names = {"job": "mine", "results": "none"}
    claims = [record for record in sorted((place / "journal").iterdir()) if names_in(record)]
    assert [names_in(claim) for claim in claims] == [names, names]
    claims[0].write_bytes(b"cut")
    assert cli("repair", place).exit_code == 0
    with pytest.raises(CheckpointMismatch, match='"mine"'):
        handled_after(tmp_path, ["a"], name="other", version="7")
    with pytest.raises(CheckpointMismatch, match="another version"):
        handled_after(tmp_path, ["a"], name="mine", version="8")


def names_in(record: Path) -> Any:
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    found = [line for line in lines if isinstance(line, dict) and line.get("info")]
    return found[0]["info"].get("names") if found else None


@pytest.mark.parametrize("other", [{"job": "other"}, {"results": "one"}, {"job": "mine"}])
def test_what_another_run_names_in_the_meantime_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    """Without locks two runs can open a checkpoint at the same time."""
    take(file(tmp_path, '{"id":"a"}\n'), job=None)
    append, said = Journal.append, []

    def overtaken(self: Journal, commit: Any) -> Any:
        if not said:
            said.append(True)
            info = {**commit.info, "names": {"job": "mine", "results": "none"}}
            first = Journal(self._store, manifests.read(self._store).id)
            for _ in first.read_new():
                pass
            append(first, replace(commit, run="another", info=info))
        return append(self, commit)

    monkeypatch.setattr(Journal, "append", overtaken)
    wanted = {"job": "mine", "version": "1", "key": {"field": "id"}, "results": "none", **other}
    store = open_store(tmp_path / "checkpoint")
    if other == {"job": "mine"}:
        checkpoint = Checkpoint.open(store, Manifest(**wanted))
        assert (checkpoint.job, checkpoint.state.names["job"]) == ("mine", "mine")
        checkpoint.close()
        return
    with pytest.raises(CheckpointMismatch, match="differs"):
        Checkpoint.open(store, Manifest(**wanted))
