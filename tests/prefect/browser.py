"""Chromium without a window, by the few commands of its DevTools protocol that are needed here."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WHY_NOT = "Chromium is not installed (`make system` installs it)"
_START_SECONDS = 60
_ANSWER_SECONDS = 60


class Navigated(Exception):
    """The tab has gone to another page before it could answer."""


class Page:
    """A tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._asked = 0
        self.events: list[dict[str, Any]] = []
        """What the browser has reported by itself, oldest first."""

    def ask(self, method: str, **params: Any) -> Any:
        self._asked += 1
        question = {"id": self._asked, "method": method, "params": params}
        self._connection.send(json.dumps(question))
        while True:
            answer = json.loads(self._connection.recv(timeout=_ANSWER_SECONDS))
            if "id" not in answer:
                self.events.append(answer)
            elif answer["id"] == self._asked:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        try:
            return str(self.evaluate("document.body ? document.body.innerText : ''"))
        except Navigated:
            return ""

    def wait_for(self, *texts: str, seconds: float = 60) -> str:
        """The page's text, once all of these are in it."""
        end = time.monotonic() + seconds
        while True:
            found = self.text
            missing = [text for text in texts if text not in found]
            if not missing:
                return found
            assert time.monotonic() < end, f"not on the page: {missing}; there is:\n{found}"
            time.sleep(0.2)

    def click(self, text: str) -> None:
        """Click the innermost element that has exactly this text."""
        found = self.evaluate(
            "(() => { const all = [...document.querySelectorAll('*')].filter("
            f"e => e.innerText?.trim() === {json.dumps(text)});"
            "const last = all.at(-1); last?.click(); return all.length; })()"
        )
        assert found, f"nothing to click: {text}"

    def picture(self, path: Path, clip: tuple[int, int, int, int] | None = None) -> None:
        """A PNG of what is seen; ``clip`` is left, top, width and height."""
        params: dict[str, Any] = {"format": "png"}
        if clip is not None:
            left, top, width, height = clip
            params["clip"] = {"x": left, "y": top, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", **params)["data"]))


@contextmanager
def browser(folder: Path, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """A browser with one empty tab; its profile is in the folder."""
    assert CHROMIUM is not None, WHY_NOT
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                f"--window-size={width},{height}",
                "--no-sandbox",  # which root has not got
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--hide-scrollbars",
                "--no-first-run",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with connect(_page_url(folder, process, log), max_size=None, open_timeout=30) as connection:
            page = Page(connection)
            page.ask("Page.enable")
            page.ask(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            yield page
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _page_url(folder: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the tab is to be spoken to."""
    import urllib.request

    known = folder / "DevToolsActivePort"
    end = time.monotonic() + _START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"Chromium does not start: {log.read_text('utf-8', 'replace')}")
        try:
            port = int(known.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            return str(tabs[0]["webSocketDebuggerUrl"])
        except (OSError, ValueError, IndexError):
            time.sleep(0.1)
