"""What a program pays besides its work: the import, and a rerun of which nothing is left to do.

As CPU seconds of whole processes, each the least of several in turn, beside a bare interpreter and
a loop that keeps its results in JSON lines by hand. Run by ``make bench``.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 15
ITEMS = 10_000
BARE = ""
IMPORT = "from resumable_tasks import resumable_task\n"
JOB = f"""
from resumable_tasks import resumable_task
items = [{{"id": f"item-{{n}}", "n": n}} for n in range({ITEMS})]

@resumable_task(key="id")
def double(rows):
    return [{{"id": row["id"], "value": 2 * row["n"]}} for row in rows]

double.run(items, checkpoint="checkpoint")
"""
BY_HAND = f"""
import json, os
items = [{{"id": f"item-{{n}}", "n": n}} for n in range({ITEMS})]
done = set()
if os.path.exists("results.jsonl"):
    with open("results.jsonl") as file:
        done = {{json.loads(line)["id"] for line in file}}
left = [item for item in items if item["id"] not in done]
with open("results.jsonl", "a") as file:
    for start in range(0, len(left), 50):
        for item in left[start : start + 50]:
            file.write(json.dumps({{"id": item["id"], "value": 2 * item["n"]}}) + "\\n")
        file.flush()
        os.fsync(file.fileno())
"""


def cpu_of(program: str, folder: Path) -> float:
    """CPU seconds of an interpreter that runs this program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The compiled files of the library are there, as they are where it is installed.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=folder, env=env, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = {"bare": BARE, "import": IMPORT, "rerun": JOB, "rerun by hand": BY_HAND}
        for program in programs.values():  # the first runs do the work, and compile
            cpu_of(program, folder)
        found: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(ROUNDS):
            for name, program in programs.items():
                found[name].append(cpu_of(program, folder))
    least = {name: min(seconds) for name, seconds in found.items()}
    over = least["import"] - least["bare"]
    print("| whole process | CPU ms | |\n| --- | --- | --- |")
    print(f"| bare interpreter | {least['bare'] * 1e3:.0f} | 1 |")
    print(f"| `from resumable_tasks import resumable_task` | +{over * 1e3:.0f} | |")
    by_hand, rerun = least["rerun by hand"], least["rerun"]
    print(f"| rerun of {ITEMS:,} done items, JSON lines by hand | {by_hand * 1e3:.0f} | 1 |")
    print(f"| the same with a checkpoint | {rerun * 1e3:.0f} | {rerun / by_hand:.2f} × |")


if __name__ == "__main__":
    main()
