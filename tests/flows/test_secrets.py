"""Keys reach the flows by the environment, never as parameters, and leave over https alone."""

from __future__ import annotations

import sys

import pytest

from flows import _prefect
from resumable_tasks import UsageError

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url", [f"postgresql://bob:{SECRET}@host/db", f"https://host/items?api_key={SECRET}"]
)
@pytest.mark.parametrize("how", [lambda call, url: call(url), lambda call, url: call(url=url)])
def test_a_secret_never_becomes_a_parameter_of_a_flow_run(
    url: str, how: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    monkeypatch.setattr(_prefect, "_flow", lambda fn, name: pytest.fail("a flow was made"))
    call = _prefect.as_flow(lambda url: pytest.fail("called"), "some-flow")
    with pytest.raises(UsageError) as caught:
        how(call, url)  # type: ignore[operator]
    assert SECRET not in str(caught.value)
    assert "PGPASSFILE" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://api.example.org/v1", True),
        ("http://localhost:8000", True),
        ("http://127.0.0.2/x", True),
        ("http://[::1]:80/", True),
        ("http://api.example.org", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
        ("", False),
    ],
)
def test_a_token_is_sent_by_https_or_to_this_machine(url: str, private: bool) -> None:
    assert _prefect.is_private(url) == private


def test_the_ingest_and_the_model_refuse_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx")
    from flows.http_ingest import ingest

    monkeypatch.setenv("TOKEN", SECRET)
    with pytest.raises(UsageError, match="https") as caught:
        ingest("http://api.example.org/items", token_env="TOKEN")
    assert SECRET not in str(caught.value)
    pytest.importorskip("openai")
    from flows.llm_client import Model

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://api.example.org/v1")
    with pytest.raises(UsageError, match="https") as caught:
        Model.of_environment()
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert SECRET not in repr(Model.of_environment())
