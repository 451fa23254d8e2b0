"""A snapshot is loaded as it was saved, or an older one is, or it is said why not."""

from __future__ import annotations

import collections
import contextlib
import enum
import json
import logging
import math
import os
import stat
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    CheckpointDamaged,
    CheckpointHeld,
    CheckpointMismatch,
    CheckpointUnusable,
    Fenced,
    Snapshot,
    StoreError,
    UsageError,
)
from resumable_tasks.checkpoint.snapshot import snapshot
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.checkpoint.store.local import LocalStore, in_temporary_folder


def generations(path: Path) -> list[Path]:
    return sorted(path.glob("*.json"))


def loaded(path: Path, **options: Any) -> Any:
    """The state that is found, with nothing saved."""
    with contextlib.suppress(ZeroDivisionError), Snapshot(path, **options) as found:
        state = found.state
        raise ZeroDivisionError
    return state


def make(path: Path, *states: Any) -> None:
    for state in states:
        with Snapshot(path) as made:
            made.state = state


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = {
        "cursor": 'c\u2028ü\n\t"',
        "n": [1, -0.0, 1e300, 2**200, True, None, {"": []}],
        "x": "",
    }
    make(tmp_path / "s", state)
    found = loaded(tmp_path / "s", initial={"other": 1})
    assert json.dumps(found) == json.dumps(state)
    assert math.copysign(1, found["n"][1]) == -1


def test_it_begins_with_the_initial_state_which_stays_what_it_was(tmp_path: Path) -> None:
    initial: dict[str, Any] = {"pages": []}
    one, two = (Snapshot(tmp_path / name, initial=initial) for name in "ab")
    with one, two:
        one.state["pages"].append(1)
        assert two.state == {"pages": []}
    assert initial == {"pages": []}
    assert loaded(tmp_path / "c") == {}


def test_it_is_saved_at_every_nth_step_and_at_the_end(tmp_path: Path) -> None:
    with Snapshot(tmp_path, every=3, seconds=None) as taken:
        saved = []
        for number in range(7):
            taken.state["n"] = number
            saved.append(taken.step())
        assert saved == [False, False, True, False, False, True, False]
        assert taken.generation == 2
        newest = json.loads(generations(tmp_path)[-1].read_bytes().splitlines()[1])
        assert newest == {"n": 5}
    assert loaded(tmp_path) == {"n": 6}


def test_it_is_saved_at_a_step_after_so_many_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: clock[0])
    with Snapshot(tmp_path, every=1_000_000, seconds=10) as taken:
        taken.state["a"] = 1
        assert not taken.step()
        clock[0] += 9.9
        assert not taken.step()
        clock[0] += 0.1
        assert taken.step()
        assert not taken.step()


def test_a_state_that_has_not_changed_is_not_saved_again(tmp_path: Path) -> None:
    make(tmp_path, {"a": 1}, {"a": 1}, {"a": 1})
    assert len(generations(tmp_path)) == 1


def test_the_last_generations_are_kept(tmp_path: Path) -> None:
    with Snapshot(tmp_path, every=1, keep=4) as taken:
        for number in range(20):
            taken.state["n"] = number
            taken.step()
    assert [int(path.stem) for path in generations(tmp_path)] == [17, 18, 19, 20]
    make(tmp_path, {"n": -1}, {"n": -2}, {"n": -3})  # each in a process of its own, as it were
    assert [int(path.stem) for path in generations(tmp_path)] == [21, 22, 23]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_saves_the_state_of_the_last_step(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), Snapshot(tmp_path, every=100) as taken:  # noqa: PT012
        for number in (1, 2, 3):
            taken.state["n"] = [number]
            taken.step()
        taken.state["n"].append("half")
        raise kind
    assert loaded(tmp_path) == {"n": [3]}
    with pytest.raises(kind), Snapshot(tmp_path) as taken:  # noqa: PT012
        taken.state["n"] = "no step has said that it is one to go on from"
        raise kind
    assert loaded(tmp_path) == {"n": [3]}
    assert len(generations(tmp_path)) == 1


def test_a_save_that_fails_after_an_exception_is_said_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> bool:
        raise StoreError("the disk is full")

    with pytest.raises(KeyError) as caught, Snapshot(tmp_path) as taken:  # noqa: PT012
        taken.state["n"] = 1
        taken.step()
        monkeypatch.setattr(taken._store, "create", full)
        raise KeyError
    assert "could not be saved at the end: the disk is full" in caught.value.__notes__[0]
    assert "could not be saved at the end: the disk is full" in caplog.text


def test_an_interrupt_in_the_middle_of_a_save_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Snapshot(tmp_path, every=2) as taken:  # noqa: PT012
        create = taken._store.create

        def interrupted(*given: Any) -> bool:
            monkeypatch.undo()
            assert create(*given)
            raise KeyboardInterrupt

        monkeypatch.setattr(taken._store, "create", interrupted)
        for number in (1, 2):
            taken.state["n"] = number
            taken.step()
    assert not hasattr(caught.value, "__notes__")
    assert loaded(tmp_path) == {"n": 2}


def test_a_snapshot_torn_at_every_byte_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, {"cursor": "old"}, {"cursor": "ü new", "n": [1, 2.5]})
    newest = generations(tmp_path)[-1]
    data = newest.read_bytes()
    for cut in range(len(data)):
        newest.write_bytes(data[:cut])
        caplog.clear()
        assert loaded(tmp_path) == {"cursor": "old"}, cut
        (warning,) = [r.getMessage() for r in caplog.records if newest.name in r.getMessage()]
        assert "damaged" in warning
    newest.write_bytes(data)
    assert loaded(tmp_path)["cursor"] == "ü new"


def test_a_snapshot_with_any_bit_changed_falls_back(tmp_path: Path) -> None:
    make(tmp_path, {"cursor": "old"}, {"cursor": "new"})
    newest = generations(tmp_path)[-1]
    data = newest.read_bytes()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        newest.write_bytes(changed)
        assert loaded(tmp_path) == {"cursor": "old"}, at
    for grown in (data + b"\n", data + data, b"\n" + data, bytes(len(data))):
        newest.write_bytes(grown)
        assert loaded(tmp_path) == {"cursor": "old"}


def test_a_generation_under_the_name_of_another_does_not_count(tmp_path: Path) -> None:
    make(tmp_path, {"n": 1}, {"n": 2})
    old, new = generations(tmp_path)
    new.write_bytes(old.read_bytes())
    assert loaded(tmp_path) == {"n": 1}
    (tmp_path / f"{9:020d}.json").write_bytes(old.read_bytes())
    assert loaded(tmp_path) == {"n": 1}


def test_after_a_fall_back_the_next_save_is_the_newest_and_good_ones_stay(tmp_path: Path) -> None:
    make(tmp_path, {"n": 1}, {"n": 2}, {"n": 3})
    for path in generations(tmp_path)[1:]:
        path.write_bytes(b"")
    with Snapshot(tmp_path) as taken:
        assert taken.state == {"n": 1}  # unchanged, and saved all the same
    assert [int(path.stem) for path in generations(tmp_path)] == [1, 2, 3, 4]
    assert loaded(tmp_path) == {"n": 1}
    make(tmp_path, {"n": 5}, {"n": 6})
    assert [int(path.stem) for path in generations(tmp_path)] == [4, 5, 6]


def test_where_none_is_good_nothing_begins_anew(tmp_path: Path) -> None:
    make(tmp_path, {"n": 1}, {"n": 2})
    for path in generations(tmp_path):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointDamaged, match="none of its generations is intact") as caught:
        loaded(tmp_path)
    assert set(caught.value.files) == {path.name for path in generations(tmp_path)}
    assert len(generations(tmp_path)) == 2


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ((1, 2), "state['a'][0] is of type tuple"),
        ({1: 2}, "state['a'][0] has the key 1"),
        ({True: 2}, "has the key True"),
        ({None: 2}, "has the key None"),
        ({Text("a"): 2}, "has the key 'a'"),
        (math.nan, "state['a'][0] is nan"),
        (math.inf, "is inf"),
        ({1, 2}, "of type set"),
        (b"a", "of type bytes"),
        (Path("a"), "Path"),
        (Colour.RED, "of type Colour"),
        (Text("a"), "of type Text"),
        (collections.defaultdict(int), "of type defaultdict"),
        ("\ud83d", "lone surrogate"),
        ({"\ud83d": 1}, "lone surrogate"),
        (10**5000, "more than 4,096 bits"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_would_not_come_back_is_refused_and_what_was_saved_stands(
    tmp_path: Path, value: Any, says: str
) -> None:
    with Snapshot(tmp_path) as taken:
        taken.state["n"] = 1
        taken.save()
        taken.state["a"] = [value]
        with pytest.raises(UsageError) as caught:
            taken.save()
        assert says in str(caught.value)
        del taken.state["a"]
    assert loaded(tmp_path) == {"n": 1}


def test_a_state_that_holds_itself_is_refused(tmp_path: Path) -> None:
    with Snapshot(tmp_path) as taken:
        taken.state["self"] = taken.state
        with pytest.raises(UsageError, match="contains itself") as caught:
            taken.save()
        assert len(caught.value.what) < 200, "not the way to it, 200 times"
        taken.state = []
    with pytest.raises(UsageError, match=r"initial\['a'\]"):
        Snapshot(tmp_path, initial={"a": ()})


def test_an_older_version_is_migrated_and_kept(tmp_path: Path) -> None:
    make(tmp_path, {"page": 3})
    before = generations(tmp_path)[0].read_bytes()

    def migrate(state: Any, version: int) -> Any:
        assert version == 1
        return {"pages": [state["page"]]}

    with Snapshot(tmp_path, version=2, migrate=migrate) as taken:
        assert taken.state == {"pages": [3]}
    assert generations(tmp_path)[0].read_bytes() == before
    assert loaded(tmp_path, version=2) == {"pages": [3]}
    with pytest.raises(
        CheckpointMismatch, match="has version 2, but this program has version 1: run the newer"
    ):
        loaded(tmp_path)


def test_a_migration_that_goes_wrong_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, {"page": 3})
    before = generations(tmp_path)[0].read_bytes()
    with pytest.raises(CheckpointMismatch, match="give migrate="):
        loaded(tmp_path, version=2)
    with pytest.raises(KeyError) as caught:
        loaded(tmp_path, version=2, migrate=lambda state, version: state["gone"])
    assert "raised by migrate=" in caught.value.__notes__[0]
    with pytest.raises(UsageError, match="migrate= returned None"):
        loaded(tmp_path, version=2, migrate=lambda state, version: None)
    with pytest.raises(UsageError, match=r"migrate\(…\)\['a'\] is of type tuple"):
        loaded(tmp_path, version=2, migrate=lambda state, version: {"a": (1,)})
    assert [path.read_bytes() for path in generations(tmp_path)] == [before]
    assert loaded(tmp_path) == {"page": 3}


def test_a_second_one_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    with Snapshot(tmp_path) as taken:
        taken.state["a"] = 1
        taken.save()
        with pytest.raises(CheckpointHeld, match="in use by another process"):
            loaded(tmp_path)
        code = (
            "import sys; from resumable_tasks import Snapshot\n"
            "with Snapshot(sys.argv[1]) as s: s.state['a'] = 2"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 3
        assert "CheckpointHeld" in done.stderr
    assert loaded(tmp_path) == {"a": 1}


@pytest.mark.parametrize("cleared", [False, True], ids=["name taken", "name free again"])
def test_without_locks_the_one_who_comes_too_late_cannot_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(LocalStore, "lock", no_locks)
    slow, quick = Snapshot(tmp_path, every=1), Snapshot(tmp_path, every=1)
    with pytest.raises(Fenced, match="another process saved"), slow:  # noqa: PT012
        slow.state["who"] = "slow"
        with quick:
            for number in range(10 if cleared else 1):
                quick.state["n"] = number
                quick.step()
        before = generations(tmp_path)
        with pytest.raises(Fenced):
            slow.step()
        assert generations(tmp_path) == before
    assert loaded(tmp_path) == {"n": 9 if cleared else 0}


def test_it_can_be_opened_again_and_is_closed_in_between(tmp_path: Path) -> None:
    taken = Snapshot(tmp_path)
    for number in range(3):
        with taken:
            assert taken.state == ({"n": number - 1} if number else {})
            taken.state["n"] = number
            with pytest.raises(UsageError, match="already open"), taken:
                pass
    for use in (taken.step, taken.save, lambda: setattr(taken, "state", {})):
        with pytest.raises(UsageError, match="is not open"):
            use()
    assert taken.state == {"n": 2}, "reading it afterwards is natural, and does no harm"
    with pytest.raises(UsageError, match="is not open"):
        _ = Snapshot(tmp_path).state


def test_a_place_that_is_no_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    with pytest.raises(CheckpointUnusable, match="is a file; a snapshot is a folder"):
        loaded(tmp_path / "file")
    (tmp_path / "others" / "sub").mkdir(parents=True)
    with pytest.raises(CheckpointUnusable, match="holds other things"):
        loaded(tmp_path / "others")
    (tmp_path / "others" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointUnusable, match=r"notes\.txt"):
        loaded(tmp_path / "others")
    assert not (tmp_path / "others" / "lock").exists()
    for wrong in ({"every": 0}, {"keep": 0}, {"version": "2"}, {"seconds": -1}, {"every": True}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Snapshot(tmp_path / "new", **wrong)
    with pytest.raises(UsageError, match="empty"):
        Snapshot("")
    with pytest.raises(
        UsageError,
        match=r"^snapshot 'ftp://host/state': only directories and buckets are supported",
    ):
        Snapshot("ftp://host/state")
    for path in (b"state", 7, None):
        with pytest.raises(UsageError, match="is a str or a Path, not"):
            Snapshot(path)  # type: ignore[arg-type]


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    make(tmp_path / "s", {"token": "secret"})
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    for path in (tmp_path / "s").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_what_a_crash_has_left_unfinished_is_swept(tmp_path: Path) -> None:
    make(tmp_path, {"n": 1})
    left = tmp_path / f".{2:020d}.json.0123abcd.tmp"
    left.write_bytes(b"{")
    assert loaded(tmp_path) == {"n": 1}
    assert not left.exists()


def test_a_disk_that_fails_is_said_and_the_next_save_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, fail = LocalStore.create, [True]

    def failing(store: LocalStore, name: str, data: bytes) -> bool:
        create(store, name, data)
        if fail.pop():
            raise CreateUnknown("the folder was not flushed", readable_is_durable=False)
        return True

    with Snapshot(tmp_path) as taken:
        taken.state["n"] = 1
        taken.save()
        monkeypatch.setattr(LocalStore, "create", failing)
        taken.state["n"] = 2
        with pytest.raises(StoreError, match="generation 1 is intact"):
            taken.save()
        monkeypatch.setattr(LocalStore, "create", create)
    assert loaded(tmp_path) == {"n": 2}


def test_it_can_be_read_and_checked_by_hand(tmp_path: Path) -> None:
    make(tmp_path, {"cursor": "c7"})
    lines = generations(tmp_path)[0].read_bytes().splitlines(keepends=True)
    assert json.loads(lines[1]) == {"cursor": "c7"}
    body = b"".join(lines[:2])
    assert json.loads(lines[2])["checksum"] == blake2b(body, digest_size=16).hexdigest()


def test_a_snapshot_in_a_temporary_folder_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    make(tmp_path / "s", {})
    make(tmp_path / "s", {})  # once is enough
    assert caplog.text.count("is in a temporary directory") == 1
    caplog.clear()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    monkeypatch.setattr("resumable_tasks.checkpoint.store.local._TEMPORARY", ())
    with caplog.at_level(logging.INFO):
        make(tmp_path / "t", {})
    assert caplog.text == ""


@pytest.mark.skipif(os.name == "nt", reason="these folders are of POSIX")
def test_what_the_system_empties_is_temporary_whatever_tmpdir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    link = tmp_path / "link"
    link.symlink_to("/dev/shm")
    for place in ("/tmp/c", "/dev/shm/c", link / "c", tmp_path / "own" / "c"):
        assert in_temporary_folder(place), place
    monkeypatch.setenv("TMPDIR", "/var/tmp")  # kept over a restart
    for place in ("/tmp", "/tmpx/c", "/home/c", "/srv/tmp/c", "/var/tmp/c"):
        assert not in_temporary_folder(place), place


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointUnusable, match="no permission"):
            loaded(tmp_path / "s")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("count", [-1, 1.5, "3", None, True])
def test_steps_are_counted_by_numbers(tmp_path: Path, count: Any) -> None:
    """A negative one would put the next save off."""
    with Snapshot(tmp_path / "s", every=3) as snap:
        with pytest.raises(UsageError, match="a number of steps"):
            snap.step(count)
        assert not snap.step(2)
        assert snap.step(1)


def test_a_url_of_a_file_names_the_folder_that_the_path_does(tmp_path: Path) -> None:
    place = tmp_path / "my runs%20 ä#?"
    for url in (place.as_uri(), place.as_uri().replace("file://", "FILE://localhost")):
        with Snapshot(url, initial={"n": 0}) as snap:
            snap.state["n"] += 1
    assert loaded(place) == {"n": 2}
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize("url", ["file://host/place", "file:///place?a=1", "ftp://host/place"])
def test_a_url_of_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        Snapshot(url)
