"""What is published is noted in the checkpoint, and asked of the destination."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from resumable_tasks import redo, resumable_task
from resumable_tasks.checkpoint.directory import notes
from resumable_tasks.checkpoint.directory.notes import Note
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.results.form import Held
from resumable_tasks.results.publish import held
from tests.conftest import Bucket

pytest.importorskip("obstore")
FORMS = ["parquet", pytest.param("delta", marks=pytest.mark.filterwarnings("ignore"))]
Form = Literal["parquet", "delta"]


@resumable_task(key="id", batch_size=5)
def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return items


def items(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "n": n} for n in range(count)]


def noted(place: str) -> list[Note]:
    store = open_store(place)
    return notes.read(store, Reader.at(place).manifest.id)


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> str:
    return bucket.url if request.param == "bucket" else str(tmp_path / "place")


@pytest.mark.parametrize("form", FORMS)
def test_the_note_and_the_destination_agree(place: str, form: Form) -> None:
    if form == "delta":
        pytest.importorskip("deltalake")
    run = job.run(items(20), checkpoint=f"{place}/checkpoint")
    state = Reader.at(run.checkpoint).state
    for dest in (f"{place}/one", f"{place}/two", f"{place}/one"):
        run.publish(dest, form=form)
    checkpoint = Reader.at(run.checkpoint).manifest.id
    found = noted(run.checkpoint)
    assert {(n.dest, n.form, n.records, n.rows) for n in found} == {
        (f"{place}/{name}", form, state.records, 20) for name in ("one", "two")
    }
    there = held(found[0].dest, form, checkpoint)
    assert there is not None
    assert (there.rows, there.records >= state.changed) == (20, True)
    assert held(found[0].dest, form, "another") is None

    # The next run brings rows, which are not there yet.
    job.run(items(30), checkpoint=run.checkpoint)
    after = Reader.at(run.checkpoint).state
    again = held(found[0].dest, form, checkpoint)
    assert again is not None
    assert again.records < after.changed

    # Another checkpoint takes the place of the first one.
    other = job.run(items(3), checkpoint=f"{place}/other")
    other.publish(f"{place}/one", form=form)
    assert held(f"{place}/one", form, checkpoint) is None


def test_a_rerun_changes_no_rows_and_a_redo_does(place: str) -> None:
    run = job.run(items(20), checkpoint=f"{place}/checkpoint")
    published = Reader.at(run.checkpoint).state.records
    job.run(items(20), checkpoint=run.checkpoint)
    state = Reader.at(run.checkpoint).state
    assert state.records > published >= state.changed
    redo(run.checkpoint, keys=[3])
    job.run(items(20), checkpoint=run.checkpoint)
    state = Reader.at(run.checkpoint).state
    assert (state.rows, state.changed > published) == (20, True)


@pytest.mark.parametrize("form", FORMS)
def test_files_that_are_gone_or_cut_are_not_there(tmp_path: Path, form: Form) -> None:
    if form == "delta":
        pytest.importorskip("deltalake")
    run = job.run(items(20), checkpoint=tmp_path / "checkpoint")
    checkpoint = Reader.at(run.checkpoint).manifest.id
    dest = tmp_path / "dest"
    assert held(str(dest), form, checkpoint) is None
    run.publish(dest, form=form)
    (file,) = dest.glob("*.parquet")
    whole = file.read_bytes()
    assert held(str(dest), form, checkpoint) is not None
    file.write_bytes(whole[:-1])
    assert held(str(dest), form, checkpoint) is None
    file.unlink()
    assert held(str(dest), form, checkpoint) is None


@pytest.mark.parametrize(
    "marker", [b"", b"[]", b"{}", b"\xff", b'{"checkpoint": 1}', b'{"files": 3, "bytes": 0}']
)
def test_a_marker_that_is_none_holds_nothing(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / "_published.json").write_bytes(marker)
    assert held(str(tmp_path), "parquet", "some") is None


def test_a_part_of_the_rows_is_a_part(tmp_path: Path) -> None:
    run = job.run(items(20), checkpoint=tmp_path / "checkpoint")
    part = job.run(items(5), checkpoint=run.checkpoint)
    part.publish(tmp_path / "part", only_given=True)
    found = held(str(tmp_path / "part"), "parquet", Reader.at(run.checkpoint).manifest.id)
    assert found == Held(Reader.at(run.checkpoint).state.records, 5)


def test_a_checkpoint_that_cannot_be_written_is_published_all_the_same(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = job.run(items(20), checkpoint=bucket.url)
    bucket.server.fail("403", method="PUT", key="*/published-*", times=1000)
    assert run.publish(tmp_path / "dest").rows == 20
    assert "could not record that" in caplog.text
    assert noted(bucket.url) == []


def test_what_is_no_note_is_not_read(tmp_path: Path) -> None:
    run = job.run(items(2), checkpoint=tmp_path / "checkpoint")
    run.publish(tmp_path / "dest")
    (note,) = (tmp_path / "checkpoint").glob("published-*.json")
    told = json.loads(note.read_text())
    for wrong in ("", "[]", "{", json.dumps(told | {"records": "many"}), json.dumps({"dest": "x"})):
        note.write_text(wrong)
        assert noted(run.checkpoint) == []
    note.write_text(json.dumps(told | {"checkpoint": "another"}))
    assert noted(run.checkpoint) == []
    note.write_text(json.dumps(told | {"more": "of a later version"}))
    assert len(noted(run.checkpoint)) == 1
