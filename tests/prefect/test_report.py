"""The report of a run in a flow is linked from its flow run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from resumable_tasks import resumable_task
from tests.prefect.api import Api
from tests.prefect.test_seen import in_flow, items, shown

pytest.importorskip("jinja2", reason="needs the extra report")

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_it_is_a_link_artifact(place: Path, api: Api) -> None:
    @resumable_task(key="id", report=place.parent / "<b>the</b> reports")
    def classify(rows: list[Any]) -> list[Any]:
        return rows

    ids: list[str] = []
    in_flow(lambda: classify.run(items(20), checkpoint=place, partition="2026-11-23"), ids)
    told = shown(api, ids[0])["classify-report"]["data"]
    written = place.parent / "<b>the</b> reports" / "classify-2026-11-23.html"
    assert written.exists()
    address = told.partition("](<")[2].partition(">)")[0]
    assert unquote(urlsplit(address).path) == str(written)
    assert "<b>" not in address
    assert f"`{written}`" in told
