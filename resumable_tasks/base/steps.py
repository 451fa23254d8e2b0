"""One generator of steps, for threads and for coroutines.

A generator yields what is to be done and is sent what came of it, so that the order of steps is
written once; only the doing differs where one waits and the other awaits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Answer = TypeVar("Answer")
End = TypeVar("End")


def drive(steps: Generator[Step, Answer, End], do: Callable[[Step], Answer]) -> End:
    """Do each step in its turn; what the generator returns. Raises what ``do`` raises."""
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
    """`drive`, where steps are awaited."""
    try:
        step = next(steps)
        while True:
            step = steps.send(await do(step))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()
