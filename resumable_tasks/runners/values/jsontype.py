"""JSON as an Arrow type: text for other readers, the original values for Python.

The Parquet file contains plain text. If this module is imported, which registers the type,
``as_py`` and ``to_pylist`` return the handler's values.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from resumable_tasks.runners.values import encoding

NAME = "resumable.json"


class _Value(pa.ExtensionScalar):  # type: ignore[misc]
    def as_py(self, **_: Any) -> Any:
        text = self.value
        return None if text is None else encoding.decode(json.loads(text.as_py()))


class JsonType(pa.ExtensionType):  # type: ignore[misc]
    """Text that is JSON, in the encoding of `resumable_tasks.runners.values.encoding`."""

    def __init__(self) -> None:
        super().__init__(pa.string(), NAME)

    def __hash__(self) -> int:
        return hash(NAME)

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> JsonType:
        return cls()

    def __arrow_ext_scalar_class__(self) -> type[_Value]:
        return _Value


JSON = JsonType()

pa.register_extension_type(JSON)


def is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, JsonType)


def column(values: list[Any]) -> pa.Array:
    """Return the values as a column of JSON. Raises `CannotEncode`."""
    texts = [None if value is None else encoding.as_exact_text(value) for value in values]
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))
