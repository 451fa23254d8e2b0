"""The options of a job that weigh items: checks them, and makes a run's objects from them.

Imports what only a run needs inside functions, so that a program that defines a job does not pay
for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from resumable_tasks.errors import UsageError
from resumable_tasks.runners.rates import RateLimit, Rates, Unit, parse_rates, parse_weight

if TYPE_CHECKING:
    from resumable_tasks.items.cutting import MaxWeight
    from resumable_tasks.items.weights import Weigher, Weight
    from resumable_tasks.prefect.flow_run import FlowRun
    from resumable_tasks.runners.limits import Limits
    from resumable_tasks.runners.usage import Learnt
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
    _check_weight(options, rates)
    _check_share(options, rates)
    if bool(rates.quotas) != (options.quota is not None):
        raise UsageError(
            "quota= selects a quota of rate_limit= for each item; only one of the two is given",
            remedy='Give both, as in rate_limit={"model-a": "60/minute"}, quota="model"',
        )


def _check_weight(options: JobOptions, rates: Rates) -> None:
    unit = _unit_of(options.max_weight)
    if options.weight is None and options.max_weight is not None and unit is None:
        raise UsageError(
            f"max_weight={options.max_weight!r} has no unit, and there is no weight= to measure by",
            remedy='Give weight= too, or a unit, as in "190 MB" or "100k tokens"',
        )
    by_weight = options.max_weight is not None and unit != "bytes"
    if options.weight is not None and not (by_weight or _in_tokens(rates) or rates.names):
        raise UsageError(
            "weight= is given, but nothing is limited by it",
            remedy='Give max_weight=, or rate_limit= a rate such as "200k tokens/minute"',
        )


def _check_share(options: JobOptions, rates: Rates) -> None:
    share = options.share
    if share is None:
        return
    if not isinstance(share, str | os.PathLike) or not os.fspath(share) or _is_elsewhere(share):
        raise UsageError(
            f"share={share!r} is neither a path of a file on this host nor the URL of a Redis",
            remedy='Name a file, such as "/var/tmp/quota.json", or "redis://host:6379/0#quota"',
        )
    if not rates.each and not rates.auto:
        raise UsageError(
            "share= shares the rates of rate_limit=, but there are none",
            remedy='Give rate_limit= too, such as "200k tokens/minute"',
        )


def _is_elsewhere(share: str | os.PathLike[str]) -> bool:
    """True for a URL that cannot be used to share. Raises `UsageError` without a Redis client."""
    if "://" not in os.fspath(share):
        return False
    from resumable_tasks.runners.shared import is_redis

    return not is_redis(os.fspath(share))


def _unit_of(max_weight: int | str | None) -> Unit | None:
    return None if max_weight is None else parse_weight(max_weight)[1]


def max_weight(options: JobOptions, learnt: Learnt) -> MaxWeight | None:
    """The limit of a batch's weight. Tokens are estimated from the calls so far."""
    if options.max_weight is None:
        return None
    from resumable_tasks.items.cutting import MaxWeight
    from resumable_tasks.runners.usage import Load

    most, unit = parse_weight(options.max_weight)
    measure: Callable[[Weight], float] = lambda each: each.own or 0  # noqa: E731
    if unit is not None:
        measure = lambda each: learnt.weight(unit, Load(1, each.bytes, each.own))  # noqa: E731
    return MaxWeight(most, measure, options.max_weight)


def weigher(options: JobOptions) -> Weigher | None:
    """The weigher of a job's items; None if nothing needs weights."""
    rates = parse_rates(options.rate_limit)
    units = {_unit_of(options.max_weight), *(rate.unit for rate in rates.each)}
    in_bytes = "bytes" in units or (_learns(options) and options.weight is None)
    if not in_bytes and options.weight is None and options.quota is None:
        return None
    from resumable_tasks.items.weights import Weigher

    refuse = partial(_refuse, rates.each, frozenset(rates.quotas))
    return Weigher(options.weight, options.quota, in_bytes, refuse)


def _learns(options: JobOptions) -> bool:
    """True if something is counted in tokens."""
    unit = _unit_of(options.max_weight)
    return _in_tokens(parse_rates(options.rate_limit)) or (unit is not None and "tokens" in unit)


def limits(options: JobOptions, flow_run: FlowRun | None, learnt: Learnt) -> Limits | None:
    """The limits that delay calls and take their reports; None if there are none.

    Raises `UsageError`.
    """
    rates = parse_rates(options.rate_limit)
    if rates.names and flow_run is None:
        raise UsageError(
            f"{options.name}: rate_limit={options.rate_limit!r} names a Prefect limit, but no flow "
            'run is active; give a rate such as "60/minute"'
        )
    if not rates and options.adaptive is None and not _learns(options):
        return None
    gates = flow_run.gates(rates.names) if flow_run is not None else ()
    from resumable_tasks.runners.limits import Limits

    return Limits(
        *(rates.each, options.adaptive, gates, options.batch_size),
        learnt=learnt,
        auto=rates.auto,
        share=None if options.share is None else os.fspath(options.share),
    )


def _in_tokens(rates: Rates) -> bool:
    return rates.auto or any("tokens" in rate.unit for rate in rates.each)


def _refuse(rates: Sequence[RateLimit], quotas: frozenset[str], weights: Sequence[Weight]) -> str:
    """The reason to refuse a batch of these weights; "" if there is none."""
    from resumable_tasks.runners.usage import known

    for each in weights if quotas else ():
        if each.quota not in quotas:
            return f"quota= gives {each.quota!r}, and rate_limit= has {', '.join(sorted(quotas))}"
    for rate in rates:
        part = [each for each in weights if each.quota == rate.quota]
        weight = known(rate.unit, part) if part else None
        if weight is not None and weight > rate.count:
            return f"a call with {weight:,} {rate.unit}, and rate_limit= allows {rate}"
    return ""
