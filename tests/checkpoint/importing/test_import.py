"""Progress that was kept by hand becomes a checkpoint: these keys are skipped, and no others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resumable_tasks import (
    Changes,
    CheckpointHeld,
    CheckpointMismatch,
    InvalidItems,
    ResultConflict,
    UsageError,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.importing.importing import Imported, import_file
from resumable_tasks.cli import main
from resumable_tasks.testing import faults


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def file(place: Path, text: str | bytes, name: str = "old.jsonl") -> Path:
    path = place / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def take(path: Path, **options: Any) -> Imported:
    given = {"job": "job", "key": ("id",), **options}
    return import_file(path, path.parent / "checkpoint", **given)


def handled_after(place: Path, keys: list[Any], **options: Any) -> list[Any]:
    """The keys that the job's next run handles."""
    options = {"name": "job", "key": "id", "results": "none", **options}
    found: list[Any] = []

    def job(items: list[Any]) -> Any:
        found.extend(items)
        if options["results"] == "none":
            return None
        return [
            {**(item if options["results"] == "many" else {}), "label": "new"} for item in items
        ]

    task = resumable_task(job, **options)
    fields = options["key"]
    items: list[Any] = keys
    if isinstance(fields, str):
        items = [{fields: key} for key in keys]
    elif isinstance(fields, tuple):
        items = [dict(zip(fields, key, strict=True)) for key in keys]
    task.run(items, checkpoint=place / "checkpoint")
    return [keys[items.index(item)] if fields else item for item in found]


def test_the_next_run_skips_exactly_these_keys(tmp_path: Path) -> None:
    path = file(tmp_path, '{"id": "a"}\n{"id": "b", "t": "x"}\n{"id": 3}\n')
    assert take(path).imported == 3
    assert handled_after(tmp_path, ["a", "b", "3", 3, "c"]) == ["3", "c"]


@pytest.mark.parametrize(
    ("text", "name", "options", "done"),
    [
        ('{"key":"a","t":"…"}\n{"key":7,"t":"…"}\n', "x.jsonl", {}, ["a", 7]),
        ('"a"\n7\n["b",1]\n', "x", {"key": ()}, ["a", 7, ("b", 1)]),
        ("a\n007\n  \nb c\n\n", "ids.txt", {"key": ()}, ["a", "007", "b c"]),
        ("1\n2\n", "ids.txt", {"key": (), "key_type": "int"}, [1, 2]),
        ("1\n2\n", "ids.txt", {"key": (), "key_type": "string"}, ["1", "2"]),
        (
            '{"a":"x","b":1}\n{"a":"x","b":2}\n',
            "x.jsonl",
            {"key": ("a", "b")},
            [("x", 1), ("x", 2)],
        ),
        ('{"key":["x",1]}\n', "x.jsonl", {"key": ("a", "b")}, [("x", 1)]),
        ("\ufeff\n" + '{"id":"ü\u2028"}\r\n\r\n', "x.jsonl", {}, ["ü\u2028"]),
        ("", "x.jsonl", {}, []),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 9 else "",
)
def test_each_form_is_read_exactly(
    tmp_path: Path, text: str, name: str, options: dict[str, Any], done: list[Any]
) -> None:
    assert take(file(tmp_path, text, name), **options).imported == len(done)
    listed = cli("keys", tmp_path / "checkpoint").stdout.splitlines()
    assert [json.loads(line) for line in listed] == [
        list(key) if isinstance(key, tuple) else key for key in done
    ]
    key = options.get("key", ("id",))
    key = key[0] if len(key) == 1 else key or None
    assert handled_after(tmp_path, done, key=key) == []


@pytest.mark.parametrize(
    ("text", "name", "line", "kept"),
    [
        ('{"id":"a"}\n{"id":"b', "x.jsonl", 2, ["a"]),
        ('{"id":"a"}\n{"id":"b"}', "x.jsonl", None, ["a", "b"]),
        ('{"id":"a"}\n\0\0\0', "x.jsonl", 2, ["a"]),
        (b'{"id":"a"}\n{"id":"\xc3', "x.jsonl", 2, ["a"]),
        ("7\n12", "x.jsonl", 2, [7]),
        ("a\nlesson-1", "x.txt", 2, ["a"]),
        ("a\n\n\0\0", "x.txt", None, ["a"]),
        ("aa\nb\0", "x.txt", 2, ["aa"]),
        ("aa\nb ", "x.txt", 2, ["aa"]),
        (b"a\nb\xc3", "x.txt", 2, ["a"]),
        ("a1\na2\na", "x.txt", 3, ["a1", "a2"]),
        ("a1\nb\na3", "x.txt", 3, ["a1", "b"]),
        ("a1\na2\na3", "x.txt", 3, ["a1", "a2"]),
    ],
)
def test_a_torn_last_line_is_left_out(
    tmp_path: Path, text: str | bytes, name: str, line: int | None, kept: list[Any]
) -> None:
    format = "jsonl" if name == "x.jsonl" else None
    done = take(file(tmp_path, text, name), format=format)
    assert (done.torn, done.imported) == (line, len(kept))
    listed = cli("keys", tmp_path / "checkpoint").stdout.splitlines()
    assert [json.loads(key) for key in listed] == kept


def test_a_file_torn_at_every_byte_loses_only_the_last_item(tmp_path: Path) -> None:
    whole = "".join(f'{{"id":{n},"v":"é"}}\n' for n in (1, 23, 456)).encode()
    for cut in range(len(whole) + 1):
        path = file(tmp_path, whole[:cut])
        ends = whole[:cut].count(b"\n") + (whole[:cut].endswith(b"}"))
        if cut and not ends:
            with pytest.raises(InvalidItems, match="--complete"):
                take(path, dry_run=True)
        else:
            assert take(path, dry_run=True).imported == ends, cut


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"id":"a', "x.jsonl"),
        ("12", "x.jsonl"),
        ("lesson-1", "x.txt"),
        ("\n\nlesson-1", "x.txt"),
        (b"\xc3", "x.txt"),
    ],
)
def test_a_file_whose_only_line_may_be_torn_is_refused(
    tmp_path: Path, text: str | bytes, name: str
) -> None:
    done = cli("import", file(tmp_path, text, name), "--checkpoint", tmp_path / "checkpoint")
    assert (done.exit_code, "give --complete" in done.stderr) == (2, True)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("text", "name", "kept"),
    [
        ("lesson-1", "x.txt", ["lesson-1"]),
        ("a\nlesson-1", "x.txt", ["a", "lesson-1"]),
        ("a\nlesson-1\n", "x.txt", ["a", "lesson-1"]),
        ("7\n12", "x.jsonl", [7, 12]),
        ('{"id":"a"}\n{"id":"b"}', "x.jsonl", ["a", "b"]),
        ('["a","b"]', "x.json", ["a", "b"]),
        ("", "x.txt", []),
    ],
)
def test_of_a_complete_file_the_last_line_is_taken(
    tmp_path: Path, text: str, name: str, kept: list[Any]
) -> None:
    done = take(file(tmp_path, text, name), complete=True)
    assert (done.torn, done.imported) == (None, len(kept))
    listed = cli("keys", tmp_path / "checkpoint").stdout.splitlines()
    assert [json.loads(key) for key in listed] == kept


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ('{"id":"a"}\n{"id":"b', "x.jsonl", "x.jsonl:2: it is not JSON"),
        (b'{"id":"a"}\n{"id":"\xc3', "x.jsonl", "x.jsonl:2: it is not UTF-8"),
        ("a\nb\0", "x.txt", "x.txt:2: it is not a plain id"),
    ],
)
def test_of_a_complete_file_the_last_line_has_to_be_whole(
    tmp_path: Path, text: str | bytes, name: str, says: str
) -> None:
    path, place = file(tmp_path, text, name), tmp_path / "checkpoint"
    done = cli("import", path, "--checkpoint", place, "--key", "id", "--complete")
    assert (done.exit_code, says in done.stderr) == (2, True)
    assert not place.exists()


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ('{"id":"a"}\n{"id":"b\n{"id":"c"}\n', "x.jsonl", "x.jsonl:2: it is not JSON"),
        (
            '{"id":"a"}\n\n{"id":"b"},{"id":"d"}\n{"id":"c"}\n',
            "x.jsonl",
            "x.jsonl:3: it is not JSON",
        ),
        ('{"id":"a"}\n{"id":"b\n', "x.jsonl", "x.jsonl:2: it is not JSON"),
        ('{"id":"a"}\n{"n":1}\n', "x.jsonl", "x.jsonl:2: it has no field 'id'"),
        ('{"n":1}\n', "x.jsonl", "x.jsonl:1: it has no field 'id' (it has ['n'])"),
        ('{"id":"a"}\n"b"\n', "x.jsonl", "x.jsonl:2: it is not a JSON object"),
        ('{"id":"a"}\n{"id":null}\n', "x.jsonl", "x.jsonl:2: the key is None"),
        ('{"id":"a"}\n{"id":1.0}\n', "x.jsonl", "x.jsonl:2: a key cannot be a float"),
        ('{"id":"a"}\n{"id":true}\n', "x.jsonl", "x.jsonl:2: a key cannot be a boolean"),
        (b'{"id":"a"}\n{"id":"\xff"}\n{"id":"b"}\n', "x.jsonl", "x.jsonl:2: it is not UTF-8"),
        ("1\n2\n", "x.txt", "x.txt:1: its key 1 may be the number or the text"),
        ('7\n"a"\n', "x.txt", "x.txt:2: it is not a plain id; if it is JSON"),
    ],
)
def test_any_other_damage_names_the_line_and_nothing_is_imported(
    tmp_path: Path, text: str | bytes, name: str, says: str
) -> None:
    with pytest.raises(InvalidItems) as caught:
        take(file(tmp_path, text, name))
    assert says in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


def test_a_number_with_a_leading_zero_is_no_integer(tmp_path: Path) -> None:
    with pytest.raises(InvalidItems, match=r":2: its key '007' is not an integer"):
        take(file(tmp_path, "1\n007\n", "x.txt"), key=(), key_type="int")
    with pytest.raises(InvalidItems, match=r":2: its key 'b' is not a list of 2"):
        take(file(tmp_path, '{"key":["a",1]}\n{"key":"b"}\n'), key=("x", "y"))


def test_the_rows_come_along(tmp_path: Path) -> None:
    lines = [{"id": "a", "label": "easy", "p": 0.5}, {"id": "b", "label": "hard", "more": [1]}]
    done = take(file(tmp_path, "".join(map("{}\n".format, map(json.dumps, lines)))), results="one")
    assert (done.imported, done.rows) == (2, 2)
    task = resumable_task(
        lambda items: [{"id": item["id"], "label": "new", "p": 1.0} for item in items],
        name="job",
        key="id",
    )
    run = task.run([{"id": key} for key in "abc"], checkpoint=tmp_path / "checkpoint")
    assert (run.skipped, run.completed) == (2, 1)
    assert run.table(ordered=True).to_pylist() == [
        {"id": "a", "label": "easy", "p": 0.5, "more": None},
        {"id": "b", "label": "hard", "p": None, "more": [1]},
        {"id": "c", "label": "new", "p": 1.0, "more": None},
    ]


def test_the_field_that_holds_the_key_becomes_the_column_that_the_job_has(tmp_path: Path) -> None:
    take(file(tmp_path, '{"id":"a","key":"no","v":1}\n'), key=("id",), results="one")
    task = resumable_task(lambda items: items, name="job", key="id")
    found = task.run([{"id": "a"}], checkpoint=tmp_path / "checkpoint").table()
    assert found.to_pylist() == [{"id": "a", "key": "no", "v": 1}]
    other = tmp_path / "other"
    other.mkdir()
    take(file(other, '{"id":"a","v":1}\n'), key=(), results="one")
    task = resumable_task(lambda items: [{"v": 2}], name="job")
    found = task.run(["a"], checkpoint=other / "checkpoint").table()
    assert found.to_pylist() == [{"key": "a", "v": 1}]


def test_of_several_lines_of_an_item_the_last_counts(tmp_path: Path) -> None:
    lines = '{"id":1,"v":"old"}\n{"id":2,"v":"x"}\n{"id":1,"v":"new"}\n'
    done = take(file(tmp_path, lines), results="one")
    assert (done.lines, done.imported, done.duplicates, done.rows) == (3, 2, 1, 2)
    task = resumable_task(lambda items: items, name="job", key="id")
    run = task.run([{"id": 1}, {"id": 2}], checkpoint=tmp_path / "checkpoint")
    assert run.table(ordered=True).column("v").to_pylist() == ["new", "x"]


def test_with_many_all_lines_of_an_item_are_its_rows(tmp_path: Path) -> None:
    lines = '{"page":1,"link":"a"}\n{"page":2,"link":"b"}\n{"page":1,"link":"c"}\n'
    done = take(file(tmp_path, lines), results="many", key=("page",))
    assert (done.imported, done.duplicates, done.rows) == (2, 0, 3)
    task = resumable_task(lambda items: [], name="job", key="page", results="many")
    run = task.run([{"page": 1}, {"page": 2}], checkpoint=tmp_path / "checkpoint")
    assert sorted(map(tuple, (row.values() for row in run.table().to_pylist()))) == [
        (1, "a"),
        (1, "c"),
        (2, "b"),
    ]


def test_what_is_there_is_skipped_and_counted(tmp_path: Path) -> None:
    assert handled_after(tmp_path, ["a", "b"]) == ["a", "b"]
    path = file(tmp_path, '{"id":"b"}\n{"id":"c"}\n{"id":"c"}\n')
    again = {"job": None, "key": ()}  # the checkpoint knows
    for dry_run in (True, False):
        done = take(path, dry_run=dry_run, **again)
        assert (done.imported, done.skipped, done.duplicates) == (1, 1, 1)
    assert take(path, **again).imported == 0
    assert handled_after(tmp_path, ["a", "b", "c", "d"]) == ["d"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    lines = '{"id":"b","v":"x","n":1}\n{"id":"c","v":"y","n":null}\n'
    done = take(file(tmp_path, lines), dry_run=True, results="one")
    assert (done.imported, done.rows) == (2, 2)
    assert done.columns == {"id": "string", "v": "string", "n": "int64"}
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    "other", [{"job": "other"}, {"key": ("name",)}, {"results": "one"}, {"version": "2"}]
)
def test_the_checkpoint_of_another_job_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    handled_after(tmp_path, ["a"])
    path = file(tmp_path, '{"id":"b","name":"c"}\n')
    for dry_run in (True, False):
        with pytest.raises(CheckpointMismatch):
            take(path, dry_run=dry_run, **other)
    assert handled_after(tmp_path, ["a", "b", "c"]) == ["b", "c"]


@pytest.mark.parametrize(
    "other", [{"key": "name"}, {"name": "other"}, {"results": "one"}, {"version": "2"}]
)
def test_a_job_that_differs_from_what_was_imported_is_refused(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    take(file(tmp_path, '{"id":"a"}\n'), results="none", version="1")
    with pytest.raises(CheckpointMismatch):
        handled_after(tmp_path, ["a"], **other)


@pytest.mark.parametrize("results", ["one", "many", "none"])
@pytest.mark.parametrize("text", ['{"id":"a","t":"2026"}\n', '{"id":"a","label":"old"}\n'])
def test_what_an_import_leaves_open_the_first_run_names(
    tmp_path: Path, text: str, results: str
) -> None:
    place = tmp_path / "checkpoint"
    path = file(tmp_path, text)
    assert cli("import", path, "--key", "id", "--checkpoint", place).exit_code == 0
    shown = json.loads(cli("status", place, "--json").stdout)
    assert (shown["job"], shown["results"], shown["version"]) == (None, None, None)
    assert "the first run names the job" in cli("status", place).stdout
    assert cli("plan", place, "--items", 3).exit_code == cli("ls", place).exit_code == 0
    given = {"name": "mine", "results": results, "version": "7"}
    assert handled_after(tmp_path, ["a", "b"], **given) == ["b"]
    shown = json.loads(cli("status", place, "--json").stdout)
    assert (shown["job"], shown["results"], shown["version"]) == ("mine", results, "7")
    for other in ({"name": "other"}, {"results": "none" if results == "one" else "one"}):
        with pytest.raises(CheckpointMismatch):
            handled_after(tmp_path, ["a"], **{**given, **other})
        with pytest.raises(CheckpointMismatch):
            take(path, job=other.get("name"), results=other.get("results"))
    assert handled_after(tmp_path, ["a", "b"], **given) == []
    assert take(path, job=None).skipped == 1
    assert cli("verify", place).exit_code == 0


def test_without_a_word_on_results_those_that_are_there_come_along(tmp_path: Path) -> None:
    done = take(file(tmp_path, '{"id":"a","label":"old"}\n{"id":"b"}\n'), job=None)
    assert (done.imported, done.rows, done.job) == (2, 2, "")
    also = take(file(tmp_path, '{"id":"c","t":"2026"}\n', "more.jsonl"), job=None)
    assert (also.imported, also.rows) == (1, 0)  # it says only when
    task = resumable_task(lambda items: [{"label": "new"} for _ in items], name="job", key="id")
    run = task.run([{"id": key} for key in "abcd"], checkpoint=tmp_path / "checkpoint")
    assert (run.skipped, run.completed) == (3, 1)
    assert run.table(ordered=True).to_pylist() == [
        {"id": "a", "label": "old"},
        {"id": "b", "label": None},
        {"id": "d", "label": "new"},
    ]


def test_an_item_that_was_imported_without_a_row_can_be_done_again(tmp_path: Path) -> None:
    take(file(tmp_path, '{"id":"a"}\n{"id":"b"}\n'), job=None)
    task = resumable_task(
        lambda items: [{"label": item["v"]} for item in items],
        name="job",
        key="id",
        changes=Changes("v"),
    )
    items = [{"id": "a", "v": 1}, {"id": "b", "v": 1}]
    place = tmp_path / "checkpoint"
    assert task.run(items, checkpoint=place).completed == 0  # taken for unchanged
    items[0]["v"] = 2
    run = task.run(items, checkpoint=place)
    assert (run.changed, run.table().to_pylist()) == (1, [{"id": "a", "label": 2}])
    assert cli("verify", place).exit_code == 0


def test_rows_whose_types_do_not_fit_are_refused(tmp_path: Path) -> None:
    take(file(tmp_path, '{"id":"a","n":1}\n'), results="one")
    with pytest.raises(ResultConflict, match="'n'"):
        take(file(tmp_path, '{"id":"b","n":"x"}\n'))
    with pytest.raises(InvalidItems, match=r"column 'n' is .*--keys-only .*keys_only="):
        take(file(tmp_path, '{"id":"b","n":"x"}\n{"id":"c","n":1}\n'))
    assert cli("keys", tmp_path / "checkpoint").stdout == '"a"\n'


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = file(tmp_path, '{"id":"a"}\n')
    with pytest.raises(UsageError, match="cannot name a job"):
        take(path, job="a/b")
    with pytest.raises(UsageError, match="cannot read"):
        take(tmp_path / "gone.jsonl")
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_at_work_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, '{"id":"a"}\n{"id":"b"}\n')

    def job(items: list[Any]) -> None:
        with pytest.raises(CheckpointHeld):
            take(path)

    task = resumable_task(job, name="job", key="id", results="none")
    assert task.run([{"id": "a"}], checkpoint=tmp_path / "checkpoint").completed == 1


def test_an_import_makes_no_pace_and_is_no_end_of_the_job(tmp_path: Path) -> None:
    take(file(tmp_path, '{"id":"a"}\n'))
    place = tmp_path / "checkpoint"
    assert cli("status", place).exit_code == 75
    assert "imported after" in cli("status", place).stdout
    planned = json.loads(cli("plan", place, "--items", 100, "--json").stdout)
    assert (planned["remaining"], planned["seconds"]) == (99, None)


def test_what_keys_prints_can_be_imported(tmp_path: Path) -> None:
    done = ["a\x9b", 7, ("b", 1)]
    assert handled_after(tmp_path, done, key=None) == done
    for options in ((), ("--jsonl",), ("--jsonl",)):
        text = cli("keys", tmp_path / "checkpoint", *options).stdout
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        copy.mkdir()
        assert take(file(copy, text), key=()).imported == 3
        assert handled_after(copy, [*done, "new"], key=None) == ["new"]
    lines = [json.loads(line) for line in text.splitlines()]
    assert [set(line) for line in lines] == [{"key", "t"}] * 3
    times = [commit.time for commit in records_of(tmp_path / "checkpoint") if commit.key_count]
    assert {line["t"] for line in lines} == set(times)
    assert cli("keys", tmp_path / "checkpoint", "--json", "--jsonl").exit_code == 2


def records_of(place: Path) -> Any:
    from resumable_tasks.checkpoint.directory.opening import read_manifest
    from resumable_tasks.checkpoint.store.urls import open_store

    store = open_store(place)
    return Journal(store, read_manifest(store).id).read_new()


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    path = file(tmp_path, '{"id":1,"v":"x"}\n{"id":2,"v":"y"}\n{"id":1,"v":"z"}\n{"id":')
    given = ("import", path, "--checkpoint", tmp_path / "checkpoint", "--key", "id")
    dry = cli(*given, "--job", "job", "--dry-run")
    assert "give --results one (the last counts) or many" in dry.stderr
    dry = cli(*given, "--job", "job", "--results", "one", "--dry-run")
    assert dry.stdout.startswith("would import 2 items, 2 rows, into")
    assert "columns: id int64, v string\n" in dry.stdout
    done = cli(*given, "--job", "job", "--results", "one")
    assert done.exit_code == 0
    assert "imported 2 items, 2 rows, into" in done.stdout
    assert "1 line left out: a later line has the same item" in done.stdout
    assert "line 4 has no newline and may be torn" in done.stdout
    assert "if the file is complete, give --complete" in done.stdout
    again = json.loads(cli(*given, "--json").stdout)
    assert (again["imported"], again["skipped"], again["dry_run"]) == (0, 2, False)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize(
    "fault",
    ["store.temp_written:2", "shard.written:1", "commit.shard_written:1", "commit.done:1"],
)
def test_killed_in_the_middle_and_run_again(tmp_path: Path, fault: str) -> None:
    path = file(tmp_path, "".join(f'{{"id":{n},"v":{n}}}\n' for n in range(500)))
    code = (
        "import sys; from resumable_tasks.testing.faults import install_from_env\n"
        "install_from_env(); from resumable_tasks.cli import main; main()"
    )
    place = tmp_path / "checkpoint"
    given = ["import", str(path), "--checkpoint", str(place), "--key", "id", "--job", "job"]
    command = [sys.executable, "-c", code, *given, "--results", "one"]
    environment = {**os.environ, faults.VARIABLE: fault}
    died = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    done = take(path, results="one")
    assert (done.imported, done.skipped) == ((0, 500) if fault == "commit.done:1" else (500, 0))
    task = resumable_task(lambda items: items, name="job", key="id")
    run = task.run([{"id": n} for n in range(500)], checkpoint=place)
    assert (run.skipped, run.table().num_rows) == (500, 500)
    assert cli("verify", place).exit_code == 0


@pytest.mark.long
def test_a_million_lines_in_fifteen_seconds(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    with path.open("w") as opened:
        for n in range(1_000_000):
            opened.write(f'{{"id":"lesson-{n:07}","label":"{n % 3}","p":{n / 7}}}\n')
    began = time.process_time()
    assert take(path, results="one").imported == 1_000_000
    assert time.process_time() - began < 15
