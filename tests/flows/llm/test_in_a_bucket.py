"""The flow with its checkpoint in a bucket, which takes one parameter."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("obstore")

from flows.llm_classify import classify
from resumable_tasks import RunResult
from tests.conftest import Bucket
from tests.flows.llm.conftest import LABELS, Job


def test_what_was_paid_for_is_in_the_bucket(
    job: Job, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in job.of_the_api.items():
        monkeypatch.setenv(name, value)

    def run() -> RunResult:
        return asyncio.run(
            classify(
                str(job.file), LABELS, bucket.url, str(job.published), concurrency=4, progress=False
            )
        )

    assert run().completed == 40
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")  # nobody is asked again
    assert (run().skipped, run().completed) == (40, 0)
