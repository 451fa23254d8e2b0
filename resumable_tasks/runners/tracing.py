"""The span of a call of the handler, in the process that makes the call.

A batch carries the headers of its span. A span that the handler opens is a child of the call's
span, or of the batch's span if the process has no provider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resumable_tasks.base import log
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners import failures
from resumable_tasks.runners.outcome import Failed, Fatal

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from resumable_tasks.runners.handle import Answer

SCOPE = "resumable_tasks"
JOB, BATCH, ATTEMPT = f"{SCOPE}.job", f"{SCOPE}.batch.number", f"{SCOPE}.call.attempt"
ERROR_TYPE = "error.type"


def begin(job: str, batch: Batch, number: int) -> Callable[[Answer], None]:
    """Open the span of a call in this context; return a function that ends it with the answer.

    Neither raises.
    """
    try:
        from opentelemetry import context, propagate, trace
    except ImportError:  # a worker without OpenTelemetry: its handler has no spans either
        return lambda _: None
    try:
        parent = propagate.extract(batch.trace or {}, context.get_current())
        span = trace.get_tracer(SCOPE).start_span(
            f"call {job}", parent, attributes={JOB: job, BATCH: batch.number, ATTEMPT: number}
        )
        token = context.attach(trace.set_span_in_context(span, parent))
    except Exception:  # noqa: BLE001 - logged; a broken provider must not end a paid call
        _say_once()
        return lambda _: None

    def end(answer: Answer) -> None:
        try:
            _end(span, token, answer)
        except Exception:  # noqa: BLE001 - as above
            _say_once()

    return end


_said = False


def _say_once() -> None:
    global _said
    if not _said:
        _said = True
        log.exception("OpenTelemetry: the span of a call is missing; more may be missing too")


def _end(span: Span, token: Token[Context], answer: Answer) -> None:
    from opentelemetry import context

    from resumable_tasks.runners.handle import Raised

    context.detach(token)
    if isinstance(answer, (Raised, Fatal)):
        name, message, traceback = failures.describe(answer.error)
        told = {"type": name, "message": message, "stacktrace": traceback}
        span.add_event("exception", {f"exception.{what}": text for what, text in told.items()})
        failed(span, name)
    elif isinstance(answer, Failed):
        failed(span, answer.error.name)
    span.end()


def failed(span: Span, error: str) -> None:
    """Mark a span as failed with this class of error."""
    from opentelemetry.trace import StatusCode

    span.set_attribute(ERROR_TYPE, error)
    span.set_status(StatusCode.ERROR, error)
