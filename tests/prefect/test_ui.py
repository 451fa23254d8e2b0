"""The pages of Prefect's UI, both versions of it, as a browser shows them."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import ItemFailure, resumable_task
from tests.prefect.api import Api
from tests.prefect.browser import CHROMIUM, WHY_NOT, Page, browser
from tests.prefect.test_seen import NASTY, in_flow, items

pytestmark = [
    pytest.mark.xdist_group("ui"),
    pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT),
    pytest.mark.usefixtures("in_prefect"),
    # Prefect's and its dependencies' own are not ours to fix.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

VERSIONS = ("", "v2/")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.mark.long
def test_the_progress_is_on_the_page_of_the_flow_run(
    place: Path, api: Api, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resumable_tasks import flow_state
    from resumable_tasks.prefect import telemetry

    monkeypatch.setattr(telemetry, "_UPDATE_SECONDS", 0.2)
    ids: list[str] = []
    read: list[str] = []

    def look(version: str, tab: str, *texts: str) -> None:
        page.open(f"http://127.0.0.1:{api.port}/{version}runs/flow-run/{ids[0]}?tab={tab}")
        page.wait_for("Parameters", seconds=30)
        if not version:  # the older one does not do what its address says
            page.click(tab)
        read.append(page.wait_for(*texts))

    @resumable_task(key="id", batch_size=10, concurrency=1, fail_fast=True)
    def classify(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] == 60:
            for version in VERSIONS:
                look(version, "Artifacts", "Running", "classify-progress", "60/100 done")
        return rows

    run = functools.partial(classify.run, items(100), checkpoint=place)
    in_flow(lambda: flow_state(run()), ids)
    assert len(read) == 2
    look("v2/", "Artifacts", "Completed", "100/100 done", "done: 100 of 100 items done, 0 failed")
    look("v2/", "Details", "100 of 100 items done, 0 failed")


def test_names_and_messages_are_shown_as_they_are(place: Path, api: Api, page: Page) -> None:
    """Both versions take the text of artifacts for markdown with HTML in it, in other places."""

    def refuse(rows: list[Any]) -> list[Any]:
        return [ItemFailure(row["id"], ValueError(NASTY)) for row in rows]

    odd = place / f"<b>x</b> `t` __y__ | {NASTY[:30].replace('/', '_')}"
    job = resumable_task(refuse, name="_my_job_", key="id", tolerated_failures=1.0)
    ids: list[str] = []
    in_flow(lambda: job.run([{"id": "<u>key</u>"}], checkpoint=odd), ids)
    wanted = {
        "table": [NASTY, "<u>key</u>", "ValueError", shlex.quote(str(odd)), "_my_job_ failed"],
        "markdown": [str(odd), f"resumable status {shlex.quote(str(odd))}", "_my_job_: done"],
        "progress": [str(odd), "0/1 done, 1 failed"],
    }
    artifacts = {each["type"]: each["id"] for each in api.artifacts(ids[0])}
    for kind, texts in wanted.items():
        for version in VERSIONS:
            page.open(f"http://127.0.0.1:{api.port}/{version}artifacts/artifact/{artifacts[kind]}")
            page.wait_for(*texts)
            assert page.evaluate("document.querySelector('img[src=x]') === null")
            assert page.evaluate("document.querySelector('u, main b, main i') === null")
