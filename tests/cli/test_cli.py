"""The command line, on real checkpoints, real damage and real runs in other processes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from resumable_tasks import (
    Budget,
    Interrupted,
    ItemFailure,
    JobFailed,
    __version__,
    resumable_task,
)
from resumable_tasks.base.text import duration, size
from resumable_tasks.checkpoint.directory import holder, reader
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.cli import main
from resumable_tasks.cli.watch import Rate
from tests import warm

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
SCRIPT = Path(sys.executable).with_name("resumable")

SLOW_JOB = """
import sys, time
from resumable_tasks import resumable_task

@resumable_task(key="id", batch_size=1, concurrency=1, name="slow")
def slow(items):
    time.sleep(float(sys.argv[3]))
    return [{"id": item["id"]} for item in items]

slow.run([{"id": i} for i in range(int(sys.argv[2]))], checkpoint=sys.argv[1])
"""


@pytest.fixture(autouse=True)
def as_a_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbuffered, output never fails a second time at the end of the process."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def cli(*arguments: object, **options: Any) -> Result:
    """The command in this process. What is not an exit, is a bug and raised."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, **options)


def document(*arguments: object) -> Any:
    return json.loads(cli(*arguments, "--json").stdout)


def real(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    return warm.run(
        [str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **options,
    )


def make(
    place: Path,
    items: list[Any],
    fails: Callable[[Any], Exception | None] = lambda key: None,
    **options: Any,
) -> Path:
    """A checkpoint of these keys, in batches of five; the run may fail."""

    def handler(batch: list[Any]) -> list[Any]:
        results: list[Any] = []
        for item in batch:
            error = fails(item["id"])
            results.append(ItemFailure(item["id"], error) if error else {"id": item["id"]})
        return results

    task = resumable_task(
        handler, **{"name": "classify", "key": "id", "batch_size": 5, "concurrency": 1} | options
    )
    with contextlib.suppress(JobFailed):
        task.run([{"id": key} for key in items], checkpoint=place, on_version_change="reuse")
    return place


@pytest.fixture
def done(tmp_path: Path) -> Path:
    return make(tmp_path / "done", list(range(20)))


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    def fails(key: Any) -> Exception | None:
        return ValueError(f"bad {key}") if key in (3, 4) else OSError("net") if key == 9 else None

    return make(tmp_path / "failed", list(range(10)), fails)


@contextlib.contextmanager
def at_work(place: Path, items: int = 10_000, seconds: float = 0.02) -> Iterator[Any]:
    """A run in another process, which has committed something."""
    job = place.parent / "slow_job.py"
    job.write_text(SLOW_JOB)
    with warm.start(
        [sys.executable, job, place, items, seconds], stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: len(list(place.glob("journal/*.jsonl"))) >= 4)
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def shards(place: Path) -> list[Path]:
    return sorted(place.glob("shards/*.parquet"))


def record(place: Path, number: int) -> Path:
    return place / f"journal/{number:020d}.jsonl"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def snapshot(place: Path) -> dict[str, bytes]:
    """All files and their bytes, but for the lock, which has none."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and path.name != "holder.lock"
    }


# --- status


def test_status_of_a_done_checkpoint(done: Path) -> None:
    result = cli("status", done)
    assert result.exit_code == 0
    assert "classify (version 1)" in result.stdout
    assert re.search(r"status +done\n", result.stdout)
    assert "20 items, 20 rows in" in result.stdout
    assert "done after" in result.stdout
    assert "20 completed, 0 skipped, 0 failed, of 20" in result.stdout
    assert "held by      nobody" in result.stdout
    assert f"`resumable publish {done} DEST`" in result.stdout

    found = document("status", done)
    assert (found["status"], found["exit_code"], found["completed"]) == ("done", 0, 20)
    assert (found["rows"], found["failed"], found["runs"]) == (20, 0, 1)
    assert found["shards"] == len(shards(done))
    assert found["bytes"] == sum(path.stat().st_size for path in shards(done))
    assert found["records"] == len(list(done.glob("journal/*.jsonl")))
    assert found["last_run"]["pid"] == os.getpid()
    assert found["last_run"]["how"] == "done"
    assert found["holder"] is None
    assert found["damage"] is None
    last = json.loads(record(done, found["records"] - 2).read_text().split("\n")[0])
    assert found["last_commit"] == last["time"]


def test_status_counts_failures_by_class(failed: Path) -> None:
    result = cli("status", failed)
    assert result.exit_code == 1
    assert "3 items: 2 × ValueError, 1 × OSError" in result.stdout
    assert f"`resumable failures {failed}`" in result.stdout
    assert document("status", failed)["errors"] == {"ValueError": 2, "OSError": 1}


def test_status_of_tolerated_failures_is_done(tmp_path: Path) -> None:
    def fails(key: Any) -> Exception | None:
        return ValueError() if key == 1 else None

    place = make(tmp_path / "c", [1, 2], fails)
    assert cli("status", place).exit_code == 1
    make(place, [1, 2], fails, tolerated_failures=1)
    assert document("status", place)["last_run"]["how"] == "done"
    result = cli("status", place)
    assert result.exit_code == 0
    assert "failed       1 item: 1 × ValueError" in result.stdout
    next_step = f"nothing; the job tolerates what is left (`resumable failures {place}` lists it); "
    assert next_step in result.stdout
    assert cli("watch", place).exit_code == 0


def test_status_after_retry_says_that_items_were_released(failed: Path) -> None:
    assert cli("retry", failed, "--key", "3").exit_code == 0
    result = cli("status", failed)
    assert result.exit_code == 75
    assert "since then   failed items were released; the next run tries them again" in result.stdout
    assert "repair" not in result.stdout


def test_status_after_redo_says_so(done: Path) -> None:
    assert cli("redo", done, "--key", "3").exit_code == 0
    result = cli("status", done)
    assert result.exit_code == 75
    assert "since then   completed items were taken back" in result.stdout
    assert "repair" not in result.stdout


def test_a_total_budget_that_is_used_up_is_to_be_raised(tmp_path: Path) -> None:
    task = resumable_task(
        lambda rows: [{"key": row, "cost": 1.0} for row in rows],
        name="job",
        batch_size=1,
        cost="cost",
        budget=Budget(total=3),
    )
    with pytest.raises(Interrupted):
        task.run(range(9), checkpoint=tmp_path / "c")
    result = cli("status", tmp_path / "c")
    assert result.exit_code == 5
    assert "spent        3 of 3, by all runs" in result.stdout
    assert "next: Budget(total=…) is used up: raise it" in result.stdout


def test_status_of_a_run_that_was_interrupted(tmp_path: Path) -> None:
    with at_work(tmp_path / "c") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 75
    result = cli("status", tmp_path / "c")
    assert result.exit_code == 75
    assert "interrupted after" in result.stdout
    assert "next: run the same command again to resume" in result.stdout


def test_status_of_a_run_that_was_killed(tmp_path: Path) -> None:
    with at_work(tmp_path / "c") as process:
        process.kill()
        process.wait(30)
    result = cli("status", tmp_path / "c")
    assert result.exit_code == 75
    assert re.search(r"status +incomplete\n", result.stdout)
    assert "died" in result.stdout
    assert "held by      nobody" in result.stdout
    found = document("status", tmp_path / "c")
    assert found["last_run"]["how"] is None
    assert found["completed"] > 0


def test_status_of_a_checkpoint_without_a_record(done: Path) -> None:
    for path in [*done.glob("journal/*"), *done.glob("shards/*")]:
        path.unlink()
    result = cli("status", done)
    assert result.exit_code == 75
    assert "last commit  none yet" in result.stdout


def test_status_of_damage_shows_what_can_be_read(done: Path) -> None:
    flip(record(done, 2))
    result = cli("status", done)
    assert result.exit_code == 4
    assert re.search(r"status +damaged\n", result.stdout)
    assert f"`resumable repair {done}`" in result.stdout
    assert "journal/00000000000000000002.jsonl" in result.stderr
    assert "Traceback" not in result.stderr
    damage = document("status", done)["damage"]
    assert damage["files"] == ["journal/00000000000000000002.jsonl"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 10)])
def test_status_sees_a_shard_that_is_missing_or_cut(done: Path, damage: Any) -> None:
    damage(shards(done)[0])
    result = cli("status", done)
    assert result.exit_code == 4
    assert shards.__name__ + "/e1-" in result.stderr
    assert f"`resumable verify {done}`" in result.stderr


def test_status_names_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    place = make(tmp_path / "with space", [1])
    assert f"`resumable publish '{place}' DEST`" in cli("status", place).stdout


def test_status_writes_nothing(done: Path) -> None:
    (done / "holder.lock").unlink()
    before = sorted(path.name for path in done.iterdir())
    assert cli("status", done).exit_code == 0
    assert sorted(path.name for path in done.iterdir()) == before


def test_status_of_a_checkpoint_whose_lock_cannot_be_opened(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, or on a read-only medium."""

    def refuse(self: LocalStore, name: str) -> bool:
        raise NotImplementedError("the lock file is another user's")

    monkeypatch.setattr(LocalStore, "locked", refuse)
    assert cli("status", done).exit_code == 0
    # Then only a heartbeat that moves tells that somebody is at work.
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.5)
    about = {"run": "r1", "host": "far", "pid": 7, "since": "x"}
    (done / "holder.json").write_text(json.dumps({**about, "beat": 1}))
    assert cli("status", done).exit_code == 0
    read, beats = holder.read, iter(range(2, 10_000))
    monkeypatch.setattr(holder, "read", lambda store: {**read(store), "beat": next(beats)})
    result = cli("status", done)
    assert result.exit_code == 3
    assert "run r1 on far (pid 7)" in result.stdout


def test_status_of_the_latest_version(done: Path) -> None:
    make(done, [1], version="2")
    assert document("status", done)["version"] == "2"


# --- what is no checkpoint


COMMANDS = ("status", "keys", "failures", "verify", "repair", "publish", "reset", "watch")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_is_no_checkpoint_is_a_usage_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    (tmp_path / "job.json").write_text("of another program")
    more = {"publish": [tmp_path / "out"], "reset": ["--yes"]}.get(command, [])
    before = snapshot(tmp_path)
    for place in (tmp_path / "absent", tmp_path):
        result = cli(command, place, *more)
        damaged = place == tmp_path and command not in ("reset", "repair")
        assert result.exit_code == (4 if damaged else 2)
        message = result.stdout if damaged and command == "verify" else result.stderr
        assert "job.json" in message or "is not a checkpoint" in message
    (tmp_path / "job.json").unlink()
    before.pop("job.json")
    result = cli(command, tmp_path, *more)
    assert result.exit_code == 2
    assert "is not a checkpoint" in result.stderr
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "holder.lock").exists()


def test_the_password_of_a_url_is_not_shown() -> None:
    result = cli("status", "postgresql://somebody:a:secret@word/@host/name")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "postgresql://***@host/name" in result.stderr
    assert "secret" not in result.stderr


def test_a_damaged_manifest_is_named_with_the_ways_out(done: Path) -> None:
    (done / "job.json").write_text("{")
    for command in ("status", "keys", "failures", "watch"):
        result = cli(command, done)
        assert result.exit_code == 4, command
        assert "job.json" in result.stderr
        assert f"`resumable reset {done}`" in result.stderr
    verified = cli("verify", done)
    assert verified.exit_code == 4
    assert "damaged: job.json" in verified.stdout
    assert f"`resumable repair {done}`" in verified.stdout
    repaired = cli("repair", done)
    assert repaired.exit_code == 0
    assert "\n0 items will be redone; 20 items stay completed\n" in repaired.stdout
    (done / "job.json").write_text("{")
    (done / f"journal/{0:020d}.jsonl").write_text("{")
    assert cli("repair", done).exit_code == 4
    assert f"`resumable reset {done}`" in cli("verify", done).stdout


def test_a_format_to_come_is_a_usage_error(done: Path) -> None:
    manifest = json.loads((done / "job.json").read_text())
    (done / "job.json").write_text(json.dumps(manifest | {"format": 99}))
    result = cli("status", done)
    assert result.exit_code == 2
    assert "format 99" in result.stderr


def test_a_bug_shows_its_traceback(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(reader.Reader, "examine", broken)
    with pytest.raises(ZeroDivisionError):
        cli("status", done)


# --- ls


def test_ls_finds_all_below(tmp_path: Path) -> None:
    make(tmp_path / "a" / "2026-11-23", [1, 2])
    make(tmp_path / "a", [1])
    broken = make(tmp_path / "b" / "c", [1])
    unreadable = make(tmp_path / "d", [1])
    flip(record(broken, 1))
    (unreadable / "job.json").write_text("{")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "job.json").write_text('{"of": "another program"}')
    (tmp_path / "e" / "other").write_text("")
    cli("reset", make(tmp_path / "old", [1]), "--yes")

    result = cli("ls", tmp_path)
    assert result.exit_code == 0
    found = {entry["path"]: entry for entry in document("ls", tmp_path)}
    old = next(path for path in found if ".archived-" in path)
    assert set(found) == {
        *(str(tmp_path / name) for name in ("a", "a/2026-11-23", "b/c", "d")),
        old,
    }
    assert {path: entry["status"] for path, entry in found.items() if path != old} == {
        str(tmp_path / "a"): "done",
        str(tmp_path / "a/2026-11-23"): "done",
        str(tmp_path / "b/c"): "damaged",
        str(tmp_path / "d"): "damaged",
    }
    assert [path for path, entry in found.items() if entry["archived"]] == [old]
    assert found[str(tmp_path / "a/2026-11-23")]["completed"] == 2
    line = next(line for line in result.stdout.split("\n") if old in line)
    assert line.startswith("done, archived")
    lines = result.stdout.strip().split("\n")
    held = size(sum(entry.get("bytes", 0) for entry in found.values()))
    assert lines[-2] == "5 checkpoints: 3 done, 2 damaged"
    assert lines[-1] == f"4 items completed, 0 failed; {held}"
    assert len(lines) == 8
    assert {entry["path"] for entry in document("ls", tmp_path, "--failed")} == {
        str(tmp_path / name) for name in ("b/c", "d")
    }
    table = list(csv.DictReader(cli("ls", tmp_path, "--csv").stdout.splitlines()))
    assert [(row["path"], row["status"]) for row in table] == [
        (path, entry["status"]) for path, entry in found.items()
    ]


def test_ls_of_those_with_failed_items(tmp_path: Path) -> None:
    def fails(key: Any) -> Exception | None:
        return ValueError() if key == 1 else None

    make(tmp_path / "good", [1, 2])
    make(tmp_path / "bad", [1, 2], fails)
    make(tmp_path / "tolerated", [1, 2], fails, tolerated_failures=1)
    found = document("ls", tmp_path, "--failed")
    assert [(Path(entry["path"]).name, entry["status"]) for entry in found] == [
        *(("bad", "failed"), ("tolerated", "done"))
    ]
    none = cli("ls", tmp_path / "good", "--failed")
    assert (none.exit_code, none.stdout) == (0, "")
    assert "no checkpoints with failed items or damage" in none.stderr


def test_ls_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"no checkpoints in {tmp_path} and 5 levels below it" in result.stderr
    assert document("ls") == []
    make(tmp_path / ".resumable" / "classify" / "default", [1])
    assert ".resumable/classify/default" in cli("ls").stdout
    make(tmp_path / "checkpoints" / "words", [1])  # as the README's example does
    make(tmp_path / ".hidden" / "words", [1])
    make(tmp_path / "node_modules" / "words", [1])
    assert [each["path"] for each in document("ls")] == [
        ".resumable/classify/default",
        "checkpoints/words",
    ]


# --- keys


def test_keys_are_json_values_in_commit_order(tmp_path: Path) -> None:
    many = [1, "1", "b", "a", 'quo"te', "ümlaut", -5]
    task = resumable_task(lambda batch: None, name="t", results="none", batch_size=2, concurrency=1)
    task.run(many, checkpoint=(place := tmp_path / "c"))
    result = cli("keys", place)
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == many
    assert result.stdout.startswith('1\n"1"\n"b"\n')
    assert "ümlaut" in result.stdout
    assert document("keys", place) == many


def test_keys_of_a_composite_key(tmp_path: Path) -> None:
    task = resumable_task(lambda batch: batch, name="t", key=("a", "b"))
    task.run([{"a": "x", "b": 1}, {"a": "y", "b": 2}], checkpoint=tmp_path / "c")
    assert cli("keys", tmp_path / "c").stdout == '["x",1]\n["y",2]\n'


def test_keys_of_none(tmp_path: Path) -> None:
    place = make(tmp_path / "c", [])
    assert cli("keys", place).stdout == ""
    assert document("keys", place) == []


def test_keys_after_a_repair_are_each_once(done: Path) -> None:
    """A key that was completed, lost and completed again is one key."""
    flip(shards(done)[0])
    lost = document("repair", done)["items_to_redo"]
    assert lost > 0
    assert len(cli("keys", done).stdout.splitlines()) == 20 - lost
    make(done, list(range(20)))
    found = [json.loads(line) for line in cli("keys", done).stdout.splitlines()]
    assert sorted(found) == list(range(20))


def test_keys_of_a_damaged_checkpoint_prints_none(done: Path) -> None:
    flip(record(done, 2))
    result = cli("keys", done)
    assert (result.exit_code, result.stdout) == (4, "")


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("command", [("keys",), ("failures", "--jsonl"), ("failures", "--all")])
def test_a_closed_pipe_ends_it_quietly(tmp_path: Path, command: tuple[str, ...]) -> None:
    def fails(key: Any) -> Exception | None:
        return ValueError("x" * 200) if command[0] == "failures" else None

    place = make(tmp_path / "c", [f"key-{i:06d}-{'x' * 60}" for i in range(3_000)], fails)
    with subprocess.Popen(
        [SCRIPT, command[0], place, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


def test_a_closed_pipe_does_not_change_the_exit_code(done: Path) -> None:
    flip(shards(done)[0])
    there, here = os.pipe()
    os.close(there)
    try:
        process = subprocess.run(
            [SCRIPT, "verify", done], stdout=here, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(here)
    assert (process.returncode, process.stderr) == (4, b"")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_where_no_output_is_open_the_exit_code_tells(done: Path, closed: str) -> None:
    flip(shards(done)[0])
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', SCRIPT, "verify", done]
    process = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert (process.returncode, process.stderr) == (4, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_message(done: Path) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [SCRIPT, "keys", done], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert process.returncode == 75
    assert process.stderr == (
        "resumable: the output could not be written: No space left on device. "
        "Free some space, or write elsewhere, and run the command again\n"
    )


# --- failures


def test_failures_by_class(failed: Path) -> None:
    result = cli("failures", failed)
    assert result.exit_code == 0
    assert (
        "2 × ValueError, for example\n  3  1 attempt, now\n    bad 3\n1 × OSError\n"
        in result.stdout
    )
    assert "1 × OSError" in result.stdout
    assert "bad 3" in result.stdout
    assert "bad 4" not in result.stdout
    found = document("failures", failed)
    assert found["failed"] == 3
    assert [(e["error"], e["count"]) for e in found["errors"]] == [
        ("ValueError", 2),
        ("OSError", 1),
    ]
    assert found["errors"][0]["example"]["key"] == 3
    assert "failures" not in found


def test_failures_all(failed: Path) -> None:
    result = cli("failures", failed, "--all")
    assert all(text in result.stdout for text in ("bad 3", "bad 4", "net"))
    found = document("failures", failed, "--all")["failures"]
    assert [failure["key"] for failure in found] == [3, 4, 9]


def test_failures_one_object_a_line(failed: Path) -> None:
    lines = [json.loads(line) for line in cli("failures", failed, "--jsonl").stdout.splitlines()]
    assert [line["key"] for line in lines] == [3, 4, 9]
    assert set(lines[0]) == {"key", "error", "message", "attempts", "batch", "time"}
    assert (lines[0]["error"], lines[0]["message"], lines[0]["attempts"]) == (
        "ValueError",
        "bad 3",
        1,
    )
    assert cli("failures", failed, "--jsonl", "--json").exit_code == 2


def test_failures_with_traceback(tmp_path: Path) -> None:
    def fails(key: Any) -> Exception | None:
        raise ValueError("no such luck")

    place = make(tmp_path / "c", [1], fails)
    assert "Traceback" not in cli("failures", place).stdout
    result = cli("failures", place, "--traceback")
    assert "    | Traceback (most recent call last):\n" in result.stdout
    assert "    | ValueError: no such luck\n" in result.stdout
    line = json.loads(cli("failures", place, "--jsonl", "--traceback").stdout)
    assert "ValueError: no such luck" in line["traceback"]


def test_failures_of_none(done: Path) -> None:
    result = cli("failures", done)
    assert (result.exit_code, result.stdout) == (0, "no item has failed\n")
    assert document("failures", done) == {
        "failed": 0,
        "quarantined": 0,
        "parked": 0,
        "without_key": {"count": 0, "first": []},
        "errors": [],
    }


def test_failures_forget_what_was_completed_later(failed: Path) -> None:
    make(failed, list(range(10)), lambda key: ValueError() if key == 9 else None)
    found = [json.loads(line) for line in cli("failures", failed, "--jsonl").stdout.splitlines()]
    assert [(f["key"], f["error"], f["attempts"]) for f in found] == [(9, "ValueError", 2)]


# --- the terminal


EVIL = "k\x1b[31m\x07\x9b2J\u202edoc\u2028\U000e0001"


def test_nothing_from_the_journal_steers_the_terminal(tmp_path: Path) -> None:
    def fails(key: Any) -> Exception | None:
        if key == EVIL + "!":
            error = type(f"Evil{EVIL}", (Exception,), {})(f"m{EVIL}\nsecond line\r\t")
            raise error
        return None

    place = make(tmp_path / "c", [EVIL, EVIL + "!"], fails, batch_size=1)
    outputs = [
        cli(*command).output
        for command in (
            ("status", place),
            ("status", place, "--json"),
            ("keys", place),
            ("keys", place, "--json"),
            ("failures", place),
            ("failures", place, "--all", "--traceback"),
            ("failures", place, "--json", "--all", "--traceback"),
            ("failures", place, "--jsonl", "--traceback"),
            ("watch", place),
            ("ls", tmp_path),
        )
    ]
    for text in outputs:
        assert text.strip()
        assert text.replace("\n", "").isprintable(), ascii(text)
    assert json.loads(outputs[2]) == EVIL
    assert json.loads(outputs[3]) == [EVIL]
    assert json.loads(outputs[7])["key"] == EVIL + "!"
    assert json.loads(outputs[7])["message"] == f"m{EVIL}\nsecond line\r\t"
    (record(place, 1)).write_text("\x1b[2J")
    assert cli("status", place).stderr.replace("\n", "").isprintable()
    assert cli("status", str(place) + EVIL).stderr.replace("\n", "").isprintable()


def test_long_messages_are_cut_for_people_alone(tmp_path: Path) -> None:
    long = "x" * 900
    place = make(tmp_path / "c", ["k" * 500], lambda key: ValueError(long))
    text = cli("failures", place).stdout
    assert max(map(len, text.split("\n"))) < 320
    assert "…" in text
    assert json.loads(cli("failures", place, "--jsonl").stdout)["message"] == long


def test_json_is_utf_8_on_any_terminal(tmp_path: Path) -> None:
    place = make(tmp_path / "c", ["ümlaut"], lambda key: ValueError("grün →"))
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    plain = subprocess.run(
        [SCRIPT, "failures", place], capture_output=True, env=environment, timeout=60
    )
    assert plain.returncode == 0
    assert b"gr\xfcn \\u2192" in plain.stdout
    lines = subprocess.run(
        [SCRIPT, "failures", place, "--jsonl"], capture_output=True, env=environment, timeout=60
    )
    assert json.loads(lines.stdout.decode())["message"] == "grün →"


# --- verify and repair


def test_verify_of_a_sound_checkpoint(done: Path) -> None:
    result = cli("verify", done)
    assert result.exit_code == 0
    assert "20 completed items, 20 rows; all good" in result.stdout
    found = document("verify", done)
    assert (found["damaged"], found["damages"], found["items"]) == (False, [], 20)


def test_an_orphan_is_harmless(done: Path) -> None:
    (done / "shards" / "e1-0123456789abcdef.parquet").write_bytes(b"left behind")
    result = cli("verify", done)
    assert result.exit_code == 0
    assert "1 orphan" in result.stdout
    assert "harmless" in result.stdout
    assert document("verify", done)["orphans"] == ["shards/e1-0123456789abcdef.parquet"]
    assert cli("status", done).exit_code == 0


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in a shard": (lambda c: flip(shards(c)[0]), "its checksum does not match"),
    "a cut shard": (lambda c: os.truncate(shards(c)[0], 9), "9 bytes long"),
    "a missing shard": (lambda c: shards(c)[0].unlink(), "it is missing"),
    "a flipped bit in a record": (lambda c: flip(record(c, 2)), "record|checksum|read"),
    "a cut record": (lambda c: os.truncate(record(c, 2), 99), "it is cut short"),
    "a missing record": (lambda c: record(c, 2).unlink(), "it is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_mended_and_redone(tmp_path: Path, damage: str) -> None:
    # One batch a run, so that each record names one shard.
    place = tmp_path / "c"
    for some in (5, 10, 15):
        make(place, list(range(some)))
    harm, what = DAMAGES[damage]
    harm(place)
    in_shard = "shard" in damage

    result = cli("verify", place)
    assert result.exit_code == 4
    assert re.search(r"damaged: (shards|journal)/\S+: .*(" + what + ")", result.stdout)
    assert f"`resumable repair {place}`" in result.stdout
    found = document("verify", place)
    assert found["damaged"]
    assert [entry["items"] for entry in found["damages"]] == [5 if in_shard else None]

    before = snapshot(place)
    result = cli("repair", place)
    assert result.exit_code == 0, result.output
    after = snapshot(place)
    # What was there is there still, under its own name or as moved aside.
    assert set(before.values()) - set(after.values()) == set()
    for name in after:
        if name.startswith("damaged/"):
            assert f"moved to {place}/{name}" in result.stdout
    if in_shard:
        assert "5 items will be redone; 10 items stay completed" in result.stdout
    else:
        assert "the unknown items of lost records" in result.stdout
    assert cli("verify", place).exit_code == 0
    assert cli("status", place).exit_code == 75
    assert "next: run the same command again" in cli("status", place).stdout

    make(place, list(range(15)))
    assert document("status", place)["completed"] == 15
    assert cli("status", place).exit_code == 0
    assert cli("repair", place).stdout.startswith("nothing to repair: 15 completed items")


def test_repair_as_json(done: Path) -> None:
    assert document("repair", done) == {
        "checkpoint": str(done),
        "damages": [],
        "moved": [],
        "completed": 20,
        "items_to_redo": 0,
        "more_to_redo": False,
        "strays": {},
    }
    flip(shards(done)[0])
    found = document("repair", done)
    assert found["items_to_redo"] == found["damages"][0]["items"] > 0
    assert found["completed"] == 20 - found["items_to_redo"]
    assert [(done / name).is_file() for name in found["moved"]] == [True]
    assert not found["more_to_redo"]
    record(done, 1).unlink()
    again = document("repair", done)
    assert again["more_to_redo"]
    assert not set(again["moved"]) & set(found["moved"])


def test_a_status_after_a_repair_says_what_is_missing(done: Path) -> None:
    flip(shards(done)[0])
    cli("repair", done)
    result = cli("status", done)
    assert result.exit_code == 75
    assert "a repair removed damaged items" in result.stdout


# --- publish


def test_publish(done: Path, tmp_path: Path) -> None:
    result = cli("publish", done, tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "published 20 rows in 1 file" in result.stdout
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(20))


def test_publish_ordered(tmp_path: Path) -> None:
    place = make(tmp_path / "c", [3, 1, 2], batch_size=1)
    assert document("publish", place, tmp_path / "out", "--ordered")["rows"] == 3
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == [1, 2, 3]
    assert cli("publish", place, tmp_path / "out").exit_code == 0  # its own it replaces
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == [3, 1, 2]


def test_publish_in_files_of_about_this_size(tmp_path: Path) -> None:
    def noise(batch: list[int]) -> list[dict[str, Any]]:
        return [{"key": key, "noise": os.urandom(400_000)} for key in batch]

    task = resumable_task(noise, name="noise", results="one", concurrency=1)
    task.run(list(range(20)), checkpoint=tmp_path / "c")
    found = document("publish", tmp_path / "c", tmp_path / "out", "--target-mb", "1")
    assert len(found["files"]) >= 2
    assert found["status"] == "done"
    assert cli("publish", tmp_path / "c", tmp_path / "two", "--target-mb", "0").exit_code == 2
    assert len(document("publish", tmp_path / "c", tmp_path / "out")["files"]) == 1


def test_publish_says_what_is_not_in_it(failed: Path, tmp_path: Path) -> None:
    result = cli("publish", failed, tmp_path / "out")
    assert result.exit_code == 0
    assert "published 7 rows" in result.stdout
    assert "status is failed" in result.stderr


def test_publish_refuses_what_is_not_its_own(done: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    result = cli("publish", done, tmp_path / "mine")
    assert result.exit_code == 2
    assert "thesis.txt" in result.stderr
    before = snapshot(done)
    for dest in (done, done / "out", done / "shards"):
        assert cli("publish", done, dest).exit_code == 2
    assert "is inside the checkpoint" in cli("publish", done, done / "out").stderr
    assert snapshot(done) == before


def test_publish_into_a_delta_table(done: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert document("publish", done, tmp_path / "out", "--form", "delta")["rows"] == 20
    result = cli("publish", done, tmp_path / "out")
    assert result.exit_code == 2
    assert "form='delta'" in result.stderr
    assert cli("publish", done, done / "out", "--form", "delta").exit_code == 2


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_publish_refuses_damage(done: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    harm(shards(done)[0])
    result = cli("publish", done, tmp_path / "out")
    assert result.exit_code == 4
    assert f"`resumable repair {done}`" in result.stderr
    assert not (tmp_path / "out").exists()


# --- reset


def test_reset_archives_and_loses_nothing(done: Path) -> None:
    before = snapshot(done)
    result = cli("reset", done, "--yes")
    assert result.exit_code == 0
    assert not done.exists()
    archived = next(done.parent.glob("done.archived-*"))
    assert f"archived to {archived}\n" in result.stdout
    assert before.items() <= snapshot(archived).items()
    make(done, [1])
    assert document("status", done)["completed"] == 1
    assert document("status", archived)["completed"] == 20


def test_reset_can_be_undone_as_it_says(done: Path) -> None:
    narrow = cli("reset", done, "--yes", env={"COLUMNS": "80"})
    undo = narrow.stdout.split("to undo: ")[1].strip()
    subprocess.run(undo, shell=True, check=True)
    assert document("status", done)["completed"] == 20
    make(done, list(range(21)))
    assert document("status", done)["last_run"]["skipped"] == 20


def test_reset_without_a_terminal_needs_yes(done: Path) -> None:
    process = real("reset", done)
    assert process.returncode == 2
    assert "20 completed items" in process.stderr
    assert "--yes" in process.stderr
    assert done.exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\x03", 75)])
def test_reset_asks_on_a_terminal(done: Path, answer: str, code: int) -> None:
    text, exit_code = on_a_terminal(["reset", str(done)], answer=answer)
    assert "20 completed items" in text
    assert exit_code == code
    assert done.exists() == (code != 0)
    assert not (done / "holder.json").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda c: (c / "job.json").unlink(),
        lambda c: (c / "job.json").write_text("{"),
        lambda c: record(c, 1).unlink(),
        lambda c: flip(shards(c)[0]),
    ],
)
def test_reset_of_a_damaged_checkpoint(done: Path, harm: Callable[[Path], object]) -> None:
    harm(done)
    before = snapshot(done)
    found = document("reset", done, "--yes")
    assert found["checkpoint"] == str(done)
    assert before.items() <= snapshot(Path(found["archived"])).items()
    make(done, [1])


def test_a_reset_that_fails_holds_nothing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resumable_tasks.errors import StoreError

    def fail(self: LocalStore) -> str:
        raise StoreError("the disk is on fire")

    monkeypatch.setattr(LocalStore, "archive", fail)
    result = cli("reset", done, "--yes")
    assert (result.exit_code, result.stderr) == (75, "resumable: the disk is on fire\n")
    assert cli("status", done).exit_code == 0


# --- while a run is at work


def test_all_that_only_look_are_safe_while_a_run_is_at_work(tmp_path: Path) -> None:
    place = tmp_path / "c"
    with at_work(place) as process:
        status = real("status", place)
        assert status.returncode == 3
        assert f"(pid {process.pid}), since " in status.stdout
        assert "at work," in status.stdout
        assert f"`resumable watch {place}`" in status.stdout
        assert real("keys", place).stdout.startswith("0\n1\n")
        assert real("failures", place).returncode == 0
        assert real("verify", place).returncode == 0
        publish = real("publish", place, tmp_path / "out")
        assert publish.returncode == 0, publish.stderr
        assert "status is running" in publish.stderr
        watch = real("watch", place, "--once")
        assert watch.returncode == 3
        assert watch.stdout.startswith("slow: running, ")
        listed = json.loads(real("ls", tmp_path, "--json").stdout)
        assert [entry["status"] for entry in listed] == ["running"]

        for command in (("repair",), ("reset", "--yes")):
            refused = real(command[0], place, *command[1:])
            assert refused.returncode == 3, command
            assert f"pid {process.pid}" in refused.stderr
            assert "Traceback" not in refused.stderr
        assert process.poll() is None, "the run ended before all was tried: no proof"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    assert cli("verify", place).exit_code == 0
    assert document("status", place)["completed"] > 4


def test_a_run_that_ends_during_a_look_has_not_died(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = record(done, len(list(done.glob("journal/*"))) - 1)
    data = close.read_bytes()
    close.unlink()
    hold = Holder(LocalStore(done), "r1")
    hold.take(takeover=False)
    read_new = Journal.read_new

    def and_then_it_ends(self: Journal) -> Iterator[Any]:
        yield from read_new(self)
        if not close.exists():
            close.write_bytes(data)
            hold.release()

    monkeypatch.setattr(Journal, "read_new", and_then_it_ends)
    looking = reader.Reader(LocalStore(done))
    looking.examine()
    assert looking.status == "running"
    looking.examine()
    assert looking.status == "done"


def test_a_run_that_begins_during_a_look_has_not_died(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(done, len(list(done.glob("journal/*"))) - 1).unlink()
    hold = Holder(LocalStore(done), "r1")
    read_new = Journal.read_new

    def and_one_begins(self: Journal) -> Iterator[Any]:
        yield from read_new(self)
        hold.take(takeover=False)

    monkeypatch.setattr(Journal, "read_new", and_one_begins)
    try:
        assert document("status", done)["holder"]["run"] == "r1"
    finally:
        hold.release()


def test_a_run_that_has_not_yet_claimed_holds_it(done: Path) -> None:
    hold = Holder(LocalStore(done), "r1")
    hold.take(takeover=False)
    try:
        assert cli("status", done).exit_code == 3
    finally:
        hold.release()


def test_many_looks_do_not_hinder_a_run_from_starting(done: Path) -> None:
    looks = [
        warm.start([SCRIPT, "watch", done, "--interval", "0.05"], stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    try:
        for _ in range(5):
            make(done, list(range(20)))
    finally:
        for look in looks:
            look.wait(30)
    assert document("status", done)["runs"] == 6


# --- watch


def test_watch_follows_a_run_to_its_end(tmp_path: Path) -> None:
    place = tmp_path / "c"
    with at_work(place, items=60, seconds=0.08) as process:
        watch = real("watch", place, "--interval", "0.1", "--json")
        assert process.wait(30) == 0
    assert watch.returncode == 0
    looks = [json.loads(line) for line in watch.stdout.splitlines()]
    assert len(looks) >= 3
    assert [look["status"] for look in looks] == ["running"] * (len(looks) - 1) + ["done"]
    counts = [look["completed"] for look in looks]
    assert counts == sorted(counts)
    assert (counts[-1], looks[-1]["completed_in_run"]) == (60, 60)
    assert looks[0]["rate"] is None
    assert looks[-1]["rate"] > 0


def test_watch_ends_when_the_run_is_killed(tmp_path: Path) -> None:
    with (
        at_work(tmp_path / "c") as process,
        warm.start(
            [SCRIPT, "watch", tmp_path / "c", "--interval", "0.1"],
            stdout=subprocess.PIPE,
            text=True,
        ) as watch,
    ):
        assert watch.stdout is not None
        assert "running" in watch.stdout.readline()
        process.kill()
        rest = watch.stdout.read()
        assert watch.wait(30) == 75
    assert "slow: incomplete, " in rest
    assert rest.endswith("next: run the same command again to resume\n")


def test_watch_reads_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = LocalStore.read_within

    def counted(self: LocalStore, name: str, limit: int | None) -> bytes:
        data = read(self, name, limit)
        reads.append(name)
        return data

    monkeypatch.setattr(LocalStore, "read_within", counted)
    with at_work(tmp_path / "c", items=60):
        result = cli("watch", tmp_path / "c", "--interval", "0.1", "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 3
    records = [name for name in reads if name.startswith("journal/")]
    there = list((tmp_path / "c" / "journal").glob("*.jsonl"))
    assert len(records) == len(set(records)) == len(there) > 3


def test_watch_of_a_checkpoint_that_nobody_works_on(failed: Path) -> None:
    result = cli("watch", failed)
    assert result.exit_code == 1
    assert result.stdout.startswith("classify: failed, 7/10 completed (7 in this run), 3 failed\n")
    assert f"`resumable failures {failed}`" in result.stdout


def test_watch_says_when_it_meets_damage(done: Path) -> None:
    flip(record(done, 1))
    result = cli("watch", done)
    assert result.exit_code == 4
    assert f"`resumable repair {done}`" in result.stderr


def test_ctrl_c_ends_the_watching_and_not_the_run(tmp_path: Path) -> None:
    with at_work(tmp_path / "c") as process:
        with warm.start(
            [SCRIPT, "watch", tmp_path / "c", "--interval", "0.1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watch:
            assert watch.stdout is not None
            assert watch.stderr is not None
            watch.stdout.readline()
            watch.send_signal(signal.SIGINT)
            assert watch.stderr.read() == "resumable: interrupted\n"
            assert watch.wait(30) == 75
        assert process.poll() is None


def test_watch_on_a_terminal(tmp_path: Path) -> None:
    place = tmp_path / "c"
    with at_work(place, items=150):
        text, exit_code = on_a_terminal(["watch", str(place), "--interval", "0.1"])
    assert exit_code == 0
    assert "slow: running" in text
    assert "slow: done, 150/150 completed" in text


def test_the_rate_is_that_of_the_last_minute() -> None:
    rate = Rate()
    rate.add(0.0, 100)
    assert rate.value is None
    for second in range(1, 61):
        rate.add(float(second), 100 + 10 * second)
    assert rate.value == pytest.approx(10)
    for second in range(61, 122):  # it is stuck
        rate.add(float(second), 700)
    assert rate.value == 0


def on_a_terminal(arguments: list[str], answer: str = "") -> tuple[str, int]:
    """What the command shows on a terminal, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "200"}
        os.execv(SCRIPT, [str(SCRIPT), *arguments])
    text, asked, silent = b"", False, 0
    try:
        while silent < 30:
            if not select.select([terminal], [], [], 2)[0]:
                silent += 1
                if asked and answer == "\x03":
                    # Ctrl-C between the prompt and the wait for a line is noticed only at the next
                    # key (CPython's readline); people press it again.
                    os.write(terminal, answer.encode())
                continue
            try:
                found = os.read(terminal, 4096)
            except OSError:  # how a terminal says that the other side is gone
                break
            text += found
            if answer and not asked and b"[y/N]" in text:
                asked = True
                os.write(terminal, answer.encode())
            if not found:
                break
    finally:
        os.close(terminal)
    return text.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- the command itself


def test_looking_loads_nothing_heavy(done: Path) -> None:
    heavy = ("pyarrow", "rich", "asyncio", "prefect")
    commands = ("status", "ls", "keys", "failures", "verify", "watch")
    code = (
        "import sys, resumable_tasks.cli as cli\n"
        f"loaded = lambda: [m for m in {heavy} if m in sys.modules]\n"
        "print('import', loaded(), file=sys.stderr)\n"
        f"for command in {commands}:\n"
        "    try: cli.main([command, sys.argv[1]])\n"
        "    except SystemExit as end: print(command, loaded(), end.code, file=sys.stderr)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, done], capture_output=True, text=True, timeout=60
    )
    said = ["import []", *(f"{command} [] 0" for command in commands)]
    assert process.stderr.splitlines() == said


def test_version() -> None:
    assert real("--version").stdout == f"resumable, version {__version__}\n"


def every_command() -> dict[str, click.Command]:
    """The commands by their names, those of a group with its name before theirs."""
    found: dict[str, click.Command] = {}
    for name, command in main.commands.items():
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": each for inner, each in command.commands.items()}
        else:
            found[name] = command
    return found


def test_every_command_shows_an_example_and_its_exit_codes() -> None:
    assert "75  interrupted" in cli("--help").stdout
    for name in every_command():
        result = cli(*name.split(), "--help")
        assert result.exit_code == 0
        assert re.search(rf"Examples?:\n +resumable {name}", result.stdout), name
    for code in ("0 ", "1 ", "3 ", "4 ", "75 "):
        assert f"\n    {code}" in cli("status", "--help").stdout


def options_of(parameter: click.Parameter) -> list[str]:
    is_option = isinstance(parameter, click.Option)
    return [*parameter.opts, *parameter.secondary_opts] if is_option else []


def test_the_docs_name_every_command_and_option() -> None:
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.M | re.S))
    del sections["Exit codes"]
    for name, command in every_command().items():
        assert name in sections, f"docs/cli.md has no section {name}"
        usage = re.search(rf"```\nresumable {name} (.*)\n```", sections[name])
        assert usage, f"docs/cli.md does not show the usage of {name}"
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                assert parameter.name.upper() in usage[1], f"{name}: {parameter.name}"
            for option in options_of(parameter):
                assert option in usage[1], f"usage of {name}: {option}"
                assert f"\n- `{option}" in sections[name], f"docs of {name}: {option}"
        documented = set(re.findall(r"\n- `(--?[a-z-]+)", sections[name]))
        assert documented == {option for p in command.params for option in options_of(p)}
    assert set(sections) == {*every_command(), "Output", "Shell completion"}


def test_the_docs_name_every_status_and_field(done: Path) -> None:
    text = DOCS.read_text()
    for status, code in reader.EXIT_CODES.items():
        assert f"| `{status}` | {code} |" in text
    section = text.split("## status")[1].split("\n## ")[0]
    found = document("status", done)
    for name in [*found, *found["last_run"]]:
        assert f"`{name}`" in section, name


NUMBERS = [
    (name, option)
    for name, command in every_command().items()
    for option in command.params
    if isinstance(option.type, click.types.FloatParamType)
]


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=lambda each: str(each))
@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "-inf", "-1"])
def test_no_command_takes_what_is_no_number(name: str, option: click.Option, text: str) -> None:
    with pytest.raises(click.BadParameter) as error:
        option.type_cast_value(click.Context(main), text)
    assert option.opts[0] in error.value.format_message()


def test_sizes_and_durations() -> None:
    assert [size(n) for n in (1, 999, 12_345_678, 999_999, 10**13)] == [
        "1 byte",
        "999 bytes",
        "12.3 MB",
        "1.0 MB",
        "10.0 TB",
    ]
    assert [duration(s) for s in (3.21, 75, 300, 12_000, 10**6)] == [
        "3.2 s",
        "75 s",
        "5 min",
        "3 h 20 min",
        "11 days",
    ]
