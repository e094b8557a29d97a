"""A model behind OpenAI's completions API, for the editors and programs of this machine: `codenas serve`.

One completion is computed at a time, in the order in which they were asked for; a client that leaves gives up its
place or its completion. The server listens on the loopback address alone, and takes only JSON sent to a name of it: no
web page that is open in a browser can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..folders.files import WINNER
from ..generation.decode import Completion, DecodeSettings, split_gap, stream
from .asked import Asked, read_request
from .opening import OpenModel, check_gaps

_HOSTS = ["127.0.0.1", "localhost"]
_BODY_SECONDS = 10.0  # for a client to send what it asks for
_Part = tuple[int, str | Completion]  # number of a choice, and a piece of its text or, at its end, all of it
_Parts = Generator[_Part, None, None]
_REASONS = {"stop": "stop", "eos": "stop", "length": "length", "time": "length"}


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What a server takes.

    Args:
        max_new_tokens: most that a request may ask for.
        max_body_bytes: of a request.
        max_waiting: requests in the queue; the next one is told to come back.
        max_seconds: a request that has its turn ends after this time, all its completions together, so that the queue
            moves.

    Raises:
        ValueError: a value out of range.
    """

    max_new_tokens: int = 512
    max_body_bytes: int = 1 << 20
    max_waiting: int = 64
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("max_body_bytes", 1), ("max_waiting", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if not self.max_seconds > 0:
            raise ValueError(f"`max_seconds` must be above 0, got {self.max_seconds}")


class _Line:
    """Where requests wait: one has its turn, a bounded number stands behind it, the first to come is the next."""

    def __init__(self, max_waiting: int) -> None:
        self.places = 1 + max_waiting
        self.inside = 0
        self.turn = asyncio.Lock()
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="decode")  # the runtime is never used by two

    def enter(self) -> None:
        """Takes a place.

        Raises:
            HTTPException: 429, there is none.
        """
        if self.inside >= self.places:
            raise HTTPException(429, f"{self.inside} requests are waiting already; try again in a moment")
        self.inside += 1

    def leave(self) -> None:
        """Gives the place back."""
        self.inside -= 1

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in the thread that computes."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)


async def _unless_gone(request: Request, wanted: Awaitable[Any]) -> bool:
    """Waits for something; False, and it is cancelled, where the client goes first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Stream(StreamingResponse):
    """Events, and what has to happen after them even where nobody takes the first."""

    def __init__(self, events: AsyncIterator[str], after: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self.after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.after()


class _Server:
    """The handlers of one model."""

    def __init__(self, model: OpenModel, *, name: str, settings: ServeSettings) -> None:
        self.model, self.name, self.settings = model, name, settings
        self.created = int(time.time())
        self.line = _Line(settings.max_waiting)

    async def models(self, request: Request) -> Response:
        """The one model, as a list or by its name."""
        found = {"id": self.name, "object": "model", "created": self.created, "owned_by": "codenas"}
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse({"object": "list", "data": [found]})
        self._check_name(wanted)
        return JSONResponse(found)

    def _check_name(self, wanted: str | None) -> None:
        if wanted not in (None, self.name):
            raise HTTPException(404, f"there is no model {wanted[:100]!r} here; this server has {self.name!r}")

    async def completions(self, request: Request) -> Response:
        """One request, from its place in the line to its answer."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the request must be JSON, with content-type: application/json")
        leaving = contextlib.ExitStack()
        self.line.enter()
        leaving.callback(self.line.leave)
        try:
            asked = read_request(await self._body(request), max_new_tokens=self.settings.max_new_tokens)
            self._check_name(asked.model)
            if not await _unless_gone(request, self.line.turn.acquire()):
                return _nobody()
            leaving.callback(self.line.turn.release)
            parts = self._parts(asked)
            leaving.callback(self.line.worker.submit, parts.close)  # behind the token at hand
            first = await self.line.run(next, parts)  # what the model refuses is refused by now
            if asked.stream:
                return _Stream(self._events(asked, request, first, parts), leaving.pop_all().close)
            return await self._whole(asked, request, first, parts)
        finally:
            leaving.close()

    async def _body(self, request: Request) -> bytes:
        most, found = self.settings.max_body_bytes, bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    found += chunk
                    if len(found) > most:
                        raise HTTPException(413, f"the request has more than {most:,} bytes; send less of the file")
        except TimeoutError as error:
            raise HTTPException(408, f"the request did not arrive within {_BODY_SECONDS:g} s") from error
        return bytes(found)

    def _parts(self, asked: Asked) -> _Parts:
        """Every choice, one after the other."""
        settings, ends = DecodeSettings(**asked.decoding), time.perf_counter() + self.settings.max_seconds
        for index, (prompt, sample) in enumerate(itertools.product(asked.prompts, range(asked.n))):
            tokenizer, suffix = self.model.tokenizer, asked.suffix
            if suffix is None:
                prompt, suffix = split_gap(tokenizer, prompt)
            if suffix is not None:
                check_gaps(self.model.name)
            timed = replace(settings, max_seconds=max(1e-3, ends - time.perf_counter()))
            pieces = stream(self.model.runtime, tokenizer, prompt, settings=timed, suffix=suffix, sample=sample)
            while True:
                try:
                    yield index, next(pieces)
                except StopIteration as end:
                    yield index, end.value
                    break

    async def _following(self, request: Request, first: _Part, parts: _Parts) -> AsyncIterator[_Part]:
        """All parts; ends early where the client is gone."""
        part: _Part | None = first
        while part is not None and not await request.is_disconnected():
            yield part
            part = await self.line.run(next, parts, None)

    async def _whole(self, asked: Asked, request: Request, first: _Part, parts: _Parts) -> Response:
        done = [part async for _, part in self._following(request, first, parts) if isinstance(part, Completion)]
        if len(done) < asked.num_choices:
            return _nobody()
        choices = [_choice(index, text=found.text, reason=found.finish_reason) for index, found in enumerate(done)]
        return JSONResponse({**self._frame(), "choices": choices, "usage": _usage(done)})

    async def _events(self, asked: Asked, request: Request, first: _Part, parts: _Parts) -> AsyncIterator[str]:
        frame, done = self._frame(), []
        async for index, part in self._following(request, first, parts):
            if isinstance(part, Completion):
                done.append(part)
                choice = _choice(index, reason=part.finish_reason)
            else:
                choice = _choice(index, text=part)
            yield _event({**frame, "choices": [choice]})
        if len(done) == asked.num_choices:
            if asked.include_usage:
                yield _event({**frame, "choices": [], "usage": _usage(done)})
            yield "data: [DONE]\n\n"

    def _frame(self) -> dict[str, Any]:
        """What every answer, and every event of one, begins with."""
        return {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }


def _nobody() -> Response:
    """The answer to a client that is gone."""
    return Response(status_code=499)


def _choice(index: int, *, text: str = "", reason: str | None = None) -> dict[str, Any]:
    ended = None if reason is None else _REASONS[reason]
    return {"index": index, "text": text, "logprobs": None, "finish_reason": ended}


def _usage(done: list[Completion]) -> dict[str, int]:
    prompt, new = sum(found.prompt_tokens for found in done), sum(found.num_tokens for found in done)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _refusal(status: int, message: str) -> Response:
    """An error in OpenAI's form."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    headers = {"retry-after": "1"} if status == 429 else {}
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return _nobody()
    if isinstance(error, HTTPException):
        return _refusal(error.status_code, error.detail)
    return _refusal(400, str(error))


async def _fail(request: Request, error: Exception) -> Response:
    return _refusal(500, f"the server failed ({type(error).__name__}); its own output says more")


def make_app(model: OpenModel, *, name: str, settings: ServeSettings) -> Starlette:
    """The application: `/v1/completions` and `/v1/models`.

    Args:
        model: what answers.
        name: what requests call it.
        settings: what is taken.
    """
    server = _Server(model, name=name, settings=settings)
    return Starlette(
        routes=[
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.models),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
        exception_handlers={
            HTTPException: _refuse,
            ValueError: _refuse,
            ClientDisconnect: _refuse,
            Exception: _fail,
        },
    )


def served_name(model: OpenModel) -> str:
    """What a model is called: its folder, of a winner its study, or its file without the ending."""
    path = Path(model.name)
    named = path.resolve() if path.exists() else path
    return named.parent.name if named.name == WINNER else named.stem if named.is_file() else named.name


def serve(
    model: OpenModel,
    *,
    name: str | None = None,
    port: int = 8000,
    settings: ServeSettings | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Answers requests on the loopback address until it is interrupted.

    Args:
        model: what answers.
        name: what requests call it; None takes `served_name`.
        port: 0 takes a free one.
        settings: what is taken.
        say: told where, once requests are heard.

    Raises:
        ValueError: no port has such a number.
        OSError: the port is taken.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must be from 0 to 65535, got {port}")
    settings = settings or ServeSettings()
    name = name or served_name(model)
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        why = f"port {port} of 127.0.0.1 cannot be had ({error.strerror}); give another with --port"
        raise OSError(why) from error
    with listening:
        say(f"serving   {name} in {model.runtime.name}")
        say(f"at        http://127.0.0.1:{listening.getsockname()[1]}/v1")
        config = uvicorn.Config(
            make_app(model, name=name, settings=settings),
            log_level="warning",
            limit_concurrency=4 * (settings.max_waiting + 8),  # connections, those that get a 429 included
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listening])
