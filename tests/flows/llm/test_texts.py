from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from flows.llm_classify import read_texts
from resumable_tasks import InvalidItems, UsageError
from tests.flows.llm.texts import LABELS, right_label, texts

ROWS = [{"id": "a", "text": "eins\nzwei"}, {"id": "b", "text": "ü, 🐍"}, {"id": "007", "text": "1"}]


def test_json_lines_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**row, "other": 1} for row in ROWS])
    names = [tmp_path / f"t.{kind}" for kind in ("jsonl", "csv", "parquet", "NDJSON")]
    for name in (names[0], names[3]):
        name.write_text("\n\n".join(json.dumps({**row, "other": 1}) for row in ROWS))
    pa.csv.write_csv(table.select(["other", "text", "id"]), names[1])
    pa.parquet.write_table(table, names[2])
    for name in names:
        assert list(read_texts(str(name))) == ROWS, name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON: "),
        ("[1]", "line 2: this is not a JSON object"),
        ('{"text": "b"}', "line 2: 'id' is None"),
        ('{"id": "", "text": "b"}', "line 2: 'id' is ''"),
        ('{"id": true, "text": "b"}', "line 2: 'id' is True"),
        ('{"id": 1.5, "text": "b"}', "line 2: 'id' is 1.5"),
        (
            '{"id": 1, "text": "b"}',
            "line 2: 'id' is 1; it must be a string or",
        ),
        ('{"id": "b", "text": " "}', "line 2: 'text' of 'b' is ' '"),
        ('{"id": "b", "text": null}', "line 2: 'text' of 'b' is None"),
        ('{"id": "b", "text": "\\ud83d"}', "line 2: half a character in 'b'"),
        (b"\xff", "line 2: not JSON: "),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(line: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    data = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(b'{"id": "a", "text": "b"}\n' + data + b"\n")
    with pytest.raises(InvalidItems) as caught:
        list(read_texts(str(file)))
    assert f"{file}, {said}" in str(caught.value)


def test_what_is_no_file_of_texts_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("no parquet")
    (tmp_path / "t.csv").write_text("id,words\n1,2\n")
    for name, said in (
        ("t.txt", "must end in one of .csv, .parquet, .jsonl, .ndjson"),
        ("no.jsonl", "there is no such file"),
        ("t.parquet", "t.parquet: "),
        ("t.csv", "t.csv: "),
    ):
        with pytest.raises(UsageError) as caught:
            list(read_texts(str(tmp_path / name)))
        assert said in str(caught.value)


def test_the_made_up_texts_are_the_same_every_time_and_say_their_label() -> None:
    made = texts(700)
    assert made[:100] == texts(100)
    assert len({text["text"] for text in made}) == 700
    found = [right_label(text["text"], LABELS) for text in made]
    assert {label: found.count(label) > 150 for label in LABELS} == dict.fromkeys(LABELS, True)
    assert right_label("neither", ["a1", "b1"]) in ("a1", "b1")
