"""How a key is shown, wherever it is: in messages, in logs, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import InvalidItems, ItemFailure, JobFailed, resumable_task
from resumable_tasks.items import keys

HOSTILE = ["<script>alert(1)</script>", "\x1b[2J\nFAKE \u202eline\x9b", "k" * 10_000]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("lesson-17", '"lesson-17"'),
        (17, "17"),
        (("de", 17), '["de",17]'),
        ("Größe 日本", '"Größe 日本"'),
        ("a\x1b[31m\n\x9b\u202e", r'"a\u001b[31m\n\u009b\u202e"'),
        (None, "None"),
    ],
)
def test_a_key_is_shown_as_the_command_line_takes_it(key: Any, text: str) -> None:
    assert keys.shown(key) == text


def test_a_long_key_is_cut_in_its_middle() -> None:
    shown = keys.shown("https://example.com/" + "x" * 60_000 + "\x1b/page-17")
    assert len(shown) == 60
    assert shown.startswith('"https://example.com/x')
    assert shown.endswith('\\u001b/page-17"')
    assert keys.shown("\x1b" * 10_000).isprintable()


@pytest.mark.parametrize("key", HOSTILE)
def test_no_log_line_and_no_error_can_be_steered_by_a_key(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    answers: dict[str, Any] = {
        "a failure": lambda row: ItemFailure(row["id"], ValueError(f"no: {row['id']}")),
        "a key twice": lambda row: [row, row],
        "a foreign key": lambda row: {**row, "id": row["id"] + "x"},
        "no row": lambda row: [],
    }
    said = []
    for name, answer in answers.items():

        def handler(rows: list[dict[str, Any]], answer: Any = answer) -> list[Any]:
            found = [answer(row) for row in rows]
            return [each for one in found for each in (one if isinstance(one, list) else [one])]

        task = resumable_task(handler, name="job", key="id", batch_size=1)
        with pytest.raises(JobFailed) as failed:
            task.run([{"id": key}], checkpoint=tmp_path / name)
        said.append(str(failed.value))
    with pytest.raises(InvalidItems) as invalid:
        task.with_options(on_bad_item="error").run(
            [{"id": key, "v": 1}, {"id": key, "v": 2}], checkpoint=tmp_path / "c"
        )
    said.append(str(invalid.value))
    said += [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() for text in said for line in text.split("\n"))
    assert max(len(line) for text in said for line in text.split("\n")) < 700
    assert not any(line.startswith("FAKE") for text in said for line in text.split("\n"))
