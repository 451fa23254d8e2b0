"""What an import has left open is named by the first run, and from then on as fixed as ever."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Changes, CheckpointMismatch, InvalidItems, resumable_task
from resumable_tasks.checkpoint.directory import manifest as manifests
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.store.urls import open_store
from tests.checkpoint.importing.test_import import cli, file, handled_after, take

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
    )
    run = task.run(
        [{"id": key} for key in "abc"],
        checkpoint=tmp_path / "checkpoint",
        on_version_change=policy,
        dry_run=dry_run,
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
    task = resumable_task(lambda items: None, **options)
    for dry_run in (True, False):
        run = task.run(
            [{"id": "a"}],
            checkpoint=tmp_path / "checkpoint",
            on_version_change=policy,
            dry_run=dry_run,
        )
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

    def overtaken(self: Journal, commit: Any, **how: Any) -> Any:
        if not said:
            said.append(True)
            info = {**commit.info, "names": {"job": "mine", "results": "none"}}
            first = Journal(self._store, manifests.read(self._store).id)
            for _ in first.read_new():
                pass
            append(first, replace(commit, run="another", info=info))
        return append(self, commit, **how)

    monkeypatch.setattr(Journal, "append", overtaken)
    wanted = {"job": "mine", "version": "1", "key": {"field": "id"}, "results": "none", **other}
    store = open_store(tmp_path / "checkpoint")
    if other == {"job": "mine"}:
        checkpoint = DirectoryCheckpoint.open(store, Manifest(**wanted))
        assert (checkpoint.job, checkpoint.state.names["job"]) == ("mine", "mine")
        checkpoint.close()
        return
    with pytest.raises(CheckpointMismatch, match="made by a different job"):
        DirectoryCheckpoint.open(store, Manifest(**wanted))


@pytest.mark.parametrize("key", ["id", None, lambda item: item["id"]])
def test_a_key_that_is_open_is_named_by_the_first_run(tmp_path: Path, key: Any) -> None:
    path = file(tmp_path, '"a"\n"b"\n')
    place = tmp_path / "checkpoint"
    assert "their own keys" not in cli("import", path, "--checkpoint", place).stdout
    assert json.loads(cli("status", place, "--json").stdout)["key"] is None
    options: Any = {"name": "job", "results": "none"}
    task = resumable_task(lambda items: None, **options, key=key)
    items: list[Any] = ["a", "b", "c"] if key is None else [{"id": name} for name in "abc"]
    assert task.run(items, checkpoint=place, dry_run=True).skipped == 2
    assert task.run(items, checkpoint=place).skipped == 2
    with pytest.raises(CheckpointMismatch):
        resumable_task(lambda items: None, **options, key="name").run([], checkpoint=place)


@pytest.mark.parametrize("text", ['{"key":"a","v":1}\n', '["a",1]\n["b",2]\n'])
def test_the_items_are_their_own_keys_where_rows_or_parts_need_it(
    tmp_path: Path, text: str
) -> None:
    path, place = file(tmp_path, text), tmp_path / "checkpoint"
    done = cli("import", path, "--checkpoint", place)
    assert "if the job's key= is a field, give --key" in done.stdout
    with pytest.raises(
        CheckpointMismatch, match="without --key, reset the checkpoint and import them"
    ):
        handled_after(tmp_path, ["a"], results="one")


def test_a_key_that_is_open_is_no_tuple(tmp_path: Path) -> None:
    take(file(tmp_path, '"a"\n'), job=None, key=())
    with pytest.raises(CheckpointMismatch, match="of one value"):
        handled_after(tmp_path, [("a", 1)], key=("x", "y"))
    also = take(file(tmp_path, '{"key":"b","v":1}\n', "more.jsonl"), job=None, key=())
    assert (also.key, also.rows) == ("item", 1)
    with pytest.raises(CheckpointMismatch, match='"item"'):
        handled_after(tmp_path, ["a"], results="one")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("given", ["one", None])
def test_what_says_only_when_makes_no_rows_in_any_order(
    tmp_path: Path, before: bool, given: Any
) -> None:
    place = tmp_path / "checkpoint"
    task = resumable_task(
        lambda items: [{"label": item["v"]} for item in items],
        name="job",
        key="id",
        changes=Changes("v", then="redo"),
    )
    items = [{"id": "z", "v": 1}]
    if before:
        task.run(items, checkpoint=place)
    done = take(file(tmp_path, '{"id":"a","t":"2026"}\n{"id":"b"}\n'), results=given)
    assert (done.imported, done.rows) == (2, 0)
    items += [{"id": "a", "v": 1}, {"id": "b", "v": 1}]
    task.run(items, checkpoint=place)
    items[1]["v"] = 2
    run = task.run(items, checkpoint=place)
    assert run.table(ordered=True).to_pylist() == [
        {"id": "z", "label": 1},
        {"id": "a", "label": 2},
    ]
    assert json.loads(cli("status", place, "--json").stdout)["results"] == "one"
    assert cli("verify", place).exit_code == 0


def test_several_lines_of_one_item_have_to_be_explained(tmp_path: Path) -> None:
    path = file(tmp_path, '{"id":1,"t":1}\n{"id":2}\n{"id":1,"t":2}\n')
    assert take(path, job=None, dry_run=True).duplicates == 1  # no line says more than when
    path = file(tmp_path, '{"id":1,"v":1}\n\n{"id":2,"v":1}\n{"id":1,"v":2}\n')
    with pytest.raises(InvalidItems, match=r"old.jsonl:4: .*as 1: .*results one .*or many"):
        take(path, job=None)
    assert not (tmp_path / "checkpoint").exists()
    assert take(path, results="one", dry_run=True).rows == 2
    assert take(path, results="many", dry_run=True).rows == 3


MIXED = '{"id":"a","n":1}\n{"id":"b","n":"x"}\n{"id":"a","n":2}\n'


@pytest.mark.parametrize("results", ["one", "many", "none"])
def test_only_the_keys_can_be_taken_whatever_the_results_are(tmp_path: Path, results: str) -> None:
    path, place = file(tmp_path, MIXED), tmp_path / "checkpoint"
    done = cli("import", path, "--checkpoint", place, "--key", "id", "--keys-only")
    assert (done.exit_code, "imported 2 items into" in done.stdout) == (0, True)
    assert "without results" in done.stdout
    assert json.loads(cli("status", place, "--json").stdout)["results"] is None
    assert handled_after(tmp_path, ["a", "b", "c"], results=results) == ["c"]
    path.write_text(MIXED.replace("a", "d"))
    more = take(path, keys_only=True)
    assert (more.imported, more.rows, more.columns, more.results) == (1, 0, {}, results)
    assert handled_after(tmp_path, ["a", "b", "c", "d"], results=results) == []
    assert cli("verify", place).exit_code == 0


def test_only_the_keys_leave_the_key_open(tmp_path: Path) -> None:
    path, place = file(tmp_path, MIXED), tmp_path / "checkpoint"
    done = cli("import", path, "--checkpoint", place, "--keys-only")
    assert "their own keys" not in done.stdout
    assert handled_after(tmp_path, ["a", "b", "c"], results="one") == ["c"]


def test_no_command_prints_a_name_that_is_open(tmp_path: Path) -> None:
    take(file(tmp_path, '{"id":"a"}\n'), job=None)
    place = tmp_path / "checkpoint"
    for command in (("status", place), ("watch", place, "--once")):
        text = cli(*command).stdout
        assert "imported; the first run names the job" in text
        assert f"next: run the job with checkpoint='{place}'" in text
    assert "(imported; the first run names the job, incomplete)" in cli("reset", place).stderr
    plan = cli("plan", place).stdout
    assert "imported; the first run names the job" in plan
    assert "completed    1\n" in plan
    handled_after(tmp_path, ["a"], name="mine")
    assert cli("status", place).stdout.startswith("mine")
