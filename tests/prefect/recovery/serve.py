"""``flow.serve()``, of all the flows: ``python serve.py <name of the deployments>``."""

from __future__ import annotations

import sys

from flow import ajob, job, two_jobs
from prefect import serve

if __name__ == "__main__":
    flows = (job, ajob, two_jobs)
    serve(*(each.to_deployment(sys.argv[1]) for each in flows), query_seconds=1)
