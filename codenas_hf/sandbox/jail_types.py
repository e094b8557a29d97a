"""What crosses between the two sides of the sandbox as a copy: the table of types, and how a value is taken apart.

Standard library only: `jail.py` loads this in a bare interpreter.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

_ITEMS = 1_000_000


class Limit(BaseException):
    """The judge cannot say: something is needed that does not cross. Not an `Exception`: checks must not catch it."""

    first: str | None = None  # of this process, even where it was caught

    def __init__(self, message: str) -> None:
        super().__init__(message)
        Limit.first = Limit.first or message


class ProgramError(Exception):
    """The program sent what cannot be understood."""


# code: exact type
CONTAINERS: dict[str, type] = {
    "l": list, "t": tuple, "S": set, "F": frozenset, "q": collections.deque, "d": dict, "C": collections.Counter,
    "O": collections.OrderedDict, "D": collections.defaultdict, "B": bytearray,
}  # fmt: skip
CODES = {kind: code for code, kind in CONTAINERS.items()}
MAPPINGS = "dCOD"

# A value's type: what it is made from. It is made by calling the type, where `_MAKERS` has nothing else.
VALUES: dict[str, Any] = {
    "builtins.complex": lambda v: (v.real, v.imag),
    "builtins.bytes": lambda v: (v.hex(),),
    "builtins.range": lambda v: (v.start, v.stop, v.step),
    "builtins.slice": lambda v: (v.start, v.stop, v.step),
    "builtins.dict_keys": lambda v: (list(v),),
    "builtins.dict_values": lambda v: (list(v),),
    "builtins.dict_items": lambda v: (list(v),),
    "fractions.Fraction": lambda v: (v.numerator, v.denominator),
    "decimal.Decimal": lambda v: (str(v),),
    "datetime.date": lambda v: (v.year, v.month, v.day),
    "datetime.time": lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    "datetime.datetime": lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
    "datetime.timezone": lambda v: (v.utcoffset(None),),
    "uuid.UUID": lambda v: (str(v),),
    "pathlib.PosixPath": lambda v: (str(v),),
    "pathlib.PurePosixPath": lambda v: (str(v),),
    "array.array": lambda v: (v.typecode, v.tolist()),
}
_MAKERS: dict[str, Any] = {
    "builtins.bytes": bytes.fromhex,
    "builtins.dict_keys": lambda items: dict.fromkeys(items).keys(),
    "builtins.dict_values": lambda items: dict(enumerate(items)).values(),
    "builtins.dict_items": lambda items: dict(items).items(),
}
# Types that a program may name to the judge.
TYPES = frozenset(
    {f"builtins.{name}" for name in "int float str bool object memoryview".split()}
    | {f"{kind.__module__}.{kind.__qualname__}" for kind in CONTAINERS.values()}
    | {name for name in VALUES if "dict_" not in name}
    | {f"builtins.{name}" for name in dir(builtins) if getattr(getattr(builtins, name), "with_traceback", None)}
)
_BASES = (int, float, complex, str, bytes, tuple, *CONTAINERS.values())


def name_of(value: Any) -> tuple[str, str] | None:
    """Module and qualified name under which anybody finds this very type, function or module; None without one."""
    if isinstance(value, types.ModuleType):
        return value.__name__, ""
    owner = getattr(value, "__objclass__", None)  # of str.upper and its like
    module, name = getattr(owner or value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in ("__main__", "program"):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return (module, name) if found is value else None


def base_of(value: Any) -> type | None:
    """The built-in type that the value's class derives from; None where it derives from none."""
    return next((base for base in _BASES if isinstance(value, base)), None)


def plain_copy(value: Any) -> Any:
    """The built-in value that an object of a derived class holds; the class's own methods are not asked."""
    base = base_of(value)
    if base is None:
        raise TypeError(f"{type(value).__name__} holds no plain value")
    empty: dict[Any, Any] = {int: 0, float: 0.0, complex: 0j, str: "", bytes: b""}
    if base in empty:
        add: Any = vars(base)["__add__"]
        return add(empty[base], value) if base in (str, bytes) else add(value, empty[base])
    if issubclass(base, dict):
        return dict(zip(dict.__iter__(value), dict.values(value), strict=True))
    if base is collections.deque:
        return collections.deque(collections.deque.__iter__(value), value.maxlen)
    make: Any = base
    return make(make.__iter__(value))


def replace_contents(given: Any, changed: Any) -> Any:
    """Gives a container what another of its type holds."""
    if isinstance(given, list | bytearray):
        given[:] = changed
    else:
        given.clear()
        given.extend(changed) if isinstance(given, collections.deque) else given.update(changed)
    return given


def take(items: Iterable[Any]) -> list[Any]:
    """All items of something that ends.

    Raises:
        Limit: there are more than a million.
    """
    found = []
    for item in items:
        found.append(item)
        if len(found) > _ITEMS:
            raise Limit("more than a million items are asked for at once")
    return found


def maker(full: str) -> Any:
    """What makes a value of a type of `VALUES` from its packed parts.

    Args:
        full: the type's name with its module, as the program sent it.

    Raises:
        ProgramError: a type that may not cross.
    """
    if full not in VALUES:
        raise ProgramError("the program sent a value of a type that it may not")
    module, _, name = full.rpartition(".")
    return _MAKERS.get(full) or getattr(importlib.import_module(module), name)


def pack_numpy(value: Any) -> list[Any] | None:
    """Scalars and arrays of numbers and texts."""
    numpy: Any = sys.modules.get("numpy")
    if type(value) is numpy.ndarray and value.dtype.kind in "biufcSU":
        return ["A", value.dtype.str, list(value.shape), value.ravel().tolist()]
    if isinstance(value, numpy.generic) and value.dtype.kind in "biufcSU":
        return ["n", value.dtype.str, [value.item()]]
    return None


def unpack_numpy(data: list[Any], items: Sequence[Any]) -> Any:
    """The scalar or array that `pack_numpy` packed.

    Args:
        data: `n` or another mark, the dtype's name, and for an array its shape.
        items: its elements in order, unpacked.

    Raises:
        ProgramError: a dtype, or elements, of something else than numbers and texts.
    """
    numpy: Any = importlib.import_module("numpy")
    dtype = numpy.dtype(str(data[1]))
    if dtype.kind not in "biufcSU" or not set(map(type, items)) <= {bool, int, float, complex, bytes, str}:
        raise ProgramError("the program sent what is no array")
    made = numpy.array(items, dtype=dtype)
    return made[0] if data[0] == "n" else made.reshape([int(size) for size in data[2]])
