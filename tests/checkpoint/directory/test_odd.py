"""What other programs make of a checkpoint's files: links, folders, pipes, CRLF, files left out."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointDamaged, resumable_task
from resumable_tasks.checkpoint.directory.completed import completed_lines
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import CheckpointUnusable, ResumableTasksError
from resumable_tasks.results.publish import publish

COUNT = 60


@pytest.fixture
def job(handled: list[Any]) -> Any:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        handled.extend(row["id"] for row in rows)
        return [{"id": row["id"], "value": row["id"] * 3} for row in rows]

    return resumable_task(handler, name="job", key="id", batch_size=20, concurrency=1)


@pytest.fixture
def filled(job: Any, place: Path, handled: list[Any]) -> Path:
    for end in range(20, COUNT + 1, 20):
        job.run(({"id": i} for i in range(end)), checkpoint=place)
    handled.clear()
    return place


def items() -> list[dict[str, int]]:
    return [{"id": i} for i in range(COUNT)]


def linked(path: Path) -> None:
    outside = path.parent.parent.parent / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def foldered(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "in it").write_text("kept")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 42)


ODD = [dangling, foldered, piped, endless]


def readers(place: Path, job: Any) -> dict[str, Callable[[], object]]:
    """Everything that may read a checkpoint. (Not `status`, which reads no shard.)"""
    store = LocalStore(place)
    return {
        "a run": lambda: job.run(items(), checkpoint=place),
        "publish": lambda: publish(DirectoryReader(store), place.parent / "published"),
        "keys": lambda: list(completed_lines(store)),
    }


def hit(place: Path, which: str) -> Path:
    record = {"first": 0, "middle": 4, "last": -1}
    if which == "shard":
        return min((place / "shards").iterdir())
    return sorted((place / "journal").iterdir())[record[which]]


@pytest.mark.sample
@pytest.mark.parametrize("odd", [*ODD, huge])
@pytest.mark.parametrize("which", ["first", "middle", "last", "shard"])
def test_what_is_no_plain_file_is_damage_and_is_mended(
    which: str, odd: Callable[[Path], None], filled: Path, job: Any
) -> None:
    path = hit(filled, which)
    odd(path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    name = str(path.relative_to(filled))
    assert [damage.file for damage in verify(LocalStore(filled)).damages] == [name]
    for what, read in readers(filled, job).items():
        if (what, which, odd) == ("keys", "shard", huge):
            continue  # which looks at no shard's size
        with pytest.raises(CheckpointDamaged) as caught:
            read()
        assert caught.value.files == (name,), what
    assert not (filled.parent / "published").exists()
    looking = Reader(LocalStore(filled))
    looking.examine()
    assert looking.status == "damaged"

    assert {damage.file for damage in repair(LocalStore(filled)).damages} == {name}
    assert verify(LocalStore(filled)).damages == []
    (kept,) = [p for p in (filled / "damaged").iterdir() if p.name.endswith(path.name)]
    assert stat.S_IFMT(kept.lstat().st_mode) == kind
    result = job.run(items(), checkpoint=filled)
    assert result.completed in (0, 20)
    assert result.table().num_rows == COUNT
    if odd is huge:
        kept.unlink()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("folder", ["journal", "shards"])
def test_a_name_that_is_nobodys_is_damage_too_and_costs_nothing(
    folder: str, odd: Callable[[Path], None], filled: Path, job: Any, handled: list[Any]
) -> None:
    path = filled / folder / "stray"
    path.write_text("x")
    odd(path)
    for read in readers(filled, job).values():
        with pytest.raises(CheckpointDamaged, match="not a plain file"):
            read()
    assert {d.file: d.items for d in repair(LocalStore(filled)).damages} == {f"{folder}/stray": 0}
    assert job.run(items(), checkpoint=filled).skipped == COUNT
    assert handled == []


@pytest.mark.parametrize("which", ["all", "one record", "one shard"])
def test_links_to_files_are_damage_and_what_they_lead_to_is_not_given_up(
    which: str, filled: Path, job: Any, handled: list[Any]
) -> None:
    """As `cp -s`, stow and git-annex make them: no command takes that for an empty checkpoint."""
    patterns = {"all": "*/*.*", "one record": f"journal/{4:020d}.*", "one shard": "shards/e2-*"}
    for path in sorted(filled.glob(patterns[which])):
        linked(path)
    before = sorted((path, path.lstat().st_ino) for path in filled.glob("*/*"))
    for act in (*readers(filled, job).values(), lambda: repair(LocalStore(filled))):
        with pytest.raises(CheckpointDamaged, match="symbolic link"):
            act()
    assert verify(LocalStore(filled)).damages
    assert sorted((path, path.lstat().st_ino) for path in filled.glob("*/*")) == before
    copy = shutil.copytree(filled, filled.parent / "copy")  # as the message says: cp -RL
    assert verify(LocalStore(copy)).damages == []
    assert job.run(items(), checkpoint=copy).skipped == COUNT
    assert handled == []


@pytest.mark.parametrize("folder", ["journal", "shards"])
def test_a_folder_that_is_a_link_is_refused(folder: str, filled: Path, job: Any) -> None:
    outside = filled.parent / "outside"
    (filled / folder).rename(outside)
    (filled / folder).symlink_to(outside)
    before = sorted(outside.iterdir())
    for act in (*readers(filled, job).values(), lambda: repair(LocalStore(filled))):
        with pytest.raises(CheckpointUnusable, match="symbolic link"):
            act()
    assert sorted(outside.iterdir()) == before


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_shards_beside_no_journal_are_damage_and_are_kept(how: str, filled: Path, job: Any) -> None:
    shards = {path.read_bytes() for path in (filled / "shards").iterdir()}
    shutil.rmtree(filled / "journal")
    if how == "emptied":
        (filled / "journal").mkdir()
    for read in [*readers(filled, job).values()] * 2:  # the second run would have swept them
        with pytest.raises(CheckpointDamaged, match="there are shards"):
            read()
    assert {path.read_bytes() for path in (filled / "shards").iterdir()} == shards
    assert [d.file for d in verify(LocalStore(filled)).damages] == ["journal"]
    assert [d.file for d in repair(LocalStore(filled)).damages] == ["journal"]
    assert {path.read_bytes() for path in (filled / "damaged").iterdir()} == shards
    assert job.run(items(), checkpoint=filled).completed == COUNT
    assert job.run(items(), checkpoint=filled).skipped == COUNT


@pytest.mark.parametrize("lost", [Path.unlink, linked, piped, lambda path: path.write_text("{")])
def test_a_lost_manifest_is_restored_from_the_first_record(
    lost: Callable[[Path], object], filled: Path, job: Any, handled: list[Any]
) -> None:
    before = (filled / "job.json").read_bytes()
    path = filled / "job.json"
    if lost is linked:
        path.rename(filled.parent / "elsewhere")
        path.symlink_to(filled.parent / "elsewhere")
    else:
        lost(path)
    with pytest.raises(CheckpointDamaged, match=r"job\.json(?s:.)*resumable repair"):
        job.run(items(), checkpoint=filled)
    report = repair(LocalStore(filled))
    assert [(damage.file, damage.items) for damage in report.damages] == [("job.json", 0)]
    assert path.read_bytes() == before
    assert job.run(items(), checkpoint=filled).skipped == COUNT
    assert handled == []


def test_a_manifest_of_another_checkpoint_is_replaced_by_its_own(
    filled: Path, tmp_path: Path, job: Any, handled: list[Any]
) -> None:
    """The records belong to each other, so that it is the manifest which does not belong there."""
    other = tmp_path / "other"
    resumable_task(lambda rows: rows, name="another", key="id").run(items(), checkpoint=other)
    before = (filled / "job.json").read_bytes()
    shutil.copy(other / "job.json", filled / "job.json")
    with pytest.raises(
        CheckpointDamaged, match=r"not belong to the checkpoint that job\.json names"
    ):
        job.run(items(), checkpoint=filled)
    report = repair(LocalStore(filled))
    assert [(damage.file, damage.items) for damage in report.damages] == [("job.json", 0)]
    assert (filled / "job.json").read_bytes() == before
    assert verify(LocalStore(filled)).damages == []
    assert job.run(items(), checkpoint=filled).skipped == COUNT
    assert handled == []


@pytest.mark.parametrize("field", ["job", "version", "key", "results", "id", "created", "format"])
def test_a_changed_bit_of_the_manifest_costs_nothing(
    field: str, filled: Path, job: Any, handled: list[Any]
) -> None:
    """The run goes on, or says that a repair restores the manifest; which it does."""
    path = filled / "job.json"
    before = path.read_bytes()
    at = before.index(b"\n", before.index(f'"{field}"'.encode())) - (1 if field == "format" else 3)
    at = before.index(b'"id"\n') + 2 if field == "key" else at
    path.write_bytes(before[:at] + bytes([before[at] ^ 2]) + before[at + 1 :])
    said = "resumable repair"
    try:
        assert job.run(items(), checkpoint=filled, progress=False).skipped == COUNT
    except ResumableTasksError as error:
        said = str(error)
    assert "resumable repair" in said
    (damage,) = repair(LocalStore(filled)).damages
    assert damage.file == "job.json"
    assert re.search(
        "changed after the first record|changed since the first record|to another checkpoint",
        damage.what,
    )
    assert path.read_bytes() == before
    assert job.run(items(), checkpoint=filled, progress=False).skipped == COUNT
    assert handled == []


def test_a_first_record_of_another_checkpoint_is_replaced(
    filled: Path, tmp_path: Path, job: Any, handled: list[Any]
) -> None:
    other, first = tmp_path / "other", f"journal/{0:020d}.jsonl"
    job.run(items(), checkpoint=other)
    handled.clear()
    before = (filled / "job.json").read_bytes()
    shutil.copy(other / first, filled / first)
    assert first in [damage.file for damage in repair(LocalStore(filled)).damages]
    assert (filled / "job.json").read_bytes() == before
    assert job.run(items(), checkpoint=filled).skipped == COUNT
    assert handled == []


def test_a_manifest_that_is_lost_with_the_first_record_is_said_and_not_made_up(
    filled: Path, job: Any
) -> None:
    (filled / "job.json").unlink()
    (filled / f"journal/{0:020d}.jsonl").write_text("{}")
    for act in (lambda: repair(LocalStore(filled)), lambda: job.run([], checkpoint=filled)):
        with pytest.raises(CheckpointDamaged, match=r"job\.json(?s:.)*from a copy"):
            act()
    assert not (filled / "job.json").exists()


def test_line_endings_are_told_and_undone(filled: Path, job: Any, handled: list[Any]) -> None:
    before = {}
    for path in (filled / "journal").iterdir():
        before[path] = path.read_bytes()
        path.write_bytes(before[path].replace(b"\n", b"\r\n"))
    (filled / "job.json").write_bytes((filled / "job.json").read_bytes().replace(b"\n", b"\r\n"))
    for read in readers(filled, job).values():
        with pytest.raises(CheckpointDamaged, match="line endings were changed to CRLF"):
            read()
    report = verify(LocalStore(filled))
    assert {damage.items for damage in report.damages} == {0}
    assert report.items == COUNT
    repair(LocalStore(filled))
    assert {path: path.read_bytes() for path in before} == before
    assert verify(LocalStore(filled)).damages == []
    assert job.run(items(), checkpoint=filled).skipped == COUNT
    assert handled == []


def test_pipes_in_the_place_of_the_holders_files_block_nothing(filled: Path, job: Any) -> None:
    for name in ("holder.lock", "holder.json"):
        (filled / name).unlink(missing_ok=True)
        os.mkfifo(filled / name)
    looking = Reader(LocalStore(filled))
    looking.examine()
    assert looking.status == "done"
    with pytest.raises(CheckpointUnusable, match=r"holder\.lock: it is a pipe"):
        job.run(items(), checkpoint=filled)
    (filled / "holder.lock").unlink()
    assert job.run(items(), checkpoint=filled).skipped == COUNT


def test_a_dangling_link_makes_no_file_outside(filled: Path, job: Any) -> None:
    (filled / "holder.lock").unlink()
    (filled / "holder.lock").symlink_to(filled.parent / "outside")
    with pytest.raises(CheckpointUnusable, match="symbolic link"):
        job.run(items(), checkpoint=filled)
    assert not (filled.parent / "outside").exists()


@pytest.mark.parametrize(("umask", "group"), [(0o002, 0o60), (0o027, 0o40), (0o077, 0)])
def test_in_a_folder_that_a_group_shares_the_umask_decides(
    umask: int, group: int, tmp_path: Path, job: Any
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    before = os.umask(umask)
    try:
        job.run(items(), checkpoint=shared / "a" / "checkpoint")
    finally:
        os.umask(before)
    for path in (shared / "a").rglob("*"):
        there = path.stat()
        wanted = 0o600 | group
        if path.is_dir():
            wanted |= 0o100 | (0o010 if group else 0) | stat.S_ISGID
        assert stat.S_IMODE(there.st_mode) == wanted, path


def test_a_run_that_has_just_begun_is_no_damage(job: Any, place: Path) -> None:
    class Before(LocalStore):
        """A place where a run begins once the manifest was not found."""

        def read_within(self, name: str, limit: int) -> bytes:
            try:
                return super().read_within(name, limit)
            except FileNotFoundError:
                job.run(items(), checkpoint=place)
                raise

    assert len(read_checkpoint(Before(place))[1].done) == COUNT
    shutil.rmtree(place)
    assert verify(Before(place)).damages == []
