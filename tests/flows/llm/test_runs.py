"""Whole runs: killed, throttled, locked out, cut off, out of budget; each goes on where it was.

What was asked and paid for is counted by the server.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointMismatch, ResumableTasksError
from tests import warm
from tests.flows.llm.conftest import COST_OF_A_TEXT, Job
from tests.flows.llm.script import BAD, Rule
from tests.flows.llm.server import KEY, Llm

CONCURRENCY = 4
# What may be out when a run is killed: requests at the server, and answers not yet committed.
OUT = 2 * CONCURRENCY
KILLS = 4
MANY = ("--concurrency", str(CONCURRENCY), "--local")


def wait_until(holds: Any, process: warm.Program | None = None) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert process is None or process.poll() is None, "it has ended"
        assert time.monotonic() < until, "it does not get on"
        time.sleep(0.005)


def kill_after(calls: int, job: Job, background: list[warm.Program]) -> None:
    """Run until the server was asked so often, and SIGKILL."""
    job.llm.hold(calls)
    process = job.start(*MANY)
    background.append(process)
    wait_until(lambda: job.llm.holds, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    job.llm.release()
    job.llm.settle()


def test_killed_again_and_again_on_a_bad_day_every_text_is_paid_for_about_once(
    llm: Llm, tmp_path: Path, background: list[warm.Program]
) -> None:
    job = Job(tmp_path, llm, 700)
    llm.delay = 0.02
    everything = ["429", "500", "drop", "lose", "half", "leave_out", *sorted(BAD)]
    llm.script = [Rule(do, share=0.01, seed=5) for do in everything]
    done = [0]
    for calls in (1, 50, 30, 40):
        kill_after(calls, job, background)
        done.append(len(job.done()))
        assert not job.published.exists()
    assert done == sorted(done)
    assert 200 < done[-1] < 700

    ended = job.main(*MANY)

    assert ended.returncode == 0, ended.stderr
    job.check()
    # What is paid for beyond one request a batch: answers that the script has lost or spoilt, a
    # text that was left out (asked for by itself), and what was out at a kill; of the texts that
    # are missing then, one batch may be cut short.
    counts = llm.counts()
    wasted = sum(counts.get(do, 0) for do in ["lose", "half", "leave_out", *BAD])
    assert wasted > 5
    assert job.batches <= llm.paid() <= job.batches + wasted + KILLS * (OUT + 1)
    # And no text is asked about once more than that, in whichever request.
    paid = [id_ for call in llm.calls if call.paid for id_ in call.ids]
    assert len(paid) <= 700 + 5 * (wasted + KILLS * OUT)

    before = len(llm.calls)
    again = job.main(*MANY)
    assert again.returncode == 0
    assert "700 texts: 0 handled now, 700 resumed, 0 failed" in again.stdout
    assert len(llm.calls) == before


@pytest.mark.long
def test_with_a_server_that_remembers_kills_cost_nothing(
    llm: Llm, tmp_path: Path, background: list[warm.Program]
) -> None:
    job = Job(tmp_path, llm, 300)
    llm.remembers, llm.delay = True, 0.03
    llm.script = [Rule(do, share=0.03, seed=5) for do in ("500", "drop", "lose", "half")]
    for calls in (20, 20):
        kill_after(calls, job, background)
    ended = job.main(*MANY)
    assert ended.returncode == 0, ended.stderr
    job.check()
    assert any(call.replayed for call in llm.calls)
    assert llm.paid() == job.batches


def test_a_third_is_told_to_wait_and_does(llm: Llm, tmp_path: Path) -> None:
    job = Job(tmp_path, llm, 60)
    llm.script = [Rule("429", every=3, retry_after=1)]
    assert job.run(retries=0).failed == 0  # to be told to wait is no failure
    job.check()
    assert llm.paid() == job.batches
    told = [call for call in llm.calls if call.did == "429"]
    assert len(told) >= 4
    for call in told:
        again = [each for each in llm.calls if each.ids == call.ids and each.number > call.number]
        assert again[0].time >= call.time + 1


def test_as_often_as_the_rate_limit_says_and_no_more(llm: Llm, tmp_path: Path) -> None:
    job = Job(tmp_path, llm, 100)
    began = time.monotonic()
    job.run(rate_limit="10/second", concurrency=20)
    job.check()
    times = sorted(call.time for call in llm.calls)
    assert len(times) == 20
    # However late calls arrive on a busy machine, none was let through early.
    assert all(at - began >= n // 10 for n, at in enumerate(times))


def test_what_the_api_says_of_tokens_is_learnt(llm: Llm, tmp_path: Path) -> None:
    job = Job(tmp_path, llm, 100)
    result = job.run(rate_limit="10M tokens/hour")
    job.check()
    records = [path.read_text() for path in (Path(result.checkpoint) / "journal").iterdir()]
    (told,) = [json.loads(text.splitlines()[0]) for text in records if '"learnt"' in text]
    learnt = told["info"]["learnt"]
    assert learnt["output"] == pytest.approx(100 * learnt["items"], rel=0.01)
    assert learnt["input"] == pytest.approx(1_000 * learnt["items"], rel=0.01)
    assert learnt["bytes"] > 0


def test_a_key_that_is_revoked_ends_it_with_75_and_nothing_has_failed(
    llm: Llm, tmp_path: Path, background: list[warm.Program]
) -> None:
    job = Job(tmp_path, llm, 100)
    llm.hold(10)
    process = job.start(*MANY, "--retries", "0", "--give-up-after", "1")
    background.append(process)
    wait_until(lambda: llm.holds, process)
    llm.keys.clear()
    llm.release()
    assert process.wait(timeout=60) == 75, job.output()
    assert "Incorrect API key" in job.output()
    assert "Traceback" not in job.output()
    assert KEY not in job.output()
    assert job.failed() == []
    done = len(job.done())
    assert 50 <= done < 100
    assert llm.counts()["401"] < 40  # and the API was not flooded in that second

    asked = len(llm.calls)
    refused = job.main(*MANY, "--retries", "0", "--give-up-after", "1")
    assert refused.returncode == 2  # before anything is begun
    assert "does not accept the key in OPENAI_API_KEY: " in refused.stderr
    assert len(llm.calls) == asked

    llm.keys.add(KEY)
    ended = job.main(*MANY)
    assert ended.returncode == 0, ended.stderr
    assert f"{100 - done} handled now, {done} resumed, 0 failed" in ended.stdout
    job.check()
    assert llm.paid() == job.batches


def test_an_account_without_credit_ends_it_with_75(job: Job) -> None:
    job.llm.script = [Rule("429", every=1, code="insufficient_quota")]
    ended = job.main(*MANY, "--retries", "0", "--give-up-after", "0.5")
    assert ended.returncode == 75, ended.stderr
    assert "Error code: 429" in ended.stderr
    assert job.failed() == []
    assert len(job.llm.calls) < 40


def test_a_server_that_is_away_for_some_seconds_is_waited_for(
    llm: Llm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path, llm, 200)
    llm.hold(15)

    def away() -> None:
        wait_until(lambda: llm.holds)
        llm.down()
        # If it came back before that, items might be at fault, and batches would be halved.
        wait_until(lambda: "next try in" in caplog.text)
        llm.up()
        llm.release()

    outage = threading.Thread(target=away)
    outage.start()
    result = job.run(retries=1)
    outage.join()
    assert (result.completed, result.failed) == (200, 0)
    assert job.failed() == []
    job.check()
    # Those that were cut off, and the texts that were tried alone, some seconds apart.
    alone = {id_ for call in llm.calls if len(call.ids) == 1 for id_ in call.ids}
    assert 1 <= len(alone) <= 6
    assert llm.paid() <= job.batches + CONCURRENCY + len(alone)


def test_the_budget_ends_it_with_5_and_more_money_goes_on(job: Job) -> None:
    some = 23 * COST_OF_A_TEXT
    first = job.main(*MANY, "--max-cost", str(some))
    assert first.returncode == 5, first.stderr
    assert "Traceback" not in first.stderr
    assert job.failed() == []
    done = len(job.done())
    # All of it is spent, the last batch having been cut, and no more.
    assert done == 23
    assert job.llm.paid() == 5
    second = job.main(*MANY, "--max-cost", "1")
    assert second.returncode == 0, second.stderr
    assert f"{40 - done} handled now, {done} resumed" in second.stdout
    job.check()
    assert job.llm.paid() == 5 + 4


def test_sigterm_while_it_waits_ends_it_with_75(job: Job, background: list[warm.Program]) -> None:
    job.llm.script = [Rule("429", every=1, retry_after=500)]
    process = job.start(*MANY)
    background.append(process)
    wait_until(lambda: len(job.llm.calls) >= CONCURRENCY, process)
    time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=20) == 75, job.output()  # and not after 500 seconds
    assert job.failed() == []
    job.llm.script.clear()
    assert job.main(*MANY).returncode == 0
    job.check()


def test_other_labels_or_another_model_are_not_mixed_with_what_is_there(job: Job) -> None:
    job.run()
    with pytest.raises(CheckpointMismatch, match="another version"):
        job.run(labels=["bug", "praise"])
    job.run(labels=["question", "bug", "praise"])  # their order says nothing
    ended = job.main(*MANY, OPENAI_MODEL="other-model")
    assert ended.returncode == 2
    assert "other-model" in ended.stderr
    assert len(job.llm.calls) == job.batches


def test_a_model_that_is_not_there_ends_it_soon(job: Job) -> None:
    ended = job.main(*MANY, OPENAI_MODEL="other-model")
    assert ended.returncode == 1, ended.stderr
    assert "The model 'other-model' does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(job.llm.calls) <= 30
    again = job.main(*MANY, "--on-version-change", "restart")
    assert again.returncode == 0, again.stderr
    job.check()


def test_a_dry_run_says_what_there_is_to_do_and_asks_nothing(job: Job) -> None:
    first = job.main(*MANY, "--dry-run")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "40 texts: 0 are done; to do: 40 items\n"
    job.main(*MANY, "--max-cost", str(23 * COST_OF_A_TEXT))
    asked, left = len(job.llm.calls), 40 - len(job.done())
    second = job.main(*MANY, "--dry-run")
    cost = f"{left * COST_OF_A_TEXT:.4g}"
    assert second.stdout.startswith(f"40 texts: {40 - left} are done; to do: {left} items, about ")
    assert second.stdout.endswith(f", at a cost of about {cost}\n")
    assert len(job.llm.calls) == asked
    assert not job.published.exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((), {"OPENAI_API_KEY": ""}, "OPENAI_API_KEY is not set where this runs"),
        ((), {"OPENAI_MODEL": " "}, "OPENAI_MODEL is not set where this runs"),
        (
            (),
            {"OPENAI_INPUT_PRICE": "cheap"},
            "OUTPUT_PRICE are not prices",
        ),
        (("--max-cost", "1"), {"OPENAI_OUTPUT_PRICE": ""}, "max_cost needs OPENAI_INPUT_PRICE"),
        (("--labels", "a"), {}, "at least two different labels are needed"),
        (("--labels", "a,,b"), {}, "at least two different labels are needed"),
        (("--labels", "a,b,a"), {}, "each once"),
        (("--batch-size", "0"), {}, "batch_size=0"),
        (("--concurrency", "x"), {}, "--concurrency"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    arguments: tuple[str, ...], environment: dict[str, str], said: str, job: Job
) -> None:
    ended = job.main(*arguments, **environment)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert job.llm.calls == []


def test_without_the_client_it_says_what_to_install(job: Job, tmp_path: Path) -> None:
    (tmp_path / "no" / "openai.py").parent.mkdir()
    (tmp_path / "no" / "openai.py").write_text("raise ImportError('none', name='openai')")
    path = f"{tmp_path / 'no'}{os.pathsep}{job.environment['PYTHONPATH']}"
    ended = job.call("--local", PYTHONPATH=path)
    assert ended.returncode == 2
    assert "openai is not installed: pip install 'resumable-tasks[llm]'" in ended.stderr


@pytest.mark.long
def test_a_script_loads_no_prefect(job: Job) -> None:
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('flows.llm_classify', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    print([name for name in ('prefect',) if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *job.command("--local")[3:]],
        env=job.environment,
        cwd=job.place,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("[]\n")


def test_the_server_is_as_strict_as_it_should_be(llm: Llm) -> None:
    """It is the oracle of these tests: it must not take what the real one refuses."""
    import openai

    from tests.flows.llm.protocol import MODEL

    def refused(**changes: Any) -> int:
        entry = {
            "type": "object",
            "properties": {"id": {"enum": ["a"]}, "label": {"enum": ["x", "y"]}},
            "required": ["id", "label"],
            "additionalProperties": False,
        }
        schema = {
            "type": "object",
            "properties": {"labels": {"type": "array", "items": entry}},
            "required": ["labels"],
            "additionalProperties": False,
        }
        for name in list(changes):
            if name in ("required", "additionalProperties"):
                entry[name] = changes.pop(name)
        form = {"name": "labels", "strict": True, "schema": schema}
        request: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": '[{"id": "a", "text": "b"}]'}],
            "response_format": {"type": "json_schema", "json_schema": form},
            **changes,
        }
        try:
            client.chat.completions.create(**request)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with openai.OpenAI(base_url=llm.url, api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert refused() == 200
        assert refused(model="gpt") == 404
        assert refused(response_format={"type": "json_object"}) == 400
        assert refused(required=["id"]) == 400
        assert refused(additionalProperties=True) == 400
        assert refused(messages=[{"role": "user", "content": '[{"id": "b", "text": ""}]'}]) == 400
        client.api_key = "sk-other"
        assert refused() == 401
    assert llm.paid() == 1
    assert json.loads(json.dumps(llm.counts())) == {"answer": 6, "401": 1}
    assert all(a.number < b.number for a, b in itertools.pairwise(llm.calls))


@pytest.mark.long
def test_the_server_can_be_played_with_by_hand(job: Job, background: list[Any]) -> None:
    log = job.place / "calls.jsonl"
    script = json.dumps([{"do": "lose", "calls": [2]}])
    arguments = ("--port", "0", "--delay", "0", "--script", script, "--log", str(log))
    process = warm.start(
        [sys.executable, "-m", "tests.flows.llm.server", *arguments],
        env=job.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    background.append(process)
    assert process.stdout is not None
    exports = shlex.split(process.stdout.readline())
    assert exports[0] == "export"
    ended = job.call(*MANY, **dict(pair.split("=", 1) for pair in exports[1:]))
    assert ended.returncode == 0, ended.stderr
    job.check()
    calls = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert sum(call["paid"] for call in calls) == len(calls) == job.batches + 1
    assert job.llm.calls == []  # it was the other one that was asked
    process.terminate()
    assert process.stdout.read() == "9 calls, 9 paid: {'answer': 8, 'lose': 1}\n"
    process.stdout.close()


def test_errors_of_this_flow_survive_a_process_boundary() -> None:
    from flows.llm_client import BadAnswer, Refused

    for kind in (BadAnswer, Refused):
        assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"
    assert not issubclass(BadAnswer, ResumableTasksError)
