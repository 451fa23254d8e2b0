"""Hints for handler errors that mostly come from a common misunderstanding."""

from __future__ import annotations

import os
import re

# Not compiled at import, because few programs need these patterns.
_FRAME = r'(?m)^  File "([^"]+)", line (\d+)'
# Files of this library and of Python.
_NOT_THEIRS = (
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    os.path.dirname(os.__file__) + os.sep,
    "<frozen",
)
_COMPILED = (".pyx", ".pxi")
_HINTS = (
    (
        r"TypeError: list indices must be integers|AttributeError: 'list' object has no ",
        "If it treats the batch as one item: a handler is given a list of items",
    ),
    (
        r"\w+: .*('str' object cannot be interpreted as an integer|pyarrow\.lib\.\w+|"
        r"type (RecordBatch|\w+Array|\w+Scalar) is not JSON)",
        "If the items come from a table or a data frame: the handler is given a "
        'pyarrow.RecordBatch, or with batch_format="rows" a list of dicts',
    ),
    (
        r"BadResult: the handler returned a list that contains (int|float|str|bool|tuple) ",
        'Give values names: {"id": item["id"], "value": …}',
    ),
    (r"BadResult: the handler returned LazyFrame", "Return its result: .collect()"),
    (
        r"BadResult: the handler returned (a list that contains )?coroutine",
        "It was never awaited: make the handler an async def that awaits it",
    ),
    (
        r"BadResult: the handler returned ItemFailure",
        "Return a list with the ItemFailure in the place of its item's row",
    ),
    (
        r"CheckpointHeld: ",
        "If the handler calls run() of its own job: call the plain function there",
    ),
    (
        r"TypeError: exceptions must derive from BaseException",
        "Do not raise an ItemFailure: return it in the place of its item's row",
    ),
    (
        r"RuntimeError: asyncio\.run\(\) cannot be called from a running event loop",
        "A coroutine handler already runs in an event loop: use await, or make it a plain function",
    ),
)


def hint(error: str, message: str) -> str:
    """Return a hint as ``. Do this`` for an error of this class and message; "" for most."""
    text = f"{error}: {message}"
    return next((f". {each}" for pattern, each in _HINTS if re.match(pattern, text)), "")


def at(trace: str) -> str:
    """Return the last line of user code in a traceback as ``, at words.py:12``; "" without one."""
    for path, line in reversed(re.findall(_FRAME, trace)):
        theirs = path.endswith(_COMPILED) or path.startswith(_NOT_THEIRS)
        if not theirs and "site-packages" not in path:
            return f", at {os.path.basename(path)}:{line}"
    return ""
