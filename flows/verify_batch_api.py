"""Verify with a real key, for less than a cent, what the batch APIs are relied upon for.

    python -m flows.verify_batch_api openai [--model gpt-4o-mini]
    python -m flows.verify_batch_api anthropic [--model claude-haiku-4-5]

Three short texts go out as one batch. Each line that is printed is a fact that
`resumable_tasks.OpenAIBatch` or `AnthropicBatch` builds on, as this account sees it now. The key is
read from OPENAI_API_KEY or ANTHROPIC_API_KEY, an address perhaps from OPENAI_BASE_URL or
ANTHROPIC_BASE_URL. Batches mostly end within minutes, and within 24 hours. The exit code is 0 if
all facts hold, else 1.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from resumable_tasks import (
    AnthropicBatch,
    CannotTell,
    Ended,
    NotAccepted,
    NotReady,
    OpenAIBatch,
)

_MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
_TEXTS: list[dict[str, Any]] = [
    {"id": n, "text": f"Answer with the number {n} alone."} for n in range(3)
]
_KEYS: list[int] = [text["id"] for text in _TEXTS]
_LONGEST_LAG = 600.0
_FIRST_PAUSE, _LAST_PAUSE = 0.25, 30.0
Batch = OpenAIBatch | AnthropicBatch


class Facts:
    """What was found, line by line."""

    def __init__(self) -> None:
        self.wrong = 0

    def tell(self, holds: bool, what: str) -> None:
        self.wrong += not holds
        print(f"{'ok    ' if holds else 'NOT SO'}  {what}", flush=True)


def openai_batch(model: str) -> OpenAIBatch:
    def request(text: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text["text"]}]
        return {"model": model, "messages": messages, "max_completion_tokens": 50}

    def row(key: int, answer: Any) -> dict[str, Any]:
        return {"id": key, "said": answer["choices"][0]["message"]["content"]}

    # Then `cost` is that of the tokens in and out, in millions and at half.
    return OpenAIBatch(request, row, prices=(1.0, 1.0))


def anthropic_batch(model: str) -> AnthropicBatch:
    def request(text: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text["text"]}]
        return {"model": model, "messages": messages, "max_tokens": 50}

    def row(key: int, message: Any) -> dict[str, Any]:
        return {"id": key, "said": message["content"][0]["text"]}

    return AnthropicBatch(request, row, prices=(1.0, 1.0))


def verify_fence(batch: OpenAIBatch, facts: Facts) -> None:
    """A batch must not start once its file is deleted."""
    token = secrets.token_hex(8)
    prepared = batch.prepare(_TEXTS, token)
    batch.fence(token, prepared)
    try:
        handle = batch.submit(_TEXTS, token, prepared)
    except NotAccepted as refused:
        facts.tell(True, f"no batch starts of a file that was deleted: {refused}")
        return
    # It may still fail before it begins.
    ended(batch, handle)
    try:
        batch.collect(handle, _KEYS)
    except NotAccepted as refused:
        facts.tell(True, f"a batch of a deleted file fails, unpaid: {refused}")
    else:
        facts.tell(False, f"batch {handle['batch']} was carried out though its file was deleted")


def verify_batch(make: Callable[[], Batch], facts: Facts) -> None:
    """Send the texts; find the batch without its handle; collect."""
    batch, other = make(), make()  # the other as in a process that has the journal alone
    token = secrets.token_hex(8)
    prepared = batch.prepare(_TEXTS, token)
    handle = batch.submit(_TEXTS, token, prepared)
    facts.tell(True, f"ids such as {token}-0 are accepted: batch {handle['batch']}")
    began = time.monotonic()
    found = until(lambda: visible(other, token, prepared), _LONGEST_LAG)
    seconds = time.monotonic() - began
    facts.tell(
        bool(found) and seconds < batch.patience,
        f"it is seen in the list {seconds:.1f} s after its creation (waited for: "
        f"{batch.patience:.0f} s)",
    )
    how = ended(batch, handle)
    facts.tell(True, f"it ended as {how!r} after {time.monotonic() - began:.0f} s")
    found = until(lambda: visible(other, token, prepared), _LONGEST_LAG)
    facts.tell(
        isinstance(found, dict) and found["batch"] == handle["batch"],
        "it is recognised by its token, without its handle",
    )
    collected = until(lambda: results(batch, handle), _LONGEST_LAG)
    rows = [each for each in collected.results if isinstance(each, dict)] if collected else []
    facts.tell(len(rows) == len(_TEXTS), f"answers: {[row['said'] for row in rows]}")
    if collected:
        facts.tell(collected.cost > 0, f"charged: {2e6 * collected.cost:.0f} tokens, at half price")


def visible(batch: Batch, token: str, prepared: Any) -> Any:
    """The handle of the batch, or True if there is one that may be it."""
    try:
        return batch.find(token, prepared)
    except CannotTell:
        return True


def results(batch: Batch, handle: Any) -> Any:
    try:
        return batch.collect(handle, _KEYS)
    except NotReady as error:
        print(f"        not ready yet: {error}", flush=True)
        return None


def ended(batch: Batch, handle: Any) -> str:
    """Wait for the end of a batch, however long that takes."""

    def look() -> Ended | None:
        try:
            state = batch.poll(handle)
        except NotReady as error:
            print(f"        not known yet: {error}", flush=True)
            return None
        return state if isinstance(state, Ended) else None

    return str(until(look, float("inf")).how)


def until(look: Callable[[], Any], seconds: float) -> Any:
    """Look again and again, until there is something."""
    began, pause = time.monotonic(), _FIRST_PAUSE
    while not (found := look()) and time.monotonic() - began < seconds:
        time.sleep(pause)
        pause = min(_LAST_PAUSE, pause * 1.5)
    return found


@click.command()
@click.argument("provider", type=click.Choice(["openai", "anthropic"]))
@click.option("--model", default=None, help="By default a small one.")
def main(provider: str, model: str | None) -> None:
    """Verify for less than a cent what the batch APIs of a provider are relied upon for."""
    facts, name = Facts(), model or _MODELS[provider]
    if provider == "openai":
        verify_fence(openai_batch(name), facts)
        verify_batch(lambda: openai_batch(name), facts)
    else:
        verify_batch(lambda: anthropic_batch(name), facts)
    sys.exit(1 if facts.wrong else 0)


if __name__ == "__main__":
    main()
