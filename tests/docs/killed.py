"""As ``timeout --signal=KILL`` of a page, but once the run has committed: a machine may be slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

process = subprocess.Popen(sys.argv[1:])
# The first record is the run's beginning; the pages show several shards, of more than a kilobyte.
while process.poll() is None and len(list(Path().glob("checkpoints/*/journal/*"))) < 5:
    time.sleep(0.01)
if process.poll() is not None:
    sys.exit(process.returncode)
process.kill()
process.wait()
os.kill(os.getpid(), signal.SIGKILL)
