"""What the test server does wrong, and when."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LOST = frozenset(["lose", "half", "slow", "drip"])
"""What makes an answer that does not arrive; slow ones, if the other side will not wait."""

BAD = frozenset(["malformed", "cut", "html", "foreign", "unknown", "twice", "length"])
"""What makes an answer that cannot be used."""


@dataclass
class Rule:
    """``do``: a status; or one of

    * ``drop`` hangs up at once; ``lose`` when the answer is made; ``half`` in the middle of it;
    * ``slow`` answers after so many ``seconds``; ``drip`` sends a blank now and then until then;
    * ``malformed`` says no JSON where the labels should be; ``cut`` half of them; ``html`` a page;
    * ``leave_out`` omits a text; ``foreign`` has an id, ``unknown`` a label, that was not asked
      for; ``twice`` has one id with two labels;
    * ``length`` ends for its length (what there is of it looks well); ``refuse`` is a refusal;
      ``no_usage`` does not say its cost.

    It is done to the calls with these numbers, to every n-th, to those with this ``item``, or to
    a ``share`` of them by chance (the same calls for the same ``seed``), ``times`` at most.
    """

    do: str
    calls: Sequence[int] = ()
    every: int = 0
    item: str | None = None
    share: float = 0.0
    seed: int = 0
    times: int | None = None
    retry_after: float | None = None
    seconds: float = 0.0
    code: str | None = None
    done: int = field(default=0, init=False)

    def takes(self, number: int, ids: Sequence[str]) -> bool:
        if self.times is not None and self.done >= self.times:
            return False
        takes = (
            number in self.calls
            or (self.every > 0 and number % self.every == 0)
            or self.item in ids
            or random.Random(f"{self.do} {self.seed} {number}").random() < self.share
        )
        self.done += takes
        return takes


def spoilt(made: dict[str, Any], entries: list[dict[str, str]], rule: Rule | None) -> bytes:
    """The answer's bytes, with what the rule does to them."""
    do = rule.do if rule is not None else ""
    choice = made["choices"][0]
    message = choice["message"]
    if do == "html":
        return b"<html><body>502 Bad Gateway</body></html>"
    if do == "malformed":
        message["content"] = "Sure! Here are the labels: " + message["content"]
    elif do == "cut":
        message["content"] = message["content"][: len(message["content"]) // 2]
    elif do == "length":
        choice["finish_reason"] = "length"
    elif do == "refuse":
        message["content"], message["refusal"] = None, "I'm sorry, I can't help with that."
    elif do == "no_usage":
        del made["usage"]
    else:
        if do == "leave_out":
            left = rule.item if rule is not None and rule.item else entries[-1]["id"]
            entries = [entry for entry in entries if entry["id"] != left]
        elif do == "foreign":
            entries = [*entries[:-1], {**entries[-1], "id": "no-such-id"}]
        elif do == "unknown":
            entries = [*entries[:-1], {**entries[-1], "label": "no-such-label"}]
        elif do == "twice":
            entries = [*entries, {**entries[0], "label": entries[0]["label"]}]
        message["content"] = json.dumps({"labels": entries})
    return json.dumps(made).encode()
