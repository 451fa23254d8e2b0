"""What is out stays out while the files of the journal and the rows are put into others."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Changes, Waiting
from resumable_tasks.checkpoint.directory import snapshots
from resumable_tasks.checkpoint.directory.outstanding import Outstanding
from resumable_tasks.checkpoint.directory.reader import Reader
from tests.cli.test_cli import cli, document
from tests.submitted.jobs import job
from tests.submitted.service import FileService, items

DONE, MORE = 40, 60
OPTIONS: dict[str, Any] = {"changes": Changes(lambda item: item.get("of", 0))}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """40 items collected, each by a submission of its own; 20 out in two, with fingerprints."""
    service = FileService(tmp_path / "home")
    job(service, **OPTIONS, batch_size=1, concurrency=1).run(items(DONE), checkpoint=tmp_path / "c")
    service.takes = None
    with pytest.raises(Waiting):
        job(service, **OPTIONS, batch_size=10).run(
            items(MORE), checkpoint=tmp_path / "c", wait=False
        )
    return tmp_path / "c"


def out(place: Path) -> Outstanding:
    found = Reader.at(str(place)).state.out
    assert (len(found), found.items) == (2, 20)
    assert all(each.fingerprints.count(b"\n") == 9 and each.handle for each in found)
    return found


def assert_the_rest_is_collected(place: Path) -> None:
    """With one item that has changed while it was out, and is done again after it came back."""
    service = FileService(place.parent / "home")
    given = [{**item, "of": 1} if item["id"] == 45 else item for item in items(MORE)]
    runs = [job(service, **OPTIONS).run(given, checkpoint=place) for _ in range(3)]
    assert sorted(runs[-1].table().column("id").to_pylist()) == list(range(MORE))
    assert service.paid == Counter(range(MORE)) + Counter([45])
    assert runs[-1].skipped == MORE


def test_folded_records(place: Path) -> None:
    before = out(place)
    assert document("compact", place)["before"] > 1
    assert list((place / "journal").glob("*.jsonl.gz")), "some are in segments"
    assert out(place) == before
    assert cli("verify", place).exit_code == 0
    assert_the_rest_is_collected(place)


def test_merged_shards(place: Path) -> None:
    before = out(place)
    assert document("compact", place)["after"] < DONE
    assert Reader.at(str(place)).state.merged
    assert out(place) == before
    assert_the_rest_is_collected(place)


def test_a_record_by_hand_after_it_was_compacted(place: Path) -> None:
    cli("compact", place)
    one, other = (each["token"] for each in document("submissions", place)["each"])
    cli("submissions", place, "withdraw", one, "--yes")
    cli("submissions", place, "attach", other, '{"number": 42}', "--yes")
    cli("compact", place)
    (left,) = document("submissions", place)["each"]
    assert (left["token"], left["handle"], left["by"]) == (other, {"number": 42}, "attached")


def test_a_snapshot(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written with two submissions out, and read instead of the records."""
    monkeypatch.setattr(snapshots, "_RECORDS", 1)
    service = FileService(place.parent / "home", takes=None)
    with pytest.raises(Waiting):
        job(service, **OPTIONS).run(items(MORE), checkpoint=place, wait=False)
    state = Reader.at(str(place)).state
    assert state.recalled[0] > 0, "the state is that of a snapshot"
    plain = shutil.copytree(place, place.parent / "plain")
    shutil.rmtree(plain / "snapshots")
    assert Reader.at(str(plain)).state.recalled[0] == 0
    assert out(place) == out(plain)
    assert_the_rest_is_collected(place)


def test_a_stray_in_a_snapshot(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = document("submissions", place)["each"][0]["record"]
    (place / "journal" / f"{number:020d}.jsonl").unlink()
    cli("repair", place)
    before = document("submissions", place)["strays"]
    assert len(before) == 1
    monkeypatch.setattr(snapshots, "_RECORDS", 1)
    with pytest.raises(Waiting):
        job(FileService(place.parent / "home", takes=None), **OPTIONS).run(
            items(DONE), checkpoint=place, wait=False
        )
    assert Reader.at(str(place)).state.recalled[0] > 0
    assert document("submissions", place)["strays"] == before
