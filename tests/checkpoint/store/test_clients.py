"""Clients of buckets: what the environment says to them, and what they say if it does not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from resumable_tasks.checkpoint.store import clients
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import ResumableTasksError, UsageError

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SKIP_SIGNATURE")


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def refused(place: str) -> ResumableTasksError:
    with pytest.raises(UsageError) as caught:
        open_store(place).list("")
    return caught.value


def test_an_endpoint_with_a_password_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:CANARY@127.0.0.1:1")
    error = refused("s3://bucket/a")
    assert "AWS_ENDPOINT_URL contains a user" in str(error)
    assert "CANARY" not in str(error)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("s3", "AWS_ENDPOINT_URL"), ("gs", "GOOGLE_BASE_URL"), ("az", "AZURE_STORAGE_ENDPOINT")],
)
@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:9000",
        "user:CANARY@minio",
        "not a url",
        "http://",
        "http://[::1",
        "http://a:99999",
    ],
)
def test_an_endpoint_that_is_no_url_is_refused(
    scheme: str, name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would panic of it."""
    monkeypatch.setenv(name, url)
    error = refused(f"{scheme}://bucket/a")
    assert f"{name} is not the URL of a service" in str(error)
    assert "CANARY" not in str(error)
    assert f"{name}=http://host:9000" in error.remedy


def test_without_obstore_the_command_that_installs_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    clients._client.cache_clear()
    assert 'pip install "resumable-tasks[object]"' in str(refused("s3://bucket/a"))


@pytest.mark.parametrize("by", ["a variable", "a file"])
def test_a_profile_needs_boto3(by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    clients._client.cache_clear()
    if by == "a variable":
        monkeypatch.setenv("AWS_PROFILE", "night")
    else:
        (tmp_path / "credentials").write_text("[default]\naws_access_key_id = CANARY\n")
    error = refused("s3://bucket/a")
    assert "boto3" in error.remedy
    assert "CANARY" not in str(error)


def test_a_profile_is_read_where_boto3_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "credentials").write_text(
        "[night]\naws_access_key_id = KEY\naws_secret_access_key = SECRET\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "night")
    provider = clients._provider()
    assert provider()["access_key_id"] == "KEY"
    monkeypatch.setenv("AWS_PROFILE", "day")
    with pytest.raises(UsageError, match="profile day"):
        clients._provider()


def test_keys_of_the_environment_need_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = KEY\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    assert clients._provider() is None


def test_azure_without_an_account_is_told() -> None:
    error = refused("az://container/a")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(error)


def test_a_home_that_is_not_there_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~nobody-of-this-name/credentials")
    assert clients._provider() is None
