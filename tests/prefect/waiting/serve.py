"""``flow.serve()``, of all the flows: ``python serve.py <name of the deployments>``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3])]

from flow import awaits, elsewhere, fails_once, waits  # noqa: E402
from prefect import serve  # noqa: E402

if __name__ == "__main__":
    flows = (waits, awaits, fails_once, elsewhere)
    serve(*(each.to_deployment(sys.argv[1]) for each in flows), query_seconds=1)
