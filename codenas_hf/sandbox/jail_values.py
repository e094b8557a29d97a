"""How values cross between the two sides of the sandbox: copies of plain data, references to all else.

Standard library only: `jail.py` loads this in a bare interpreter. `unpack` trusts nothing on the judge's side: what it
builds there are values of the types in `jail_types` and nothing else.
"""

from __future__ import annotations

import collections
import importlib
import math
import sys
from collections.abc import Iterable
from typing import Any

from jail_types import (  # type: ignore[import-not-found]  # beside this file, where no package is importable
    CODES,
    CONTAINERS,
    MAPPINGS,
    TYPES,
    VALUES,
    Limit,
    ProgramError,
    maker,
    name_of,
    pack_numpy,
    replace_contents,
    unpack_numpy,
)

_DEPTH = 200
_WORD = 2**63
_SCALARS = frozenset({str, int, float, bool, type(None)})


_named_tuple: Any = collections.namedtuple  # refuses what is no name


class Values:
    """Packs values as JSON and unpacks them; the same class on both sides.

    Containers of the judge's that went to the program are known by a key: where the program gives one back, or
    changed one, the judge's own object is meant.
    """

    def __init__(self, *, judge: bool) -> None:
        self.judge = judge
        self.exact = True  # whether all that crossed were copies, so that no judgement rests on a reference
        self.objects: dict[int, Any] = {}  # what the other side holds references to
        self.given: dict[int, Any] = {}  # of the judge's containers, by key
        self.keys: dict[int, int] = {}  # in the runner: the key of an object of `given`, by its identity
        self.classes: dict[int, Any] = {}  # in the judge: stand-ins of the program's tuple and exception classes

    def may_name(self, kind: type) -> bool:
        """Whether a program may name this type to the judge."""
        return name_of(kind) is not None and f"{kind.__module__}.{kind.__qualname__}" in TYPES

    # packing

    def pack(self, value: Any, depth: int = 0) -> Any:
        """JSON form of a value.

        Raises:
            Limit: it does not cross.
        """
        if depth > _DEPTH:
            raise Limit("a value is nested more than 200 deep")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_WORD < value < _WORD else ["i", hex(value)]
        if kind is float:
            return value if value == value else ["N", self._key(value)]
        code = CODES.get(kind)
        if code is not None:
            return self._pack_container(code, value, depth)
        full = f"{kind.__module__}.{kind.__qualname__}"
        if full in VALUES and (full.startswith("builtins.dict_") or name_of(kind)):
            return ["v", full, self._items(VALUES[full](value), depth)]
        if isinstance(value, BaseException):
            state = {k: v for k, v in vars(value).items() if not k.startswith("_")}
            return ["E", self._pack_class(kind), self._items(value.args, depth), self._pack_state(state, depth)]
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._pack_named(value, depth)
        if kind.__module__ == "numpy" and (packed := pack_numpy(value)):
            return [*packed[:-1], self._items(packed[-1], depth)]
        return self.pack_reference(value, depth)

    def pack_reference(self, value: Any, depth: int) -> Any:
        """What stands for a value that is no plain data."""
        raise NotImplementedError

    def _key(self, value: Any) -> int | None:
        if not self.judge:
            return self.keys.get(id(value))
        self.given[id(value)] = value
        return id(value)

    def _items(self, items: Iterable[Any], depth: int) -> list[Any]:
        """Packed items; long runs of one simple type at once."""
        items = list(items)
        found = set(map(type, items)) if len(items) > 8 else None
        if found == {int}:
            if -_WORD < min(items) and max(items) < _WORD:
                return items
        elif found == {str} or found == {bool} or (found == {float} and all(map(math.isfinite, items))):
            return items
        return [self.pack(item, depth + 1) for item in items]

    def _pack_container(self, code: str, value: Any, depth: int) -> list[Any]:
        extra: Any = None
        if code == "q":
            extra = value.maxlen
        elif code == "D":
            extra = self.pack(value.default_factory, depth + 1)
        if code == "B":
            body: Any = value.hex()
        elif code in MAPPINGS:
            body = [self._items(value.keys(), depth), self._items(value.values(), depth)]
        else:
            body = self._items(value, depth)
        return [code, body, None if code in "tF" else self._key(value), extra]

    def _pack_state(self, state: dict[str, Any], depth: int) -> list[Any]:
        return [[str(name), self.pack(item, depth + 1)] for name, item in state.items()]

    def _pack_class(self, kind: type) -> list[Any]:
        """An exception class, with those above it."""
        stands_for = vars(kind).get("_codenas_class")
        if stands_for is not None:
            return ["X", stands_for]
        if kind.__module__ == "builtins":
            return ["T", "builtins", kind.__name__]
        self.exact = False
        if self.judge:
            named = name_of(kind)
            if named is None:
                raise Limit(f"an exception class of the checks ({kind.__name__}) went to the program")
            return ["T", *named]
        self.objects[id(kind)] = kind
        return ["X", id(kind), kind.__qualname__, kind.__module__, self._pack_class(kind.__base__ or Exception)]

    def _pack_named(self, value: Any, depth: int) -> list[Any]:
        kind = type(value)
        self.exact = False  # its class may have methods
        self.objects[id(kind)] = kind
        identity = getattr(kind, "_codenas_class", None if self.judge else id(kind))
        return ["M", identity, kind.__name__, list(kind._fields), self._items(value, depth)]

    # unpacking

    def unpack(self, data: Any, depth: int = 0) -> Any:
        """Inverse of `pack`.

        Raises:
            ProgramError: it is no value.
        """
        if data is None or type(data) in _SCALARS:
            return data
        if not isinstance(data, list) or len(data) < 2 or depth > _DEPTH + 10:
            raise ProgramError("the program sent what is no value")
        code = data[0]
        try:
            if code == "i":
                return int(data[1], 16)
            if code == "N":
                return self._unpack_nan(data[1])
            if code in CONTAINERS:
                return self._unpack_container(data, depth)
            if code == "v":
                args = self._unpack_items(data[2], depth)
                return maker(data[1])(*args)
            if code == "T":
                return self._unpack_named_thing(str(data[1]), str(data[2]))
            if code == "X":
                return self._unpack_class(data)
            if code == "E":
                return self._unpack_exception(data, depth)
            if code == "M":
                return self._unpack_named(data, depth)
            if code in ("n", "A"):
                return unpack_numpy(data, self._unpack_items(data[-1], depth))
            return self.unpack_reference(data, depth)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError) as error:
            raise ProgramError(f"the program sent what is no value ({type(error).__name__})") from error

    def unpack_reference(self, data: list[Any], depth: int) -> Any:
        """Inverse of `pack_reference`."""
        raise NotImplementedError

    def _unpack_items(self, items: list[Any], depth: int) -> list[Any]:
        if set(map(type, items)) <= _SCALARS:
            return items
        return [self.unpack(item, depth + 1) for item in items]

    def _unpack_nan(self, key: Any) -> float:
        if self.judge or key is None:
            found = self.given.get(key, math.nan)
            return found if isinstance(found, float) else math.nan
        if key not in self.given:
            self.given[key] = float("nan")
            self.keys[id(self.given[key])] = key
        return float(self.given[key])

    def _unpack_container(self, data: list[Any], depth: int) -> Any:
        code, body, key, extra = data
        kind = CONTAINERS[code]
        if code == "B":
            content: Any = bytearray.fromhex(body)
        elif code in MAPPINGS:
            content = dict(zip(*(self._unpack_items(half, depth) for half in body), strict=True))
        else:
            content = self._unpack_items(body, depth)
        made: Any
        if code == "q":
            made = collections.deque(content, extra if extra is None else int(extra))
        elif code == "D":
            made = collections.defaultdict(self.unpack(extra, depth + 1), content)
        else:
            made = kind(content)
        if key is None:
            return made
        known = self.given.get(key)
        if type(known) is kind:
            return replace_contents(known, made)
        if self.judge:
            raise ProgramError("the program sent what is no value")
        self.given[key] = made
        self.keys[id(made)] = key
        return made

    def _unpack_named_thing(self, module: str, name: str) -> Any:
        if self.judge and f"{module}.{name}" not in TYPES:
            raise ProgramError("the program named what it may not")
        found = importlib.import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
        return found

    def _unpack_class(self, data: list[Any]) -> Any:
        if not self.judge:
            return self.objects[data[1]]
        self.exact = False
        identity = int(data[1])
        if identity not in self.classes:
            _, _, name, module, above = data
            base = self.unpack(above)
            if not (isinstance(base, type) and issubclass(base, BaseException)):
                raise ProgramError("the program sent what is no exception class")
            ours = str(module).partition(".")[0] in sys.stdlib_module_names
            known = getattr(sys.modules.get(module), name, None) if ours else None
            if not (isinstance(known, type) and issubclass(known, base)):
                known = type(str(name), (base,), {"_codenas_class": identity})
            self.classes[identity] = known
        return self.classes[identity]

    def _unpack_exception(self, data: list[Any], depth: int) -> BaseException:
        kind = self.unpack(data[1], depth + 1)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ProgramError("the program sent what is no exception")
        error: BaseException = kind.__new__(kind)  # its own __init__ may want other arguments
        error.args = tuple(self._unpack_items(data[2], depth))
        for name, item in data[3]:
            if not str(name).startswith("_"):
                setattr(error, str(name), self.unpack(item, depth + 1))
        return error

    def _unpack_named(self, data: list[Any], depth: int) -> Any:
        _, identity, name, fields, items = data
        values = self._unpack_items(items, depth)
        if not self.judge and identity in self.objects:
            return tuple.__new__(self.objects[identity], values)
        self.exact = False
        if identity is None or identity not in self.classes:
            made: Any = _named_tuple(str(name), [str(field) for field in fields])
            if identity is None:
                return tuple.__new__(made, values)
            made._codenas_class = int(identity)
            self.classes[identity] = made
        return tuple.__new__(self.classes[identity], values)
