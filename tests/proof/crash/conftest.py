from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof.crash.launcher import Launcher, Zygote


@pytest.fixture(scope="session")
def _zygotes() -> Iterator[list[Zygote]]:
    zygotes: list[Zygote] = []
    yield zygotes
    for zygote in zygotes:
        zygote.close()


@pytest.fixture
def launch(_zygotes: list[Zygote], tmp_path: Path) -> Iterator[Launcher]:
    """Starts children; whatever still runs at the end of the test is killed."""

    def zygote() -> Zygote:
        if not _zygotes:
            _zygotes.append(Zygote())
        return _zygotes[0]

    launcher = Launcher(zygote, tmp_path / "output")
    yield launcher
    launcher.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of one attack."""
    path = tmp_path / "place"
    path.mkdir()
    return path
