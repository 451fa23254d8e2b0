"""docs/deploying.md is followed to the letter, in a shell, against a server of its own.

What is replaced is what cannot be had in a test: the port, and the folder under /srv. What the page
tells to do in a terminal of its own is left running; the rest is done in one shell, in the order of
the page.
"""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.ports import free_port
from tests.prefect.api import Api, until
from tests.prefect.deploying import REPOSITORY, Shell, published
from tests.prefect.server import environment, is_up, with_database

PAGE = REPOSITORY / "docs/deploying.md"
RUN = "not run: a test of its own runs it"


@dataclass(frozen=True)
class Step:
    commands: str
    goes_on: bool


def steps() -> list[Step]:
    """The blocks of commands that this test runs, in their order."""
    found = re.findall(r"^<!-- (.*) -->\n```sh\n((?:.*\n)*?)```$", PAGE.read_text("utf-8"), re.M)
    return [
        Step(commands, marker.endswith("leaves it running"))
        for marker, commands in found
        if marker.startswith(RUN)
    ]


@dataclass
class Reader:
    """Somebody who does what the page says."""

    shell: Shell
    home: Path
    port: int

    def follow(self) -> list[str]:
        """What each step said, those that go on aside."""
        said = []
        for number, step in enumerate(steps()):
            commands = step.commands.replace("4200", str(self.port))
            commands = commands.replace("/srv/nightly", str(self.home))
            # Each step has what those before it have exported, as in one shell.
            known = self.shell.folder / "exported"
            script = f"set -eu\n. {known}\n{commands}\n"
            known.touch()
            if step.goes_on:
                command = ("bash", "-c", f"cd {REPOSITORY}\n{script}")
                process = self.shell.start(f"terminal-{number}", *command)
                until(lambda process=process: self._is_there(process), 90)
            else:
                said.append(self.shell.run("bash", "-c", f"{script}export -p > {known}\n"))
        return said

    def _is_there(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, (self.shell.folder / "terminal-1.log").read_text()
        return is_up(self.port)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    port = free_port()
    shell = Shell(
        environment(with_database(tmp_path / "prefect")) | {"PREFECT_SERVER_API_PORT": str(port)},
        tmp_path,
    )
    yield Reader(shell, tmp_path / "nightly", port)
    shell.close()


@pytest.mark.long
def test_the_page_does_what_it_says(reader: Reader) -> None:
    *_, said = reader.follow()
    assert [step.goes_on for step in steps()].count(True) == 2
    assert "Flow run finished successfully in 'Completed'." in said
    assert "date=" in said
    assert "part-00000.parquet" in said

    # It is the date of the schedule's zone, and a schedule there is.
    api = Api(reader.port)
    deployment = api.call("GET", "deployments/name/nightly-ingest/nightly")
    (schedule,) = deployment["schedules"]
    zone = ZoneInfo(schedule["schedule"]["timezone"])
    (date,) = set(re.findall(r"date=(\d{4}-\d\d-\d\d)", said))
    today = datetime.datetime.now(zone).date()
    assert datetime.date.fromisoformat(date) in (today, today - datetime.timedelta(days=1))
    files = sorted(path.name for path in (REPOSITORY / "flows").glob("*.py"))
    found = published(reader.home / "published/nightly_ingest", date)
    assert [Path(path).name for path in found] == files
    assert api.flow_runs(flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert len(api.call("POST", "automations/filter", {})) == 5
