from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

pytest.importorskip("openai")

from flows.llm_classify import classify, main
from resumable_tasks import JobFailed, RunResult
from tests import warm
from tests.flows.llm.protocol import MODEL
from tests.flows.llm.server import KEY, Llm, serving
from tests.flows.llm.texts import LABELS, right_label, texts

REPOSITORY = Path(__file__).parents[3]
# A text costs 0.0012, since the server says 1,000 tokens for it and 100 for its label.
PRICES = {"OPENAI_INPUT_PRICE": "1", "OPENAI_OUTPUT_PRICE": "2"}
COST_OF_A_TEXT = 0.0012


@dataclass
class Job:
    """One checkpoint, one file of texts, one server; run in this process or in others."""

    place: Path
    llm: Llm
    count: int

    def __post_init__(self) -> None:
        self.items = texts(self.count)
        lines = [json.dumps(item) for item in self.items]
        self.file.write_text("\n".join(lines), "utf-8")

    @property
    def file(self) -> Path:
        return self.place / "texts.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.place / "checkpoint"

    @property
    def published(self) -> Path:
        return self.place / "published"

    @property
    def batches(self) -> int:
        return -(-self.count // 5)

    @property
    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        path = f"{REPOSITORY}{os.pathsep}{env.get('PYTHONPATH', '')}"
        return {**env, "PYTHONPATH": path, **self.of_the_api}

    @property
    def of_the_api(self) -> dict[str, str]:
        named = {"BASE_URL": self.llm.url, "API_KEY": KEY, "MODEL": MODEL}
        return {**{f"OPENAI_{name}": value for name, value in named.items()}, **PRICES}

    def run(self, labels: Sequence[str] = LABELS, **options: Any) -> RunResult:
        """In this process, with retries that do not take long."""
        given = {"concurrency": 4, "retry_delay": 0.02, "give_up_after": 20.0, **options}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.of_the_api.items():
                patch.setenv(name, value)
            return asyncio.run(
                classify(
                    str(self.file),
                    labels,
                    checkpoint=str(self.checkpoint),
                    publish=str(self.published),
                    **given,
                )
            )

    def run_and_fail(self, **options: Any) -> RunResult:
        with pytest.raises(JobFailed) as caught:
            self.run(**options)
        assert caught.value.result is not None
        assert not self.published.exists()
        return caught.value.result

    def command(self, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-m", "flows.llm_classify", str(self.file)),
            *("--labels", ",".join(LABELS), "--no-progress"),
            *("--checkpoint", str(self.checkpoint), "--publish", str(self.published)),
            *arguments,
        ]

    def main(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """As `call`, but in this process, which takes no second."""
        out, log = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(log)
        logging.getLogger().addHandler(handler)
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in {**self.of_the_api, **environment}.items():
                    patch.setenv(name, value)
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
                    main([*self.command("--local", *arguments)[3:]])
        except SystemExit as ended:
            code = int(str(ended.code))
        finally:
            logging.getLogger().removeHandler(handler)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), log.getvalue())

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """As a command, to its end; in a fresh interpreter if it is to import something else."""
        fresh = "PYTHONPATH" in environment
        run: Any = subprocess.run if fresh else partial(warm.run, **_imported(environment))
        return run(
            self.command(*arguments),
            cwd=self.place,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str, **environment: str) -> warm.Program:
        """As a command in the background, that leads a process group of its own."""
        with (self.place / "output.txt").open("ab") as output:
            return warm.start(
                self.command(*arguments),
                cwd=self.place,
                env={**self.environment, **environment},
                stdout=output,
                stderr=output,
                **_imported(environment),
            )

    def output(self) -> str:
        return (self.place / "output.txt").read_text("utf-8")

    def journal(self) -> list[dict[str, Any]]:
        """All lines of the journal. No code of the library is asked."""
        files = sorted((self.checkpoint / "journal").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def done(self) -> set[str]:
        return {line["key"] for line in self.journal() if "key" in line}

    def failed(self) -> list[dict[str, Any]]:
        return [line for line in self.journal() if "failed" in line]

    def check(self, without: Collection[str] = ()) -> None:
        """Every text has one label, and it is the right one."""
        rows = pads.dataset(self.published).to_table().to_pylist()
        wanted = {
            item["id"]: right_label(item["text"], LABELS)
            for item in self.items
            if item["id"] not in without
        }
        assert len(rows) == len(wanted)
        assert {row["id"]: row["label"] for row in rows} == wanted
        assert all(row["model"] == MODEL and row["cost"] > 0 for row in rows)


def _imported(environment: dict[str, str]) -> dict[str, Any]:
    """What the parent of a program in this environment has imported."""
    return {"prefect": True} if "PREFECT_API_URL" in environment else {"also": warm.SDKS}


@pytest.fixture
def llm() -> Iterator[Llm]:
    with serving(Llm(delay=0.01)) as started:
        yield started


@pytest.fixture
def job(llm: Llm, tmp_path: Path) -> Job:
    """Forty texts: eight requests."""
    return Job(tmp_path, llm, 40)


@pytest.fixture
def background() -> Iterator[list[warm.Program]]:
    """Processes that lead a group of their own and end with the test."""
    started: list[warm.Program] = []
    yield started
    for process in started:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
