"""What stands in the place of a snapshot's generation is found, said, and never in the way."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointDamaged, CheckpointUnusable, Snapshot, StoreError, UsageError
from resumable_tasks.checkpoint.store import local
from tests.checkpoint.snapshot.test_snapshot import generations, loaded, make


def numbers(path: Path) -> list[int]:
    return [int(each.stem) for each in path.glob("*.json")]


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def filled_folder(path: Path) -> None:
    folder(path)
    (path / "notes.txt").write_text("mine")


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


KINDS = [folder, filled_folder, link, dangling_link, fifo]


@pytest.mark.parametrize("replace", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_no_file_is_damage_and_saves_go_on_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, replace: Any
) -> None:
    make(tmp_path, {"n": 1}, {"n": 2})
    replace(generations(tmp_path)[-1])
    with Snapshot(tmp_path) as taken:
        assert taken.state == {"n": 1}
        assert "it is not a regular file" in caplog.text
        for number in (3, 4, 5, 6):
            taken.state["n"] = number
            taken.save()
    assert loaded(tmp_path) == {"n": 6}
    assert sorted(numbers(tmp_path)) == [2, 4, 5, 6], "what is not its own stays"


@pytest.mark.parametrize("replace", KINDS, ids=lambda kind: kind.__name__)
def test_where_the_only_one_is_no_file_nothing_begins_anew(tmp_path: Path, replace: Any) -> None:
    make(tmp_path, {"n": 1})
    (only,) = generations(tmp_path)
    replace(only)
    (tmp_path / "elsewhere").unlink(missing_ok=True)
    with pytest.raises(CheckpointDamaged, match="it is not a regular file") as caught:
        loaded(tmp_path)
    assert caught.value.files == (only.name,)


def fail_to_read(monkeypatch: pytest.MonkeyPatch, which: Path, code: int) -> None:
    read = local.read_plain

    def failing(name: str, *rest: Any, **more: Any) -> bytes:
        if name == which.name:
            raise OSError(code, os.strerror(code))
        return read(name, *rest, **more)

    monkeypatch.setattr(local, "read_plain", failing)


def test_a_disk_that_does_not_give_the_newest_costs_one_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, {"n": 1}, {"n": 2})
    fail_to_read(monkeypatch, generations(tmp_path)[-1], errno.EIO)
    with Snapshot(tmp_path) as taken:
        assert taken.state == {"n": 1}
    assert "the disk cannot read it" in caplog.text
    assert max(numbers(tmp_path)) == 3


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EACCES, CheckpointUnusable), (errno.EMFILE, StoreError)]
)
def test_an_error_that_says_nothing_about_the_file_is_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    """To go on from an older state for want of a permission would be to lose the newest."""
    make(tmp_path, {"n": 1}, {"n": 2})
    fail_to_read(monkeypatch, generations(tmp_path)[-1], code)
    with pytest.raises(kind):
        loaded(tmp_path)


@pytest.mark.parametrize("name", ["9" * 20, "9" * 30])
def test_a_number_that_is_too_high_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    make(tmp_path, {"n": 1})
    (tmp_path / f"{name}.json").write_text("{}")
    with Snapshot(tmp_path) as taken:
        assert taken.state == {"n": 1}
        for number in range(5):
            taken.state["n"] = number
            taken.save()
    assert loaded(tmp_path) == {"n": 4}


def test_the_warning_says_which_generation_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, {"n": 1}, {"n": 2}, {"n": 3})
    first, second, third = generations(tmp_path)
    good, time = third.read_bytes(), re.search(rb'"time":"([^"]+)"', second.read_bytes())
    assert time is not None
    third.write_bytes(good[:-1])
    assert loaded(tmp_path) == {"n": 2}
    (warning,) = [each for each in caplog.messages if "damaged" in each]
    assert f"generation 2, saved at {time[1].decode()}" in warning
    assert "Using the previous one" in warning

    third.write_bytes(good)
    first.write_bytes(b"")
    caplog.clear()
    assert loaded(tmp_path) == {"n": 3}
    (warning,) = [each for each in caplog.messages if "damaged" in each]
    assert "an older generation is damaged" in warning
    assert "using the newest, generation 3" in warning


def test_damage_to_an_older_one_is_no_reason_to_save_again(tmp_path: Path) -> None:
    make(tmp_path, {"n": 1}, {"n": 2})
    generations(tmp_path)[0].write_bytes(b"")
    make(tmp_path, {"n": 2})
    assert len(generations(tmp_path)) == 2


def nested(levels: int) -> list[Any]:
    state: list[Any] = []
    for _ in range(levels - 1):
        state = [state]
    return state


def deeper(calls: int, call: Any) -> Any:
    return deeper(calls - 1, call) if calls else call()


def room() -> int:
    """How many calls deeper one can go."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return sys.getrecursionlimit() - depth


def test_what_can_be_saved_can_be_loaded_further_down(tmp_path: Path) -> None:
    make(tmp_path, {"a": nested(199)})
    assert deeper(room() - 280, lambda: loaded(tmp_path)) == {"a": nested(199)}
    with Snapshot(tmp_path) as taken:
        taken.state = nested(201)
        with pytest.raises(UsageError, match="nested more than 200 levels deep"):
            taken.save()
        taken.state = {}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="its json counts levels by itself")
def test_too_little_room_to_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "resumable_tasks.checkpoint.snapshot.format._DEEPEST", 10_000
    )  # as it was once
    monkeypatch.setattr(
        "resumable_tasks.checkpoint.snapshot.format._refuse_changes", lambda *_: None
    )
    make(tmp_path, {"n": 1}, nested(600))
    with pytest.raises(UsageError, match="nested too deeply to be read at this call depth"):
        deeper(room() - 400, lambda: loaded(tmp_path))
    assert loaded(tmp_path) == nested(600)
