"""Prices: what a batch will cost, and what it has cost."""

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
# An answer whose length nobody has limited, until the first answers are there.
_TOKENS_OUT = 500
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass
class Money:
    """Two prices of a million tokens, and what the answers have taught about their number.

    ``per_byte``: tokens in, of a byte of a request. ``out``: tokens out, of a request, None
    before the first answers.
    """

    price_in: float
    price_out: float
    per_byte: float = _TOKENS_PER_BYTE
    out: float | None = None

    @classmethod
    def of(cls, prices: Any, name: str) -> Money:
        """Raises `UsageError` for what are not two prices."""
        if (
            not isinstance(prices, (tuple, list))
            or len(prices) != 2
            or not all(checks.is_number(price) for price in prices)
        ):
            raise UsageError(
                f"{name}: prices={shorten(prices)} are not two prices",
                remedy="Give the full prices of a million tokens in and out: prices=(0.15, 0.60)",
            )
        return cls(float(prices[0]), float(prices[1]))

    def expected(self, bodies: Iterable[tuple[int, Mapping[str, Any]]]) -> float:
        """The cost of requests, each given with its bytes."""
        tokens_in = tokens_out = 0.0
        for size, body in bodies:
            tokens_in += size * self.per_byte
            tokens_out += self.out if self.out is not None else _limit(body)
        return self._cost(tokens_in, tokens_out)

    def cost(self, answers: Answers) -> float:
        """The cost of answers, by what they say of themselves."""
        return self._cost(answers.tokens_in, answers.tokens_out)

    def learn(self, answers: Answers, size: int) -> None:
        """Correct the next estimates by the answers to a submission of so many bytes."""
        if not answers.answered:
            return
        self.out = answers.tokens_out / answers.answered
        share = size * answers.answered / answers.requests
        if share and answers.tokens_in:
            self.per_byte = answers.tokens_in / share

    def _cost(self, tokens_in: float, tokens_out: float) -> float:
        return _HALF * (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


def _limit(body: Mapping[str, Any]) -> float:
    """The tokens that an answer may have."""
    found = [body[name] for name in _LIMITS if checks.is_number(body.get(name))]
    return float(found[0]) if found else _TOKENS_OUT
