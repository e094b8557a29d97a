"""The conversation between the two sides of the sandbox: plain data crosses, objects stay where they are.

Standard library only: `jail.py` loads this in a bare interpreter.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import socket
import struct
import sys
import types
from typing import Any

_FRAME_BYTES = 16 * 2**20
_DEPTH = 60


class ProgramError(Exception):
    """The program raised something that has no built-in name, or sent what cannot be understood."""


class Remote:
    """Stands in the judge for an object that lives in the runner."""

    __slots__ = ("_id", "_link", "_name", "_state")

    def __init__(self, link: Link, identity: int, name: str, state: Any) -> None:
        self._link, self._id, self._name, self._state = link, identity, name, state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.ask("call", self._id, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._link.ask("attribute", self._id, (name,))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False  # whatever the object claims, it is not plain data
        return self._id == other._id or (
            self._state is not None and (self._name, self._state) == (other._name, other._state)
        )

    def __hash__(self) -> int:
        return self._id

    def __iter__(self) -> Any:
        return iter(self._link.ask("iterate", self._id))

    def __len__(self) -> int:
        return int(self._link.ask("length", self._id))

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._id, (key,))

    def __bool__(self) -> bool:
        return self._link.ask("truth", self._id) is True

    def __str__(self) -> str:
        return str(self._link.ask("text", self._id))

    __repr__ = __str__

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and self._link.ask("isinstance", self._id, (instance,)) is True


class Link:
    """One end of the conversation between judge and runner: frames of JSON, plain data in, plain data out."""

    def __init__(self, connection: socket.socket, *, judge: bool) -> None:
        self.connection, self.judge = connection, judge
        self.objects: dict[int, Any] = {}

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        if len(data) > _FRAME_BYTES:
            raise ProgramError("a value is larger than 16 MB")
        self.connection.sendall(struct.pack("!I", len(data)) + data)

    def receive(self) -> dict[str, Any]:
        size = struct.unpack("!I", self._exactly(4))[0]
        if size > _FRAME_BYTES:
            raise ProgramError("the program sent more than 16 MB at once")
        message = json.loads(self._exactly(size))
        if not isinstance(message, dict):
            raise ProgramError("the program sent what is no message")
        return message

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.connection.recv(min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def pack(self, value: Any, depth: int = 0) -> Any:
        """JSON form of a value; exact for the built-in types, a reference for everything else."""
        if depth > _DEPTH:
            raise ProgramError("a value is nested too deeply")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, int):
            return ["i", hex(int(value))]
        if isinstance(value, float):
            return ["f", float(value).hex()]
        if isinstance(value, complex):
            return ["c", value.real.hex(), value.imag.hex()]
        if isinstance(value, str):
            return ["s", value]
        if isinstance(value, bytes | bytearray):
            return ["b" if isinstance(value, bytes) else "B", value.hex()]
        kinds: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "S"), (frozenset, "F"))
        for kind, code in kinds:
            if isinstance(value, kind):
                return [code, [self.pack(item, depth + 1) for item in kind.__iter__(value)]]
        if isinstance(value, dict):
            return ["d", [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in dict.items(value)]]
        if isinstance(value, Remote):
            return ["r", value._id]
        identity = id(value)
        self.objects[identity] = value
        if self.judge:
            if not isinstance(value, types.FunctionType):
                raise ProgramError(f"checks cannot hand a {type(value).__name__} to the program")
            return ["k", identity]
        return ["o", identity, type(value).__qualname__, self._state(value, depth)]

    def _state(self, value: Any, depth: int) -> Any:
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is not dict or depth > 4 or callable(value):
            return None
        try:
            return [[str(name), self.pack(item, depth + 5)] for name, item in sorted(attributes.items())]
        except (ProgramError, TypeError):
            return None

    def unpack(self, data: Any, depth: int = 0) -> Any:
        """Inverse of `pack`; trusts nothing."""
        if data is None or data is True or data is False:
            return data
        if not isinstance(data, list) or len(data) < 2 or depth > _DEPTH + 5:
            raise ProgramError("the program sent what is no value")
        code, body = data[0], data[1]
        plain = {"i": lambda: int(body, 16), "f": lambda: float.fromhex(body), "s": lambda: str(body)}
        if code in plain:
            return plain[code]()
        if code == "c":
            return complex(float.fromhex(body), float.fromhex(data[2]))
        if code in ("b", "B"):
            return bytes.fromhex(body) if code == "b" else bytearray.fromhex(body)
        if code in ("l", "t", "S", "F"):
            items = [self.unpack(item, depth + 1) for item in body]
            return {"l": list, "t": tuple, "S": set, "F": frozenset}[code](items)
        if code == "d":
            return {self.unpack(key, depth + 1): self.unpack(item, depth + 1) for key, item in body}
        if code == "o" and self.judge:
            return Remote(self, int(body), str(data[2]), data[3])
        if code == "r" and not self.judge:
            return self.objects[int(body)]
        if code == "k" and not self.judge:
            return lambda *args: self._call_back(int(body), args)
        raise ProgramError("the program sent what is no value")

    # the judge's side

    def ask(self, verb: str, target: int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Has the runner do one thing and returns its result; exceptions of the program are raised here."""
        packed = {key: self.pack(item) for key, item in (kwargs or {}).items()}
        self.send({"do": verb, "on": target, "args": [self.pack(item) for item in args], "kwargs": packed})
        while True:
            reply = self.receive()
            if "call_back" not in reply:
                break
            function = self.objects[int(reply["call_back"])]
            self.send({"value": self.pack(function(*[self.unpack(item) for item in reply["args"]]))})
        for given, changed in zip(args, reply.get("args") or (), strict=False):
            if isinstance(given, list | dict | set) and changed is not None:
                replace_contents(given, self.unpack(changed))
        if "raised" in reply:
            kind = getattr(builtins, str(reply["raised"]), None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(str(reply.get("message")))
            raise ProgramError(f"{reply['raised']}: {reply.get('message')}")
        return self.unpack(reply.get("value"))

    # the runner's side

    def _call_back(self, identity: int, args: tuple[Any, ...]) -> Any:
        self.send({"call_back": identity, "args": [self.pack(item) for item in args]})
        return self.unpack(self.receive().get("value"))

    def serve(self, namespace: dict[str, Any]) -> None:
        """Runs the program, then does what the judge asks, until the judge hangs up."""
        while True:
            request = self.receive()
            args: list[Any] = []
            reply: dict[str, Any]
            try:
                args = [self.unpack(item) for item in request["args"]]
                kwargs = {key: self.unpack(item) for key, item in request["kwargs"].items()}
                target = self.objects.get(request["on"])
                if request["do"] == "run":
                    exec(compile(args[0], "program.py", "exec"), namespace)
                    reply = {"value": None}
                elif request["do"] == "name":
                    reply = {"value": self.pack(namespace[args[0]])}
                else:
                    reply = {"value": self.pack(_VERBS[request["do"]](target, *args, **kwargs))}
            except BaseException as error:
                reply = {"raised": type(error).__name__, "message": message_of(error)}
            mutable = [item if isinstance(item, list | dict | set) else None for item in args]
            with contextlib.suppress(ProgramError):
                reply["args"] = [self.pack(item) for item in mutable]
            with contextlib.suppress(BaseException):
                sys.stdout.flush()  # after the reply the judge may end everything
            self.send(reply)


def _call(target: Any, *args: Any, **kwargs: Any) -> Any:
    return target(*args, **kwargs)


def _iterate(target: Any) -> list[Any]:
    items = []
    for item in target:
        items.append(item)
        if len(items) > 1_000_000:
            raise ValueError("more than a million items")
    return items


_VERBS: dict[str, Any] = {
    "call": _call,
    "attribute": lambda target, name: getattr(target, name),
    "iterate": _iterate,
    "length": len,
    "item": lambda target, key: target[key],
    "truth": bool,
    "text": str,
    "isinstance": lambda target, instance: isinstance(instance, target),
}


def message_of(error: BaseException) -> str:
    """What an error says, at most 500 letters; nothing where the program made even that fail."""
    try:
        return str(error)[:500]
    except BaseException:
        return ""


def replace_contents(given: Any, changed: Any) -> None:
    """Gives the judge's container what the program left in its copy."""
    if type(given) is not type(changed) or given == changed:
        return
    given.clear()
    if isinstance(given, list):
        given.extend(changed)
    else:
        given.update(changed)
