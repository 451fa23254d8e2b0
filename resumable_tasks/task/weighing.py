"""The options of a job that weigh items: their checks, and what a run makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from resumable_tasks.errors import UsageError
from resumable_tasks.items.weights import Weigher, Weight
from resumable_tasks.runners.limits import Limits
from resumable_tasks.runners.rates import RateLimit, Rates, parse_rates
from resumable_tasks.runners.usage import known

if TYPE_CHECKING:
    from resumable_tasks.prefect.flow_run import FlowRun
    from resumable_tasks.task.options import JobOptions


def check(options: JobOptions) -> None:
    """Raise `UsageError` for options that do not fit together."""
    rates = parse_rates(options.rate_limit)
    for rate in rates.each:
        if rate.unit == "items" and rate.count < options.batch_size:
            raise UsageError(
                f"rate_limit={options.rate_limit!r} allows {rate.count} items at once, and a "
                f"batch has {options.batch_size}: give a smaller batch_size"
            )
    for name in ("weight", "quota"):
        spec = getattr(options, name)
        if spec is not None and not callable(spec) and not (isinstance(spec, str) and spec):
            raise UsageError(
                f"{name}={spec!r} is neither a field's name nor a callable of an item",
                remedy=f"Give {name}= one of the two",
            )
    if options.weight is not None and not _in_tokens(rates):
        raise UsageError(
            "weight= is given, and nothing is limited by it",
            remedy='Give rate_limit= a rate of tokens, such as "200k tokens/minute"',
        )
    if bool(rates.quotas) != (options.quota is not None):
        raise UsageError(
            "quota= says which quota of rate_limit= an item is limited by: one is given and not "
            "the other",
            remedy='Give both, as in rate_limit={"model-a": "60/minute"}, quota="model"',
        )


def weigher(options: JobOptions) -> Weigher | None:
    """What finds the weights of a job's items; None if nothing asks for them."""
    rates = parse_rates(options.rate_limit)
    tokens = _in_tokens(rates) and options.weight is None
    in_bytes = tokens or any(rate.unit == "bytes" for rate in rates.each)
    if not in_bytes and options.weight is None and options.quota is None:
        return None
    refuse = partial(_refuse, rates.each, frozenset(rates.quotas))
    return Weigher(options.weight, options.quota, in_bytes, refuse)


def limits(
    options: JobOptions, flow_run: FlowRun | None, learnt: Mapping[str, float] | None
) -> Limits | None:
    """What holds calls back; None if nothing does. Raises `UsageError`."""
    rates = parse_rates(options.rate_limit)
    if rates.names and flow_run is None:
        raise UsageError(
            f"{options.name}: rate_limit={options.rate_limit!r} names a limit of Prefect, and "
            'no flow run is going on; give a rate such as "60/minute"'
        )
    if not rates and options.adaptive is None:
        return None
    gates = flow_run.gates(rates.names) if flow_run is not None else ()
    found = Limits(rates.each, options.adaptive, gates, options.batch_size)
    found.learnt.resume(learnt)
    return found


def _in_tokens(rates: Rates) -> bool:
    return any("tokens" in rate.unit for rate in rates.each)


def _refuse(rates: Sequence[RateLimit], quotas: frozenset[str], weights: Sequence[Weight]) -> str:
    """Say what is wrong with a batch of these weights; "" if nothing is."""
    for each in weights if quotas else ():
        if each.quota not in quotas:
            return f"quota= gives {each.quota!r}, and rate_limit= has {', '.join(sorted(quotas))}"
    for rate in rates:
        part = [each for each in weights if each.quota == rate.quota]
        weight = known(rate.unit, part) if part else None
        if weight is not None and weight > rate.count:
            return f"a call with {weight:,} {rate.unit}, and rate_limit= allows {rate}"
    return ""
