"""The pictures of docs/report.md: ``python -m tests.results.report.pictures``.

Runs a job that is killed three times, meets an outage, has forty items that fail and a budget, and
a nightly job; takes pictures of their reports. Takes a minute; needs Chromium.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from resumable_tasks import Budget, Interrupted, ItemFailure, JobFailed, resumable_task
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.cli.report import page_of
from tests.prefect.browser import CHROMIUM, WHY_NOT, Page, browser

IMAGES = Path(__file__).parents[3] / "docs/images"
KILLED_AT, DOWN_AT, DOWN_SECONDS = (300, 560, 900), 1_050, 12.0
WIDTH, PHONE = 1100, 390

SCRIPT = r"""
import os, random, sys, time
from resumable_tasks import Budget, Failing, ItemFailure, resumable_task

ITEMS = [{"id": f"lesson-{n:04}", "text": "one two three " * (n % 9 + 1)} for n in range(1_713)]
BAD = set(random.Random(7).sample([item["id"] for item in ITEMS], 40))
ERRORS = [
    ValueError("no text in the answer of the model"),
    TimeoutError("the model took more than 60 s"),
    KeyError("label"),
]

@resumable_task(
    key="id", batch_size=8, concurrency=4, version="3", cost="cost", budget=Budget(total=3.0),
    failing=Failing(pause_after=3),
)
def classify(lessons):
    if os.path.exists("down"):
        raise ConnectionError("503 Service Unavailable: upstream connect error")
    time.sleep(random.uniform(0.2, 0.7))
    return [label(lesson) for lesson in lessons]

def label(lesson):
    if lesson["id"] in BAD:
        return ItemFailure(lesson["id"], ERRORS[len(lesson["text"]) % 5 % 3])
    words = "three or four" if lesson["id"] in ("lesson-0100", "lesson-0555") else None
    return {
        "id": lesson["id"],
        "label": random.choice(["tie", "win", "loss"]),
        "words": words or len(lesson["text"].split()),
        "confidence": round(random.random(), 3),
        "cost": 0.0014,
    }

classify.run(ITEMS, checkpoint="checkpoints/classify")
"""


def main() -> None:
    assert CHROMIUM is not None, WHY_NOT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classify(folder)
        nights(folder / "checkpoints" / "prices")
        take(folder)
    for path in sorted(IMAGES.glob("report*.png")):
        print(f"{path.relative_to(IMAGES.parents[1])}: {path.stat().st_size:,} bytes")


def classify(folder: Path) -> None:
    for at in (*KILLED_AT, DOWN_AT):
        run = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], cwd=folder, stderr=subprocess.DEVNULL
        )
        while done(folder) < at:
            time.sleep(0.2)
        if at in KILLED_AT:
            run.kill()
            run.wait()
    (folder / "down").touch()
    time.sleep(DOWN_SECONDS)
    (folder / "down").unlink()
    run.wait()


def done(folder: Path) -> int:
    place = folder / "checkpoints" / "classify"
    return len(Reader.at(str(place)).state.done) if (place / "job.json").exists() else 0


def prices(rows: list[Any]) -> list[Any]:
    return [ItemFailure(row["id"], "no price") if row["bad"] else row for row in rows]


def nights(place: Path) -> None:
    job = resumable_task(prices, key="id", tolerated_failures=3)
    for ago in range(76):
        day = date(2026, 11, 28) - timedelta(ago)
        bad = 9 if ago in (24, 55) else 2 if ago % 11 == 4 else 0
        items = [{"id": n, "bad": n < bad} for n in range(30 + 7 * ago % 31)]
        budget = Budget(items=10) if ago in (0, 42) else None
        try:
            job.run(items, checkpoint=place, partition=day, budget=budget, progress=False)
        except (JobFailed, Interrupted):
            continue


def take(folder: Path) -> None:
    with browser(folder / "chromium", WIDTH, 1200) as page:
        show(page, folder, "classify", WIDTH, "light")
        page.picture(IMAGES / "report.png", (0, 0, WIDTH, 1150))
        show(page, folder, "classify", PHONE, "dark")
        page.picture(IMAGES / "report-phone.png", (0, 0, PHONE, 1150))
        show(page, folder, "prices", WIDTH, "light")
        page.picture(IMAGES / "report-nights.png", (0, 0, WIDTH, 600))


def show(page: Page, folder: Path, name: str, width: int, scheme: str) -> None:
    path = folder / f"{name}.html"
    path.write_text(page_of(str(folder / "checkpoints" / name)), "utf-8")
    size = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    page.ask("Emulation.setDeviceMetricsOverride", **size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.ask("Emulation.setEmulatedMedia", features=features)
    page.open(path.as_uri())
    page.wait_for("by resumable-tasks")
    # The name of the temporary folder means nothing to anybody.
    page.evaluate(
        "(() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
        "while (walk.nextNode()) walk.currentNode.data ="
        f" walk.currentNode.data.replaceAll({json.dumps(f'{folder}/')}, ''); }})()"
    )


if __name__ == "__main__":
    main()
