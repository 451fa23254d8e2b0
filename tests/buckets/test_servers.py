"""The store in a bucket, and the journal in it, on servers that others have made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.testing.journal_suite import JournalSuite
from resumable_tasks.testing.store_suite import StoreSuite
from tests.buckets.servers import CANARY, SERVERS, Server

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.buckets


@pytest.fixture(scope="class")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    name = request.cls.name
    with SERVERS[name](tmp_path_factory.mktemp(name)) as running:
        yield running


class OnServer:
    name: str
    secret = CANARY

    @pytest.fixture(autouse=True)
    def _environment(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        self.server = server

    def make_store(self, tmp_path: Path) -> Store:
        return open_store(f"{self.server.scheme}://test/{uuid4().hex}/place")

    def store_at(self, url: str) -> Store:
        return open_store(url)

    def oracle(self, store: Store) -> dict[str, bytes]:
        client, start = self.server.client(), self._start(store)
        names = [each["path"] for page in obstore.list(client, start) for each in page]
        found = {name: obstore.get(client, name).bytes().to_bytes() for name in names}
        return {name.removeprefix(start): data for name, data in found.items()}

    def mark_folders(self, store: Store) -> bool:
        if self.server.mark is None:
            return False
        for marker in ("", "journal/"):
            self.server.mark(self._start(store) + marker)
        return True

    def _start(self, store: Store) -> str:
        return store.url.removeprefix(f"{self.server.scheme}://test/") + "/"


class OnMoto(OnServer):
    name = "moto"


class OnSeaweedFs(OnServer):
    """Right, and slow where many race: its lock lets one after the other."""

    name = "seaweedfs"
    racers = 10


class OnAzurite(OnServer):
    name = "azurite"


class TestStoreOnMoto(OnMoto, StoreSuite):
    pass


class TestStoreOnSeaweedFs(OnSeaweedFs, StoreSuite):
    pass


class TestStoreOnAzurite(OnAzurite, StoreSuite):
    pass


class TestJournalOnMoto(OnMoto, JournalSuite):
    pass


class TestJournalOnSeaweedFs(OnSeaweedFs, JournalSuite):
    pass


class TestJournalOnAzurite(OnAzurite, JournalSuite):
    pass
