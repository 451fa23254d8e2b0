"""What the API asks of a request; what is said to one that is not so."""

from __future__ import annotations

import json
from typing import Any

MODEL = "test-model"


class Refusal(Exception):
    """An error as the API reports it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request", "code": code}}


def texts_of(request: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(request["messages"][-1]["content"])
    return found


def check(request: Any) -> list[str]:
    """The ids that are asked about. Raises `Refusal` where the real API would refuse."""
    if not isinstance(request, dict) or not request.get("messages"):
        raise Refusal(400, "Missing required parameter: 'messages'.")
    if request.get("model") != MODEL:
        raise Refusal(404, f"The model {request.get('model')!r} does not exist", "model_not_found")
    form = request.get("response_format") or {}
    if form.get("type") != "json_schema" or form["json_schema"].get("strict") is not True:
        raise Refusal(400, "this server only has structured output, and only strict")
    if not isinstance(form["json_schema"].get("name"), str):
        raise Refusal(400, "Missing required parameter: 'response_format.json_schema.name'.")
    _check_strict(form["json_schema"].get("schema"), ())
    ids = [text["id"] for text in texts_of(request)]
    entry = form["json_schema"]["schema"]["properties"]["labels"]["items"]["properties"]
    if entry["id"]["enum"] != ids or len(set(ids)) < len(ids):
        raise Refusal(400, "the schema's ids are not those of the texts")
    return ids


def _check_strict(schema: Any, place: tuple[str, ...]) -> None:
    """What "strict" asks of a schema."""
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            raise Refusal(400, f"{place}: 'additionalProperties' is required to be false")
        if set(schema.get("required", ())) != set(schema["properties"]):
            raise Refusal(400, f"{place}: 'required' is required to name every property")
        for name, part in schema["properties"].items():
            _check_strict(part, (*place, name))
    elif schema.get("type") == "array":
        _check_strict(schema["items"], (*place, "items"))
    elif not place:
        raise Refusal(400, "schema must be of type 'object'")


def ids_of(request: Any) -> list[str]:
    try:
        return [text["id"] for text in texts_of(request)]
    except (KeyError, TypeError, ValueError):
        return []
