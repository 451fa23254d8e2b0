"""`OpenAIBatch` on the real SDK, against a server that counts what was paid."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from resumable_tasks import (
    BadResult,
    Collected,
    Ended,
    ItemFailure,
    NotAccepted,
    NotReady,
    OpenAIBatch,
    Pending,
    QueueFull,
    UsageError,
    resumable_task,
)
from resumable_tasks.runners.batch_apis.refusals import RequestFailed
from tests.batch_apis.conftest import (
    TOKEN,
    by_kind,
    ended,
    openai_request,
    openai_row,
    outcome,
    submitted,
    texts,
)
from tests.batch_apis.server import HIDDEN, BatchServer


def test_rows_come_back_by_their_keys_whatever_the_order(
    server: BatchServer, batch: OpenAIBatch
) -> None:
    items = [{"id": f"k{i}", "text": "x" * i} for i in range(1, 30)]
    handle = submitted(batch, items)
    assert ended(batch, handle) == Ended("completed")
    rows = batch.collect(handle, [item["id"] for item in items])
    assert {row["id"]: row["label"] for row in rows} == {f"k{i}": i for i in range(1, 30)}
    assert batch.collect(handle, [item["id"] for item in items]) == rows
    assert server.paid() == {"x" * i: 1 for i in range(1, 30)}


def test_no_key_leaves_the_house(server: BatchServer, batch: OpenAIBatch) -> None:
    submitted(batch, [{"id": "secret@example.org", "text": "a"}])
    (made,) = server.batches()
    assert made["ids"] == [f"{TOKEN}-0"]
    assert made["metadata"] == {"token": TOKEN}


def test_kinds_of_lines(server: BatchServer, batch: OpenAIBatch) -> None:
    """A refused item and a bad answer fail alone; 429 and 500 say nothing of the item."""
    items = texts(8, _1="REFUSED", _2="NONSENSE", _3="BUSY", _4="BROKEN")
    assert outcome(batch, items) == ([0, 5, 6, 7], [1, 2], [], [3, 4])


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ({"fate": "expired", "done": 0.3}, ([0, 1, 2], [], [3, 4, 5, 6, 7, 8, 9], [])),
        ({"fate": "cancelled", "done": 0.3}, ([0, 1, 2], [], [3, 4, 5, 6, 7, 8, 9], [])),
        ({"fate": "expired", "done": 0.0}, ([], [], list(range(10)), [])),
        ({"fate": "lines_missing", "done": 0.5}, ([0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9], [])),
        ({"fate": "status_0", "done": 0.5}, ([0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9], [])),
        ({"fate": "unauthorized", "done": 0.5}, ([0, 1, 2, 3, 4], [], [], [5, 6, 7, 8, 9])),
        (
            {
                "fate": "failed",
                "errors": [{"code": "invalid_json_line", "message": "no", "line": 3}],
            },
            ([], [2], [0, 1, 3, 4, 5, 6, 7, 8, 9], []),
        ),
    ],
    ids=lambda value: value["fate"] if isinstance(value, dict) else "",
)
def test_what_is_done_is_collected_however_it_ended(
    server: BatchServer, batch: OpenAIBatch, fate: dict[str, Any], expected: Any
) -> None:
    server.script(next=[fate])
    assert outcome(batch, texts(10)) == expected
    assert len(server.paid()) == len(expected[0])


def test_errors_file_only(server: BatchServer, batch: OpenAIBatch) -> None:
    assert outcome(batch, [{"id": i, "text": f"REFUSED {i}"} for i in range(5)]) == (
        *([], [0, 1, 2, 3, 4], [], []),
    )


def test_no_funds_is_no_fault_of_the_items(server: BatchServer, batch: OpenAIBatch) -> None:
    server.script(funds=4)
    assert outcome(batch, texts(10)) == ([0, 1, 2, 3], [], [], [4, 5, 6, 7, 8, 9])
    assert len(server.paid()) == 4


@pytest.mark.parametrize("fate", ["no_files", "empty_ids"])
def test_paid_results_that_are_not_served_are_waited_for(
    server: BatchServer, batch: OpenAIBatch, fate: str
) -> None:
    server.script(next=[{"fate": fate}])
    handle = submitted(batch, texts(3))
    ended(batch, handle)
    with pytest.raises(NotReady, match="its results are not there"):
        batch.collect(handle, [0, 1, 2])


def test_a_batch_that_failed_whole(server: BatchServer, batch: OpenAIBatch) -> None:
    def fails_with(code: str, message: str = "no") -> NotAccepted:
        told = {"code": code, "message": message, "line": None}
        server.script(next=[{"fate": "failed", "errors": [told]}])
        handle = submitted(batch, texts(3), token=f"t{time.monotonic_ns()}")
        ended(batch, handle)
        with pytest.raises(NotAccepted) as caught:
            batch.collect(handle, [0, 1, 2])
        return caught.value

    assert not fails_with("mismatched_model").again
    assert fails_with("billing_hard_limit_reached").again
    assert fails_with("file_not_found", "the input file was deleted").again
    assert isinstance(fails_with("token_limit_exceeded"), QueueFull)
    assert server.paid() == {}


def test_the_queue_of_the_account_is_full(server: BatchServer, batch: OpenAIBatch) -> None:
    server.script(queue=5, takes=60)
    submitted(batch, texts(4))
    handle = submitted(batch, texts(4), token="other")
    assert batch.poll(handle) == Ended("failed")
    with pytest.raises(QueueFull, match="Enqueued token limit"):
        batch.collect(handle, [0, 1, 2, 3])


# --- the moments around `create`


def test_a_lost_answer_to_create_is_not_repeated_and_is_found(
    server: BatchServer, batch: OpenAIBatch
) -> None:
    items = texts(5)
    prepared = batch.prepare(items, TOKEN)
    server.trouble("create", "lose", times=1)
    with pytest.raises(openai.APIConnectionError):
        batch.submit(items, TOKEN, prepared)
    handle = batch.find(TOKEN, prepared)
    assert server.calls()["create"] == 1  # with the SDK's own retries it is 2
    assert handle is not None
    ended(batch, handle)
    assert len(batch.collect(handle, list(range(5)))) == 5
    assert set(server.paid().values()) == {1}


def test_the_sdk_itself_would_have_paid_twice(server: BatchServer, batch: OpenAIBatch) -> None:
    """Why `submit` switches its retries off: else nothing shows that they matter."""
    client = openai.OpenAI(base_url=server.openai)
    prepared = batch.prepare(texts(5), TOKEN)
    server.trouble("create", "lose", times=1)
    client.batches.create(
        input_file_id=prepared["file"],
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    assert server.calls()["create"] == 2
    assert set(server.paid().values()) == {2}


@pytest.mark.parametrize("what", ["lose", "drop", "refuse", "refuse_late"])
def test_what_may_have_been_carried_out_is_unknown(
    server: BatchServer, batch: OpenAIBatch, what: str
) -> None:
    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    server.trouble("create", what, times=1, status=500)
    with pytest.raises(openai.OpenAIError):
        batch.submit(items, TOKEN, prepared)
    assert (batch.find(TOKEN, prepared) is not None) == (what in ("lose", "refuse_late"))
    assert server.calls()["create"] == 1


@pytest.mark.parametrize(
    ("status", "message", "kind", "again"),
    [
        (400, "unknown parameter", NotAccepted, False),
        (401, "invalid key", NotAccepted, True),
        (403, "no access", NotAccepted, True),
        (429, "too many", NotAccepted, True),
        (429, "the batch queue is full", QueueFull, True),
        (429, "You exceeded your current quota", NotAccepted, True),
        (400, "credit balance is too low", NotAccepted, True),
    ],
)
def test_what_was_certainly_not_begun(
    server: BatchServer, batch: OpenAIBatch, status: int, message: str, kind: Any, again: bool
) -> None:
    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    body = {"error": {"message": message, "type": "t", "code": "c"}}
    server.trouble(
        *("create", "refuse"), times=1, status=status, body=body, headers={"Retry-After": "7"}
    )
    with pytest.raises(NotAccepted) as caught:
        batch.submit(items, TOKEN, prepared)
    assert type(caught.value) is kind
    assert caught.value.again is again
    if status == 429 and "quota" not in message:
        assert caught.value.retry_after == 7
    assert server.batches() == []


def test_the_fence_stops_a_create_that_comes_late(server: BatchServer, batch: OpenAIBatch) -> None:
    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    batch.fence(TOKEN, prepared)
    batch.fence(TOKEN, prepared)
    with pytest.raises(NotAccepted) as caught:
        batch.submit(items, TOKEN, prepared)
    assert caught.value.again
    assert batch.find(TOKEN, prepared) is None
    assert server.batches() == []


def test_a_listing_that_lags(server: BatchServer, batch: OpenAIBatch) -> None:
    server.script(listing_lag=HIDDEN)
    items = texts(3)
    prepared = batch.prepare(items, TOKEN)
    batch.submit(items, TOKEN, prepared)
    assert batch.find(TOKEN, prepared) is None
    server.script(listing_lag=0)
    assert batch.find(TOKEN, prepared) is not None


def test_it_is_found_behind_many_others(server: BatchServer, batch: OpenAIBatch) -> None:
    """More than a page of them, newer ones."""
    items = texts(1)
    prepared = batch.prepare(items, TOKEN)
    handle = batch.submit(items, TOKEN, prepared)
    client = openai.OpenAI(base_url=server.openai)
    for _ in range(130):
        client.batches.create(
            input_file_id=batch.prepare(items, "other")["file"],
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
    assert batch.find(TOKEN, prepared) == handle
    assert server.calls()["list"] == 2
    # What is older than the upload by an hour cannot be it: nobody reads on.
    assert batch.find("nothing", {**prepared, "file": "", "uploaded": time.time() + 7200}) is None
    assert server.calls()["list"] == 3


def test_without_the_metadata_it_is_found_by_its_file(
    server: BatchServer, batch: OpenAIBatch
) -> None:
    prepared = batch.prepare(texts(2), TOKEN)
    made = openai.OpenAI(base_url=server.openai).batches.create(
        input_file_id=prepared["file"],
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    assert batch.find(TOKEN, prepared)["batch"] == made.id
    assert batch.find(TOKEN, None) is None


# --- polling and collecting


def test_404_soon_after_creation_is_not_yet(server: BatchServer, batch: OpenAIBatch) -> None:
    server.script(unknown_for=HIDDEN, results_lag=HIDDEN)
    handle = submitted(batch, texts(2))
    with pytest.raises(NotReady, match="not known yet"):
        batch.poll(handle)
    with pytest.raises(NotReady):
        batch.collect(handle, [0, 1])
    server.script(unknown_for=0)
    assert ended(batch, handle) == Ended("completed")
    with pytest.raises(NotReady, match="not there yet"):
        batch.collect(handle, [0, 1])
    server.script(results_lag=0)
    assert len(batch.collect(handle, [0, 1])) == 2


def test_what_runs_is_pending(server: BatchServer, batch: OpenAIBatch) -> None:
    server.script(takes=60)
    handle = submitted(batch, texts(4))
    assert batch.poll(handle) == Pending("0 of 4")
    with pytest.raises(NotReady, match="in_progress"):
        batch.collect(handle, [0, 1, 2, 3])


def test_cancelled_by_us(server: BatchServer, batch: OpenAIBatch) -> None:
    server.script(takes=60)
    handle = submitted(batch, texts(4))
    batch.cancel(handle)
    assert ended(batch, handle) == Ended("cancelled")
    assert by_kind(batch.collect(handle, [0, 1, 2, 3])) == ([], [], [0, 1, 2, 3], [])
    batch.cancel(handle)  # as it has ended, that is so already


@pytest.mark.parametrize("operation", ["retrieve", "list", "content"])
def test_errors_that_pass_are_raised_as_they_are(server: BatchServer, operation: str) -> None:
    client = openai.OpenAI(base_url=server.openai, max_retries=0)
    batch = OpenAIBatch(openai_request, openai_row, client=client)
    items = texts(2)
    prepared = batch.prepare(items, TOKEN)
    handle = batch.submit(items, TOKEN, prepared)
    ended(batch, handle)
    for what, status, expected in (
        ("refuse", 500, openai.InternalServerError),
        ("refuse", 429, openai.RateLimitError),
        ("drop", 0, openai.APIConnectionError),
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


def test_results_that_are_cut_off_are_asked_for_again(batch: OpenAIBatch) -> None:
    from resumable_tasks.runners.batch_apis.answers import parsed

    with pytest.raises(NotReady, match="not JSON"):
        parsed(b'{"custom_id": "a-0", "respo', "batch_1")


def test_lines_end_at_newlines_only() -> None:
    """U+2028 may stand in JSON as it is, and ends a line for ``str.splitlines``."""
    from resumable_tasks.runners.batch_apis.shared import json_lines

    text = json.dumps({"a": "x\u2028y\x85z"}, ensure_ascii=False).encode()
    whole = text + b"\r\n\n" + text
    for size in (1, 3, 1000):
        chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert list(json_lines(chunks)) == [text, text]


# --- the program's own functions


def test_a_row_that_raises_fails_its_item(server: BatchServer) -> None:
    def row(key: Any, answer: Any) -> Any:
        if key == 3:
            raise KeyError("label")
        return openai_row(key, answer)

    batch = OpenAIBatch(openai_request, row, base_url=server.openai)
    assert outcome(batch, texts(10)) == ([0, 1, 2, 4, 5, 6, 7, 8, 9], [3], [], [])


def test_a_bug_in_row_throws_no_answer_away(server: BatchServer) -> None:
    def broken(key: Any, answer: Any) -> Any:
        if key > 3:
            raise KeyError("label")
        return openai_row(key, answer)

    batch = OpenAIBatch(openai_request, broken, base_url=server.openai)
    handle = submitted(batch, texts(10))
    ended(batch, handle)
    with pytest.raises(KeyError) as caught:
        batch.collect(handle, list(range(10)))
    assert "row() failed for 6 of 10 answers" in caught.value.__notes__[0]
    mended = OpenAIBatch(openai_request, openai_row, base_url=server.openai)
    assert len(mended.collect(handle, list(range(10)))) == 10


def test_bad_answers_may_be_most(server: BatchServer, batch: OpenAIBatch) -> None:
    items = [{"id": i, "text": f"NONSENSE {i}"} for i in range(4)]
    handle = submitted(batch, items)
    ended(batch, handle)
    results = batch.collect(handle, [0, 1, 2, 3])
    assert all(isinstance(each.error, BadResult) for each in results)


@pytest.mark.parametrize("made", [None, []])
def test_a_row_that_is_nothing_is_a_failure(server: BatchServer, made: Any) -> None:
    """Taken for "left out" it would be asked, and paid, again."""
    batch = OpenAIBatch(openai_request, lambda key, answer: made, base_url=server.openai)
    assert outcome(batch, texts(2)) == ([], [0, 1], [], [])


def test_a_request_that_cannot_be_made_fails_alone(server: BatchServer) -> None:
    def request(item: Any) -> Any:
        if item["id"] == 1:
            return {"model": "m", "messages": [{"role": "user", "content": object()}]}
        return openai_request(item) if item["id"] != 4 else None

    batch = OpenAIBatch(request, openai_row, base_url=server.openai)
    items = texts(7, _2="REFUSED")
    handle = submitted(batch, items)
    ended(batch, handle)
    results = batch.collect(handle, list(range(7)))
    assert by_kind(results) == ([0, 3, 5, 6], [1, 2, 4], [], [])
    why = {each.key: str(each.error) for each in results if isinstance(each, ItemFailure)}
    assert "not JSON serializable" in why[1]
    assert "request() returned None" in why[4]
    found = batch.find(TOKEN, {**handle, "file": "", "uploaded": 0})
    assert found == handle


def test_lines_that_are_named_count_only_what_was_sent(server: BatchServer) -> None:
    def request(item: Any) -> Any:
        return None if item["id"] == 1 else openai_request(item)

    told = {"code": "invalid", "message": "no", "line": 3}
    server.script(next=[{"fate": "failed", "errors": [told]}])
    batch = OpenAIBatch(request, openai_row, base_url=server.openai)
    assert outcome(batch, texts(5)) == ([], [1, 3], [0, 2, 4], [])


def test_a_bug_in_request_sends_nothing(server: BatchServer) -> None:
    batch = OpenAIBatch(lambda item: item["no"], openai_row, base_url=server.openai)
    with pytest.raises(KeyError):
        batch.prepare(texts(5), TOKEN)
    assert server.calls() == {}


def test_several_items_a_request(server: BatchServer) -> None:
    def row(keys: Any, answer: Any) -> Any:
        rows = openai_row(keys, answer)
        return [row for row in rows if row["id"] != 7]

    batch = OpenAIBatch(openai_request, row, base_url=server.openai, per_request=4)
    assert batch.max_items == 200_000
    assert outcome(batch, texts(11, _9="REFUSED")) == ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [], [])
    assert [each["requests"] for each in server.batches()] == [3]
    other = OpenAIBatch(openai_request, row, base_url=server.openai, per_request=5)
    with pytest.raises(UsageError, match="per_request=4"):
        other.collect({"batch": server.batches()[0]["id"], "per": 4}, list(range(11)))


def test_keys_that_a_model_makes_up(server: BatchServer) -> None:
    """Its answer is of no item: the one that it has left out fails, and no other."""

    def row(keys: Any, answer: Any) -> Any:
        rows = openai_row(keys, answer)
        return [row | {"id": 99} if row["id"] == 1 else row for row in rows]

    batch = OpenAIBatch(openai_request, row, base_url=server.openai, per_request=3)
    done, failed, *_ = outcome(batch, texts(6))
    assert (done, failed) == ([0, 2, 3, 4, 5], [1])


def test_keys_of_another_kind_are_a_bug_and_no_failure_of_the_items(server: BatchServer) -> None:
    def row(keys: Any, answer: Any) -> Any:
        return [row | {"id": f"no {row['id']}"} for row in openai_row(keys, answer)]

    batch = OpenAIBatch(openai_request, row, base_url=server.openai, per_request=3)
    with pytest.raises(BadResult, match="none of the keys given to row") as error:
        outcome(batch, texts(6))
    assert "They stay with the provider" in error.value.__notes__[0]


def test_the_batch_of_somebody_else(server: BatchServer, batch: OpenAIBatch) -> None:
    handle = submitted(batch, texts(3))
    ended(batch, handle)
    with pytest.raises(UsageError, match="no line of this batch belongs to the submission"):
        batch.collect({**handle, "token": "other"}, [0, 1, 2])


def test_a_handle_that_a_person_has_attached(server: BatchServer, batch: OpenAIBatch) -> None:
    handle = submitted(batch, texts(3))
    ended(batch, handle)
    assert len(batch.collect(handle["batch"], [0, 1, 2])) == 3
    with pytest.raises(UsageError, match="names no batch"):
        batch.poll({"id": 7})


def test_too_many_bytes(batch: OpenAIBatch, server: BatchServer) -> None:
    batch.max_bytes = 1000
    with pytest.raises(NotAccepted, match=r"smaller batch_size, such as \d+") as caught:
        batch.prepare(texts(10), TOKEN)
    assert not caught.value.again
    assert server.calls() == {}


def test_prices(server: BatchServer) -> None:
    batch = OpenAIBatch(openai_request, openai_row, base_url=server.openai, prices=(2.0, 10.0))
    items = [{"id": i, "text": "x" * 400} for i in range(10)]
    assert batch.price(items) == pytest.approx(10 * 0.5 * (120 * 2 + 500 * 10) / 1e6, rel=0.1)
    handle = submitted(batch, items)
    ended(batch, handle)
    found = batch.collect(handle, list(range(10)))
    assert isinstance(found, Collected)
    assert found.cost == pytest.approx(10 * 0.5 * (10 * 2 + 2 * 10) / 1e6)
    # Learnt: 10 tokens in and 2 out.
    assert batch.price(items) == pytest.approx(found.cost)
    assert not hasattr(OpenAIBatch(openai_request, openai_row, base_url="http://x"), "price")


def test_other_endpoints(server: BatchServer) -> None:
    embed = OpenAIBatch(
        lambda items: {"model": "text-embedding-3-small", "input": [i["text"] for i in items]},
        lambda keys, answer: [
            {"id": key, "vector": each["embedding"]}
            for key, each in zip(keys, answer["data"], strict=True)
        ],
        base_url=server.openai,
        per_request=3,
        endpoint="/v1/embeddings",
        prices=(1.0, 0.0),
    )
    assert embed.max_items == 50_000
    handle = submitted(embed, texts(7))
    ended(embed, handle)
    assert by_kind(embed.collect(handle, list(range(7))).results)[0] == list(range(7))
    answer = OpenAIBatch(
        lambda item: {"model": "m", "input": item["text"]},
        lambda key, answer: {"id": key, "said": answer["output"][0]["content"][0]["text"]},
        base_url=server.openai,
        endpoint="/v1/responses",
    )
    assert outcome(answer, texts(3))[0] == [0, 1, 2]


# --- the plain call


def test_the_same_object_asks_at_full_price(
    server: BatchServer, batch: OpenAIBatch, tmp_path: Path
) -> None:
    job = resumable_task(batch.__call__, name="plain", key="id", batch_size=4, tolerated_failures=1)
    run = job.run(texts(10, _3="REFUSED"), checkpoint=tmp_path)
    assert (run.completed, run.failed) == (9, 1)
    assert server.full_price() == {f"text {i}": 1 for i in range(10) if i != 3}
    assert server.paid() == {}


def test_a_service_that_fails_in_the_middle_costs_no_answer(
    server: BatchServer, batch: OpenAIBatch, tmp_path: Path
) -> None:
    server.trouble("call", "refuse", skip=3, times=2, status=503)
    job = resumable_task(batch.__call__, name="plain", key="id", batch_size=8, retries=3)
    assert job.run(texts(8), checkpoint=tmp_path).completed == 8
    assert set(server.full_price().values()) == {1}
    assert len(server.full_price()) == 8


# --- what is refused before anything is sent


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"row": 7}, "row=7 is not a function"),
        ({"per_request": 0}, "per_request=0"),
        ({"prices": 3}, "is not a pair of prices"),
        ({"prices": (-1, 2)}, "is not a pair of prices"),
        ({"endpoint": "/chat"}, "endpoint='/chat'"),
        ({"client": openai.AsyncOpenAI(api_key="k")}, "is asynchronous"),
        ({"client": openai.OpenAI(api_key="k"), "base_url": "http://x"}, "client= and base_url="),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_refused(given: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"request": openai_request, "row": openai_row} | given
    with pytest.raises(UsageError) as caught:
        OpenAIBatch(**arguments)
    assert says in str(caught.value)


def test_no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    batch = OpenAIBatch(openai_request, openai_row)
    with pytest.raises(UsageError, match="Set OPENAI_API_KEY"):
        batch.prepare(texts(1), TOKEN)


def test_what_the_provider_refused_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RequestFailed("400: no", status_code=400, code="c")))
    assert (error.status_code, error.code, str(error)) == (400, "c", "400: no")
