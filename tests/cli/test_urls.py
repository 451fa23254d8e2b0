"""The commands on checkpoints in a bucket, by a strict server's own log."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resumable_tasks import Failing, JobFailed, Snapshot, resumable_task
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.store import object as objects
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import main
from resumable_tasks.errors import UsageError
from tests.conftest import Bucket

pytest.importorskip("obstore")


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def document(*arguments: object) -> Any:
    return json.loads(cli(*arguments, "--json").stdout)


def make(
    place: str, many: int = 10, *, bad: int | None = None, partition: str | None = None
) -> Any:
    @resumable_task(key="id", batch_size=5, failing=Failing(max_attempts=1), name="square")
    def square(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if any(item["id"] == bad for item in items):
            raise ValueError("a bad item")
        return [{"id": item["id"], "square": item["id"] ** 2} for item in items]

    try:
        return square.run([{"id": n} for n in range(many)], checkpoint=place, partition=partition)
    except JobFailed as error:
        return error.result


def test_every_command_does_its_work_on_a_url(bucket: Bucket, tmp_path: Path) -> None:
    place = f"{bucket.url}/with blank"
    make(place, bad=3)
    quoted = f"'{place}'"

    def done(code: int, *arguments: object) -> str:
        result = cli(*arguments)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    assert f"`resumable failures {quoted}`" in done(1, "status", place)
    assert document("status", place)["completed"] == 9
    assert "  completed    9\n" in done(0, "plan", place)
    assert sorted(map(int, done(0, "keys", place).split())) == [n for n in range(10) if n != 3]
    assert f"`resumable retry {quoted} --quarantined`" in done(0, "failures", place)
    assert document("show", place, "4")["rows"] == [{"id": 4, "square": 16}]
    assert document("show", place, "3")["failure"]["message"] == "a bad item"
    assert "ValueError: a bad item" in done(0, "failures", place, "--follow")
    assert document("history", place)[0]["completed"] == 9
    assert document("diff", place, place)["same"]
    done(0, "failures", place, "--export", tmp_path / "failed.jsonl")
    assert "1 item released" in done(0, "retry", place)
    assert "nothing is parked" in done(0, "accept", place, "--json-column", "square")
    assert "all good" in done(0, "verify", place)
    assert "nothing to repair" in done(0, "repair", place)
    assert "1 of 9 completed items" in done(0, "redo", place, "--key", "4")
    assert "8/10 completed" in done(75, "watch", place, "--once")
    done(0, "publish", place, tmp_path / "published")
    assert make(place).completed == 2
    assert document("status", place)["status"] == "done"
    assert f"`resumable publish {quoted} DEST`" in done(0, "status", place)

    (tmp_path / "own.jsonl").write_text('{"id": 1, "square": 1}\n')
    other = f"{bucket.url}/imported"
    told = done(0, "import", tmp_path / "own.jsonl", "--checkpoint", other, "--key", "id")
    assert f"checkpoint='{other}'" in told
    assert make(other, 2).skipped == 1


def test_damage_in_a_bucket_is_found_and_repaired(bucket: Bucket) -> None:
    make(bucket.url)
    shard = next(name for name in bucket.stored() if name.startswith("shards/"))
    bucket.server.put(f"{bucket.prefix}/{shard}", b"PAR1" + bytes(40) + b"PAR1")
    assert cli("verify", bucket.url).exit_code == 4
    repaired = cli("repair", bucket.url)
    assert f"moved to {bucket.url}/damaged/" in repaired.stdout
    assert make(bucket.url).completed > 0
    assert document("status", bucket.url)["completed"] == 10
    assert cli("verify", bucket.url).exit_code == 0


def test_ls_finds_checkpoints_partitions_and_what_was_reset(bucket: Bucket) -> None:
    make(f"{bucket.url}/a")
    make(f"{bucket.url}/a", partition="2026-11-23")
    make(f"{bucket.url}/deep/er/b")
    for _ in range(2):
        make(f"{bucket.url}/c")
        cli("reset", f"{bucket.url}/c", "--yes")
    make(f"{bucket.url}/c", 5)
    make(f"{bucket.url}/ended")
    cli("reset", f"{bucket.url}/ended", "--yes")
    for name in ("other/job.json", "other/data.csv", "shards/x.parquet", "a/"):
        bucket.server.put(f"{bucket.prefix}/{name}", b'{"of": "another program"}')

    found = {
        entry["path"].removeprefix(f"{bucket.url}/"): (entry["status"], entry["archived"])
        for entry in document("ls", bucket.url)
    }
    assert found == {
        "a": ("done", False),
        "a/2026-11-23": ("done", False),
        "deep/er/b": ("done", False),
        "c": ("done", False),
        "c/@0": ("done", True),
        "c/@1": ("done", True),
        "ended/@0": ("done", True),
    }
    assert f"{bucket.url}/c/@1" in cli("ls", f"{bucket.url}/c").stdout
    assert [e["path"] for e in document("ls", f"{bucket.url}/a/2026-11-23")] == [
        f"{bucket.url}/a/2026-11-23"
    ]
    nothing = cli("ls", f"{bucket.url}/nowhere")
    assert nothing.exit_code == 0
    assert "no checkpoints" in nothing.stderr


def test_ls_goes_into_no_checkpoint(bucket: Bucket) -> None:
    for name in ("a", "b"):
        make(f"{bucket.url}/{name}")
        for n in range(20):
            bucket.server.put(f"{bucket.prefix}/{name}/shards/deep/{n}/x", b"")
    bucket.server.forget()
    document("ls", bucket.url)
    listed = Counter(
        seen.query["prefix"].removeprefix(bucket.prefix).strip("/")
        for seen in bucket.server.log
        if seen.kind == "LIST"
    )
    assert set(listed) <= {"", *(f"{n}{w}" for n in "ab" for w in ("", "/journal", "/shards"))}


@pytest.fixture
def pruned_long_ago(bucket: Bucket) -> str:
    """A job's place: two nights that are there, one that was reset, and 300 that were pruned."""
    place = f"{bucket.url}/nightly"
    for night in ("2026-11-22", "2026-11-23", "2026-11-24"):
        make(place, partition=night)
    cli("reset", f"{place}/2026-11-23", "--yes")
    for n in range(300):
        name = f"nightly/{2000 + n // 12}-{n % 12 + 1:02d}-01/@1.json"
        bucket.server.put(f"{bucket.prefix}/{name}", b'{"pruned": true}')
    bucket.server.forget()
    return place


def test_what_was_pruned_long_ago_costs_few_requests(bucket: Bucket, pruned_long_ago: str) -> None:
    found = [entry["path"] for entry in document("ls", pruned_long_ago)]
    assert bucket.server.counts()["LIST"] < 30
    bucket.server.forget()
    kept = document("prune", pruned_long_ago, "--keep", "1", "--dry-run")["partitions"]
    assert bucket.server.counts()["LIST"] < 40
    assert sorted(found) == sorted(each["checkpoint"] for each in kept)
    assert [path.removeprefix(f"{pruned_long_ago}/") for path in sorted(found)] == [
        *("2026-11-22", "2026-11-23/@0", "2026-11-24"),
    ]


@pytest.mark.parametrize(("page", "least"), [(1, 0), (5, 10), (40, 100), (1000, 303)])
def test_an_outline_shows_what_a_look_finds(
    bucket: Bucket, pruned_long_ago: str, page: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_A_PAGE", page)
    store = objects.ObjectStore(open_store(bucket.url)._bucket, bucket.prefix)
    for below, more in (("", ("2000-01-01", "2000-01-01.old/a/b", "file")), ("nightly", ("z/",))):
        for name in more:
            bucket.server.put(f"{bucket.prefix}/nightly/{name}", b"x")
        found = store.outlines(below, 300)
        assert all(store.look(folder) == seen for folder, seen in found.items())
        assert store.outlines(below, 99) == {}
    assert len(store.outlines("nightly", 300)) >= least


def test_a_reset_in_a_bucket_is_undone_as_it_says(bucket: Bucket) -> None:
    make(bucket.url)
    result = cli("reset", bucket.url, "--yes")
    assert f"archived to {bucket.url}/@0" in result.stdout
    assert (
        f"delete the object {bucket.url}/@1.json before the next run starts there" in result.stdout
    )
    assert "mv " not in result.stdout
    assert cli("status", bucket.url).exit_code == 2

    bucket.server.objects.buckets["test"].delete(f"{bucket.prefix}/@1.json")
    assert document("status", bucket.url)["completed"] == 10
    assert make(bucket.url).skipped == 10


@pytest.mark.parametrize("command", [("reset", "--yes"), ("retry",), ("repair",), ("run",)])
def test_what_was_reset_is_read_and_never_written(bucket: Bucket, command: tuple[str, ...]) -> None:
    make(bucket.url, bad=3)
    cli("reset", bucket.url, "--yes")
    old = f"{bucket.url}/@0"
    before = bucket.stored()
    assert document("status", old)["completed"] == 9
    if command[0] == "run":
        with pytest.raises(Exception, match="an old incarnation of a checkpoint"):
            make(old)
    else:
        result = cli(command[0], old, *command[1:])
        assert (result.exit_code, result.stderr.count("can only be read")) == (2, 1), result.output
    assert bucket.stored() == before


def test_a_look_of_watch_is_two_requests(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, looks = threading.Event(), []

    @resumable_task(key="id", batch_size=1, concurrency=1)
    def slow(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if items[0]["id"] == 2:
            going_on.wait(60)
        return items

    run = threading.Thread(
        target=slow.run, args=([{"id": n} for n in range(3)],), kwargs={"checkpoint": bucket.url}
    )
    follow = Reader.follow

    def counted(self: Reader) -> None:
        before = bucket.server.counts()
        follow(self)
        asked = bucket.server.counts() - before
        looks.append(asked["GET"] + asked["HEAD"] + asked["LIST"])
        if len(looks) == 3:
            going_on.set()
            run.join(60)

    monkeypatch.setattr(Reader, "follow", counted)
    run.start()
    try:
        while len([name for name in bucket.stored() if name.startswith("journal/")]) < 2:
            run.join(0.05)
            assert run.is_alive()
        result = cli("watch", bucket.url, "--interval", "0.1", "--json")
    finally:
        going_on.set()
        run.join(60)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["completed"] == 3
    assert max(looks[:3]) <= 2  # the holder, and the record that is not there


@pytest.mark.parametrize(
    "use",
    [
        lambda place: make(place),
        lambda place: Snapshot(place),
        lambda place: cli("status", place) and _raised(cli("status", place)),
        lambda place: _raised(cli("ls", place)),
        lambda place: _raised(cli("import", __file__, "--checkpoint", place, "--key", "id")),
    ],
    ids=["run", "snapshot", "status", "ls", "import"],
)
def test_a_url_that_was_made_a_path_is_told(
    use: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"was a URL, which Path\(\) turned into a path"):
        use(Path("s3://bucket/x"))
    assert list(tmp_path.iterdir()) == []


def _raised(result: Result) -> None:
    assert result.exit_code == 2
    raise UsageError(result.stderr)


SCRIPT = """
import sys
from resumable_tasks import resumable_task

@resumable_task(key="id", batch_size=5)
def square(items):
    return [{"id": item["id"], "square": item["id"] ** 2} for item in items]

if __name__ == "__main__":
    run = square.run([{"id": n} for n in range(20)], checkpoint=sys.argv[1])
    assert run.dataset().head(3).num_rows == 3
"""


@pytest.mark.parametrize("scripts", [1, pytest.param(60, marks=pytest.mark.long)])
def test_a_script_that_reads_a_dataset_ends_well(
    bucket: Bucket, tmp_path: Path, scripts: int
) -> None:
    """Arrow aborts the interpreter at its end where a file system is written in Python."""
    (tmp_path / "job.py").write_text(SCRIPT)
    for _ in range(scripts):
        ended = subprocess.run(
            [sys.executable, str(tmp_path / "job.py"), bucket.url],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
