"""JSON Schema (2020-12) of the contract classes, for the server's OpenAPI page: the same limits `codec` enforces."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any

from vm0.contracts.codec import INT64_MAX, NO_LIMITS, Limits, field_plans


def json_schema(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema of `cls`; the schema itself and those it uses go into `definitions` by class name."""
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # first, so that a class that contains itself ends the recursion
        plans = field_plans(cls)
        definitions[cls.__name__] = {
            "type": "object",
            "description": (cls.__doc__ or "").strip(),
            "properties": {plan.json_name: _schema(plan.type, plan.limits, definitions) for plan in plans},
            "required": [p.json_name for p in plans if p.required and type(None) not in typing.get_args(p.type)],
        }
    return {"$ref": f"#/components/schemas/{cls.__name__}"}


def _schema(kind: Any, limits: Limits, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        return {"anyOf": [_schema(inner, limits, definitions), {"type": "null"}]}
    if kind is Any:
        return {}
    if origin is tuple:
        items = _schema(typing.get_args(kind)[0], NO_LIMITS, definitions)
        return _without_none(type="array", items=items, minItems=limits.min_length, maxItems=limits.max_length)
    if origin is dict:
        values = _schema(typing.get_args(kind)[1], NO_LIMITS, definitions)
        names = {"pattern": f"^{limits.key_pattern}$"} if limits.key_pattern else None
        return _without_none(
            type="object", additionalProperties=values, propertyNames=names, maxProperties=limits.max_length
        )
    if kind is str:
        pattern = f"^(?:{limits.pattern})$" if limits.pattern else (None if limits.nul else "^[^\\u0000]*$")
        size = limits.max_length if limits.max_length is not None else limits.max_bytes
        return _without_none(type="string", minLength=limits.min_length, maxLength=size, pattern=pattern)
    if kind is bool:
        return {"type": "boolean"}
    if kind is int:
        low = limits.minimum if limits.minimum is not None else -INT64_MAX
        high = limits.maximum if limits.maximum is not None else INT64_MAX
        return {"type": "integer", "minimum": low, "maximum": high}
    if kind is float:
        return _without_none(type="number", minimum=limits.minimum, maximum=limits.maximum)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"type": "string", "enum": [item.value for item in kind]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return json_schema(kind, definitions)
    raise TypeError(f"no JSON schema for {kind!r}")


def _without_none(**entries: Any) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None}
