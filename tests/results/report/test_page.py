"""The report as a browser shows it: nothing from elsewhere, nothing too wide, nothing obeyed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.cli import main
from resumable_tasks.errors import UsageError
from resumable_tasks.results.report import facts, page, plots
from resumable_tasks.results.report.timeline import Span, Timeline

pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("websockets", reason="a browser is spoken to by it")
from tests.prefect.browser import CHROMIUM, WHY_NOT, Page, browser

pytestmark = pytest.mark.xdist_group("report")


ODD = '"><img src=x onerror="document.title=\'pwned\'">\x1b[31m' + "x" * 150


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def report(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert cli("report", checkpoint, "-o", path).stdout == f"{path}\n"
    return path


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nights")
    job = resumable_task(lambda rows: rows, name="prices", key="id", tolerated_failures=5)
    for ago in range(3):
        day = date(2026, 11, 1) - timedelta(ago)
        job.run([{"id": n} for n in range(5 + ago)], checkpoint=folder / "prices", partition=day)
    (folder / "prices" / "2026-10-31" / "job.json").write_text("{<script>")
    job.run([{"id": 1}], checkpoint=folder / ODD)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    with browser(tmp_path_factory.mktemp("profile")) as found:
        found.ask("Network.enable")
        found.ask("Runtime.enable")
        found.ask("Log.enable")
        yield found


def show(tab: Page, path: Path, width: int, scheme: str = "light") -> None:
    tab.ask(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    tab.ask("Emulation.setEmulatedMedia", features=features)
    tab.open("about:blank")
    tab.events.clear()
    tab.open(path.as_uri())
    tab.wait_for("by resumable-tasks")


def requested(tab: Page) -> list[str]:
    """The addresses that the browser has asked for, but for the page's own."""
    asked = [e for e in tab.events if e["method"] == "Network.requestWillBeSent"]
    urls = [event["params"]["request"]["url"] for event in asked]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.mark.sample
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(report: Path, tab: Page, width: int, scheme: str) -> None:
    show(tab, report, width, scheme)
    tab.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    text = tab.wait_for("classify", "Over time", "Failures by class", "Parked rows", "Sizes")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # The key and the messages are texts: what is in them is neither an element nor run.
    assert "<script>document.title='pwned'</script>" in text
    assert "<b>no</b> text" in text
    assert "<u>cell</u>" in text
    assert tab.evaluate("document.title") == "classify: failed"
    assert tab.evaluate("document.querySelector('script, img, u, iframe, form') === null")
    assert not re.search("k{200}|m{1000}|c{1000}", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert requested(tab) == []
    broken = [e for e in tab.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert broken == []
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    # One of the two drawings is seen, and it is not cut.
    seen = tab.evaluate(
        "[...document.querySelectorAll('svg.plot')].map(e => e.getBoundingClientRect())"
        ".filter(box => box.width > 0).map(box => [box.left >= 0, box.right <= innerWidth])"
    )
    assert seen == [[True, True]]


def test_texts_of_the_drawing_stay_apart(report: Path, tab: Page) -> None:
    for width in (390, 1280):
        show(tab, report, width)
        boxes = tab.evaluate(
            "[...document.querySelectorAll('svg.plot .tick')].map(e => e.getBoundingClientRect())"
            ".filter(box => box.width).map(box => [box.left, box.right, box.top, box.bottom])"
        )
        assert len(boxes) > 8
        for (left, right, top, bottom), other in combinations(boxes, 2):
            beside = right - 1 <= other[0] or other[1] <= left + 1
            assert beside or bottom - 3 <= other[2] or other[3] <= top + 3


def test_a_folder_of_partitions_is_a_calendar(nights: Path, tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "nights.html"
    assert cli("report", nights, "-o", path).exit_code == 0
    for width in (390, 1280):
        show(tab, path, width)
        tab.wait_for("October 2026", "November 2026", "2026-10-30", "1 not done")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        days = "[...document.querySelectorAll('.day.there')].map(e => [e.innerText, e.className])"
        assert tab.evaluate(days) == [
            ["30", "day there done"],
            ["31", "day there damaged"],
            ["1", "day there done"],
        ]
        assert tab.evaluate("document.querySelector('img, script') === null")
        assert tab.evaluate("document.title") == f"Checkpoints in {nights}"
    assert requested(tab) == []


def test_the_page_is_one_file_without_script_or_address(report: Path) -> None:
    text = report.read_text("utf-8")
    tags = re.findall(r"<(\w+)([^>]*)>", text)
    assert not {tag for tag, _ in tags} & {"script", "img", "a", "iframe", "object", "form"}
    named = [found for _, rest in tags for found in re.findall(r"(?:src|href)=([^ ]+)", rest)]
    assert named == ['"data:,"']
    style = text[text.index("<style>") : text.index("</style>")]
    assert re.findall(r"@import|url\((?!#)", style) == []
    assert "default-src 'none'" in text
    assert report.stat().st_mode & 0o077 == 0
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]


def test_many_runs_have_as_many_times_as_there_is_room_for() -> None:
    spans = [Span(n, "died", 1_000.0 * n, 1_000.0 * n + 60) for n in range(40)]
    drawn = Timeline(spans, [], [], 0, 0.0, [])
    for width, most in ((plots.WIDE, 20), (plots.NARROW, 7)):
        shown = plots.plot(drawn, plots.panels(drawn, 10, None, latency=True), width)
        times = re.findall(r'class="tick" x="([\d.]+)"[^>]*>[^<]*:', shown)
        assert 1 < len(times) <= most
    spans = [Span(1, "died", 0, 60), Span(2, "done", 100, 160), Span(3, "done", 200, 260)]
    drawn = Timeline(spans, [], [], 0, 0.0, [])
    labels = re.findall(
        r">(run [^<]*)</text>", plots.plot(drawn, plots.panels(drawn, 10, None, latency=True))
    )
    assert labels == ["run 1", "run 2, resumed", "run 3"]


def test_bound_by_is_shown_where_runs_have_said_it(checkpoint: Path) -> None:
    found = facts.read(LocalStore(checkpoint))
    *died, last = found.runs
    (close,) = [
        json.loads(path.read_text().partition("\n")[0])["info"]
        for path in sorted((checkpoint / "journal").iterdir())[-1:]
    ]
    assert last.bound == close["bound_by"]["sentence"]
    known = {*close["bound_by"]["shares"]}
    assert known == {*facts.OF_LANES, *facts._OF_RUN}, "a share that the page has no words for"
    shown = page.render(found)
    assert last.bound in unescape(shown)
    assert all(f"{name}: {100 * share:.0f} %" in unescape(shown) for name, share in last.shares)
    assert "Bound by" not in page.render(replace(found, runs=died))
    odd = replace(last, bound="API <quota>", shares=[("told to wait", 0.7)])
    assert "API &lt;quota&gt;" in page.render(replace(found, runs=[odd]))


def test_a_place_that_cannot_be_reported(tmp_path: Path) -> None:
    for place, said in [
        (tmp_path, "is not a checkpoint"),
        (tmp_path / "absent", "is not a checkpoint"),
        ("postgresql://host/name", "`resumable sql status`"),
    ]:
        result = cli("report", place, "-o", tmp_path / "report.html")
        assert result.exit_code == 2
        assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    result = cli("report", checkpoint, "-o", tmp_path / "report.html")
    assert result.exit_code == 75
    assert "could not be written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_without_jinja_the_line_of_pip_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jinja2", "markupsafe"):
        monkeypatch.setitem(sys.modules, name, None)
    page._environment.cache_clear()
    with pytest.raises(UsageError, match=r'pip install "resumable-tasks\[report\]"'):
        page.render(facts.read(LocalStore(checkpoint)))


def test_a_report_in_a_bucket(bucket: Any, checkpoint: Path) -> None:
    to = f"{bucket.url}/reports/night.html"
    assert cli("report", checkpoint, "-o", to).exit_code == 0
    assert "reports/night.html" in bucket.stored()
