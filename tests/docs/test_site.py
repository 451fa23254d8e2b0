"""The built site: nothing is missing, nothing comes from elsewhere, and a browser can read it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import resumable_tasks
from resumable_tasks import errors
from tests.benchmarks import curve
from tests.docs.pages import REPOSITORY
from tests.docs.test_names import parameters
from tests.prefect.browser import CHROMIUM, WHY_NOT, Page, browser

pytestmark = pytest.mark.xdist_group("site")

# What a browser fetches for a page by itself; links to follow are not among it.
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
    "link": "href",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return folder


class Fetched(HTMLParser):
    """Collect the addresses of what a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link" and named.get("rel") in ("canonical", "prev", "next"):
            return
        self.found.append(named.get(FETCHED.get(tag, "")) or "")


def fetched(page: str) -> list[str]:
    parser = Fetched()
    parser.feed(page)
    return [each for each in parser.found if each]


def is_elsewhere(address: str) -> bool:
    return re.match(r"(?!data:)([a-z]+:)?//|[a-z]+:(?!.*base64)", address) is not None


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    assert fetched('<script src="//cdn.example/x.js"></script>') == ["//cdn.example/x.js"]
    assert is_elsewhere("//cdn.example/x.js")
    assert is_elsewhere("https://fonts.example/a.css")
    assert not is_elsewhere("../assets/a.css")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        addresses = fetched(page.read_text("utf-8"))
        assert len(addresses) > 2, page
        assert [each for each in addresses if is_elsewhere(each)] == [], page
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        text = sheet.read_text("utf-8")
        assert re.findall(r"@import|url\([\"']?(?:https?:)?//[^)]*", text) == [], sheet


def test_the_reference_has_every_public_name_and_every_option(site: Path) -> None:
    page = (site / "reference.html").read_text("utf-8")
    anchors = set(re.findall(r'<h[2-5] id="([\w.]+)"', page))
    for name in set(resumable_tasks.__all__) - {"events"}:
        home = "errors." if hasattr(errors, name) else ""
        assert any(
            f"resumable_tasks.{where}{name}" in anchors for where in (home, "", "events.")
        ), name
    for name in set(parameters()):
        assert re.search(rf"\b{name}\b", page), name
    # Of values, what they are made with and what they hold.
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert re.search(r"dataclass &para; ItemFailure \( key : Key , error : ", text)
    assert re.search(r"dataclass &para; RunResult \( job : str , [^)]*skipped : int , ", text)


def test_every_decision_and_every_file_that_is_linked_is_a_page(site: Path) -> None:
    decisions = {path.stem for path in (REPOSITORY / "docs/design").glob("*.md")}
    assert {path.stem for path in (site / "design").glob("*.html")} == decisions
    home = (site / "index.html").read_text("utf-8")
    assert all(f"design/{name}.html" in home for name in decisions)
    assert (site / "files/flows/nightly_ingest.py.html").exists()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.ask("Runtime.enable")
        page.ask("Log.enable")
        yield page


@pytest.fixture
def page(tab: Page) -> Page:
    """A page on which nothing has happened yet."""
    tab.open("about:blank")
    tab.events.clear()
    return tab


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def arrive(page: Page, *texts: str) -> None:
    """Wait until a page with these texts is there, all of it."""
    page.wait_for(*texts)
    until(lambda: page.evaluate("document.readyState") == "complete")


def visit(page: Page, address: str, *texts: str) -> None:
    page.open(address)
    arrive(page, *texts)


def complaints(page: Page) -> list[dict[str, object]]:
    """What the page has written to the console as an error, and what could not be loaded."""
    return [
        event
        for event in page.events
        if event["method"] == "Runtime.exceptionThrown"
        or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")
        or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error")
    ]


def loaded(page: Page) -> list[str]:
    """The addresses of all that the page has loaded."""
    script = "performance.getEntriesByType('resource').map(entry => entry.name)"
    return list(page.evaluate(script))


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("index.html", ["resumable-tasks", "Install", "Where to read next"]),
        ("failing.html", ["When items fail", "Failures are records", "Budgets"]),
        ("reference.html", ["Reference", "resumable_task", "RunResult", "Errors", "Fenced"]),
    ],
)
def test_a_browser_reads_a_page(name: str, texts: list[str], address: str, page: Page) -> None:
    visit(page, f"{address}/{name}", *texts)
    headings = page.evaluate(
        "[...document.querySelectorAll('article h1, article h2, article h3')]"
        ".map(heading => heading.innerText.trim())"
    )
    assert headings.count(headings[0]) == 1
    for text in texts:
        assert any(text in heading for heading in headings), text
    # Each entry of the table of contents leads to a heading.
    assert page.evaluate(
        "(() => { const links = [...document.querySelectorAll('.md-nav--secondary a')];"
        "return links.length > 4 && links.every("
        "link => document.getElementById(decodeURIComponent(link.hash.slice(1)))); })()"
    )
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert all(each.startswith(address) for each in loaded(page))
    assert complaints(page) == []


def test_a_browser_follows_links_and_finds_a_word(address: str, page: Page) -> None:
    visit(page, f"{address}/index.html", "Where to read next")
    page.click("When items fail")
    arrive(page, "Failures are records")
    page.click("Reference")
    arrive(page, "raise_for_failures")
    page.evaluate("document.querySelector('[data-md-toggle=search]').click()")
    # The index of the words may still be on its way.
    search = (
        "(() => { const field = document.querySelector('[data-md-component=search-query]');"
        "field.focus(); field.value = 'quarantined'; field.dispatchEvent(new Event('keyup'));"
        "return document.body.innerText.includes('matching documents'); })()"
    )
    until(lambda: page.evaluate(search))
    assert all(each.startswith(address) for each in loaded(page))
    assert complaints(page) == []


@pytest.mark.long
def test_a_page_is_light_or_dark_as_the_system_is(address: str, page: Page) -> None:
    def colours(scheme: str) -> list[list[int]]:
        """Background and text, as red, green and blue."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.ask("Emulation.setEmulatedMedia", features=features)
        visit(page, f"{address}/failing.html", "Failures are records")
        found = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('article')).color]"
        )
        return [[int(float(part)) for part in re.findall(r"[\d.]+", each)[:3]] for each in found]

    (light_ground, light_text), (dark_ground, dark_text) = colours("light"), colours("dark")
    assert sum(light_ground) > 600 > 300 > sum(light_text)
    assert sum(dark_ground) < 200 < 400 < sum(dark_text)
    assert complaints(page) == []


def test_the_picture_of_many_keys_is_that_of_its_table() -> None:
    assert curve.IMAGE.read_text("utf-8") == curve.drawn(curve.PAGE.read_text("utf-8"))
