"""Classify texts by an LLM: each gets one label, and is paid for once, whatever kills the run.

    python -m flows.llm_classify TEXTS --labels a,b,c --checkpoint DIR --publish DEST [--batch-api]

TEXTS is a file of JSON lines, CSV or Parquet with ``id`` and ``text``. The environment names the
OpenAI-compatible API: OPENAI_API_KEY, OPENAI_MODEL, perhaps OPENAI_BASE_URL; OPENAI_INPUT_PRICE and
OPENAI_OUTPUT_PRICE, of a million tokens, for the column cost and ``--max-cost``.

* A run that was killed goes on where it was, by the same command. A kill costs the requests that
  were out at that moment, and not even those if the server knows the header Idempotency-Key.
* A slow, overloaded or broken API is waited for, and no text fails for it; one that stays away
  (or does not take the key any more) ends the run with 75, a budget that is used up with 5.
* A text that the API cannot answer fails alone, and not the others in its request.
* ``--batch-api`` asks by OpenAI's Batch API: half the price, answers within a day, and a kill costs
  nothing at all. The checkpoint is the same: a job that was begun so can be ended without.
* Other labels or another model are another job: the run is refused, not mixed.

To Prefect it is the flow ``flows/llm_classify.py:llm_classify``; the extra is ``llm``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Literal

from flows._command import command
from flows._prefect import as_flow
from resumable_tasks import (
    Budget,
    Failing,
    InvalidItems,
    ResumableTask,
    Retry,
    RunResult,
    UsageError,
    resumable_task,
)

_BATCH = 10_000
_FORMATS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}


async def classify(
    texts: str,
    labels: list[str],
    checkpoint: str,
    publish: str,
    rate_limit: str | None = None,
    max_cost: float | None = None,
    batch_size: int = 5,
    concurrency: int | Literal["adaptive"] = "adaptive",
    timeout: float = 60.0,
    retries: int = 4,
    retry_delay: float | None = None,
    give_up_after: float = 600.0,
    batch_api: bool = False,
    tolerated_failures: int | float = 0,
    on_version_change: Literal["error", "reuse", "restart"] = "error",
    dry_run: bool = False,
    progress: bool | None = None,
) -> RunResult:
    """Give each text of a file one of the labels, and publish the rows when all are there.

    What was paid for is kept for the next run, however this one ends.

    Args:
        texts: a file of JSON lines, CSV or Parquet, with id and text.
        labels: what a text may be, such as a,b,c.
        checkpoint: the folder of the checkpoint, or its URL in a bucket.
        publish: the folder for the rows, in Parquet.
        rate_limit: requests or tokens at most, such as 60/minute, 200k tokens/minute, or auto: what
            the API says of itself.
        max_cost: stop (5) before more is spent; needs the prices in the environment.
        batch_size: texts a request.
        concurrency: requests at once; "adaptive" finds out what the API takes.
        timeout: seconds that a request may take.
        retries: further requests after one that went wrong; to be told to wait is not wrong.
        retry_delay: seconds before each; by default they grow, up to a minute.
        give_up_after: seconds that an API which fails everything is waited for.
        batch_api: ask at half the price, for answers within a day; one text a request, batches of
            10,000, and neither batch_size, rate_limit nor timeout.
        tolerated_failures: how many texts, or which share of them, may fail.
        on_version_change: for other labels or another model, reuse what is there, or archive it
            and restart.
        dry_run: only say what there is to do.
        progress: whether to show a bar; by default if standard error is a terminal.
    """
    labels = [label.strip() for label in labels]
    if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
        raise UsageError(f"labels={labels!r}: at least two different labels are needed, each once")
    try:
        from flows.llm_client import Classifier, Model, check_key, in_batches, may_pass
    except ImportError as error:
        raise UsageError(
            f"{error.name or 'openai'} is not installed: pip install 'resumable-tasks[llm]'"
        ) from None
    items, model = read_texts(texts), Model.of_environment()
    has_prices = None not in (model.input_price, model.output_price)
    if max_cost is not None and not has_prices:
        raise UsageError("max_cost needs OPENAI_INPUT_PRICE and OPENAI_OUTPUT_PRICE to be set")
    async with model.client() as client:
        common: dict[str, Any] = {
            "name": "llm_classify",
            "key": "id",
            # Rows of other labels or of another model are not to stand beside these.
            "version": f"{model.name}: {', '.join(sorted(labels))}",
            "tolerated_failures": tolerated_failures,
            "failing": Failing(give_up_after=give_up_after),
            "budget": Budget(cost=max_cost),
        }
        job: ResumableTask[Any]
        if batch_api:
            job = resumable_task(
                in_batches(model, labels),
                batch_size=_BATCH,
                concurrency=4 if concurrency == "adaptive" else concurrency,
                retries=Retry(retries, delay=retry_delay),
                **common,
            )
        else:
            job = resumable_task(
                Classifier(client, model, labels),
                batch_size=batch_size,
                concurrency=concurrency,
                retries=Retry(retries, delay=retry_delay, on=may_pass),
                timeout=timeout,
                rate_limit=rate_limit,
                cost="cost" if has_prices else None,
                **common,
            )
        if not dry_run:
            await check_key(client)
        result = await job.arun(
            items,
            checkpoint=checkpoint,
            on_version_change=on_version_change,
            dry_run=dry_run,
            progress=progress,
        )
    if not dry_run:
        result.publish(publish)
    return result


def read_texts(path: str) -> Iterator[dict[str, Any]]:
    """Each text as ``{"id": …, "text": …}``, in the order of the file, never all in memory.

    Other fields are left out. ``id`` is a string or an integer, the same for all. Raises
    `InvalidItems`, with the place, for what is no such text.
    """
    kind = _FORMATS.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise UsageError(f"{path}: its name must end in one of {', '.join(_FORMATS)}")
    if not os.path.isfile(path):
        raise UsageError(f"{path}: there is no such file")
    return _checked(_json_lines(path) if kind == "jsonl" else _table_rows(path, kind))


def _checked(rows: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    first: type | None = None
    for where, row in rows:
        if not isinstance(row, dict):
            raise InvalidItems(f"{where}: this is not a JSON object")
        key, text = row.get("id"), row.get("text")
        first = first or type(key)
        if type(key) not in (str, int) or type(key) is not first or key == "":
            raise InvalidItems(
                f"{where}: 'id' is {key!r}; it must be a string or an integer, of one type in the "
                "whole file: the model could not tell 1 from '1'"
            )
        if not isinstance(text, str) or not text.strip():
            raise InvalidItems(f"{where}: 'text' of {key!r} is {text!r}; it must be a string")
        try:
            f"{key}{text}".encode()
        except UnicodeEncodeError as error:
            raise InvalidItems(f"{where}: half a character in {key!r}: {error}") from None
        yield {"id": key, "text": text}


def _json_lines(path: str) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    raise InvalidItems(f"{path}, line {number}: not JSON: {error}") from None


def _table_rows(path: str, kind: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.dataset as pads

    as_text = csv.ConvertOptions(column_types=dict.fromkeys(("id", "text"), pa.string()))
    lines = csv.ParseOptions(newlines_in_values=True)
    form = pads.CsvFileFormat(lines, convert_options=as_text) if kind == "csv" else kind
    try:
        batches = pads.dataset(path, format=form).to_batches(columns=["id", "text"])
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InvalidItems(f"{path}: {error}") from None


llm_classify = as_flow(classify, "llm-classify")
main = command(classify, llm_classify, unit="texts")

if __name__ == "__main__":
    main()
