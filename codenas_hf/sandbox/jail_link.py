"""The conversation between the two sides of the sandbox: plain data crosses, objects stay where they are.

Standard library only: `jail.py` loads this in a bare interpreter.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import operator
import socket
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

from jail_remote import Remote, is_remote, remote  # type: ignore[import-not-found]  # beside this file
from jail_types import (  # type: ignore[import-not-found]
    CONTAINERS,
    Limit,
    ProgramError,
    base_of,
    name_of,
    plain_copy,
    take,
)
from jail_values import Values  # type: ignore[import-not-found]

_FRAME_BYTES = 32 * 2**20
_MANY = 2000


_FUNCTIONS = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.ClassMethodDescriptorType, types.MethodWrapperType,
)  # fmt: skip


def _kind_of(value: Any) -> str:
    """What the judge is told of an object of the runner's."""
    for kinds, name in ((_FUNCTIONS, "function"), (type, "class"), (types.ModuleType, "module")):
        if isinstance(value, kinds):  # type: ignore[arg-type]
            return name
    for method, name in (("__next__", "iterator"), ("cr_await", "coroutine"), ("__anext__", "async")):
        if hasattr(type(value), method):
            return name
    base = base_of(value)
    return base.__name__ if base is not None else ""


class Link(Values):
    """One end of the conversation between judge and runner: frames of JSON.

    Args:
        connection: to the other side.
        judge: which side this is.
    """

    def __init__(self, connection: socket.socket, *, judge: bool) -> None:
        super().__init__(judge=judge)
        self.connection = connection
        self.asked = 0
        self.on_many: Callable[[], object] = int  # called when so much was asked that asking itself takes long
        self.remotes: dict[int, Remote] = {}

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message."""
        try:
            data = json.dumps(message, separators=(",", ":")).encode()
        except RecursionError:
            raise Limit("a value is nested too deeply") from None
        if len(data) > _FRAME_BYTES:
            raise Limit("a value is larger than 32 MB")
        self.connection.sendall(struct.pack("!I", len(data)) + data)

    def receive(self) -> dict[str, Any]:
        """The next message."""
        size = struct.unpack("!I", self._exactly(4))[0]
        if size > _FRAME_BYTES:
            raise ProgramError("the program sent more than 32 MB at once")
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

    def pack_reference(self, value: Any, depth: int) -> Any:
        """A name that both sides know, or a number under which this side keeps the object."""
        if is_remote(value):
            return ["r", value._id]
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._pack_class(value)
        return self._pack_of_judge(value, depth) if self.judge else self._pack_of_runner(value)

    def _pack_of_judge(self, value: Any, depth: int) -> Any:
        if isinstance(value, type) and hasattr(value, "_codenas_class"):
            return ["r", value._codenas_class]
        if isinstance(value, (type, types.ModuleType, *_FUNCTIONS)) or type(value).__name__ == "ufunc":  # type: ignore[arg-type]
            if (named := name_of(value)) is not None:
                return ["T", *named]
        self.exact = False
        if hasattr(type(value), "__next__"):
            return ["I", self._items(take(value), depth)]
        if callable(value) and not isinstance(value, type) and not inspect.iscoroutinefunction(value):
            self.objects[id(value)] = value
            return ["k", id(value), getattr(value, "__name__", "")]
        if base_of(value) is not None:
            return self.pack(plain_copy(value), depth)
        raise Limit(f"the checks hand a {type(value).__name__} of their own to the program")

    def _pack_of_runner(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType) and id(value) in self.keys:
            return ["k", self.keys[id(value)]]
        if isinstance(value, type) and value.__module__ in sys.stdlib_module_names and self.may_name(value):
            return ["T", value.__module__, value.__qualname__]
        return self._refer(value, _kind_of(value))

    def _refer(self, value: Any, kind: str) -> list[Any]:
        self.objects[id(value)] = value
        name = value.__name__ if kind in ("class", "module") else type(value).__qualname__
        return ["o", id(value), str(name), kind]

    def unpack_reference(self, data: list[Any], depth: int) -> Any:
        """Inverse of `pack_reference`."""
        code, body = data[0], data[1]
        if code == "o" and self.judge:
            kind = str(data[3])
            if kind != "function":
                self.exact = False
            if body not in self.remotes:
                self.remotes[int(body)] = remote(self, int(body), str(data[2]), kind)
            return self.remotes[int(body)]
        if code == "k" and self.judge:
            return self.objects[int(body)]
        if code == "k":
            return self._callback(int(body), str(data[2]))
        if code == "I" and not self.judge:
            return iter(self._unpack_items(body, depth))
        if code == "r" and not self.judge:
            return self.objects[int(body)]
        raise ProgramError("the program sent what is no value")

    # the judge's side

    def ask(self, verb: str, target: int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Has the runner do one thing and returns its result; exceptions of the program are raised here.

        Raises:
            Limit: an argument or the result does not cross.
        """
        self.asked += 1
        if self.asked == _MANY:
            self.on_many()
        packed = {key: self.pack(item) for key, item in (kwargs or {}).items()}
        self.send({"do": verb, "on": target, "args": [self.pack(item) for item in args], "kwargs": packed})
        while "call_back" in (reply := self.receive()):
            function = self.objects[int(reply["call_back"])]
            items = [self.unpack(item) for item in reply["args"]]
            try:
                answer = {"value": function(*items, **{str(k): self.unpack(v) for k, v in reply["kwargs"].items()})}
            except Exception as error:  # the program may expect it
                answer = {"raised": error}
            self.send({key: self.pack(item) for key, item in answer.items()})
        for changed in reply.get("changed") or ():
            self.unpack(changed)  # into the judge's own containers
        self.exact = self.exact and not reply.get("unsure")
        if "limit" in reply:
            raise Limit(str(reply["limit"])[:300])
        if "raised" in reply:
            raised = self.unpack(reply["raised"])
            raise raised if isinstance(raised, BaseException) else ProgramError("the program raised no exception")
        if verb == "state":
            return json.dumps(reply.get("value"), sort_keys=True)
        return self.unpack(reply.get("value"))

    # the runner's side

    def _callback(self, identity: int, name: str) -> Any:
        if identity in self.given:
            return self.given[identity]

        def function(*args: Any, **kwargs: Any) -> Any:
            packed = {key: self.pack(item) for key, item in kwargs.items()}
            self.send({"call_back": identity, "args": [self.pack(item) for item in args], "kwargs": packed})
            reply = self.receive()
            if "raised" in reply:
                raise self.unpack(reply["raised"])
            return self.unpack(reply.get("value"))

        function.__name__ = function.__qualname__ = name
        self.given[identity] = function
        self.keys[id(function)] = identity
        return function

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
                verb = request["do"]
                if verb == "run":
                    exec(compile(args[0], "program.py", "exec", dont_inherit=True), namespace)
                    reply = {"value": None}
                elif verb == "name":
                    reply = {"value": self.pack(namespace[args[0]])}
                elif verb == "state":
                    reply = {"value": self._state(target, [], 0)}
                else:
                    reply = {"value": self._answer(verb, _VERBS[verb](target, *args, **kwargs))}
            except Limit as error:
                reply = {"limit": str(error)}
            except BaseException as error:
                reply = {"raised": self._pack_error(error)}
            try:
                packed = [(given, self.pack(item)) for given, item in zip(request["args"], args, strict=False)]
                reply["changed"] = [now for given, now in packed if now != given and isinstance(now, list)]
            except BaseException:
                reply["unsure"] = True
            with contextlib.suppress(BaseException):
                sys.stdout.flush()  # after the reply the judge may end everything
            try:
                self.send(reply)
            except Limit as error:
                self.send({"limit": str(error)})

    def _answer(self, verb: str, value: Any) -> Any:
        """Containers that an object holds stay where they are, so that the checks can change them."""
        if verb in ("attribute", "item") and type(value) in _HELD and id(value) not in self.keys:
            return self._refer(value, type(value).__name__)
        return self.pack(value)

    def _pack_error(self, error: BaseException) -> Any:
        try:
            return self.pack(error)
        except BaseException:
            return ["E", self._pack_class(type(error)), [message_of(error)], []]

    def _state(self, value: Any, above: list[int], depth: int) -> Any:
        """What an object holds, as JSON that is equal for equal objects."""
        if id(value) in above:
            return ["above", above.index(id(value))]
        inside = [*above, id(value)]
        kind = type(value)
        if kind in CONTAINERS.values() and kind is not bytearray:
            pairs = kind in (dict, *(CONTAINERS[code] for code in "COD"))
            items = list(value.items()) if pairs else list(value)
            found = [self._state(item, inside, depth) for item in items]
            return [kind.__name__, sorted(found, key=json.dumps) if pairs or kind in (set, frozenset) else found]
        attributes = dict(getattr(value, "__dict__", None) or {})
        for owner in kind.__mro__:
            slots = vars(owner).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    attributes[name] = getattr(value, name)
        if not attributes or callable(value) or isinstance(value, BaseException):
            return self.pack(value)
        return [
            kind.__qualname__,
            [[name, self._state(item, inside, depth)] for name, item in sorted(attributes.items())],
        ]


_HELD = (list, dict, set, bytearray, *(CONTAINERS[code] for code in "qCOD"))


def _call(target: Any, *args: Any, **kwargs: Any) -> Any:
    return target(*args, **kwargs)


def _next(target: Any, count: int) -> tuple[list[Any], BaseException | None]:
    found: list[Any] = []
    try:
        while len(found) < count:
            found.append(next(target))
    except BaseException as error:
        return found, error
    return found, None


def _await(target: Any) -> Any:
    import asyncio  # only the few programs that need it wait for it

    try:
        loop = asyncio.get_event_loop_policy().get_event_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop.run_until_complete(target)


def _special(target: Any, name: str, *args: Any) -> Any:
    if not hasattr(type(target), name):  # as Python says it; list() asks for a length that an iterator need not have
        raise TypeError(f"object of type {type(target).__name__!r} has no {name}")
    return getattr(type(target), name)(target, *args)


def _leave(target: Any, error: BaseException | None) -> Any:
    return type(target).__exit__(target, None if error is None else type(error), error, None)


def _operate(target: Any, name: str, swap: bool, other: Any) -> Any:
    return getattr(operator, name)(*((other, target) if swap else (target, other)))


_VERBS: dict[str, Any] = {
    "call": _call,
    "attribute": getattr,
    "set_attribute": setattr,
    "delete_attribute": delattr,
    "iterate": take,
    "next": _next,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "delete_item": operator.delitem,
    "truth": bool,
    "text": str,
    "repr": repr,
    "plain": plain_copy,
    "special": _special,
    "operator": _operate,
    "leave": _leave,
    "copy": lambda target, deep: copy.deepcopy(target) if deep else copy.copy(target),
    "isinstance": lambda target, instance: isinstance(instance, target),
    "issubclass": lambda target, other: issubclass(other, target),
    "await": _await,
    "await_next": lambda target: _await(target.__anext__()),
}


def message_of(error: BaseException) -> str:
    """What an error says, at most 500 letters; nothing where the program made even that fail."""
    try:
        return str(error)[:500]
    except BaseException:
        return ""
