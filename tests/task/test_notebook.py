"""A notebook, executed for real: its bar, its outputs, an interrupted kernel and the rerun."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = [
    # Jupyter's and its dependencies' own are not ours to fix.
    pytest.mark.filterwarnings("default"),
]

SETUP = """
import time
from resumable_tasks import ItemFailure, resumable_task

ITEMS = [f"<b>{n}</b>" for n in range(60)]

@resumable_task(batch_size=5, concurrency=2, grace_seconds=5, tolerated_failures=1, results="one")
def classify(rows):
    "Label <i>lessons</i>."
    time.sleep(SECONDS)
    return [
        ItemFailure(row, ValueError("<script>alert(1)</script>")) if row == ITEMS[7] else {"n": 1}
        for row in rows
    ]
"""


class Notebook:
    """A kernel, and the cells that it has executed."""

    def __init__(self, folder: Path) -> None:
        self.file = nbformat.v4.new_notebook()
        resources = {"metadata": {"path": str(folder)}}
        self.client = nbclient.NotebookClient(
            self.file, timeout=60, allow_errors=True, resources=resources
        )

    def run(self, source: str) -> list[dict[str, Any]]:
        """The outputs of a cell."""
        self.file.cells.append(nbformat.v4.new_code_cell(source))
        self.client.execute_cell(self.file.cells[-1], len(self.file.cells) - 1)
        return list(self.file.cells[-1].outputs)

    def interrupt(self) -> None:
        asyncio.run(self.client.km.interrupt_kernel())


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    found = Notebook(tmp_path)
    with found.client.setup_kernel():
        yield found


def htmls(outputs: list[dict[str, Any]]) -> list[str]:
    return [each["data"]["text/html"] for each in outputs if "text/html" in each.get("data", {})]


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join(each["text"] for each in outputs if each["output_type"] == "stream")


def plain(outputs: list[dict[str, Any]]) -> str:
    return outputs[-1]["data"]["text/plain"]  # type: ignore[no-any-return]


def test_a_run_in_a_notebook_is_seen_interrupted_and_run_again(
    notebook: Notebook, tmp_path: Path
) -> None:
    assert notebook.run(f"SECONDS = 0.2\n{SETUP}") == []
    journal = tmp_path / "checkpoints/c/journal"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while len(list(journal.glob("*"))) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        notebook.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    outputs = notebook.run("result = classify.run(ITEMS, checkpoint='checkpoints/c')")
    thread.join()
    (bar,) = (each for each in outputs if each["output_type"] == "display_data")
    error = outputs[-1]
    assert (error["output_type"], error["ename"]) == ("error", "Interrupted")
    assert "Run the same command again to resume" in error["evalue"]
    (html,) = htmls(outputs)
    assert "interrupted: " in html
    assert str(tmp_path / "checkpoints/c") in html
    assert "<progress" in html
    assert bar["data"]["text/plain"].startswith("classify: interrupted: ")
    assert "SIGINT: finishing running batches" in printed(outputs)
    assert "0/60 done" not in printed(outputs)

    notebook.run("SECONDS = 0")
    outputs = notebook.run("result = classify.run(ITEMS, checkpoint='checkpoints/c')\nresult")
    bar_html, result = htmls(outputs)
    assert "done: 59/60 done, " in bar_html
    assert "of them resumed, 1 failed" in bar_html
    assert 'max="60" value="60"' in bar_html
    assert '<td style="text-align: left">resumed</td>' in result
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in result
    assert plain(outputs).startswith("<RunResult classify: 59 of 60 items done (")

    outputs = notebook.run("result.failures")
    assert "&lt;b&gt;7&lt;/b&gt;" in htmls(outputs)[0]
    assert plain(outputs).startswith('(<Failure of "<b>7</b>": ValueError: <script>')
    outputs = notebook.run("classify")
    assert '<td style="text-align: left">batch_size</td>' in htmls(outputs)[0]
    assert plain(outputs) == "<ResumableTask classify>"
    shown = "".join(html for cell in notebook.file.cells for html in htmls(cell.outputs))
    assert "<script>" not in shown
    assert "<b>7" not in shown
    outputs = notebook.run("classify.run(ITEMS, checkpoint='checkpoints/c', progress=False);")
    assert htmls(outputs) == []

    # Where the log is shown it has the lines, and the bar stays.
    notebook.run("import logging\nlogging.basicConfig(level='INFO')")
    outputs = notebook.run("classify.run(ITEMS, checkpoint='checkpoints/logged');")
    assert "INFO:resumable_tasks:classify: checkpoint" in printed(outputs)
    assert len(htmls(outputs)) == 1
