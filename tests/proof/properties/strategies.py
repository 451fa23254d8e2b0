"""Keys and rows as people might have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

NASTY = [
    " ",
    "0",
    "1",
    "-1",
    "null",
    "True",
    "[]",
    '"',
    "\\",
    '""',
    '"}\n{"key":"',
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "\x1f\x7f",
    "\x85\u2028\u2029",
    "\ufeff\uffff",
    "é",
    "e\u0301",
    "漢字",
    "\U0001f99c\U0010ffff",
    "x" * 79,
    "x" * 80,
    "y" * 10_000,
    "é\n" * 5_000,
]


def one_of_these(values: Sequence[T]) -> st.SearchStrategy[T]:
    """As ``sampled_from``, which would print them all."""
    return st.integers(0, len(values) - 1).map(lambda at: values[at])


texts = st.one_of(st.text(min_size=1), one_of_these(NASTY))
integers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-3, 3),
    st.sampled_from([-(2**63), 2**63 - 1, 2**63, 2**64 - 1]),
)
parts = st.one_of(texts, integers)
tuples = st.lists(parts, min_size=1, max_size=4).map(tuple)
keys = st.one_of(texts, integers, tuples)
