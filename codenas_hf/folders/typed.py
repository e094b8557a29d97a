"""Typed values as JSON and back: every field is checked, what is unknown stays where it stood."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class RecordError(ValueError):
    """A record that is damaged or of a newer schema; the message names the file."""


def plain(value: Any) -> Any:
    """JSON form; what is None is left out of objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(v) for f in dataclasses.fields(value) if (v := getattr(value, f.name)) is not None}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def laid_under(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`own` with the keys of `other` that it lacks, object by object."""
    merged = dict(own)
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = laid_under(merged[key], value)
        else:
            merged.setdefault(key, value)
    return merged


def typed(hint: Any, value: Any, where: str, other: dict[str, Any]) -> Any:
    """`value` as the type `hint` asks for; keys that a dataclass does not have go into `other`, where they stood."""
    options = [o for o in typing.get_args(hint) if o is not types.NoneType]
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return None if value is None else typed(options[0], value, where, other)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, value, where, other)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(key): typed(options[1], item, f"{where}.{key}", {}) for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(typed(options[0], item, f"{where}[{i}]", {}) for i, item in enumerate(value))
    if (origin is Literal and value in options) or hint is Any:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"`{where}` must be finite, got {value}")
    wanted = (int, float) if hint is float else hint
    if origin is None and isinstance(value, wanted) and not isinstance(value, bool):
        return value
    name = " or ".join(map(repr, options)) if origin is Literal else _NAMES.get(origin or hint, "another type")
    raise RecordError(f"`{where}` must be {name}, got {value!r}"[:300])


_NAMES = {Mapping: "an object", tuple: "a list", str: "a text", int: "a whole number", float: "a number"}


def _dataclass(kind: type, value: Any, where: str, other: dict[str, Any]) -> Any:
    if not isinstance(value, Mapping):
        raise RecordError(f"`{where}` must be an object, got {value!r}"[:300])
    hints, given = typing.get_type_hints(kind), {}
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "other"}
    for key, item in value.items():
        inner: dict[str, Any] = {}
        if key in fields:
            given[key] = typed(hints[key], item, f"{where}.{key}".lstrip("."), inner)
            other |= {key: inner} if inner else {}
        else:
            other[key] = item
    missing = dataclasses.MISSING
    for name, f in fields.items():
        if name not in given and f.default is missing and f.default_factory is missing:
            raise RecordError(f"`{where}.{name}` is missing".replace("`.", "`"))
    return kind(**given)
