"""What stands in the judge for an object of the program's.

Standard library only: `jail.py` loads this in a bare interpreter.

One rule keeps a program from passing by what its objects say of themselves: a value that the checks expect is never
handed to an operator of the program's. Between a `Remote` and a plain value only `None`, and the plain value that an
object of a derived class holds, are compared; all else raises `Limit`.
"""

from __future__ import annotations

import operator
from typing import Any

from jail_types import CONTAINERS, Limit  # type: ignore[import-not-found]  # beside this file, no package is importable

_PLAIN_NAMES = frozenset("__name__ __doc__ __dict__ __module__ __qualname__ __annotations__ __wrapped__".split())
_BASES = {base.__name__: base for base in (int, float, complex, str, bytes, *CONTAINERS.values())}
_ARITHMETIC = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()


def is_remote(value: Any) -> bool:
    """True for a stand-in, whatever class it pretends to be."""
    return issubclass(type(value), Remote)  # isinstance would ask what it pretends to be


class Remote:
    """Stands in the judge for an object that lives in the runner.

    Args:
        link: the conversation.
        identity: of the object.
        name: of its class.
        kind: `function`, `class`, `module`, `iterator`, ..., or the built-in type that its class derives from.
    """

    __slots__ = ("_id", "_kind", "_link", "_name")

    def __init__(self, link: Any, identity: int, name: str, kind: str) -> None:
        for slot, value in (("_link", link), ("_id", identity), ("_name", name), ("_kind", kind)):
            object.__setattr__(self, slot, value)

    def _special(self, name: str, *args: Any) -> Any:
        return self._link.ask("special", self._id, (name, *args))

    def _plain(self, what: str) -> Any:
        """The plain value that the object holds; it is read anew each time."""
        if self._kind not in _BASES:
            raise Limit(f"{what} of an object of the program's class {self._name} and a plain value is its own word")
        return self._link.ask("plain", self._id)

    @property
    def __class__(self) -> type:  # what isinstance asks
        kind: type = _BASES.get(self._kind, Remote)
        return kind

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise Limit("the class of an object is set")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.ask("call", self._id, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _PLAIN_NAMES:
            raise AttributeError(name)
        return self._link.ask("attribute", self._id, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set_attribute", self._id, (name, value))

    def __delattr__(self, name: str) -> None:
        self._link.ask("delete_attribute", self._id, (name,))

    def __eq__(self, other: object) -> bool:
        if other is None:
            return False
        if is_remote(other):
            assert isinstance(other, Remote)
            if self._id == other._id:
                return True
            if self._kind in _BASES and other._kind in _BASES:
                return bool(self._plain("") == other._plain(""))
            if self._kind or other._kind or self._name != other._name:
                return False
            return bool(self._link.ask("state", self._id) == self._link.ask("state", other._id))
        return bool(self._plain("equality") == other)

    def __hash__(self) -> int:
        return hash(self._plain("")) if self._kind in ("int", "float", "str", "bytes", "tuple") else hash(self._name)

    def __iter__(self) -> Any:
        return iter(self._link.ask("iterate", self._id))

    def __contains__(self, item: Any) -> bool:
        return item in (self._plain("") if self._kind in _BASES else list(self))

    def __len__(self) -> int:
        return int(self._special("__len__"))

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._id, (key,))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("set_item", self._id, (key, value))

    def __delitem__(self, key: Any) -> None:
        self._link.ask("delete_item", self._id, (key,))

    def __bool__(self) -> bool:
        return self._link.ask("truth", self._id) is True

    def __str__(self) -> str:
        return str(self._link.ask("text", self._id))

    def __repr__(self) -> str:
        return str(self._link.ask("repr", self._id))

    def __float__(self) -> float:
        return float(self._special("__float__"))

    def __int__(self) -> int:
        return int(self._special("__int__"))

    def __index__(self) -> int:
        return operator.index(self._plain("the index"))

    def __round__(self, digits: int | None = None) -> Any:
        return self._special("__round__", *(() if digits is None else (digits,)))

    def __enter__(self) -> Any:
        return self._special("__enter__")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False
        return bool(self._link.ask("leave", self._id, (error,)))

    def __copy__(self) -> Any:
        return self._link.ask("copy", self._id, (False,))

    def __deepcopy__(self, memo: Any) -> Any:
        return self._link.ask("copy", self._id, (True,))

    def __instancecheck__(self, instance: object) -> bool:
        return is_remote(instance) and self._link.ask("isinstance", self._id, (instance,)) is True

    def __subclasscheck__(self, other: object) -> bool:
        return self._link.ask("issubclass", self._id, (other,)) is True


def _binary(name: str, *, swap: bool = False) -> Any:
    function = getattr(operator, name)

    def method(self: Remote, other: Any) -> Any:
        if is_remote(other):  # both are the program's: what they make together is its answer, as a call's is
            return self._link.ask("operator", self._id, (name, swap, other))
        mine = self._plain(name.strip("_"))
        return function(other, mine) if swap else function(mine, other)

    return method


for _name in _ARITHMETIC:
    setattr(Remote, f"__{_name}__", _binary(f"__{_name}__"))
    setattr(Remote, f"__r{_name}__", _binary(f"__{_name}__", swap=True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("neg", "pos", "invert", "abs"):
    setattr(Remote, f"__{_name}__", lambda self, name=f"__{_name}__": self._special(name))


class RemoteIterator(Remote):
    """An iterator of the program's; it is read item by item, after a while in growing parts."""

    __slots__ = ("_ahead", "_asked", "_end")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for slot, value in (("_ahead", []), ("_asked", 0), ("_end", None)):
            object.__setattr__(self, slot, value)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if not self._ahead and self._end is None:
            found, end = self._link.ask("next", self._id, (max(1, min(1000, self._asked - 32)),))
            object.__setattr__(self, "_asked", self._asked + 1)
            object.__setattr__(self, "_end", end)
            self._ahead.extend(reversed(found))
        if self._ahead:
            return self._ahead.pop()
        end = self._end
        object.__setattr__(self, "_end", StopIteration())
        raise end


class RemoteCoroutine(Remote):
    """A coroutine of the program's; whoever awaits it has the runner run it to its end."""

    __slots__ = ()

    def send(self, value: Any) -> Any:
        """Runs it."""
        raise StopIteration(self._link.ask("await", self._id))

    def throw(self, *error: Any) -> Any:
        """Raises what is thrown."""
        raise error[1] if len(error) > 1 and error[1] is not None else error[0]

    def close(self) -> None:
        """Nothing: it stays in the runner."""

    def __await__(self) -> Any:
        return self._link.ask("await", self._id)
        yield  # makes this a generator, as awaiting needs


class RemoteAsync(Remote):
    """An asynchronous iterator of the program's."""

    __slots__ = ()

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return self._link.ask("await_next", self._id)


def remote(link: Any, identity: int, name: str, kind: str) -> Remote:
    """The stand-in for an object of this kind."""
    kinds: dict[str, type[Remote]] = {"iterator": RemoteIterator, "coroutine": RemoteCoroutine, "async": RemoteAsync}
    return kinds.get(kind, Remote)(link, identity, name, kind)
