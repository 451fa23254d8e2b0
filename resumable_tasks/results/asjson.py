"""Results as JSON, for pydantic's serialization, as with ``@flow(result_serializer="json")``.

Instead of the reader of the rows, the JSON has the path or URL of their files, if there are files.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from resumable_tasks.results.shown import Failures
from resumable_tasks.runners.bound import BoundBy
from resumable_tasks.runners.outcome import Failure

if TYPE_CHECKING:
    from pydantic_core import CoreSchema, SchemaSerializer

    from resumable_tasks.results.result import RunResult


class Serializer:
    """The serializer that pydantic looks for on objects that are not its own."""

    def __get__(self, result: RunResult | None, owner: type[RunResult]) -> SchemaSerializer:
        from pydantic_core import SchemaSerializer

        return SchemaSerializer(schema(owner))


def schema(owner: type[RunResult]) -> CoreSchema:
    """The schema by which pydantic validates and serializes results."""
    from pydantic_core import core_schema

    return core_schema.no_info_plain_validator_function(
        lambda found: found if isinstance(found, owner) else owner(**_values(found)),
        serialization=core_schema.plain_serializer_function_ser_schema(_plain),
    )


def _plain(result: RunResult) -> dict[str, Any]:
    stay = {"reader", "positions", "when_published"}
    names = [each.name for each in fields(result) if each.name not in stay]
    found = {name: getattr(result, name) for name in names}
    for name in ("failures", "parked_items"):
        found[name] = [asdict(each) for each in found[name]]
    for name in ("remaining", "bound_by"):
        found[name] = found[name] and asdict(found[name])
    return found | {"files_at": result.reader and result.reader.files_at}


def _values(found: dict[str, Any]) -> dict[str, Any]:
    from resumable_tasks.checkpoint.directory.place import Directory
    from resumable_tasks.checkpoint.estimate import Estimate

    values = dict(found)
    for name in ("failures", "parked_items"):
        values[name] = Failures(Failure(**_tuples(each)) for each in found[name])
    for name, kind in (("remaining", Estimate), ("bound_by", BoundBy)):
        values[name] = None if found[name] is None else kind(**found[name])
    at = values.pop("files_at")
    return values | {"reader": None if at is None else Directory(at).reader()}


def _tuples(failure: dict[str, Any]) -> dict[str, Any]:
    """Convert a failure from JSON, in which tuple keys and rows are lists."""
    found = {
        name: tuple(failure[name])
        for name in ("key", "rows")
        if isinstance(failure[name], list | tuple)
    }
    return failure | found
