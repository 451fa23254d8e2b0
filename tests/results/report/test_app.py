"""`resumable serve`: pages for whoever may look, and no way to change or to reach anything else."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("jinja2", reason="needs the extra report")

from click.testing import CliRunner  # noqa: E402

from resumable_tasks import resumable_task  # noqa: E402
from resumable_tasks.cli import main  # noqa: E402
from resumable_tasks.errors import UsageError  # noqa: E402
from resumable_tasks.results.report import app  # noqa: E402

METHODS = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
TOKEN = "t0ken"


class Site:
    """A site on a free port of loopback, asked by hand."""

    def __init__(self, place: Path, token: str = "") -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        site = app.application(str(place), token=token)
        config = uvicorn.Config(site, access_log=False, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.capitalize(): value for name, value in headers.items()}
            connection.putrequest(method, path, skip_host="Host" in named)
            for name, value in named.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("served")
    (base / "secret.txt").write_text("a secret")
    job = resumable_task(lambda rows: rows, name="job", key="id")
    for name in ("one", "deep er/two#1"):
        job.run([{"id": n} for n in range(10)], checkpoint=base / "place" / name)
    job.run([{"id": 1}], checkpoint=base / "outside")
    os.symlink(base / "outside", base / "place" / "link")
    return base / "place"


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    found = Site(folder)
    yield found
    found.close()


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Site]:
    found = Site(folder, TOKEN)
    yield found
    found.close()


def test_the_list_leads_to_the_reports(site: Site) -> None:
    status, headers, text = site.ask("/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert 'href="/report/one"' in text
    assert 'href="/report/deep%20er/two%231"' in text
    for path in ("/report/one", "/report/deep%20er/two%231"):
        status, _, text = site.ask(path)
        assert status == 200
        assert "10</b>" in text
        assert 'http-equiv="refresh"' in text


def test_a_report_is_live(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_FRESH_SECONDS", 0.0)
    seen: list[str] = []

    def look(rows: list[Any]) -> list[Any]:
        seen.append(site.ask("/report/new")[2])
        return rows

    job = resumable_task(look, name="job", key="id", batch_size=5, concurrency=1)
    job.run([{"id": n} for n in range(10)], checkpoint=folder / "new")
    assert all('<span class="pill running">' in text for text in seen)
    assert 'content="5"' in seen[0]
    assert '<span class="pill done">' in site.ask("/report/new")[2]


def test_no_address_leads_out(site: Site) -> None:
    for path in (
        *("/report/../outside", "/report/%2e%2e/outside", "/report/..%2foutside"),
        *("/report//etc", "/report/one/job.json", "/report/link", "/report/", "/report/%00"),
        *("/secret.txt", "/static/x", "/docs", "/openapi.json", "/report/one/../../../secret.txt"),
    ):
        status, _, text = site.ask(path)
        assert status == 404, path
        assert "secret" not in text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/", "/report/one"])
def test_nothing_can_be_changed(site: Site, folder: Path, method: str, path: str) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))
    status, headers, _ = site.ask(path, method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


def test_looking_writes_nothing(site: Site, folder: Path) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))
    for path in ("/", "/report/one"):
        assert site.ask(path, "HEAD")[0] == 200
        assert site.ask(path)[0] == 200
    assert sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "10.0.0.1", ""]
)
def test_another_name_of_the_host_is_refused(site: Site, host: str) -> None:
    """A page of another site, whose name its owner has made to lead here, asks under that name."""
    assert site.ask("/", host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8765", "LOCALHOST:80"])
def test_names_of_loopback_are_let_through(site: Site, host: str) -> None:
    assert site.ask("/", host=host)[0] == 200


def test_each_answer_has_what_keeps_it_harmless(site: Site, guarded: Site) -> None:
    for answer in (site.ask("/"), site.ask("/absent"), site.ask("/", "PUT"), guarded.ask("/")):
        headers = answer[1]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["access-control-allow-origin"] is None


def test_a_token_is_needed_where_there_is_one(guarded: Site) -> None:
    for path, headers in [
        ("/", {}),
        ("/report/one", {}),
        ("/?token=", {}),
        ("/?token=wrong", {}),
        ("/", {"authorization": "Bearer wrong"}),
        ("/", {"authorization": TOKEN}),
        ("/", {"cookie": "resumable_token=wrong"}),
        ("/", {"cookie": "resumable_token"}),
    ]:
        status, _, text = guarded.ask(path, **headers)
        assert status == 401, path
        assert "one" not in text.split()
    assert guarded.ask("/", authorization=f"Bearer {TOKEN}")[0] == 200
    assert guarded.ask("/", host="192.168.1.7:8765", authorization=f"Bearer {TOKEN}")[0] == 200
    assert guarded.ask("/", host="evil.example", authorization=f"Bearer {TOKEN}")[0] == 421


def test_the_token_moves_from_the_address_into_a_cookie(guarded: Site) -> None:
    status, headers, _ = guarded.ask(f"/report/one?token={TOKEN}&x=1")
    assert (status, headers["location"]) == (303, "/report/one?x=1")
    assert "HttpOnly" in headers["set-cookie"]
    assert "samesite=lax" in headers["set-cookie"].lower()
    cookie = headers["set-cookie"].partition(";")[0]
    assert guarded.ask("/report/one", cookie=cookie)[0] == 200
    for path in ("//evil.example", "/%5cevil.example", "///evil.example"):
        target = guarded.ask(f"{path}?token={TOKEN}")[1]["location"]
        assert urlsplit(target).netloc == ""
        assert target.startswith("/")
        assert target[1] not in "/\\"


def test_the_extra_and_the_place_are_checked_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        app.application(str(tmp_path / "absent"))
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(UsageError, match=r'pip install "resumable-tasks\[serve\]"'):
        app.application(str(tmp_path))


def test_beyond_loopback_the_command_makes_a_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(*options: str) -> tuple[str, app.Guard]:
        result = CliRunner().invoke(main, ["serve", str(folder), "--port", "0", *options])
        assert result.exit_code == 0, result.output
        return urlsplit(result.stdout.strip()).query, sites.pop()

    sites: list[Any] = []
    # It listens, and nobody is answered.
    monkeypatch.setattr(app, "run", lambda site, listener: sites.append(site))
    assert serve()[0] == ""
    monkeypatch.chdir(folder)
    here = CliRunner().invoke(main, ["serve", "--port", "0"])
    assert here.exit_code == 0, here.output
    text = app.Pages(None).list()
    assert 'href="/report/one"' in text
    sites.clear()
    assert serve("--host", "127.0.0.2")[0] == ""
    first, second = serve("--host", "0.0.0.0"), serve("--host", "0.0.0.0")
    assert len(first[0]) > len("token=") + 30
    assert first[0] != second[0]
    assert first[0] == f"token={first[1]._token}"
    assert serve("--token", TOKEN)[0] == f"token={TOKEN}"
    monkeypatch.setenv("RESUMABLE_SERVE_TOKEN", "of-the-environment")
    assert serve("--name", "Reports.Example")[0] == "token=of-the-environment"


def test_a_port_that_is_taken_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["serve", str(folder), "--port", port])
    assert result.exit_code == 2
    assert f"port {port}" in result.stderr


def test_the_command_listens_on_loopback_alone_and_ends_with_ctrl_c(folder: Path) -> None:
    command = Path(sys.executable).with_name("resumable")
    process = subprocess.Popen(
        [command, "serve", folder, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        assert (address.hostname, address.query) == ("127.0.0.1", "")
        assert address.port is not None
        listening = {line.split()[1] for line in _tcp() if line.split()[3] == "0A"}
        assert f"0100007F:{address.port:04X}" in listening
        assert f"00000000:{address.port:04X}" not in listening
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)
        end = time.monotonic() + 30
        while True:
            try:
                connection.request("GET", "/")
                assert connection.getresponse().status == 200
                break
            except ConnectionError:
                assert time.monotonic() < end
        connection.close()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.wait()


def _tcp() -> list[str]:
    return Path("/proc/net/tcp").read_text().splitlines()[1:]
