"""The commands among folders that are no checkpoints, or that somebody has tampered with."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import ItemFailure, resumable_task
from resumable_tasks.cli import main

DEEP = "[" * 50_000 + "]" * 50_000


@pytest.fixture
def done(tmp_path: Path) -> Path:
    def handler(rows: list[dict[str, Any]]) -> list[Any]:
        return [ItemFailure(row["id"], "no") if row["id"] == 3 else row for row in rows]

    place = tmp_path / "all" / "done"
    job = resumable_task(handler, name="job", key="id", tolerated_failures=1)
    job.run([{"id": i} for i in range(10)], checkpoint=place)
    return place


def cli(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_one_bad_folder_is_one_bad_row(done: Path) -> None:
    whole = done.parent
    bad = {name: whole / name for name in ("deep", "types", "pipe", "link", "journal", "holder")}
    for place in bad.values():
        shutil.copytree(done, place)
    (bad["deep"] / "job.json").write_text(DEEP)
    (bad["types"] / "job.json").write_text('{"format": 1, "id": []}')
    (bad["pipe"] / "job.json").unlink()
    os.mkfifo(bad["pipe"] / "job.json")
    (bad["link"] / "journal").rename(whole / "elsewhere")
    (bad["link"] / "journal").symlink_to(whole / "elsewhere")
    shutil.rmtree(bad["journal"] / "journal")
    (bad["journal"] / "journal").write_text("a file")
    (bad["holder"] / "holder.lock").unlink()
    os.mkfifo(bad["holder"] / "holder.lock")
    (bad["holder"] / "holder.json").write_text(DEEP)
    (whole / "no checkpoint").mkdir()
    (whole / "no checkpoint" / "journal").write_text("a diary")
    (whole / "name\n\x1b[2J").mkdir()
    shutil.copytree(done, whole / "name\n\x1b[2J", dirs_exist_ok=True)
    result = cli("ls", whole)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    rows = {
        Path(row["path"]).name: row["status"]
        for row in json.loads(cli("ls", whole, "--json").stdout)
    }
    assert rows.pop("done") == rows.pop("holder") == rows.pop("name\n\x1b[2J") == "done"
    assert rows == {
        "deep": "damaged",
        "types": "damaged",
        "pipe": "damaged",
        "link": "unusable",
        "journal": "unusable",
    }


@pytest.mark.parametrize("name", ["job.json", "holder.json", "holder.lock"])
@pytest.mark.parametrize(
    "command", ["status", "verify", "keys", "failures", "plan", "repair", "publish"]
)
def test_no_command_waits_for_a_pipe(command: str, name: str, done: Path, tmp_path: Path) -> None:
    (done / name).unlink(missing_ok=True)
    os.mkfifo(done / name)
    more = [tmp_path / "out"] if command == "publish" else []
    result = cli(command, done, *more)
    if name == "job.json" and command != "repair":
        assert result.exit_code == 4
    elif name == "holder.lock" and command == "repair":
        assert result.exit_code == 2
        assert "holder.lock: it is a pipe" in result.stderr
    else:
        assert result.exit_code == 0


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_exports_are_for_their_owner(name: str, done: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert cli("failures", done, "--export", tmp_path / name).exit_code in (0, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("place", ["", "no such folder", "x" * 300, "~nobody-of-this-name/a"])
def test_a_place_to_list_that_cannot_be_there_is_refused(place: str) -> None:
    result = cli("ls", place)
    assert result.exit_code == 2
    assert result.stderr


@pytest.mark.parametrize("command", [("reset", "--yes"), ("repair",), ("status",), ("ls",)])
def test_an_empty_name_is_not_the_working_directory(
    done: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """As of a variable of the shell that is not set."""
    monkeypatch.chdir(done)
    result = cli(command[0], "", *command[1:])
    assert result.exit_code == 2
    assert "is an empty path" in result.stderr
    assert (done / "job.json").exists()


def test_what_is_written_needs_a_name(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    published = cli("publish", done, "")
    assert published.exit_code == 2
    assert "is an empty path" in published.stderr
    for to in ("", ".", "/"):
        report = cli("report", done, "--output", to)
        assert report.exit_code == 2
        assert "does not name a file" in report.stderr
    assert list(empty.iterdir()) == []
