from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof.submitted.launcher import Launcher


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    """Starts children; whatever still runs at the end of the test is killed."""
    launcher = Launcher(tmp_path / "output")
    yield launcher
    launcher.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of one attack."""
    path = tmp_path / "place"
    path.mkdir()
    return path
