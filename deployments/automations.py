"""Applies automations.yaml to the Prefect server: what is there by its name is updated.

python deployments/automations.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore

FILE = Path(__file__).with_name("automations.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tag", default="resumable", help="of the flow runs they are for (default: %(default)s)")
    add("--lost-seconds", type=int, help="without a sign of life, until a run is called lost")
    args = parser.parse_args()
    with get_client(sync_client=True) as client:
        for automation in automations(args.tag, args.lost_seconds):
            print(f"{apply(client, automation)}: {automation.name}")  # noqa: T201


def automations(tag: str, lost_seconds: int | None) -> list[AutomationCore]:
    # Every mention of the tag, so that two tags have automations of their own.
    text = json.dumps(yaml.safe_load(FILE.read_text("utf-8"))["automations"])
    text = text.replace('"name": "resumable: ', f'"name": "{tag}: ')
    text = text.replace("prefect.tag.resumable", f"prefect.tag.{tag}")
    found = json.loads(text)
    for each in found:
        if lost_seconds is not None and each["trigger"]["posture"] == "Proactive":
            each["trigger"]["within"] = lost_seconds
    return [AutomationCore.model_validate(each) for each in found]


def apply(client: SyncPrefectClient, automation: AutomationCore) -> str:
    """Create or update it; there is one of its name afterwards."""
    first, *more = client.read_automations_by_name(automation.name) or (None,)
    for each in more:
        client.delete_automation(each.id)
    if first is None:
        client.create_automation(automation)
        return "created"
    client.update_automation(first.id, automation)
    return "updated"


if __name__ == "__main__":
    main()
