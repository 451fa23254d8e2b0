"""The command with which an owner verifies the facts: it says so when one does not hold."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from flows import verify_batch_api
from tests.batch_apis.server import BatchServer


@pytest.fixture(autouse=True)
def addresses(server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.anthropic)


def verify(provider: str) -> Result:
    return CliRunner().invoke(verify_batch_api.main, [provider], catch_exceptions=False)


@pytest.mark.parametrize(
    ("provider", "facts"),
    [
        ("openai", 7),
        pytest.param("anthropic", 6, marks=pytest.mark.xdist_group("anthropic")),
    ],
)
def test_all_facts_hold(server: BatchServer, provider: str, facts: int) -> None:
    server.script(listing_lag=0.3, unknown_for=0.2, results_lag=0.2)
    done = verify(provider)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if not line.startswith(" ")]
    assert len(lines) == facts
    assert all(line.startswith("ok ") for line in lines)
    assert "charged: 36 tokens" in lines[-1]
    assert set(server.paid().values()) == {1}


def test_a_list_that_lags_longer_is_told(
    server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resumable_tasks.OpenAIBatch.patience", 0.0)
    done = verify("openai")
    assert done.exit_code == 1
    assert "NOT SO  it is seen in the list" in done.output


def test_a_file_that_is_no_fence_is_told(
    server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the provider kept the file."""
    monkeypatch.setattr("resumable_tasks.OpenAIBatch.fence", lambda *_: None)
    done = verify("openai")
    assert done.exit_code == 1
    assert "was carried out though its file was deleted" in done.output


def test_a_deleted_file_may_fail_the_batch_later(
    server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not stop the call, but the batch: then it is not paid either."""
    monkeypatch.setattr("resumable_tasks.OpenAIBatch.fence", lambda *_: None)
    told = {"code": "file_not_found", "message": "the input file was deleted", "line": None}
    server.script(next=[{"fate": "failed", "errors": [told]}])
    done = verify("openai")
    assert done.exit_code == 0, done.output
    assert "a batch of a deleted file fails, unpaid" in done.output
