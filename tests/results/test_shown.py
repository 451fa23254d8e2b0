"""What a notebook and a terminal show of results, failures and tasks: short, escaped, no secret."""

from __future__ import annotations

import pickle
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import ItemFailure, resumable_task
from resumable_tasks.items.keys import written
from resumable_tasks.results.result import RunResult
from resumable_tasks.results.shown import Failures
from resumable_tasks.runners.outcome import Failure

HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred", "x" * 10_000, "a\nb", "$x^2$", "&lt;"]


class Text(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def failed(rows: list[str]) -> list[Any]:
    return [ItemFailure(row, ValueError(f"no: {row}")) for row in rows]


@pytest.fixture
def result(place: Path) -> RunResult:
    job = resumable_task(failed, tolerated_failures=1.0)
    return job.run(HOSTILE, checkpoint=place)


def test_what_is_shown_of_hostile_keys_is_escaped_and_short(result: RunResult) -> None:
    assert repr(result) == (
        f"<RunResult failed: 0 of 6 items done, 6 failed; checkpoint {result.checkpoint}>"
    )
    assert "Traceback" not in repr(result.failures)
    for each in (result, result.failures, *result.failures):
        page = Text(each._repr_html_())  # type: ignore[attr-defined]
        assert page.tags <= {"div", "b", "table", "tr", "th", "td", "pre"}
        assert "\x1b" not in page.text
        assert len(page.text) < 5_000
    for failure in result.failures:
        assert repr(failure).isprintable()
        assert len(repr(failure)) < 500
    assert "<script>alert(1)</script>" in Text(result._repr_html_()).text
    assert "\\x1b[31mred" in Text(result.failures._repr_html_()).text  # type: ignore[attr-defined]


def test_many_failures_are_shown_by_kinds() -> None:
    many = Failures(
        [Failure(n, "ValueError" if n % 3 else "KeyError", f"no {n}") for n in range(30_000)]
    )
    assert repr(many) == "<30,000 failures: 20,000 × ValueError, 10,000 × KeyError>"
    text = Text(many._repr_html_()).text
    assert "30,000 failures, the first 20" in text
    assert "20,000\n" in text
    assert many == tuple(many)
    assert pickle.loads(pickle.dumps(many)) == many


def test_no_secret_of_a_place_is_shown() -> None:
    result = RunResult("job", "s3://user:pa55@host/c", "r", 1, 1, 0, 0, 0, 1.0)
    assert "pa55" not in repr(result) + result._repr_html_()


def test_a_task_shows_its_key_and_what_is_not_as_by_default() -> None:
    job = resumable_task(failed, name="job", batch_size=7, retries=2, key=lambda row: row)
    text = Text(job._repr_html_()).text
    assert "resumable task job" in text
    for words in ("batch_size\n7", "retries\n2", "<lambda>"):
        assert words in text
    assert "concurrency" not in text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("lesson-0731", "lesson-0731"),
        ("a b", "a b"),
        (7, "7"),
        ("7", '"7"'),
        ("true", '"true"'),
        ('["a",1]', '"[\\"a\\",1]"'),
        (("a", 1), '["a",1]'),
        (" a", '" a"'),
        ("NaN", '"NaN"'),
    ],
)
def test_a_key_is_written_as_people_write_it(key: Any, text: str) -> None:
    assert written(key) == text
