"""What a marker says is believed only of what is in its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher


@pytest.mark.parametrize("name", ["../victim", "{place}/victim"])
def test_a_marker_names_no_file_outside(launch: Launcher, place: Path, name: str) -> None:
    target, victim = place / "published", place / "victim"
    spec = Spec(str(place), publish=str(target))
    launch.to_end(spec)
    victim.write_text("mine")
    marker = target / "_published.json"
    record = json.loads(marker.read_text())
    record["files"].append(name.format(place=place))
    marker.write_text(json.dumps(record))
    launch.fork(replace(spec, publish_only=True)).wait()
    assert victim.read_text() == "mine"
