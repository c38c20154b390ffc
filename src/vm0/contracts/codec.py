"""Dataclass <-> JSON: one decoder that checks types and limits, one encoder, and the JSON schema of both.

Rules: JSON names are the camelCase of the field names unless the class says `JSON_NAMES = "snake"`; unknown keys
are ignored, so that either side may be newer; an absent or null key takes the field's default. Integers are
64-bit and never booleans; numbers are finite; text holds no lone surrogates (they cannot be stored as UTF-8).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

INT64_MAX = 2**63 - 1
T = TypeVar("T")

MAX_DEPTH = 64  # nesting of free-form JSON; far above what agents emit, far below the recursion limit
JsonObject = dict[str, Any]  # free-form JSON that passes through unread; depth and numbers are checked


class ContractError(ValueError):
    """a body does not match its contract

    `path` names the field as the sender wrote it (`storages[0].mountPath`); it is empty for the body itself.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path, self.reason = path, reason


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a value must satisfy beyond its type. Lengths count characters for text, entries for lists and maps."""

    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    max_bytes: int | None = None  # of the UTF-8 text; of a map: all keys and values together
    pattern: str | None = None
    pattern_means: str = ""  # how the pattern reads in an error
    key_pattern: str | None = None  # of the keys of a map
    nul: bool = False  # NUL characters allowed in the text


def limited(default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A dataclass field with `Limits`; a default of `dict` or `tuple` makes an empty one per instance."""
    metadata = {"limits": Limits(**limits)}
    if default in (dict, tuple):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


NO_LIMITS = Limits()


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@dataclasses.dataclass(frozen=True, slots=True)
class FieldPlan:
    name: str
    json_name: str
    type: Any
    required: bool
    limits: Limits


@functools.cache
def field_plans(cls: type) -> tuple[FieldPlan, ...]:
    """The fields of a contract class in order, with their JSON names and resolved types."""
    hints = typing.get_type_hints(cls)
    snake = getattr(cls, "JSON_NAMES", "camel") == "snake"
    return tuple(
        FieldPlan(
            name=field.name,
            json_name=field.name if snake else camel(field.name),
            type=hints[field.name],
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            limits=field.metadata.get("limits", NO_LIMITS),
        )
        for field in dataclasses.fields(cls)
    )


def decode(cls: type[T], data: object, path: str = "") -> T:
    """Check `data` (from `json.loads`) against `cls` and return it as one; raises nothing but ContractError."""
    if not isinstance(data, Mapping):
        raise ContractError(path, f"must be an object, not {_kind(data)}")
    values: dict[str, Any] = {}
    for plan in field_plans(cls):  # type: ignore[arg-type]  # classes are hashable; typeshed cannot say so of type[T]
        where = f"{path}.{plan.json_name}" if path else plan.json_name
        value = data.get(plan.json_name)
        if value is None:
            if plan.required and type(None) not in typing.get_args(plan.type):
                raise ContractError(where, "is required")
            if plan.required:
                values[plan.name] = None
            continue
        values[plan.name] = _decode_value(plan.type, value, where, plan.limits)
    try:
        return cls(**values)
    except ContractError as exc:  # from __post_init__: relations between fields
        raise ContractError(f"{path}.{exc.path}" if path else exc.path, exc.reason) from None


def loads(cls: type[T], text: bytes | str) -> T:
    """`decode` of JSON text; malformed text is a ContractError as well."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ContractError("", f"is not JSON: {exc}") from None
    return decode(cls, data)


def encode(value: Any) -> Any:
    """The JSON form of a contract value. Fields that are None are left out: absent and null mean the same."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {plan.json_name: encode(getattr(value, plan.name)) for plan in field_plans(type(value))}
        return {name: item for name, item in found.items() if item is not None}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def dumps(value: Any) -> bytes:
    """`encode` as compact JSON text, ASCII only (a lone surrogate in free-form JSON stays an escape)."""
    return json.dumps(encode(value), separators=(",", ":"), allow_nan=False).encode("ascii")


def _decode_value(kind: Any, value: object, path: str, limits: Limits) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        origin = typing.get_origin(kind)
    if kind is Any:
        return _checked_json(value, path, 0)
    if origin is tuple:
        return _decode_list(typing.get_args(kind)[0], value, path, limits)
    if origin is dict:
        return _decode_map(typing.get_args(kind)[1], value, path, limits)
    if kind is str:
        return _decode_text(value, path, limits)
    if kind in (int, float, bool):
        return _decode_number(kind, value, path, limits)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise ContractError(path, "must be one of " + ", ".join(str(item.value) for item in kind)) from None
    return decode(kind, value, path)


def _decode_list(kind: Any, value: object, path: str, limits: Limits) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ContractError(path, f"must be a list, not {_kind(value)}")
    _check_length(len(value), path, limits, "entries")
    return tuple(_decode_value(kind, item, f"{path}[{index}]", NO_LIMITS) for index, item in enumerate(value))


def _decode_map(kind: Any, value: object, path: str, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ContractError(path, f"must be an object, not {_kind(value)}")
    _check_length(len(value), path, limits, "entries")
    if kind is Any:
        return dict(_checked_json(value, path, 0))
    item_limits = Limits(nul=limits.nul)
    found = {}
    total = 0
    for key, item in value.items():
        where = f"{path}.{_decode_text(key, path, NO_LIMITS)}"
        if limits.key_pattern and not re.fullmatch(limits.key_pattern, key):
            raise ContractError(where, f"the name must be {limits.pattern_means or limits.key_pattern}")
        found[key] = _decode_value(kind, item, where, item_limits)
        total += len(key.encode()) + (len(item.encode()) if isinstance(item, str) else 0)
    if limits.max_bytes is not None and total > limits.max_bytes:
        raise ContractError(path, f"is {total} bytes in all; the limit is {limits.max_bytes}")
    return found


def _decode_text(value: object, path: str, limits: Limits) -> str:
    if not isinstance(value, str):
        raise ContractError(path, f"must be text, not {_kind(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ContractError(path, "holds a lone surrogate, which is not valid text") from None
    if not limits.nul and "\0" in value:
        raise ContractError(path, "holds a NUL character")
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise ContractError(path, f"is {size} bytes; the limit is {limits.max_bytes}")
    _check_length(len(value), path, limits, "characters")
    if limits.pattern and not re.fullmatch(limits.pattern, value):
        raise ContractError(path, f"must be {limits.pattern_means or 'of the form ' + limits.pattern}")
    return value


def _decode_number(kind: type, value: object, path: str, limits: Limits) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise ContractError(path, f"must be true or false, not {_kind(value)}")
        return value
    number = value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ContractError(path, f"must be a number, not {_kind(value)}")
    if kind is int:
        if isinstance(number, float) and not number.is_integer():  # NaN and infinity are not integers either
            raise ContractError(path, "must be a whole number")
        number = int(number)
        if not -INT64_MAX <= number <= INT64_MAX:
            raise ContractError(path, "does not fit 64 bits")
    else:
        try:
            number = float(number)
        except OverflowError:
            raise ContractError(path, "is too large") from None
        if not math.isfinite(number):
            raise ContractError(path, "must be finite")
    if limits.minimum is not None and number < limits.minimum:
        raise ContractError(path, f"must be at least {limits.minimum:g}")
    if limits.maximum is not None and number > limits.maximum:
        raise ContractError(path, f"must be at most {limits.maximum:g}")
    return number


def _checked_json(value: object, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ContractError(path, f"is nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {str(key): _checked_json(item, path, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_checked_json(item, path, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ContractError(path, "holds a number that is not finite")
    return value


def _check_length(length: int, path: str, limits: Limits, unit: str) -> None:
    if limits.min_length is not None and length < limits.min_length:
        raise ContractError(
            path, "must not be empty" if limits.min_length == 1 else f"needs {limits.min_length} {unit}"
        )
    if limits.max_length is not None and length > limits.max_length:
        raise ContractError(path, f"has {length} {unit}; the limit is {limits.max_length}")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, (list, tuple)) else "an object"
