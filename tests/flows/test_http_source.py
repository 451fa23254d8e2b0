"""The records of an HTTP API, read from a real server that misbehaves: none lost, errors clear."""

from __future__ import annotations

import datetime
import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_http_server import (
    Api,
    Fault,
    drips,
    drops,
    halves,
    halves_unseen,
    hangs,
    http_date,
    orders,
    says,
    serving,
)

pytest.importorskip("httpx")

from flows import http_client
from flows.http_api import HttpApi
from flows.http_client import ApiRefused, ApiUnavailable, BadAnswer, Client
from flows.http_pages import PageCopies, next_link, records, with_params
from resumable_tasks import UsageError

KINDS: dict[str, dict[str, Any]] = {
    "page": {"url": "/page", "pagination": "page"},
    "cursor": {
        "url": "/cursor?kind=a%20b",
        "pagination": "cursor",
        "items": "data.all",
        "cursor_field": "meta.next",
    },
    "urls": {"url": "/urls", "pagination": "cursor", "items": "results", "cursor_field": "next"},
    "link": {"url": "/link", "pagination": "link"},
}
SECOND_PAGE = {
    "page": "/page?page=2",
    "cursor": "/cursor?kind=a+b&cursor=c10",
    "urls": "/urls?after=c10",
    "link": "/link?after=c10&per_page=10",
}


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(Api(orders(35))) as started:
        yield started


def http_api(api: Api, kind: str = "page", **fields: Any) -> HttpApi:
    given = {**KINDS[kind], "retry_pause": 0.001, "timeout": 10.0, **fields}
    return HttpApi(**{**given, "url": api.url + given["url"]})


def read(source: HttpApi, copies: PageCopies | None = None) -> list[Any]:
    with Client(source) as client:
        return [record["id"] for record in records(client, copies=copies)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 10, 35, 40])
def test_every_record_is_read_once_by_each_pagination(kind: str, count: int, api: Api) -> None:
    api.records = orders(count)
    assert read(http_api(api, kind)) == list(range(count))
    # Counting up, only an empty page says that there are no more.
    pages = -(-count // 10) + (kind == "page") or 1
    assert len(api.asked) == pages


def test_parameters_go_with_every_page(api: Api) -> None:
    source = http_api(api, "page", params={"per_page": 20, "q": "a&b=c ü"}, url="/page?q=x&z=1")
    assert len(read(source)) == 35
    assert [each.path for each in api.asked] == [
        f"/page?z=1&per_page=20&q=a%26b%3Dc+%C3%BC&page={page}" for page in (1, 2, 3)
    ]
    assert with_params("http://h/p?a=1&b=&a=2#f", {"c": 3}) == "http://h/p?a=1&b=&a=2&c=3"


@pytest.mark.parametrize(
    ("kind", "answer", "warned"),
    [
        ("link", says(200, [{"id": 1}]), "page 1, {url}/link: it has no header Link, so it is"),
        ("link", says(200, [{"id": 1}], link="</x>; rel=first"), None),
        ("urls", says(200, {"results": [{"id": 1}]}), "it has nothing at cursor_field='next', so"),
        ("urls", says(200, {"results": [{"id": 1}], "next": None}), None),
    ],
)
def test_a_first_page_that_says_nothing_of_others_is_taken_for_all_with_a_warning(
    kind: str, answer: Fault, warned: str | None, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    api.fail(f"/{kind}", answer)
    assert read(http_api(api, kind)) == [1]
    assert ("the only page" in caplog.text) == (warned is not None)
    assert warned is None or warned.format(url=api.url) in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_read_only_as_far_as_records_are_wanted(kind: str, api: Api) -> None:
    api.records = orders(100_000)
    with Client(http_api(api, kind)) as client:
        found = records(client)
        assert api.asked == []
        assert len(list(islice(found, 10))) == 10
        assert len(api.asked) == 1
        next(found)
        assert len(api.asked) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fault",
    [says(500), says(503), says(429), says(408), drops, halves, halves_unseen],
    ids=["500", "503", "429", "408", "dropped", "half", "half, unseen"],
)
def test_what_may_be_over_at_the_next_request_is_asked_again(
    fault: Fault, kind: str, api: Api
) -> None:
    api.fail(SECOND_PAGE[kind], fault, fault, fault)
    assert read(http_api(api, kind)) == list(range(35))
    assert api.count(SECOND_PAGE[kind]) == 4


@pytest.mark.parametrize("fault", [hangs, drips], ids=["hangs", "drips"])
def test_an_answer_that_does_not_come_to_an_end_is_asked_for_again(fault: Fault, api: Api) -> None:
    api.fail(SECOND_PAGE["page"], fault)
    assert read(http_api(api, timeout=0.3)) == list(range(35))
    assert api.count(SECOND_PAGE["page"]) == 2


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (429, lambda: "1"),
        (503, lambda: "1"),
        (403, lambda: "1"),
        (429, lambda: "1.2"),
        (429, lambda: http_date(2)),
    ],
    ids=["429", "503", "403", "part of a second", "date"],
)
def test_no_request_comes_before_the_time_that_was_told(
    status: int, told: Callable[[], str], api: Api
) -> None:
    value = told()
    api.fail("/page", says(status, retry_after=value))
    assert read(http_api(api)) == list(range(35))
    first, second, *_ = api.asked
    if "GMT" in value:
        assert second.clock >= parsedate_to_datetime(value).timestamp()
    else:
        assert second.time - first.time >= float(value)


def test_what_one_thread_was_told_the_others_keep_to_as_well(api: Api) -> None:
    api.fail("/detail/0", says(429, retry_after="1"))
    with Client(http_api(api)) as client:
        threads = [
            threading.Thread(target=client.get, args=(f"{api.url}/detail/{i}", "detail"))
            for i in range(6)
        ]
        threads[0].start()
        while not api.asked or client._not_before == 0:
            time.sleep(0.005)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    first, *others = (each.time for each in api.asked)
    assert len(others) == 6
    assert min(others) - first >= 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120),
        ({"retry-after": " 0 "}, 0),
        ({"retry-after": "9" * 400}, float("inf")),
        # By the server's clock, which may be years from ours.
        (
            {
                "retry-after": "Fri, 31 Dec 1999 23:59:59 GMT",
                "date": "Fri, 31 Dec 1999 23:59:29 GMT",
            },
            30,
        ),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"retry-after": "Friday, 31-Dec-99 23:59:59 GMT", "date": "junk"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "١"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_the_time_that_a_server_tells(headers: dict[str, str], seconds: float | None) -> None:
    assert http_client.retry_after(headers) == seconds


def test_pauses_grow_and_differ_and_have_a_bound(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http_client, "_sleep", lambda seconds, stop: pauses.append(seconds))
    api.always["/page"] = says(502, {"error": "try later"})
    with pytest.raises(ApiUnavailable) as caught:
        read(http_api(api, retries=9, retry_pause=1.0))
    assert len(api.asked) == 10
    grown = [pause for pause in pauses if pause]
    assert len(grown) == 9
    for number, pause in enumerate(grown):
        most = min(60.0, 2.0**number)
        assert most / 2 <= pause <= most
    assert len(set(grown)) == 9
    text = str(caught.value)
    assert text.startswith(f"page 1, {api.url}/page?page=1: HTTP 502 Bad Gateway: ")
    assert "try later" in text
    assert "at attempt 10 of 10" in text
    assert "run the same command again to resume" in text
    assert caught.value.exit_code == 75
    assert "attempt 3 of 10" in caplog.text


def test_one_that_is_known_to_be_down_is_tried_once_until_it_answers(api: Api) -> None:
    api.always["/detail/1"] = drops
    with Client(http_api(api, retries=3)) as client:
        for requests in (4, 1, 1):
            before = len(api.asked)
            with pytest.raises(ApiUnavailable, match="no answer"):
                client.get(f"{api.url}/detail/1", "detail")
            assert len(api.asked) - before == requests
        client.get(f"{api.url}/detail/2", "detail")
        before = len(api.asked)
        with pytest.raises(ApiUnavailable):
            client.get(f"{api.url}/detail/1", "detail")
        assert len(api.asked) - before == 4


def test_nobody_listens() -> None:
    source = HttpApi("http://127.0.0.1:1/x", "page", retries=1, retry_pause=0.001)
    with pytest.raises(ApiUnavailable, match=r"page 1, http://127.0.0.1:1/x\?page=1: no answer"):
        read(source)


def test_a_pause_that_is_too_long_ends_the_run_and_is_kept_to(api: Api) -> None:
    api.fail("/page", says(429, retry_after="3600"))
    with Client(http_api(api, longest_wait=60)) as client:
        with pytest.raises(ApiUnavailable, match=r"come again in 3,600 s \(longest_wait is 60 s\)"):
            list(records(client))
        with pytest.raises(ApiUnavailable, match="left alone for another 3,"):
            client.get(f"{api.url}/detail/1", "detail")
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (says(400, {"error": "no such filter"}), ["HTTP 400", "no such filter", "params"]),
        (says(401), ["HTTP 401", "token_env"]),
        (says(403), ["HTTP 403", "token_env"]),
        (says(404), ["HTTP 404 Not Found", "Look at the address"]),
        (says(410), ["HTTP 410", "still there"]),
        (says(301, location="/elsewhere"), ["HTTP 301", "moved to /elsewhere", "give that"]),
        (says(302, location="http://other.example/x"), ["moved to http://other.example/x"]),
        (says(204), ["HTTP 204", "Only an answer of 200"]),
        (says(304), ["HTTP 304"]),
        (says(404, b"\x1b[31m<html>\n\r\0" + b"x" * 9_999), ["<html>", "xxx…"]),
    ],
    ids=["400", "401", "403", "404", "410", "301", "302", "204", "304 unasked", "404 with a page"],
)
def test_a_refusal_says_where_what_and_what_to_do_and_is_not_repeated(
    fault: Fault, said: list[str], api: Api
) -> None:
    api.fail(SECOND_PAGE["page"], fault)
    with pytest.raises(ApiRefused) as caught:
        read(http_api(api))
    text = str(caught.value)
    assert text.startswith(f"page 2, {api.url}/page?page=2: ")
    assert all(part in text for part in said), text
    assert len(text) < 600
    assert text.isprintable()
    assert api.count(SECOND_PAGE["page"]) == 1
    assert caught.value.exit_code == 2


def items(*found: Any) -> Fault:
    return says(200, list(found))


@pytest.mark.parametrize(
    ("kind", "answer", "said"),
    [
        ("page", says(200, b"<html>", content_type="text/html"), ["no JSON (text/html)", "<html>"]),
        ("page", says(200, b""), ["no JSON (application/json)", "attempt 6 of 6"]),
        ("page", says(200, b"[{]"), ["no JSON", "[{]"]),
        ("page", says(200, b"[" * 100_000), ["no JSON"]),
        ("page", says(200, b'[{"id": "\xff"}]'), ["no JSON"]),
        ("page", says(200, {"data": []}), ["it has no list, but an object of 'data'", "items"]),
        ("page", says(200, None), ["it has no list, but null"]),
        ("page", items(1), ["item 0 is no object, but int 1"]),
        ("page", items({"id": 1}, {"nr": 2}), ["item 1 has no field 'id'", "'nr'", "give key"]),
        ("page", items({"id": None}), ["item 0 has as its key 'id' null"]),
        ("page", items({"id": True}), ["'id' bool True"]),
        ("page", items({"id": 1.5}), ["float 1.5"]),
        ("page", items({"id": ""}), ["str ''"]),
        ("page", items({"id": [1]}), ["a list of 1"]),
        ("cursor", says(200, {"items": []}), ["nothing at items='data.all'", "'data'", "'items'"]),
        ("cursor", says(200, {"data": [1]}), ["'all' is not in a list of 1"]),
        ("cursor", says(200, {"data": {"all": {}}}), ["at items='data.all' it has no list"]),
        ("cursor", says(200, {"data": {"all": []}}), ["nothing at cursor_field='meta.next'"]),
        (
            "cursor",
            says(200, {"data": {"all": []}, "meta": {"next": ["c"]}}),
            ["at cursor_field='meta.next' it has a list of 1"],
        ),
    ],
)
def test_an_answer_that_cannot_be_read_is_named_by_address_and_page(
    kind: str, answer: Fault, said: list[str], api: Api
) -> None:
    api.always[SECOND_PAGE[kind]] = answer
    with pytest.raises(BadAnswer) as caught:
        read(http_api(api, kind))
    text = str(caught.value)
    assert text.startswith(f"page 2, {api.url}{SECOND_PAGE[kind]}: ")
    assert all(part in text for part in said), text
    assert "What is done is safe" in text or "Is it the address" in text
    assert caught.value.exit_code == 2


def test_the_records_before_a_bad_page_are_good(api: Api) -> None:
    api.always[SECOND_PAGE["page"]] = items({"id": 100}, {})
    with Client(http_api(api)) as client:
        found = records(client)
        assert [next(found)["id"] for _ in range(10)] == list(range(10))
        with pytest.raises(BadAnswer):
            next(found)


@pytest.mark.parametrize(
    ("kind", "second", "third"),
    [
        ("cursor", {"data": {"all": [{"id": 98}]}, "meta": {"next": "c10"}}, None),
        ("urls", {"results": [{"id": 98}], "next": "/urls"}, None),
        (
            "cursor",
            {"data": {"all": [{"id": 98}]}, "meta": {"next": "c20"}},
            {"data": {"all": [{"id": 99}]}, "meta": {"next": "c10"}},
        ),
    ],
    ids=["the same cursor", "back to the first page", "in a circle"],
)
def test_a_cursor_that_does_not_advance_is_an_error(
    kind: str, second: Any, third: Any, api: Api
) -> None:
    if kind == "urls":
        second["next"] = f"{api.url}/urls"
    api.always[SECOND_PAGE[kind]] = says(200, second)
    if third is not None:
        api.always[SECOND_PAGE[kind].replace("c10", "c20")] = says(200, third)
    with pytest.raises(BadAnswer, match=r"names as the next page one that was read already") as e:
        read(http_api(api, kind))
    assert str(e.value).startswith(f"page {2 if third is None else 3}, {api.url}/{kind}?")
    assert len(api.asked) == (2 if third is None else 3)


def test_pages_that_are_all_the_same_are_an_error(api: Api) -> None:
    api.always["/page"] = items({"id": 1}, {"id": 2})
    with pytest.raises(BadAnswer, match=r"^page 3, .* has the same items as the 2 pages before"):
        read(http_api(api))
    assert len(api.asked) == 3


def test_a_page_that_comes_twice_because_the_data_moved_is_none(api: Api) -> None:
    def ten_more(path: str) -> None:
        if "page=2" in path:
            api.records = [{"id": i} for i in range(100, 110)] + api.records

    api.before = ten_more
    found = read(http_api(api))
    assert found == [*range(10), *range(10), *range(10, 35)]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{other}/link?after=c10",
        "https://127.0.0.1:{port}/link?after=c10",
        "http://localhost:{port}/link?after=c10",
        "//other.example/link",
        "http://[bad",
        "http://127.0.0.1:99999999/",
        "file:///etc/passwd",
    ],
)
def test_neither_token_nor_request_goes_to_another_server(
    target: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cret")
    with serving(Api(orders(35))) as other:
        link = f"<{target.format(other=other.port, port=api.port)}>; rel=next"
        api.fail("/link", says(200, [{"id": 1}], link=link))
        with pytest.raises(BadAnswer, match=r"page 1, .*not of the same protocol, host and port"):
            read(http_api(api, "link", token_env="API_TOKEN"))
        assert other.asked == []
        assert len(api.asked) == 1

        api.fail("/page", says(307, location=f"{other.url}/page?page=1"))
        with pytest.raises(ApiRefused, match="moved"):
            read(http_api(api, token_env="API_TOKEN"))
        assert other.asked == []


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ("</a>; rel=next", "/a"),
        ('</a>; rel="prev", </b>; rel="next"', "/b"),
        ('</a>;title="x, </no>; rel=next";rel=prev , </b>;REL="last Next"', "/b"),
        (r'</a>; title="\"; rel=next"; rel=prev', None),
        ('</a,b;c?d="e">; rel="next"', '/a,b;c?d="e"'),
        ("</a>; rel=prev; rel=next", None),  # the first counts
        ('</a>; anchor="#x"; rel=next', None),  # about something else
        ("</a>; rel = next ; type=x", "/a"),
        ("</a>; relation=next, </b>; x-rel=next, </c>; rel=nextish", None),
        ("<>; rel=next", ""),
        ("</a> rel=next", None),
        ("rel=next", None),
        ('</a>; rel="next', None),
        ("", None),
    ],
)
def test_links_are_read_as_the_standard_says(header: str, target: str | None) -> None:
    assert next_link(header) == target


def test_the_token_goes_to_the_api_and_nowhere_else(
    api: Api,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    token = "s3cret-T0ken"
    monkeypatch.setenv("API_TOKEN", f"{token}\n")
    caplog.set_level(logging.DEBUG)
    source = http_api(api, token_env="API_TOKEN")

    def echoes(handler: Any) -> None:
        handler.answer(500, f"not you, {handler.headers['Authorization']}".encode())

    api.fail("/page?page=2", echoes, echoes)
    assert len(read(source, PageCopies(tmp_path / "pages"))) == 35
    assert {each.headers["authorization"] for each in api.asked} == {f"Bearer {token}"}

    texts = [repr(source), caplog.text]
    for status in (500, 403):
        api.always["/page"] = says(status, {"echo": token})
        with pytest.raises((ApiRefused, ApiUnavailable)) as caught:
            read(source)
        assert "***" in str(caught.value)
        texts.append(str(caught.value))
    api.always["/page"] = items({"id": 1}, {f"{token}": 2})
    with pytest.raises(BadAnswer) as bad:
        read(source)
    texts += [str(bad.value), caplog.text]
    with Client(source) as client:
        texts.append(repr(pickle.dumps(client)))
    for path in (tmp_path / "pages").iterdir():
        texts += [path.name, path.read_text()]
    assert len(texts) > 8
    assert not any(token in text for text in texts)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "API_TOKEN is not set"), (" ", "is not set"), ("a b", "cannot be"), ("é", "cannot be")],
)
def test_a_token_that_is_none_is_said_without_showing_it(
    value: str | None, said: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("API_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("API_TOKEN", value)
    with pytest.raises(UsageError, match=said) as caught:
        read(http_api(api, token_env="API_TOKEN"))
    assert value is None or not value.strip() or value not in str(caught.value)
    assert api.asked == []


def test_records_cross_to_another_process_and_fetch_there(api: Api) -> None:
    with Client(http_api(api)) as client:
        several = list(islice(records(client), 5))
    there = pickle.loads(pickle.dumps(several))
    assert there == several
    assert there[0].client is pickle.loads(pickle.dumps(several[4])).client  # one a process
    assert there[0].client is not client
    assert there[0].client.api == client.api
    with there[0].client as other:
        assert other.get(f"{api.url}/detail/3", "detail").json["detail"] == "detail of 3"


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_page_is_not_sent_again_and_its_records_are_there(
    kind: str, api: Api, tmp_path: Path
) -> None:
    copies = PageCopies(tmp_path / "pages")
    assert read(http_api(api, kind), copies) == list(range(35))
    pages = len(api.asked)
    assert api.count("/", 200) == pages

    assert read(http_api(api, kind), copies) == list(range(35))

    assert api.count("/", 304) == pages
    assert len(api.asked) == 2 * pages + 1
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "pages").iterdir()} == {0o600}


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_changed_is_seen(kind: str, api: Api, tmp_path: Path) -> None:
    copies = PageCopies(tmp_path / "pages")
    read(http_api(api, kind), copies)
    api.asked.clear()
    del api.records[12]
    api.records += [{"id": i} for i in range(100, 120)]
    assert read(http_api(api, kind), copies) == [record["id"] for record in api.records]
    assert api.count("/", 304) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_page_of_yesterday_has_a_next_one_today(
    kind: str, api: Api, tmp_path: Path
) -> None:
    """Its items are what they were, and so is its tag; only what it says of a next page is new."""
    api.etags_of_items = True
    api.records = orders(30)
    copies = PageCopies(tmp_path / "pages")
    assert len(read(http_api(api, kind), copies)) == 30
    api.records = orders(45)
    for _ in range(2):
        api.asked.clear()
        assert read(http_api(api, kind), copies) == list(range(45))
    # All are known the second time, and only the last is sent all the same.
    assert api.count("/", 304) == len(api.asked) - 1
    assert api.count("/", 200) == 1


def test_where_an_unchanged_page_says_nothing_of_the_next_it_is_asked_once_and_no_more(
    api: Api, tmp_path: Path
) -> None:
    api.links_on_304 = False
    copies = PageCopies(tmp_path / "pages")
    for _ in range(2):
        api.asked.clear()
        assert read(http_api(api, "link"), copies) == list(range(35))
    assert [each.status for each in api.asked] == [304, 200, 200, 200, 200]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b"order 3", b"order 4"),
        lambda data: data.replace(b"If-None-Match", b"If-None-Watch"),
        lambda data: data + b" ",
        lambda data: b"[]\n" + data,
        lambda data: b"\xff" + data,
    ],
)
def test_a_copy_that_is_damaged_is_no_copy(
    damage: Callable[[bytes], bytes], api: Api, tmp_path: Path
) -> None:
    copies = PageCopies(tmp_path / "pages")
    read(http_api(api), copies)
    for path in (tmp_path / "pages").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    api.asked.clear()
    with Client(http_api(api)) as client:
        assert [dict(record) for record in records(client, copies=copies)] == api.records
    assert 0 < api.count("/", 200) <= 5
    first = next(each for each in api.asked)
    assert "if-none-match" not in first.headers
    assert first.status == 200


def test_copies_that_cannot_be_kept_cost_nothing_but_a_warning(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pages").write_text("a file stands where the folder should")
    for _ in range(2):
        assert read(http_api(api), PageCopies(tmp_path / "pages")) == list(range(35))
    assert caplog.text.count("pages are not kept") == 2  # once a run
    assert api.count("/", 200) == 10


def test_no_more_is_kept_than_the_pages_of_one_reading(api: Api, tmp_path: Path) -> None:
    copies = PageCopies(tmp_path / "pages")
    for day in ("1", "2", "3"):
        read(http_api(api, params={"day": day}), copies)
        assert len(list((tmp_path / "pages").iterdir())) == 5


def test_a_copy_is_never_the_cause_of_an_error_twice(api: Api, tmp_path: Path) -> None:
    """A cursor that has expired stands in a copy of a page that is unchanged all the same."""
    copies = PageCopies(tmp_path / "pages")
    read(http_api(api, "cursor"), copies)
    api.fail(SECOND_PAGE["cursor"], says(410, {"error": "this cursor has expired"}))
    with pytest.raises(ApiRefused, match="expired"):
        read(http_api(api, "cursor"), copies)
    api.asked.clear()
    assert read(http_api(api, "cursor"), copies) == list(range(35))
    assert api.count("/", 200) == 4


def test_a_failing_server_costs_no_copies(api: Api, tmp_path: Path) -> None:
    copies = PageCopies(tmp_path / "pages")
    read(http_api(api), copies)
    api.fail("/page?page=3", *[says(503)] * 6)
    with pytest.raises(ApiUnavailable):
        read(http_api(api), copies)
    api.asked.clear()
    assert read(http_api(api), copies) == list(range(35))
    assert api.count("/", 304) == 5


def test_another_account_is_not_given_the_pages_of_the_first(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = PageCopies(tmp_path / "pages")
    for token in ("first", "second"):
        monkeypatch.setenv("API_TOKEN", token)
        read(http_api(api, token_env="API_TOKEN"), copies)
    read(http_api(api, token_env="API_TOKEN", headers={"Accept-Language": "de"}), copies)
    assert api.count("/", 304) == 0


def test_dates_count_only_if_that_was_asked_for_and_they_are_old_enough(
    api: Api, tmp_path: Path
) -> None:
    api.etags = False
    old, new = http_date(-3_600), http_date(-10)
    for unchanged, dated, requests in (
        ("etag", old, 0),
        ("never", old, 0),
        ("modified", new, 0),  # it may change again within the second
        ("modified", old, 5),
    ):
        api.dated = dated
        copies = PageCopies(tmp_path / f"{unchanged}-{dated}")
        for _ in range(2):
            api.asked.clear()
            assert len(read(http_api(api, unchanged=unchanged), copies)) == 35
        assert api.count("/", 304) == requests, (unchanged, dated)


def test_never_is_never_and_what_must_not_be_kept_is_not(api: Api, tmp_path: Path) -> None:
    read(http_api(api, unchanged="never"), PageCopies(tmp_path / "never"))
    assert not (tmp_path / "never").exists()
    body = json.dumps(api.records[:10]).encode()
    api.fail("/page?page=1", says(200, body, etag='"x"', cache_control="private, No-Store"))
    read(http_api(api), PageCopies(tmp_path / "some"))
    assert len(list((tmp_path / "some").iterdir())) == 4


def test_it_ends_at_once_when_the_run_stops_and_asks_for_nothing_more(api: Api) -> None:
    stop = threading.Event()
    api.fail(SECOND_PAGE["page"], says(503, retry_after="300"))
    with Client(http_api(api)) as client:
        found = records(client, stop=stop)
        threading.Timer(0.3, stop.set).start()
        assert [record["id"] for record in found] == list(range(10))
    assert len(api.asked) == 2


GOOD: dict[str, Any] = {"url": "https://api.example.org/orders", "pagination": "page"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "ftp://x/y"}, "url='ftp://x/y' is no address"),
        ({"url": 5}, "url=5 is no address"),
        ({"url": "https://"}, "is no address"),
        ({"url": "http://x:y/"}, "is no address"),
        ({"url": "https://me:pw@x/"}, "url holds a user or a password"),
        ({"pagination": "offset"}, "pagination='offset' is none of link, cursor, page"),
        ({"pagination": None}, "is none of"),
        ({"items": None}, "items=None"),
        ({"key": ""}, "key='' is no name"),
        ({"key": "record"}, "give a schema"),
        ({"schema": {}}, "schema={} is no mapping"),
        ({"schema": {"a": "text"}}, "schema['a']='text' is none of string, int64"),
        ({"schema": {"id": "float64"}}, "schema['id'] is the key's"),
        ({"detail_url": "https://x/"}, "has no {id} in it"),
        ({"detail_url": "https://x/{id}", "key": "nr"}, "has no {nr} in it"),
        ({"detail_url": "x/{id}"}, "is no address"),
        ({"params": {"a": [1]}}, "params="),
        ({"params": {"page": 2}}, "params has 'page', which is set from page to page"),
        ({"headers": {"AUTHORIZATION": "Bearer sesame"}}, "by token_env"),
        ({"headers": {"X-Api-Key": "sesame"}}, "by token_env"),
        ({"headers": {"a b": "c"}}, "no name of a header"),
        ({"headers": {"a": "b\r\nEvil: 1"}}, "no line of printable ASCII"),
        ({"token_env": "sesame-open"}, "is not the name of an environment variable"),
        ({"token_env": 5}, "is not the name"),
        ({"retries": -1}, "retries=-1 is no whole number from 0"),
        ({"retries": True}, "retries=True"),
        ({"first_page": "1"}, "first_page='1' is no whole number"),
        ({"timeout": 0}, "timeout=0 leaves no time"),
        ({"timeout": float("nan")}, "is no number of seconds"),
        ({"longest_wait": "1"}, "longest_wait='1' is no number of seconds"),
        ({"unchanged": "sometimes"}, "is none of etag, modified, never"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        HttpApi(**{**GOOD, **fields})
    assert said in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_dates_keys_and_versions_are_filled_in() -> None:
    source = HttpApi(
        "https://x/{date}/a?d={date}",
        "page",
        params={"on": "{date}", "n": 5},
        detail_url="https://x/{id}?full=1",
    )
    date = datetime.date(2026, 11, 23)
    filled = source.for_date(date)
    assert (filled.url, filled.params) == (
        "https://x/2026-11-23/a?d=2026-11-23",
        {"on": "2026-11-23", "n": 5},
    )
    assert source.detail_of("a/b ?é") == "https://x/a%2Fb%20%3F%C3%A9?full=1"
    versions = {
        HttpApi(**{**GOOD, **fields}).version
        for fields in (
            {},
            {"url": "https://other.example/orders"},
            {"schema": {"a": "json"}},
            {"schema": {"a": "string"}},
            {"detail_url": "https://x/{id}"},
            {"items": "data"},
        )
    }
    assert len(versions) == 6
    same = ({"url": GOOD["url"] + "?a=1"}, {"params": {"per_page": 9}}, {"retries": 1})
    assert {HttpApi(**{**GOOD, **fields}).version for fields in same} < versions
