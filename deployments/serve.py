"""The nightly ingest on one machine: a Prefect server, and this process. No work pool, no worker.

    RESUMABLE_HOME=/srv/nightly python deployments/serve.py

RESUMABLE_HOME is the absolute path of a folder that is kept: the checkpoints and what is published
live in it. RESUMABLE_CHECKPOINTS names another place for the checkpoints, an absolute path or the
URL of a bucket, such as s3://bucket/checkpoints. The deployment is nightly-ingest/nightly, the same
that prefect.yaml makes for a work pool: have the one or the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from gently import gently

CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--home", default=os.environ.get("RESUMABLE_HOME"), help="default: $RESUMABLE_HOME")
    place = os.environ.get("RESUMABLE_CHECKPOINTS")
    add("--checkpoints", default=place, help="default: $RESUMABLE_CHECKPOINTS, or in --home")
    add("--name", default="nightly", help="of the deployment (default: %(default)s)")
    add("--tag", default="resumable", help="which automations.yaml goes by (default: %(default)s)")
    # Not between one and three, which the change to and from summer time skips or doubles.
    add("--cron", default="0 4 * * *", help="default: %(default)s")
    add("--tz", default="Europe/Berlin", help="time zone of --cron (default: %(default)s)")
    keep = "the checkpoints of so many dates stay, older published ones are removed (default: all)"
    add("--keep", type=int, help=keep)
    add("--parameters", default={}, type=json.loads, help="further parameters of the flow, as JSON")
    add("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.home or not Path(args.home).is_absolute():
        parser.error(
            "RESUMABLE_HOME (or --home) must be the absolute path of a folder that is kept"
        )
    args.checkpoints = args.checkpoints or f"{args.home}/checkpoints"
    if "://" not in args.checkpoints and not Path(args.checkpoints).is_absolute():
        parser.error(
            "RESUMABLE_CHECKPOINTS (or --checkpoints) must be an absolute path or a bucket's URL"
        )
    if not args.here:
        # On SIGTERM Prefect's `serve` would kill or cancel the flow runs; see gently.py.
        return gently([sys.executable, *sys.argv, "--here"])
    serve(args)
    return 0


def serve(args: argparse.Namespace) -> None:
    # A beat every 30 seconds, not 180: a run whose machine is gone is found sooner.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    from prefect import flow
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron

    # From its source, and not imported: Prefect would send an imported flow to the flow run's
    # process by pickle, which loses the types of its parameters.
    nightly = flow.from_source(str(CHECKOUT), "flows/nightly_ingest.py:nightly_ingest")
    nightly.serve(
        args.name,
        schedule=Cron(args.cron, timezone=args.tz),
        parameters={
            "checkpoint": f"{args.checkpoints.rstrip('/')}/nightly_ingest",
            "out": f"{args.home}/published/nightly_ingest",
            "keep": args.keep,
            **args.parameters,
        },
        tags=[args.tag],
        # One run at a time. The next one waits, since it is another date, or the rerun of this one.
        global_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        # Prefect's default may switch the schedule off when this is ended, by Ctrl-C for one.
        pause_on_shutdown=False,
    )


if __name__ == "__main__":
    sys.exit(main())
