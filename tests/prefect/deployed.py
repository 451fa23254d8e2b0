"""A deployment in the real server whose flow runs are carried out in this process."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from tests.prefect.api import Api


@dataclass
class Deployed:
    api: Api
    flow: Any
    id: str
    schedules: list[str]

    @classmethod
    def of(cls, api: Api, flow: Any, *schedules: dict[str, Any]) -> Deployed:
        """Each schedule as the API takes it, such as ``{"cron": …, "timezone": …}``.

        One with ``"active": False`` beside that is switched off.
        """
        flow_id = api.call("POST", "flows/", {"name": flow.name})["id"]
        wanted = [
            {
                "slug": f"schedule-{number}",
                "active": each.get("active", True),
                "schedule": {name: each[name] for name in each if name != "active"},
            }
            for number, each in enumerate(schedules)
        ]
        body = {"name": f"test-{uuid.uuid4()}", "flow_id": flow_id, "schedules": wanted}
        found = api.call("POST", "deployments/", body)
        # Prefect gives them back in an order of its own.
        ids = {each["slug"]: each["id"] for each in found["schedules"]}
        return cls(api, flow, found["id"], [ids[each["slug"]] for each in wanted])

    def scheduled(self, start: str, end: str) -> list[dict[str, Any]]:
        """What the server's own scheduler makes of the schedules for this time, in its order."""
        body = {"start_time": start, "end_time": end, "min_runs": 10}
        self.api.call("POST", f"deployments/{self.id}/schedule", body)
        return self.api.flow_runs(
            deployments={"id": {"any_": [self.id]}},
            flow_runs={"expected_start_time": {"after_": start, "before_": end}},
            sort="EXPECTED_START_TIME_ASC",
        )

    def created(self, at: str) -> str:
        """A flow run as somebody makes one by hand, for this time."""
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at}}
        body = {"state": state}
        return str(self.api.call("POST", f"deployments/{self.id}/create_flow_run", body)["id"])

    def carry_out(self, flow_run: str) -> Any:
        """Run it here, as a worker's process does; its last state."""
        from prefect.client.orchestration import get_client
        from prefect.flow_engine import run_flow

        with get_client(sync_client=True) as client:
            found = client.read_flow_run(uuid.UUID(flow_run))
        return run_flow(self.flow, flow_run=found, return_type="state")

    def retry(self, flow_run: str) -> Any:
        """As ``prefect flow-run retry`` does it: scheduled again, for now, and carried out."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        answer = self.api.call(
            "POST", f"flow_runs/{flow_run}/set_state", {"state": state, "force": True}
        )
        assert answer["status"] == "ACCEPT", answer
        return self.carry_out(flow_run)
