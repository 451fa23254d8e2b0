"""`show` and `history`: one item, and the runs, on real checkpoints."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, ItemFailure, JobFailed, Snapshot, resumable_task
from resumable_tasks.checkpoint.directory import segments
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.trace import trace
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.cli import failed, output
from tests.checkpoint.directory.made import filled
from tests.cli.test_cli import cli, document, on_a_terminal, real, record, wait_until

HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred\x1b[0m\nnew \u202eline\x9b", "k" * 10_000]


def run(place: Path, items: list[Any], bad: tuple[Any, ...] = (), **options: Any) -> None:
    """A run over these keys, each of which has two columns beside its key."""

    def handler(batch: list[Any]) -> list[Any]:
        return [
            ItemFailure(key, ValueError(f"bad {key}"))
            if key in bad
            else {"key": key, "label": f"<{key}>", "cost": 0.5}
            for key in batch
        ]

    task = resumable_task(
        handler, name="j", batch_size=5, concurrency=1, cost="cost", failing=Failing(max_attempts=2)
    )
    with contextlib.suppress(JobFailed):
        task.run(items, checkpoint=place, **options)


def test_a_completed_item(tmp_path: Path) -> None:
    run(tmp_path / "c", list(range(10)))
    found = document("show", tmp_path / "c", "7")
    assert (found["key"], found["status"], found["attempts"]) == (7, "completed", 1)
    assert found["rows"] == [{"key": 7, "label": "<7>", "cost": 0.5}]
    assert (found["run_number"], found["cost_of_commit"] / found["items_in_commit"]) == (1, 0.5)
    assert (tmp_path / "c" / found["shard"]).exists()
    assert (
        json.loads(record(tmp_path / "c", found["commit"]).read_text().split("\n")[0])["time"]
        == (found["time"])
    )
    text = cli("show", tmp_path / "c", "7").stdout
    assert "  status       completed\n" in text
    assert "    label  <7>\n" in text
    assert f"run 1, {found['run']}" in text


def test_an_item_that_failed_was_released_and_completed(tmp_path: Path) -> None:
    place = tmp_path / "c"
    run(place, list(range(10)), bad=(3,))
    run(place, list(range(10)), bad=(3,))
    found = document("show", place, "3")
    assert (found["status"], found["attempts"], found["run_number"]) == ("quarantined", 2, 2)
    assert found["failure"]["message"] == "bad 3"
    assert "Traceback" not in found["failure"]["traceback"] or found["failure"]["traceback"]
    cli("retry", place, "--key", "3")
    text = cli("show", place, "3").stdout
    assert "status       released: the next run tries it again" in text
    assert "error        ValueError: bad 3" in text
    run(place, list(range(10)))
    found = document("show", place, "3")
    assert [event["what"] for event in found["events"]] == [
        *("failed", "failed", "released", "completed")
    ]
    assert (found["status"], found["run_number"], found["attempts"]) == ("completed", 3, 3)
    cli("redo", place, "--key", "3")
    found = document("show", place, "3")
    assert (found["status"], found["rows"]) == ("missing", None)
    # Its neighbours were copied, and are what they were.
    beside = document("show", place, "4")
    assert [event["what"] for event in beside["events"]] == ["completed"]
    assert (beside["run_number"], beside["rows"][0]["label"]) == (1, "<4>")


def test_a_parked_item(tmp_path: Path) -> None:
    task = resumable_task(
        lambda batch: [{"key": key, "v": "text" if key == 4 else 1} for key in batch],
        name="j",
        batch_size=5,
    )
    with pytest.raises(JobFailed):
        task.run(range(10), checkpoint=tmp_path / "c")
    found = document("show", tmp_path / "c", "4")
    assert (found["status"], found["rows"]) == ("parked", None)
    assert found["failure"]["rows"]
    refused = cli("retry", tmp_path / "c", "--key", "4")
    assert refused.exit_code == 2
    assert "the item with key 4 has not failed: its result is kept" in refused.stderr
    assert f"resumable redo {tmp_path / 'c'} --key 4" in refused.stderr


def test_keys_as_they_are_typed(tmp_path: Path) -> None:
    run(tmp_path / "c", [1, "1", "a", "007", '["a",1]', "true"])
    for typed, key in [("1", 1), ('"1"', "1"), ("a", "a"), ("007", "007"), ("true", "true")]:
        found = document("show", tmp_path / "c", typed)
        assert (type(found["key"]), found["key"]) == (type(key), key)
    assert document("show", tmp_path / "c", '["a",1]')["key"] == '["a",1]'


def test_a_composite_key(tmp_path: Path) -> None:
    task = resumable_task(lambda rows: rows, name="j", key=("a", "b"))
    task.run([{"a": "de", "b": n, "v": n * n} for n in range(5)], checkpoint=tmp_path / "c")
    found = document("show", tmp_path / "c", '["de", 3]')
    assert (found["key"], found["rows"]) == (["de", 3], [{"a": "de", "b": 3, "v": 9}])


def test_values_that_json_has_not(tmp_path: Path) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    row = {"key": 1, "f": float("nan"), "t": at, "b": b"\x00\x1b", "l": [float("inf"), None]}
    resumable_task(lambda keys: [row], name="j").run([1], checkpoint=tmp_path / "c")
    (found,) = document("show", tmp_path / "c", "1")["rows"]
    assert found == {"key": 1, "f": "nan", "t": at.isoformat(), "b": "001b", "l": ["inf", None]}
    assert '    l    ["inf", null]' in cli("show", tmp_path / "c", "1").stdout


def test_a_key_that_no_run_has_handled(tmp_path: Path) -> None:
    run(tmp_path / "c", [1, 2])
    result = cli("show", tmp_path / "c", "3")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no run has handled an item with key" in result.stderr
    assert f"`resumable keys {tmp_path / 'c'}`" in result.stderr


@pytest.mark.parametrize("command", ["show", "history", "status", "failures"])
def test_a_snapshot_says_what_it_does_not_keep(tmp_path: Path, command: str) -> None:
    with Snapshot(tmp_path / "s") as snapshot:
        snapshot.state["cursor"] = 1
    result = cli(command, tmp_path / "s", *(["1"] if command == "show" else []))
    assert result.exit_code == 2
    assert "is a Snapshot, which keeps one state, but no items, runs or rows" in result.stderr


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_is_escaped_and_cut(tmp_path: Path, key: str) -> None:
    run(tmp_path / "c", [key, "other"], bad=(key,))
    shown = [
        cli("failures", tmp_path / "c"),
        cli("failures", tmp_path / "c", "--all"),
        cli("failures", tmp_path / "c", "--follow"),
        cli("failures", tmp_path / "c", "--csv"),
        cli("show", tmp_path / "c", key),
        cli("retry", tmp_path / "c", "--key", key + "x"),
    ]
    for result in shown:
        text = result.stdout + result.stderr
        assert text.replace("\n", "").replace("\r", "").isprintable()
        if result is not shown[3]:  # data are whole
            assert max(map(len, text.split("\n"))) < 400
    run(tmp_path / "c", [key, "other"])
    done = cli("show", tmp_path / "c", key)
    assert (done.exit_code, done.stdout.replace("\n", "").isprintable()) == (0, True)
    assert document("show", tmp_path / "c", key)["key"] == key


def test_a_key_is_found_in_segments_and_merged_shards(tmp_path: Path) -> None:
    place = tmp_path / "c"
    filled(place, 200)
    cli("compact", place)
    assert segments.listed(LocalStore(place)).segments
    shards = set()
    for key in (0, 77, 199):
        found = document("show", place, key)
        assert (found["rows"], found["status"]) == ([{"id": key, "v": "a"}], "completed")
        shards.add(found["shard"])
    assert len(shards) == 1  # the merged one


def test_a_record_goes_into_a_segment_while_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "c"
    filled(place, 100)
    stale, listed = [segments.listed(LocalStore(place))], segments.listed
    cli("compact", place)
    state = Reader.at(str(place)).state
    monkeypatch.setattr(segments, "listed", lambda *a: stale.pop() if stale else listed(*a))
    found = trace(LocalStore(place), state, b"7")
    assert ([event.what for event in found.events], stale) == (["completed"], [])


@pytest.mark.parametrize("times", [1, 2])  # the second time the merged files are deleted
def test_an_item_is_merged_while_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    place = tmp_path / "c"
    filled(place, 100)
    left = ["compact"] * times

    def meanwhile(*given: Any) -> Any:
        while left:
            assert cli(left.pop(), place).exit_code == 0
        return trace(*given)

    # The package has the command under the name of its module.
    monkeypatch.setattr(sys.modules["resumable_tasks.cli.show"], "trace", meanwhile)
    found = document("show", place, 7)
    assert (found["status"], found["rows"]) == ("completed", [{"id": 7, "v": "a"}])


def test_failures_are_followed_while_a_run_is_at_work(tmp_path: Path) -> None:
    """Each once, those that are there and those that come, until the run has ended."""
    place, seen = tmp_path / "c", threading.Event()
    found: list[Any] = []

    def handler(batch: list[int]) -> list[Any]:
        if batch[0] == 5:
            seen.wait(30)
        return [ItemFailure(key, f"bad {key}") for key in batch]

    def work() -> None:
        task = resumable_task(handler, name="j", batch_size=5, concurrency=1)
        with contextlib.suppress(JobFailed):
            task.run(range(10), checkpoint=place)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(list(place.glob("journal/*.jsonl"))) >= 2)

    def write(text: str, **_: Any) -> bool:
        found.append(json.loads(text)["key"])
        seen.set()
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "write", write)
        patch.setattr(failed, "_INTERVAL", 0.05)
        result = cli("failures", place, "--follow", "--jsonl")
    thread.join()
    assert result.exit_code == 0
    assert sorted(found) == list(range(10))


def test_failures_as_csv(tmp_path: Path) -> None:
    keys = ["=1+1", "a\nb", 'say "hi"', "ü"]
    run(tmp_path / "c", keys, bad=tuple(keys))
    rows = list(csv.DictReader(cli("failures", tmp_path / "c", "--csv").stdout.splitlines()))
    assert [row["key"] for row in rows] == ["'=1+1", "a\\nb", 'say "hi"', "ü"]
    assert rows[0]["error"] == "ValueError"


def test_colour_is_for_terminals_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "c", [1, 2])
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = cli("status", tmp_path / "c").stdout
    assert "\x1b" not in plain
    shown, _ = on_a_terminal(["status", str(tmp_path / "c")])
    assert "\x1b[1;32mdone\x1b[0m" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;32m" not in on_a_terminal(["status", str(tmp_path / "c")])[0]


def test_json_and_csv_exclude_each_other(tmp_path: Path) -> None:
    run(tmp_path / "c", [1])
    for words in (("history",), ("failures",), ("ls",), ("diff", tmp_path / "c")):
        result = cli(*words, tmp_path / "c", "--json", "--csv")
        assert (result.exit_code, result.stdout) == (2, ""), words


def test_the_shell_completion_that_the_page_names_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for shell in ("bash", "zsh", "fish"):
        assert f"_RESUMABLE_COMPLETE={shell}_source resumable" in page
    found = real(env={"_RESUMABLE_COMPLETE": "fish_source", "PATH": os.environ["PATH"]})
    assert "complete --no-files --command resumable" in found.stdout


def test_history(tmp_path: Path) -> None:
    place = tmp_path / "c"
    run(place, list(range(10)), bad=(3,))
    cli("retry", place)
    run(place, list(range(20)), bad=(4, 5))
    cli("redo", place, "--key", "3")
    found = document("history", place)
    assert [(each["number"], each["how"]) for each in found] == [
        *((1, "failed"), (None, "retry"), (2, "done"), (None, "redo"))
    ]
    assert [each["items"] for each in found] == [None, 1, None, 1]
    first, second = found[0], found[2]
    assert [first[name] for name in ("completed", "failed", "skipped", "cost")] == [9, 1, 0, 4.5]
    assert [second[name] for name in ("completed", "failed", "skipped")] == [11, 0, 9]
    lines = cli("history", place).stdout.splitlines()
    assert lines[0].split() == ["RUN", "BEGAN", "TOOK", "ENDED", "DONE", "FAILED", "COST", "WHERE"]
    assert lines[1].split()[0] == "1"
    assert "retry: 1 item" in lines[2]
    table = cli("history", place, "--csv").stdout.splitlines()
    assert table[0].startswith("number,how,began,ended,seconds,completed,skipped,failed")
    assert table[1].startswith("1,failed,")


def test_history_of_a_run_that_was_killed(tmp_path: Path) -> None:
    place = tmp_path / "c"
    run(place, list(range(10)), bad=(3,))
    last = sorted(place.glob("journal/*.jsonl"))[-1]
    last.unlink()  # as a run leaves it that is killed before it has said how it ended
    (found,) = document("history", place)
    assert (found["how"], found["completed"], found["failed"]) == ("died", 9, 1)
    assert found["ended"] is None


def test_lines_fit_a_terminal_and_commands_stay_whole(tmp_path: Path) -> None:
    place = tmp_path / "a-rather-long-name-of-a-directory" / "and another one"
    run(place, [*range(30), *HOSTILE], bad=(3, 4, HOSTILE[0]))
    for command in ("status", "failures", "history", "plan"):
        for columns in (80, 200) if command == "history" else (60, 80, 200):
            result = cli(command, place, env={"COLUMNS": str(columns)})
            for line in result.stdout.splitlines():
                whole = re.fullmatch(r" *(checkpoint   |next: )?(/\S+|`[^`]+`)\S*", line)
                assert len(line) <= columns or whole, line
    assert f"`resumable failures '{place}'`" in cli("status", place).stdout
