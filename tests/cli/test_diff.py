"""`diff`: two partitions side by side, by key."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resumable_tasks import resumable_task
from tests.cli.test_cli import cli, document, flip

NAN = float("nan")


def made(place: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """A checkpoint with these rows; several of one key where the job may have many."""
    by_key: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row["id"], []).append(row)

    def handler(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for item in batch for row in by_key[item["id"]]]

    task = resumable_task(
        handler, **{"name": "job", "key": "id", "batch_size": 3, "concurrency": 1} | options
    )
    task.run([{"id": key} for key in by_key], checkpoint=place)
    return place


def test_keys_and_rows_that_differ(tmp_path: Path) -> None:
    then = [{"id": f"k{n}", "v": n, "w": "same"} for n in range(10)]
    now = [{**row, "v": 99} if row["id"] in ("k4", "k7") else row for row in then[2:]]
    now.append({"id": "new\x1b[31m", "v": 1, "w": "same"})
    a, b = made(tmp_path / "a", then), made(tmp_path / "b", list(reversed(now)))
    found = document("diff", a, b)
    assert [found[name] for name in ("only_a", "only_b", "both", "differ", "same")] == [
        *(2, 1, 8, 2, False)
    ]
    assert found["first_only_a"] == ["k0", "k1"]
    assert found["first_only_b"] == ["new\x1b[31m"]
    assert found["first_differ"] == [
        {"key": "k4", "columns": {"v": {"a": 4, "b": 99}}},
        {"key": "k7", "columns": {"v": {"a": 7, "b": 99}}},
    ]
    result = cli("diff", a, b, "--most", "1")
    assert result.exit_code == 0
    assert result.stdout.replace("\n", "").isprintable()
    assert '  only in A    2 items\n    "k0"\n    and 1 more\n' in result.stdout
    assert '  differ       2 of 8 items in both\n    "k4"\n      v  4 → 99\n' in result.stdout
    table = list(csv.DictReader(cli("diff", a, b, "--csv").stdout.splitlines()))
    assert [row["what"] for row in table] == ["only_a", "only_a", "only_b", "differ", "differ"]
    assert table[3] == {"what": "differ", "key": "k4", "column": "v", "a": "4", "b": "99"}


def test_values_of_all_kinds(tmp_path: Path) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    plain = {"f": 1.5, "n": None, "l": [1, 2], "s": {"x": 1}, "t": at, "b": b"\x00"}
    then = [{"id": n, **plain} for n in range(4)]
    then.append({"id": 4, **plain, "f": NAN})
    assert document("diff", made(tmp_path / "a", then), made(tmp_path / "b", then))["same"]
    now = [
        {**then[0], "l": [1, 3]},
        {**then[1], "s": {"x": 2}},
        {**then[2], "n": None, "f": None},
        {**then[3], "t": at.replace(year=2027), "b": b"\x01"},
        then[4],
    ]
    found = document("diff", tmp_path / "a", made(tmp_path / "c", now))
    changed = {each["key"]: each["columns"] for each in found["first_differ"]}
    assert {key: set(columns) for key, columns in changed.items()} == {
        0: {"l"},
        1: {"s"},
        2: {"f"},
        3: {"t", "b"},
    }
    assert changed[3]["b"] == {"a": "00", "b": "01"}


def test_columns_and_types_that_differ(tmp_path: Path) -> None:
    a = made(tmp_path / "a", [{"id": n, "v": n, "old": 1} for n in range(4)])
    b = made(tmp_path / "b", [{"id": n, "v": float(n), "new": 1} for n in range(4)])
    found = document("diff", a, b)
    assert (found["columns_only_a"], found["columns_only_b"]) == (["old"], ["new"])
    assert (found["differ"], found["same"]) == (0, False)
    c = made(tmp_path / "c", [{"id": n, "v": str(n), "old": 1} for n in range(4)])
    assert document("diff", a, c)["differ"] == 4
    d = made(tmp_path / "d", [{"id": str(n), "v": n, "old": 1} for n in range(4)])
    found = document("diff", a, d)
    assert [found[name] for name in ("only_a", "only_b", "both", "differ")] == [4, 4, 0, 0]


def test_many_rows_of_an_item(tmp_path: Path) -> None:
    then = [{"id": n, "v": at} for n in range(5) for at in range(3)]
    a = made(tmp_path / "a", then, results="many")
    assert document("diff", a, made(tmp_path / "b", then, results="many"))["same"]
    now = [row for row in then if row != {"id": 2, "v": 2}]
    now[0] = {"id": 0, "v": 7}
    found = document("diff", a, made(tmp_path / "c", now, results="many"))
    assert (found["both"], found["differ"]) == (5, 2)
    assert {each["key"]: each["columns"] for each in found["first_differ"]} == {
        0: {"v": {"a": 0, "b": 7}},
        2: {},
    }


def test_composite_keys_and_no_rows(tmp_path: Path) -> None:
    then = [{"id": n, "lang": "de", "v": n} for n in range(4)]
    a, b = (
        resumable_task(lambda rows, add=add: [{**r, "v": r["v"] + add} for r in rows], name="j")
        .with_options(key=("lang", "id"))
        .run(then, checkpoint=tmp_path / name)
        .checkpoint
        for name, add in (("a", 0), ("b", 1))
    )
    found = document("diff", a, b)
    assert (found["differ"], found["first_differ"][0]["key"]) == (4, ["de", 0])
    for name, items in (("c", [1, 2]), ("d", [2, 3])):
        resumable_task(lambda rows: None, name="none", results="none").run(
            items, checkpoint=tmp_path / name
        )
    found = document("diff", tmp_path / "c", tmp_path / "d")
    assert [found[name] for name in ("only_a", "only_b", "both", "differ")] == [1, 1, 1, 0]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = made(tmp_path / "a", [{"id": 1}])
    other = resumable_task(lambda rows: rows, name="j", key="name")
    other.run([{"name": "x"}], checkpoint=tmp_path / "b")
    result = cli("diff", a, tmp_path / "b")
    assert result.exit_code == 2
    assert "from id, those of" in result.stderr
    assert "Compare two partitions of one job" in result.stderr
    c = made(tmp_path / "c", [{"id": 1}])
    flip(next(c.glob("shards/*")))
    damaged = cli("diff", a, c)
    assert damaged.exit_code == 4
    assert json.dumps(str(damaged.stdout)) == '""'
