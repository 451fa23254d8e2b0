"""Classify texts by an LLM: each gets one label, and is paid for once, whatever kills the run.

    python -m flows.llm_classify TEXTS --labels a,b,c --checkpoint DIR --publish DEST [--local]

TEXTS is a file of JSON lines, CSV or Parquet with ``id`` and ``text``. The texts go to an
OpenAI-compatible HTTP API, some in a request; the environment says which:

    OPENAI_API_KEY       the key
    OPENAI_MODEL         the model, such as gpt-4o-mini
    OPENAI_BASE_URL      the address, if it is not OpenAI's own
    OPENAI_INPUT_PRICE   of a million tokens, and OPENAI_OUTPUT_PRICE, for the column cost and
                         --max-cost

* A run that was killed goes on where it was, by the same command. A kill costs the requests that
  were out at that moment, and not even those if the server knows the header Idempotency-Key.
* A slow, overloaded or broken API is waited for, and no text fails for it; one that stays away
  (or does not take the key any more) ends the run with 75, and so does the budget.
* A text that the API cannot answer fails alone, and not the others in its request.
* Other labels or another model are another job: the run is refused, not mixed.

To Prefect it is the flow ``flows/llm_classify.py:llm_classify``. Started as a script it is a flow
run too if PREFECT_API_URL names a server; otherwise, or with ``--local``, nothing but this
process takes part, and Prefect need not be installed.

Exit codes: 0 done · 1 texts failed · 2 usage · 3 held by another run · 4 damaged checkpoint ·
75 interrupted, run again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from flows import prefect_server
from flows.llm_texts import read_texts
from resumable_tasks import Interrupted, ResumableTasksError, RunResult, UsageError, resumable_task

if TYPE_CHECKING:
    from flows.llm_client import Model

# As nightly_ingest does it: a script does not pay for the import of Prefect.
if TYPE_CHECKING or __name__ == "__main__":
    from flows.ingest import flow
else:
    try:
        from prefect import flow
    except ImportError:
        from flows.ingest import flow


async def classify(
    texts: str,
    labels: Sequence[str],
    *,
    checkpoint: str,
    publish: str,
    rate_limit: str | None = None,
    max_cost: float | None = None,
    batch_size: int = 5,
    concurrency: int | str = "adaptive",
    timeout: float = 60.0,
    progress: bool | None = None,
    dry_run: bool = False,
    **options: Any,
) -> RunResult:
    """Give each text of a file one of the labels, and publish the rows when all are there.

    ``options`` are any of `resumable_task`'s. ``dry_run`` only says what there is to do. Raises
    what `ResumableTask.run` raises, and `UsageError` for a key that the API does not take; nothing
    is published then, and what was paid for is kept for the next run.
    """
    labels = _labels(labels)
    items = read_texts(texts)
    model = _model()
    if max_cost is not None and not model.has_prices:
        raise UsageError(
            "max_cost needs prices: set OPENAI_INPUT_PRICE and OPENAI_OUTPUT_PRICE to what a "
            "million tokens cost"
        )
    from flows.llm_client import Classifier, check_key, may_pass

    settings: dict[str, Any] = {
        # Rows of other labels or of another model are not to stand beside these.
        "version": f"{model.name}: {', '.join(sorted(labels))}",
        "retries": 4,
        "retry_on": may_pass,
        "timeout": timeout,
        "isolate": True,
        "pause_after": 5,
        "give_up_after": 600.0,
        "rate_limit": rate_limit,
        "max_cost": max_cost,
        "cost": "cost" if model.has_prices else None,
        "batch_size": batch_size,
        "concurrency": concurrency,
    }
    async with model.client() as client:
        job = resumable_task(
            Classifier(client, model, labels),
            name="llm_classify",
            key="id",
            **{**settings, **options},
        )
        if not dry_run:
            await check_key(client)
        result = await job.arun(items, checkpoint=checkpoint, progress=progress, dry_run=dry_run)
    if not dry_run:
        result.publish(publish)
    return result


def _labels(labels: Sequence[str]) -> list[str]:
    found = [label.strip() for label in labels]
    if len(found) < 2 or not all(found) or len(set(found)) < len(found):
        raise UsageError(
            f"labels={list(labels)!r}: at least two are needed, and none of them twice"
        )
    return found


def _model() -> Model:
    """The model that the environment names."""
    try:
        from flows.llm_client import Model
    except ImportError as error:
        raise UsageError(
            f"{error.name or 'openai'} is not installed: pip install 'resumable-tasks[llm]'"
        ) from None
    for name in ("OPENAI_API_KEY", "OPENAI_MODEL"):
        if not os.environ.get(name, "").strip():
            raise UsageError(f"the environment variable {name} is not set; set it where this runs")
    return Model(
        name=os.environ["OPENAI_MODEL"].strip(),
        key=os.environ["OPENAI_API_KEY"].strip(),
        base_url=os.environ.get("OPENAI_BASE_URL", "").strip() or None,
        input_price=_price("OPENAI_INPUT_PRICE"),
        output_price=_price("OPENAI_OUTPUT_PRICE"),
    )


def _price(name: str) -> float | None:
    text = os.environ.get(name, "").strip()
    try:
        price = float(text) if text else None
    except ValueError:
        price = -1.0
    if price is not None and not 0 <= price < float("inf"):
        raise UsageError(f"the environment variable {name}={text!r} is no price")
    return price


@flow(name="llm-classify")
async def llm_classify(
    texts: str,
    labels: list[str],
    checkpoint: str,
    publish: str,
    rate_limit: str | None = None,
    max_cost: float | None = None,
    batch_size: int = 5,
    concurrency: int | str = "adaptive",
    timeout: float = 60.0,
    retries: int = 4,
    give_up_after: float = 600.0,
    tolerated_failures: int | float = 0,
    on_version_change: Literal["error", "reuse", "restart"] = "error",
    dry_run: bool = False,
) -> Any:
    """Classify the texts of a file: one label each, paid for once; resumed by the next run.

    Args:
        texts: a file of JSON lines, CSV or Parquet, with id and text.
        labels: what a text may be.
        checkpoint: the folder of the checkpoint.
        publish: the folder of the dataset.
        rate_limit: requests at most, such as "60/minute".
        max_cost: stop before this is spent; needs the prices in the environment.
        batch_size: texts a request.
        concurrency: requests at once; "adaptive" finds out what the API takes.
        timeout: seconds that a request may take.
        retries: further requests after one that went wrong; to be told to wait is not wrong.
        give_up_after: seconds that an API which fails everything is waited for.
        tolerated_failures: how many texts, or which share of them, may fail without failing it.
        on_version_change: for other labels or another model: "error"; "reuse" what is there;
            "restart", which archives it.
        dry_run: only say what there is to do.
    """
    result = await classify(
        texts,
        labels,
        checkpoint=checkpoint,
        publish=publish,
        rate_limit=rate_limit,
        max_cost=max_cost,
        batch_size=batch_size,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        give_up_after=give_up_after,
        tolerated_failures=tolerated_failures,
        on_version_change=on_version_change,
        dry_run=dry_run,
    )
    if flow.__module__ == "flows.ingest":  # there is no Prefect
        return result
    from resumable_tasks import flow_state

    return flow_state(result)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    for name in ("httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for each request
    try:
        result = _run(args)
    except (ResumableTasksError, Interrupted) as error:
        logging.error("%s", error)  # noqa: TRY400 - the message says what to do; no traceback
        some = getattr(error, "result", None)
        if some is not None:
            print(_counts(some))
        return error.exit_code
    if args.dry_run:
        print(f"{result.total:,} texts: {result.skipped:,} are done; to do: {result.remaining}")
    else:
        print(f"{_counts(result)}\npublished in {args.publish}")
    return 0


def _run(args: argparse.Namespace) -> RunResult:
    given = {name: value for name, value in vars(args).items() if name not in ("local", "progress")}
    if args.local or not prefect_server.is_named():
        return asyncio.run(classify(**given, progress=args.progress))
    prefect_server.require()
    # By its name, unlike this script, it is a flow.
    as_flow = importlib.import_module("flows.llm_classify").llm_classify
    with prefect_server.its_errors():
        result: RunResult = asyncio.run(as_flow(**given))
    return result


def _counts(result: RunResult) -> str:
    cost = f", for {result.cost:,.4g}" if result.cost is not None else ""
    return (
        f"{result.total:,} texts: {result.completed:,} classified now, {result.skipped:,} resumed, "
        f"{result.failed:,} failed, in {result.seconds:.1f} s{cost}"
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.llm_classify",
        description="Give each text one label, by an OpenAI-compatible API: resumable, in Parquet.",
        epilog="The environment: OPENAI_API_KEY, OPENAI_MODEL; OPENAI_BASE_URL for another server; "
        "OPENAI_INPUT_PRICE and OPENAI_OUTPUT_PRICE (of a million tokens) for --max-cost. "
        "Exit codes: 0 done, 1 texts failed, 2 usage, 3 held by another run, 4 damaged "
        "checkpoint, 75 interrupted: run the same command again.",
    )
    parser.add_argument("texts", metavar="TEXTS", help="file (.jsonl, .csv, .parquet): id, text")
    add = parser.add_argument
    add("--labels", required=True, type=lambda text: text.split(","), help="such as a,b,c")
    add("--checkpoint", required=True, metavar="DIR", help="remembers what is done")
    add("--publish", required=True, metavar="DEST", help="folder for the rows, in Parquet")
    add("--rate-limit", metavar="N/UNIT", help="requests at most, such as 60/minute")
    add("--max-cost", type=float, metavar="AMOUNT", help="stop (75) before more is spent")
    add("--batch-size", type=int, default=5, help="texts a request (default: %(default)s)")
    adaptive = "requests at once (default: as many as the API takes)"
    add("--concurrency", type=_concurrency, default="adaptive", metavar="N", help=adaptive)
    add("--timeout", type=float, default=60.0, help="seconds a request (default: %(default)g)")
    add("--retries", type=int, default=4, help="of what went wrong (default: %(default)s)")
    waiting = "end (75) after waiting so long for an API that fails everything"
    add("--give-up-after", type=float, default=600.0, metavar="SECONDS", help=waiting)
    tolerated = "so many failed texts, or such a share, are none (default: %(default)s)"
    add("--tolerated-failures", type=_count_or_share, default=0, metavar="N", help=tolerated)
    add(
        "--on-version-change",
        choices=["error", "reuse", "restart"],
        default="error",
        help="for other labels or another model: reuse what is there, or archive it and restart",
    )
    add("--dry-run", action="store_true", help="only say what there is to do")
    add("--local", action="store_true", help="without Prefect, even if PREFECT_API_URL is set")
    add("--no-progress", dest="progress", action="store_false", default=None, help="no bar")
    return parser.parse_args(argv)


def _count_or_share(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def _concurrency(text: str) -> int | str:
    return text if text == "adaptive" else int(text)


if __name__ == "__main__":
    sys.exit(main())
