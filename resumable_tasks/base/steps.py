"""Drives one generator of steps, on threads or in coroutines.

The generator yields each step and receives its answer, so the order of steps is written only once;
threads and coroutines differ only in how they carry out a step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Answer = TypeVar("Answer")
End = TypeVar("End")


def drive(steps: Generator[Step, Answer, End], do: Callable[[Step], Answer]) -> End:
    """Carry out each step; return the generator's value. Raises the errors of ``do``."""
    try:
        step = next(steps)
        while True:
            step = steps.send(do(step))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()


async def adrive(
    steps: Generator[Step, Answer, End], do: Callable[[Step], Awaitable[Answer]]
) -> End:
    """`drive` with awaited steps."""
    try:
        step = next(steps)
        while True:
            step = steps.send(await do(step))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()
