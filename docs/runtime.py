"""Show in the reference what `help` shows: parameters and texts that are made when imported.

`resumable_task` and the methods of `ResumableTask` take theirs from classes of options, so that
each is written once. Griffe only reads the source, and would not see them; nor that `frozen` and
its like make dataclasses.
"""

from __future__ import annotations

import inspect
from typing import Any

import griffe

KINDS = {kind.value: kind for kind in griffe.ParameterKind}


FROZEN = "resumable_tasks.base.frozen."
DATACLASS = griffe.ExprName("dataclass", parent=griffe.ExprName("dataclasses"))


class Runtime(griffe.Extension):
    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        for each in cls.decorators:
            if isinstance(each.value, griffe.Expr) and each.value.canonical_path.startswith(FROZEN):
                each.value = DATACLASS
                cls.labels.add("dataclass")

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if not any(
            "takes(" in str(each.value) or "_factory(" in str(each.value)
            for each in func.decorators
        ):
            return
        function = griffe.dynamic_import(func.path)
        assert func.docstring is not None
        func.docstring.value = inspect.getdoc(function) or ""
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    each.name,
                    annotation=None if each.annotation is each.empty else each.annotation,
                    kind=KINDS[each.kind.description],
                    default=None if each.default is each.empty else repr(each.default),
                )
                for each in inspect.signature(function).parameters.values()
            )
        )
