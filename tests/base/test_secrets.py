"""What is shown of a URL holds no secret, wherever it is shown."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Failing,
    JobFailed,
    SqlCheckpoint,
    UsageError,
    resumable_task,
    without_secrets,
)
from resumable_tasks.base import log
from resumable_tasks.results.result import RunResult

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bob:s3cr3t@host/db", "postgresql://***@host/db"),
        ("postgresql://bob:p@s3cr3t/x@host/db", "postgresql://***@host/db"),
        (
            "postgresql://host/db?user=bob&password=s3cr3t&x=1",
            "postgresql://host/db?user=bob&password=***&x=1",
        ),
        ("https://s3cr3t@host/repo.git", "https://***@host/repo.git"),
        ("https://host/a?api_key=s3cr3t#top", "https://host/a?api_key=***#top"),
        ("https://host/a#access_token=s3cr3t", "https://host/a#access_token=***"),
        ("https://host/a?X-Amz-Signature=s3cr3t&n=2", "https://host/a?X-Amz-Signature=***&n=2"),
        ("https://host/a?sv=1&sig=s3cr3t", "https://host/a?sv=1&sig=***"),
        ("https://host/a?key=s3cr3t&page=2", "https://host/a?key=***&page=2"),
        ("s3://KEY:s3cr3t@bucket/prefix", "s3://***@bucket/prefix"),
        ("no route: host=db password=s3cr3t port=1", "no route: host=db password=*** port=1"),
        (
            "'https://a:s3cr3t@b' or <https://c/?token=s3cr3t>",
            "'https://***@b' or <https://c/?token=***>",
        ),
    ],
)
def test_a_secret_in_a_url_is_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    assert without_secrets(f"cannot reach {url} now") == f"cannot reach {shown} now"


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/path@v1?page=2&monkey=no",
        "http://[::1]:8080/a@b",
        "file:///var/data@2024/x",
        "see https://host/a, or write to bob@host",
        "sqlite:////tmp/a.db",
        "tokens=512, keys=3",
    ],
)
def test_what_is_no_secret_is_shown_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def test_logs_and_records_of_failures_show_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"https://api/v1/items?page=2&access_token={SECRET}"

    def call(items: list[Any]) -> list[Any]:
        raise ValueError(f"401 for url '{url}'")

    task = resumable_task(call, key="id", retries=1, name="job", failing=Failing(pause_after=None))
    with caplog.at_level(logging.INFO), pytest.raises(JobFailed) as caught:
        task.run([{"id": 1}], checkpoint=tmp_path / "c")
    with caplog.at_level(logging.INFO):
        log.warning("%s: %r", url, 5)
        log.warning("%s", ValueError(url))
    result: Any = caught.value.result
    (failure,) = result.failures
    assert "access_token=***" in failure.message
    kept = "".join(path.read_text("latin-1") for path in (tmp_path / "c").rglob("*.json*"))
    assert "page=2" in kept
    assert isinstance(result, RunResult)
    for text in (str(caught.value), repr(result), repr(failure), caplog.text, kept):
        assert SECRET not in text


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://bob:{SECRET}@127.0.0.1:9/db",
        f"postgresql://127.0.0.1:9/db?user=bob&password={SECRET}",
        f"postgresql://bob:{SECRET}@127.0.0.1:port/db",
        f"mysql://bob:{SECRET}@127.0.0.1/db",
        f"sqlite:///no.such.db?password={SECRET}",
    ],
)
def test_errors_of_a_database_show_none(url: str) -> None:
    pytest.importorskip("sqlalchemy")
    checkpoint = SqlCheckpoint(url, table="lessons", key="id", columns=["label"])
    task = resumable_task(lambda rows: rows, name="job")
    with pytest.raises(Exception, match=r".") as caught:
        task.run(checkpoint=checkpoint)
    for text in (str(caught.value), repr(caught.value), repr(checkpoint)):
        assert SECRET not in text


@pytest.mark.parametrize("place", [f"s3://key:{SECRET}@bucket/x", f"https://h/x?token={SECRET}"])
def test_a_place_that_cannot_be_reached_shows_none(place: str) -> None:
    with pytest.raises(UsageError) as caught:
        resumable_task(lambda items: items, name="job", key="id").run([], checkpoint=place)
    assert SECRET not in str(caught.value)
