"""`AnthropicBatch` on the real SDK, against a server that counts what was paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    AnthropicBatch,
    CannotTell,
    Collected,
    Ended,
    NotAccepted,
    NotReady,
    Pending,
    QueueFull,
    UsageError,
    resumable_task,
)
from tests.batch_apis.conftest import (
    TOKEN,
    anthropic_request,
    anthropic_row,
    by_kind,
    ended,
    outcome,
    submitted,
    texts,
)
from tests.batch_apis.server import HIDDEN, BatchServer

# Its SDK takes seconds to import: one worker does so, when it comes to these tests.
pytestmark = pytest.mark.xdist_group("anthropic")


def another(server: BatchServer, **more: Any) -> AnthropicBatch:
    """As another process would make it."""
    return AnthropicBatch(anthropic_request, anthropic_row, base_url=server.anthropic, **more)


@pytest.fixture
def batch(server: BatchServer) -> AnthropicBatch:
    return another(server)


def test_rows_come_back_by_their_keys_whatever_the_order(
    server: BatchServer, batch: AnthropicBatch
) -> None:
    items = [{"id": f"k{i}", "text": "x" * i} for i in range(1, 30)]
    handle = submitted(batch, items)
    assert ended(batch, handle) == Ended("ended")
    rows = batch.collect(handle, [item["id"] for item in items])
    assert {row["id"]: row["label"] for row in rows} == {f"k{i}": i for i in range(1, 30)}
    assert another(server).collect(handle, [item["id"] for item in items]) == rows
    assert server.paid() == {"x" * i: 1 for i in range(1, 30)}
    assert server.batches()[0]["ids"] == [f"{TOKEN}-{i}" for i in range(29)]


def test_kinds_of_lines(server: BatchServer, batch: AnthropicBatch) -> None:
    items = texts(8, _1="REFUSED", _2="NONSENSE", _3="BUSY", _4="BROKEN")
    assert outcome(batch, items) == ([0, 5, 6, 7], [1, 2], [], [3, 4])


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ({"fate": "expired", "done": 0.3}, ([0, 1, 2], [], [3, 4, 5, 6, 7, 8, 9], [])),
        ({"fate": "cancelled", "done": 0.3}, ([0, 1, 2], [], [3, 4, 5, 6, 7, 8, 9], [])),
        ({"fate": "expired", "done": 0.0}, ([], [], list(range(10)), [])),
        ({"fate": "lines_missing", "done": 0.5}, ([0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9], [])),
        ({"fate": "unauthorized", "done": 0.5}, ([0, 1, 2, 3, 4], [], [], [5, 6, 7, 8, 9])),
    ],
    ids=lambda value: value["fate"] if isinstance(value, dict) else "",
)
def test_what_is_done_is_collected_however_it_ended(
    server: BatchServer, batch: AnthropicBatch, fate: dict[str, Any], expected: Any
) -> None:
    server.script(next=[fate])
    assert outcome(batch, texts(10)) == expected
    assert len(server.paid()) == len(expected[0])


def test_no_funds_is_no_fault_of_the_items(server: BatchServer, batch: AnthropicBatch) -> None:
    """They come as invalid_request_error, as a bad item would: the message tells."""
    server.script(funds=4)
    assert outcome(batch, texts(10)) == ([0, 1, 2, 3], [], [], [4, 5, 6, 7, 8, 9])
    assert len(server.paid()) == 4


def test_paid_results_that_are_not_served_are_waited_for(
    server: BatchServer, batch: AnthropicBatch
) -> None:
    server.script(next=[{"fate": "no_files"}])
    handle = submitted(batch, texts(3))
    ended(batch, handle)
    with pytest.raises(NotReady, match="its results are not there"):
        batch.collect(handle, [0, 1, 2])


def test_the_queue_of_the_account_is_full(server: BatchServer, batch: AnthropicBatch) -> None:
    server.script(queue=5, takes=60)
    submitted(batch, texts(4))
    with pytest.raises(QueueFull, match="queue is full"):
        submitted(batch, texts(4), token="other")
    assert len(server.batches()) == 1


# --- the moments around `create`


def test_a_lost_answer_to_create_is_not_repeated_and_is_found(
    server: BatchServer, batch: AnthropicBatch
) -> None:
    import anthropic

    items = texts(5)
    server.script(takes=None)
    earlier = submitted(batch, items, token="earlier")
    prepared = batch.prepare(items, TOKEN)
    server.trouble("create", "lose", times=1)
    with pytest.raises(anthropic.APIConnectionError):
        batch.submit(items, TOKEN, prepared)
    assert server.calls()["create"] == 2  # with the SDK's own retries it is 3
    with pytest.raises(CannotTell, match="may be submission"):
        batch.find(TOKEN, prepared)
    server.finish()
    handle = batch.find(TOKEN, prepared)
    assert handle is not None
    assert handle["batch"] == server.batches()[1]["id"]
    assert another(server).find(TOKEN, prepared) == handle
    found = another(server).find("earlier", prepared)
    assert found is not None
    assert found["batch"] == earlier["batch"]
    assert by_kind(batch.collect(handle, list(range(5))))[0] == list(range(5))
    assert set(server.paid().values()) == {2}  # the earlier one and this


def test_the_sdk_itself_would_have_paid_twice(server: BatchServer) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=server.anthropic)
    server.trouble("create", "lose", times=1)
    request: Any = {"custom_id": "a-0", "params": anthropic_request({"text": "a"})}
    client.messages.batches.create(requests=[request])
    assert server.calls()["create"] == 2
    assert server.paid() == {"a": 2}


def test_others_that_run_are_no_reason_to_wait_if_they_are_known(
    server: BatchServer, batch: AnthropicBatch
) -> None:
    """Ten batches of one size are out; one that was not sent is not looked for in the others."""
    server.script(takes=60)
    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    others = [submitted(batch, items, token=f"other{i}") for i in range(3)]
    submitted(batch, texts(4), token="of another size")
    assert batch.find(TOKEN, prepared) is None
    fresh = another(server)
    with pytest.raises(CannotTell):
        fresh.find(TOKEN, prepared)
    for handle in others:
        assert fresh.poll(handle) == Pending("in progress")
    assert fresh.find(TOKEN, prepared) is None


def test_what_is_older_than_the_intent_is_not_looked_at(
    server: BatchServer, batch: AnthropicBatch
) -> None:
    submitted(batch, texts(3), token="old")
    prepared = batch.prepare(texts(3), TOKEN)
    assert "after" in prepared
    later = prepared | {"after": "2999-01-01T00:00:00+00:00"}
    fresh, before = another(server), server.calls()
    assert fresh.find(TOKEN, later) is None
    assert server.calls().get("content", 0) == before.get("content", 0)
    assert fresh.find(TOKEN, None) is None


def test_results_that_lag_are_no_proof(server: BatchServer, batch: AnthropicBatch) -> None:
    server.script(results_lag=HIDDEN)
    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    handle = batch.submit(items, TOKEN, prepared)
    ended(batch, handle)
    fresh = another(server)
    with pytest.raises(CannotTell):
        fresh.find(TOKEN, prepared)
    with pytest.raises(NotReady, match="not there yet"):
        batch.collect(handle, [0, 1, 2])
    server.script(results_lag=0)
    assert fresh.find(TOKEN, prepared) == handle
    assert len(batch.collect(handle, [0, 1, 2])) == 3


def test_it_is_found_behind_more_than_a_page_of_others(
    server: BatchServer, batch: AnthropicBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = texts(1)
    prepared = batch.prepare(items, TOKEN)
    handle = batch.submit(items, TOKEN, prepared)
    batches = batch._client.messages.batches
    listing = batches.list
    for i in range(25):
        batch.submit(texts(2), f"o{i}", prepared | {"count": 2})
    ended(batch, handle)
    monkeypatch.setattr(batches, "list", lambda limit: listing(limit=10))
    assert batch.find(TOKEN, prepared) == handle


@pytest.mark.parametrize(
    ("status", "kind", "again"),
    [(400, NotAccepted, False), (401, NotAccepted, True), (413, NotAccepted, False)],
)
def test_what_was_certainly_not_begun(
    server: BatchServer, batch: AnthropicBatch, status: int, kind: Any, again: bool
) -> None:
    server.trouble("create", "refuse", times=1, status=status)
    with pytest.raises(NotAccepted) as caught:
        submitted(batch, texts(3))
    assert type(caught.value) is kind
    assert caught.value.again is again
    assert server.batches() == []


@pytest.mark.parametrize("what", ["drop", "refuse", "refuse_late"])
def test_what_may_have_been_carried_out_is_unknown(
    server: BatchServer, batch: AnthropicBatch, what: str
) -> None:
    import anthropic

    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    server.trouble("create", what, times=1, status=529)
    with pytest.raises(anthropic.AnthropicError):
        batch.submit(items, TOKEN, prepared)
    server.finish()
    assert (batch.find(TOKEN, prepared) is not None) == (what == "refuse_late")
    assert server.calls()["create"] == 1


def test_a_request_that_changes_its_mind(server: BatchServer) -> None:
    """If its requests are made again when they are sent, their number finds the batch."""
    made = []

    def request(item: Any) -> Any:
        made.append(item)
        return None if len(made) == 2 else anthropic_request(item)

    batch, items = AnthropicBatch(request, anthropic_row, base_url=server.anthropic), texts(4)
    prepared = batch.prepare(items, TOKEN)
    batch._prepared.clear()
    with pytest.raises(UsageError, match="made 3 requests from the same items before, and 4 now"):
        batch.submit(items, TOKEN, prepared)
    assert server.batches() == []


def test_a_request_is_made_once(server: BatchServer) -> None:
    """And what is prepared and never sent is not kept for ever."""
    made = []

    def request(item: Any) -> Any:
        made.append(item)
        return anthropic_request(item)

    batch = AnthropicBatch(request, anthropic_row, base_url=server.anthropic)
    submitted(batch, texts(4))
    assert len(made) == 4
    for n in range(30):
        batch.prepare(texts(1), f"t{n}")
    assert len(batch._prepared) == 8


# --- polling and collecting


def test_404_soon_after_creation_is_not_yet(server: BatchServer, batch: AnthropicBatch) -> None:
    server.script(unknown_for=HIDDEN)
    handle = submitted(batch, texts(2))
    with pytest.raises(NotReady, match="not known yet"):
        batch.poll(handle)
    server.script(unknown_for=0)
    assert ended(batch, handle) == Ended("ended")


def test_cancelled_by_us(server: BatchServer, batch: AnthropicBatch) -> None:
    server.script(takes=60)
    handle = submitted(batch, texts(4))
    with pytest.raises(NotReady, match="in_progress"):
        batch.collect(handle, [0, 1, 2, 3])
    batch.cancel(handle)
    ended(batch, handle)
    assert by_kind(batch.collect(handle, [0, 1, 2, 3])) == ([], [], [0, 1, 2, 3], [])
    batch.cancel(handle)


@pytest.mark.parametrize("operation", ["retrieve", "list", "content"])
def test_errors_that_pass_are_raised_as_they_are(server: BatchServer, operation: str) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=server.anthropic, max_retries=0)
    batch = AnthropicBatch(anthropic_request, anthropic_row, client=client)
    items = texts(2)
    prepared = batch.prepare(items, TOKEN)
    handle = batch.submit(items, TOKEN, prepared)
    ended(batch, handle)
    for what, status, expected in (
        ("refuse", 500, anthropic.InternalServerError),
        ("refuse", 429, anthropic.RateLimitError),
        ("drop", 0, anthropic.APIConnectionError),
    ):
        server.trouble(operation, what, times=1, status=status)
        with pytest.raises(expected):
            {
                "retrieve": lambda: batch.poll(handle),
                "list": lambda: batch.find(TOKEN, prepared),
                "content": lambda: batch.collect(handle, [0, 1]),
            }[operation]()
        server.calm()
    assert len(batch.collect(handle, [0, 1])) == 2


def test_several_items_a_request_and_prices(server: BatchServer) -> None:
    batch = another(server, per_request=4, prices=(1.0, 5.0))
    assert batch.max_items == 400_000
    items = texts(10)
    assert batch.price(items) == pytest.approx(3 * 0.5 * (40 + 50 * 5) / 1e6, rel=0.2)
    handle = submitted(batch, items)
    ended(batch, handle)
    found = batch.collect(handle, list(range(10)))
    assert isinstance(found, Collected)
    assert by_kind(found.results)[0] == list(range(10))
    assert found.cost == pytest.approx(3 * 0.5 * (10 * 1 + 2 * 5) / 1e6)
    assert batch.price(items) == pytest.approx(found.cost)


def test_the_same_object_asks_at_full_price(
    server: BatchServer, batch: AnthropicBatch, tmp_path: Path
) -> None:
    job = resumable_task(batch.__call__, name="plain", key="id", batch_size=4)
    assert job.run(texts(10), checkpoint=tmp_path).completed == 10
    assert server.full_price() == {f"text {i}": 1 for i in range(10)}
    assert server.paid() == {}


def test_the_sdk_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        AnthropicBatch(anthropic_request, anthropic_row)
    assert 'pip install "resumable-tasks[anthropic]"' in str(caught.value)
