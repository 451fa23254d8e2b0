"""`flows/llm_classify.py --batch-api`: texts labelled at half the price."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from tests import warm
from tests.batch_apis.server import BatchServer

ROOT = Path(__file__).parents[2]


def classify(
    server: BatchServer, folder: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return warm.run(
        [
            *(sys.executable, "-m", "flows.llm_classify", str(folder / "texts.jsonl"), "--local"),
            *("--labels", "bug,praise", "--checkpoint", str(folder / "checkpoint")),
            *("--publish", str(folder / "published"), *more),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "OPENAI_API_KEY": "k",
            "OPENAI_MODEL": "gpt-4o-mini",
            "OPENAI_BASE_URL": server.openai,
            "HOME": str(folder),
            **environment,
        },
        also=warm.SDKS,
    )


def written(folder: Path, *texts: str) -> None:
    lines = [json.dumps({"id": f"t{n}", "text": text}) for n, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines), "utf-8")


def published(folder: Path) -> list[dict[str, Any]]:
    table = pads.dataset(folder / "published", format="parquet").to_table()
    return sorted(table.to_pylist(), key=lambda row: row["id"])


def test_texts_are_labelled_at_half_the_price(server: BatchServer, tmp_path: Path) -> None:
    written(tmp_path, *[f"text {n}" for n in range(50)])
    prices = {"OPENAI_INPUT_PRICE": "1", "OPENAI_OUTPUT_PRICE": "5"}
    done = classify(server, tmp_path, "--batch-api", "--max-cost", "1", **prices)
    assert done.returncode == 0, done.stderr
    rows = published(tmp_path)
    assert [row["label"] for row in rows] == ["bug"] * 50
    # 10 tokens in and 2 out.
    assert rows[0]["cost"] == pytest.approx(0.5 * (10 * 1 + 2 * 5) / 1e6)
    assert server.paid() == {f"text {n}": 1 for n in range(50)}
    assert server.full_price() == {}
    assert len(server.batches()) == 1


def test_what_fails_fails_alone_and_the_rest_is_answered_without(
    server: BatchServer, tmp_path: Path
) -> None:
    written(tmp_path, "a", "REFUSED", "NONSENSE", "b")
    done = classify(server, tmp_path, "--batch-api", "--retries", "1")
    assert done.returncode == 1, done.stderr
    assert server.paid() == {"a": 1, "b": 1, "NONSENSE": 2}
    written(tmp_path, "a", "now it is good", "so is this", "b", "new")
    done = classify(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(published(tmp_path)) == 5
    assert server.full_price() == {"now it is good": 1, "so is this": 1, "new": 1}
