"""Prices: the expected and the real cost of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import shorten
from resumable_tasks.runners.batch_apis.answers import Answers

_HALF = 0.5
_TOKENS_PER_BYTE = 0.25
# The expected length of an answer without a limit, before the first answers.
_TOKENS_OUT = 500
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass
class Money:
    """Two prices per million tokens, and estimates of the tokens, learnt from the answers.

    ``per_byte``: input tokens per byte of a request. ``out``: output tokens per request; None
    before the first answers.
    """

    price_in: float
    price_out: float
    per_byte: float = _TOKENS_PER_BYTE
    out: float | None = None

    @classmethod
    def of(cls, prices: Any, name: str) -> Money:
        """Return the money for these prices. Raises `UsageError` if they are not two prices."""
        if (
            not isinstance(prices, (tuple, list))
            or len(prices) != 2
            or not all(checks.is_number(price) for price in prices)
        ):
            raise UsageError(
                f"{name}: prices={shorten(prices)} is not a pair of prices",
                remedy="Give the full prices per million tokens in and out: prices=(0.15, 0.60)",
            )
        return cls(float(prices[0]), float(prices[1]))

    def expected(self, bodies: Iterable[tuple[int, Mapping[str, Any]]]) -> float:
        """Return the expected cost of requests, each given with its size in bytes."""
        tokens_in = tokens_out = 0.0
        for size, body in bodies:
            tokens_in += size * self.per_byte
            tokens_out += self.out if self.out is not None else _limit(body)
        return self._cost(tokens_in, tokens_out)

    def cost(self, answers: Answers) -> float:
        """Return the cost of answers, by the usage that they report."""
        return self._cost(answers.tokens_in, answers.tokens_out)

    def learn(self, answers: Answers, size: int) -> None:
        """Correct the estimates by the answers to a submission of ``size`` bytes."""
        if not answers.answered:
            return
        self.out = answers.tokens_out / answers.answered
        share = size * answers.answered / answers.requests
        if share and answers.tokens_in:
            self.per_byte = answers.tokens_in / share

    def _cost(self, tokens_in: float, tokens_out: float) -> float:
        return _HALF * (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def _limit(body: Mapping[str, Any]) -> float:
    """Return the most tokens that an answer may have, or the default."""
    found = [body[name] for name in _LIMITS if checks.is_number(body.get(name))]
    return float(found[0]) if found else _TOKENS_OUT
