"""The pictures of docs/images: ``python -m tests.prefect.screenshots``.

Starts a Prefect server and Chromium, runs a flow that is killed, runs it again, and takes pictures
of the second run in the middle and at its end. Takes two minutes; needs Chromium.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.ports import free_port
from tests.prefect import server
from tests.prefect.api import Api, until
from tests.prefect.browser import CHROMIUM, WHY_NOT, Page, browser

IMAGES = Path(__file__).parents[2] / "docs/images"
SIZE = (1400, 1340)

SCRIPT = """
import random
import time

from prefect import flow

from resumable_tasks import ItemFailure, flow_state, resumable_task

ITEMS = [{"id": f"lesson-{n:04}", "text": "one two three"} for n in range(1_713)]


@resumable_task(key="id", batch_size=30, concurrency=4, tolerated_failures=10, cost="cost")
def classify(lessons):
    time.sleep(random.uniform(2.0, 3.5))
    return [tried(lesson) for lesson in lessons]


def tried(lesson):
    try:
        return label(lesson)
    except ValueError as error:
        return ItemFailure(lesson["id"], error)


def label(lesson):
    if lesson["id"] in ("lesson-0731", "lesson-1044", "lesson-1302"):
        raise ValueError("no text in the answer of the model")
    return {"id": lesson["id"], "words": len(lesson["text"].split()), "cost": 0.002}


@flow(name="nightly", flow_run_name="nightly 2026-11-23")
def nightly():
    run = classify.run(ITEMS, checkpoint="checkpoints/classify", partition="2026-11-23")
    run.publish("lessons")
    return flow_state(run)


nightly()
"""


def main() -> None:
    assert CHROMIUM is not None, WHY_NOT
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = server.Server(folder / "server", free_port())
        own.start()
        try:
            take(own, folder)
        finally:
            own.kill()
    for path in sorted(IMAGES.glob("prefect-*.png")):
        print(f"{path.relative_to(IMAGES.parents[1])}: {path.stat().st_size:,} bytes")


def take(own: server.Server, folder: Path) -> None:
    api = Api(own.port)
    first = start(own, folder)
    killed = until(lambda: next(iter(api.flow_runs()), None))["id"]
    until(lambda: done(api, killed) >= 600, 120)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()

    with browser(folder / "chromium", *SIZE) as page:
        second = start(own, folder)
        try:
            runs = lambda: [each["id"] for each in api.flow_runs() if each["id"] != killed]  # noqa: E731
            (run,) = until(runs)
            until(lambda: done(api, run) >= 900, 120)
            show(page, own, f"runs/flow-run/{run}?tab=Artifacts", "Running", "of them resumed")
            picture(page, folder, "prefect-running.png", 850)
            second.wait(120)
            show(page, own, f"runs/flow-run/{run}?tab=Artifacts", "Completed", "1,710/1,713 done")
            picture(page, folder, "prefect-finished.png", 850)
            summary = artifact(api, run, "classify-summary")["id"]
            show(page, own, f"artifacts/artifact/{summary}", "published: ", "State Message")
            picture(page, folder, "prefect-summary.png", 1200)
        finally:
            second.kill()
            second.wait()


def show(page: Page, own: server.Server, path: str, *texts: str) -> None:
    page.open(f"http://127.0.0.1:{own.port}/v2/{path}")
    page.wait_for(*texts)
    # The graph of task runs is drawn on a canvas, of which the page's text says nothing.
    time.sleep(8)


def picture(page: Page, folder: Path, name: str, height: int) -> None:
    # The name of the temporary folder means nothing to anybody; it is shown as /data.
    page.evaluate(
        "(() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
        "while (walk.nextNode()) walk.currentNode.data ="
        f" walk.currentNode.data.replaceAll({json.dumps(str(folder / 'work'))}, '/data'); }})()"
    )
    menu = 256  # at the left
    page.picture(IMAGES / name, (menu, 0, SIZE[0] - menu, height))


def start(own: server.Server, folder: Path) -> subprocess.Popen[bytes]:
    here = folder / "work"
    here.mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    with (folder / "flow.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=here,
            # The work is not in the temporary folder, which a run would warn of.
            env={**server.environment(folder / "home", own.port), "TMPDIR": str(folder / "tmp")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def artifact(api: Api, run: str, key: str) -> dict[str, str]:
    found = [each for each in api.artifacts(run) if each["key"] == key]
    return found[0] if found else {}


def done(api: Api, run: str) -> int:
    """How many items the progress of a run says are done."""
    text = artifact(api, run, "classify-progress").get("description", "0/")
    return int(text.split("/")[0].replace(",", ""))


if __name__ == "__main__":
    main()
