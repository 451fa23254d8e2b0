"""Texts to classify, made up by rule, and the label that the test server knows for each.

python -m tests.flows.llm.texts 700 > texts.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

LABELS = ("bug", "praise", "question")

_SENTENCES = {
    "bug": "There is a bug in the {thing}: it {trouble} when I {action}.",
    "praise": "Nothing but praise for the {thing}, ever since I {action} with it daily.",
    "question": "A question about the {thing}: how do I {action} without that it {trouble}?",
}
_WORDS = {
    "thing": ("calendar", "invoice page", "search", "mobile app", "export", "map", "login"),
    "trouble": ("hangs", "forgets my name", "shows yesterday's data", "closes", "turns grey"),
    "action": ("print", "sort by date", "share a list", "change the language", "add a photo"),
}


def texts(count: int) -> list[dict[str, Any]]:
    """The same texts every time; no two are the same."""
    chance = random.Random(7)
    found = []
    for number in range(count):
        sentence = _SENTENCES[chance.choice(LABELS)]
        words = {name: chance.choice(choices) for name, choices in _WORDS.items()}
        found.append({"id": f"t{number:04}", "text": f"{sentence.format(**words)} (#{number})"})
    return found


def right_label(text: str, labels: Sequence[str]) -> str:
    """The label whose name stands in the text; for a text with none, one by its digest."""
    for label in sorted(labels):
        if label in text.lower():
            return label
    digest = blake2b(text.encode(), digest_size=8).digest()
    return sorted(labels)[int.from_bytes(digest, "big") % len(labels)]


if __name__ == "__main__":
    for text in texts(int(sys.argv[1]) if len(sys.argv) > 1 else 700):
        print(json.dumps(text))
