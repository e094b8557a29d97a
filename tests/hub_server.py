"""A Hub on this computer: what the real clients ask of huggingface.co, in memory, with faults on demand.

`with HubServer() as hub:` serves it from a thread at `hub.url`. Clients need `HF_ENDPOINT=<url>`, a token of
`TOKENS`, and `HF_HUB_DISABLE_XET=1`, since it speaks plain LFS.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
PLURAL = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".gguf", ".onnx", ".png")
Content = bytes | tuple[str, str]
CUT, SILENCE, TRICKLE, GARBAGE = -1, -2, -3, -4


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path` matches.

    Args:
        pattern: regular expression, searched.
        status: of the answer; 0 cuts the connection in the middle of it instead, CUT in the middle of what is sent,
            SILENCE never answers, TRICKLE does what was asked and answers byte by byte, GARBAGE answers with a page.
        headers: of the answer.
        times: how often.
        after: do what was asked first, and only then fail: the client cannot know.
        message: the Hub's words.
    """

    pattern: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after: bool = False
    message: str = "injected"


@dataclass
class Repo:
    """One repository: commits by id, refs by name."""

    commits: dict[str, dict[str, Content]]
    refs: dict[str, str]
    owner: str
    sdk: str | None = None
    private: bool = False
    pull_requests: int = 0


class HubServer:
    """The server; also usable as a context manager."""

    def __init__(self, *, max_lfs_bytes: int = 10**9, part_bytes: int | None = None) -> None:
        self.part_bytes = part_bytes  # of large files, which then come in parts
        self.parts: dict[str, bytes] = {}
        self.wrong_etags = 0  # how many parts get the etag of something else
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.log: list[str] = []
        self.faults: list[Fault] = []
        self.max_lfs_bytes = max_lfs_bytes
        self.url = ""
        app = _app(self)
        config = uvicorn.Config(_faulty(self, app), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path to content at a revision."""
        repo = self.repos[kind, repo_id]
        commit = repo.commits[repo.refs.get(revision, revision)]
        return {path: self.content(value) for path, value in commit.items()}

    def content(self, value: Content) -> bytes:
        return self.blobs[value[1]] if isinstance(value, tuple) else value

    def counted(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, line)) for line in self.log)


def _faulty(hub: HubServer, app: FastAPI) -> Callable[..., Any]:
    """Logs every request and lets the next fault that matches happen."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        query = scope["query_string"].decode()
        line = f"{scope['method']} {scope['path']}" + (f"?{query}" if query else "")
        hub.log.append(line)
        fault = next((f for f in hub.faults if f.times and re.search(f.pattern, line)), None)
        if fault is None:
            await app(scope, receive, send)
            return
        fault.times -= 1
        if fault.status == TRICKLE:
            await app(scope, receive, _trickle(send))
            return
        if fault.status == CUT:
            await receive()
            send.__self__.transport.abort()
            return
        if fault.status == SILENCE:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if fault.after:

            async def swallowed(message: Any) -> None:
                return None

            await app(scope, receive, swallowed)
        else:
            while (await receive()).get("more_body"):
                pass
        if fault.status == 0:
            # Promise a body and end without it: to the client the line was cut.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            raise ConnectionAbortedError
        answer: Response = _error(fault.status, fault.message, **fault.headers)
        if fault.status == GARBAGE:
            answer = Response(f"<html>{fault.message}</html>", 200, media_type="text/html")
        await answer(scope, receive, send)

    return wrapped


def _trickle(send: Any) -> Callable[..., Any]:
    async def slowly(message: Any) -> None:
        body = message.get("body", b"")
        for index in range(len(body)):
            await send({"type": "http.response.body", "body": body[index : index + 1], "more_body": True})
            await asyncio.sleep(0)
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return slowly


def _error(status: int, message: str, code: str = "", **headers: str) -> JSONResponse:
    known = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return JSONResponse({"error": message}, status, headers={**known, **headers})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _app(hub: HubServer) -> FastAPI:
    app = FastAPI()

    def user(request: Request) -> str | None:
        return TOKENS.get(request.headers.get("authorization", "").removeprefix("Bearer "))

    def seen(kind: str, repo_id: str, request: Request) -> Repo | None:
        repo = hub.repos.get((kind, repo_id))
        return None if repo is None or (repo.private and user(request) != repo.owner) else repo

    @app.get("/api/whoami-v2")
    def whoami(request: Request) -> Any:
        name = user(request)
        if name is None:
            return _error(401, "Invalid user token.")
        return {"type": "user", "name": name, "fullname": name, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Any:
        body = await request.json()
        head = re.match(r"^---\n(.*?)\n---", body["content"], re.DOTALL)
        data = yaml.safe_load(head[1]) if head else None
        errors = [] if isinstance(data, dict) else [{"message": "no metadata"}]
        status = 400 if errors else 200
        return JSONResponse({"errors": errors, "warnings": []}, status)

    @app.post("/api/repos/create")
    async def create(request: Request) -> Any:
        name, body = user(request), await request.json()
        if name is None:
            return _error(401, "Invalid username or password.")
        kind, owner = body.get("type") or "model", body.get("organization") or name
        repo_id = f"{owner}/{body['name']}"
        url = f"{request.base_url}{PREFIX[kind]}{repo_id}"
        if (kind, repo_id) in hub.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        if owner != name:
            return _error(403, f"You don't have the rights to create a {kind} under the namespace {owner}")
        if kind == "space" and not body.get("sdk"):
            return _error(400, "a Space needs an sdk")
        first = hashlib.sha1(f"{kind}{repo_id}".encode()).hexdigest()
        private = body.get("visibility") == "private" or bool(body.get("private"))
        start: dict[str, Content] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        hub.repos[kind, repo_id] = Repo({first: start}, {"main": first}, owner, body.get("sdk"), private)
        return {"url": url, "name": repo_id, "id": repo_id}

    _collections(hub, app)
    _lfs(hub, app)

    @app.api_route("/api/{plural}/{owner}/{name}/{rest:path}", methods=["GET", "POST", "HEAD"])
    async def api(plural: str, owner: str, name: str, rest: str, request: Request) -> Any:
        kind, repo_id = PLURAL[plural], f"{owner}/{name}"
        repo = seen(kind, repo_id, request)
        if repo is None:
            return _error(404, "Repository not found", "RepoNotFound")
        verb, _, argument = rest.partition("/")
        argument = argument.replace("%2F", "/")
        oid = repo.refs.get(argument) or (argument if argument in repo.commits else None)
        if verb == "revision":
            return _info(kind, repo_id, repo, oid) if oid else _error(404, "Invalid rev id", "RevisionNotFound")
        if verb == "tree":
            return _tree(hub, repo, argument, request)
        if verb == "refs":
            heads = {n: o for n, o in repo.refs.items() if not n.startswith("refs/")}
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": o} for n, o in heads.items()]
            return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}
        if verb not in ("preupload", "commit", "paths-info"):
            return _error(404, f"not implemented: {rest}")
        if oid is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        files = repo.commits[oid]
        if verb == "paths-info":
            form = await request.form()
            return [_entry(hub, str(p), files[str(p)]) for p in form.getlist("paths") if p in files]
        if user(request) is None:
            return _error(401, "Invalid username or password.")
        if user(request) != repo.owner and not request.query_params.get("create_pr"):
            return _error(403, "you must have write access to push here")
        if verb == "preupload":
            asked = (await request.json())["files"]
            return {"files": [_upload_mode(hub, f, files) for f in asked]}
        return await _commit(hub, kind, repo_id, repo, argument, request)

    @app.get("/api/{plural}/{owner}/{name}")
    def info(plural: str, owner: str, name: str, request: Request) -> Any:
        kind, repo_id = PLURAL[plural], f"{owner}/{name}"
        repo = seen(kind, repo_id, request)
        if repo is None:
            return _error(404, "Repository not found", "RepoNotFound")
        return _info(kind, repo_id, repo, repo.refs["main"])

    @app.api_route("/{full:path}", methods=["GET", "HEAD"])
    def resolve(full: str, request: Request) -> Any:
        found = re.fullmatch(r"(datasets/|spaces/)?([^/]+/[^/]+)/resolve/(.+)", full)
        if not found:
            return _error(404, "not found")
        kind = next(k for k, prefix in PREFIX.items() if prefix == (found[1] or ""))
        repo = seen(kind, found[2], request)
        if repo is None:
            return _error(404, "Repository not found", "RepoNotFound")
        return _download(hub, repo, found[3], request)

    return app


def _collections(hub: HubServer, app: FastAPI) -> None:
    @app.post("/api/collections")
    async def made(request: Request) -> Any:
        body = await request.json()
        title, owner = body["title"], body["namespace"]
        slug = f"{owner}/{re.sub('[^a-z0-9]+', '-', title.lower())}-{hashlib.md5(title.encode()).hexdigest()[:24]}"
        if slug in hub.collections:
            return JSONResponse({"error": "exists", "slug": slug}, 409)
        hub.collections[slug] = {
            "slug": slug,
            "title": title,
            "owner": {"name": owner},
            "items": [],
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": False,
            "theme": "blue",
            "upvotes": 0,
        }
        return hub.collections[slug]

    @app.get("/api/collections/{owner}/{slug}")
    def read(owner: str, slug: str) -> Any:
        return hub.collections[f"{owner}/{slug}"]

    @app.post("/api/collections/{owner}/{slug}/items")
    async def item(owner: str, slug: str, request: Request) -> Any:
        body, collection = (await request.json())["item"], hub.collections[f"{owner}/{slug}"]
        items = collection["items"]
        if any(i["id"] == body["id"] and i["type"] == body["type"] for i in items):
            return _error(409, "already in the collection")
        items.append({"_id": f"x{len(items)}", "position": len(items), **body})
        return collection


def _lfs(hub: HubServer, app: FastAPI) -> None:
    @app.post("/{path:path}.git/info/lfs/objects/batch")
    async def batch(path: str, request: Request) -> Any:
        objects = []
        for wanted in (await request.json())["objects"]:
            if wanted["size"] > hub.max_lfs_bytes:
                return _error(413, "this file exceeds the maximum allowed size")
            entry = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in hub.blobs:
                entry["actions"] = {
                    "upload": _upload_action(hub, f"{request.base_url}__lfs__/{wanted['oid']}", wanted)
                }
            objects.append(entry)
        media = "application/vnd.git-lfs+json"
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type=media)

    @app.put("/__lfs__/{oid}")
    async def put(oid: str, request: Request) -> Any:
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return Response(status_code=400)
        hub.blobs[oid] = content
        return Response(status_code=200)

    @app.put("/__lfs__/{oid}/{number}")
    async def put_part(oid: str, number: int, request: Request) -> Any:
        content = await request.body()
        wrong = hub.wrong_etags > 0
        hub.wrong_etags -= wrong
        etag = hashlib.md5(b"something else" if wrong else content).hexdigest()
        hub.parts[etag] = content
        if wrong:
            hub.parts[etag] = b"something else"
        return Response(status_code=200, headers={"ETag": etag})

    @app.post("/__lfs__/{oid}")
    async def complete(oid: str, request: Request) -> Any:
        parts = sorted((await request.json())["parts"], key=lambda part: part["partNumber"])
        content = b"".join(hub.parts.get(part["etag"], b"") for part in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            return _error(400, "the parts are not the file")
        hub.blobs[oid] = content
        return Response(status_code=200)


def _upload_action(hub: HubServer, href: str, wanted: dict[str, Any]) -> dict[str, Any]:
    if hub.part_bytes is None:
        return {"href": href, "header": {}}
    count = -(-wanted["size"] // hub.part_bytes)
    parts = {str(number): f"{href}/{number}" for number in range(1, count + 1)}
    return {"href": href, "header": {"chunk_size": str(hub.part_bytes), **parts}}


def _info(kind: str, repo_id: str, repo: Repo, oid: str) -> dict[str, Any]:
    return {
        "_id": "1",
        "id": repo_id,
        "modelId": repo_id,
        "author": repo.owner,
        "sha": oid,
        "private": repo.private,
        "disabled": False,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "siblings": [{"rfilename": path} for path in repo.commits[oid]],
        "cardData": {},
        "sdk": repo.sdk,
    }


def _entry(hub: HubServer, path: str, value: Content) -> dict[str, Any]:
    content = hub.content(value)
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if isinstance(value, tuple):
        entry["lfs"] = {"oid": value[1], "size": len(content), "pointerSize": 134}
    return entry


def _upload_mode(hub: HubServer, asked: dict[str, Any], files: dict[str, Content]) -> dict[str, Any]:
    path = asked["path"]
    large = path.endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000
    there = files.get(path)
    # The client compares with the SHA-256 of a large file, with git's hash of a small one.
    oid = None if there is None else there[1] if isinstance(there, tuple) else _git_oid(there)
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


async def _commit(hub: HubServer, kind: str, repo_id: str, repo: Repo, branch: str, request: Request) -> Any:
    base = repo.refs[branch]
    files, head = dict(repo.commits[base]), {}
    for line in (await request.body()).splitlines():
        if not line.strip():
            continue
        operation = json.loads(line)
        value = operation["value"]
        match operation["key"]:
            case "header":
                head = value
                if value.get("parentCommit") not in (None, base):
                    return _error(412, "A commit has happened since. Please refresh and try again.")
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                if value["oid"] not in hub.blobs:
                    return _error(400, f"{value['path']}: its content was never uploaded")
                files[value["path"]] = ("lfs", value["oid"])
            case "deletedFile":
                del files[value["path"]]
            case "deletedFolder":
                files = {p: v for p, v in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
    listing = [(p, _git_oid(hub.content(v))) for p, v in sorted(files.items())]
    oid = hashlib.sha1(json.dumps([base, head, listing]).encode()).hexdigest()
    repo.commits[oid] = files
    url = f"{request.base_url}{PREFIX[kind]}{repo_id}"
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
    if request.query_params.get("create_pr"):
        repo.pull_requests += 1
        repo.refs[f"refs/pr/{repo.pull_requests}"] = oid
        answer["pullRequestUrl"] = f"{url}/discussions/{repo.pull_requests}"
    else:
        repo.refs[branch] = oid
    return answer


def _tree(hub: HubServer, repo: Repo, argument: str, request: Request) -> Any:
    revision = next((r for r in [*repo.refs, *repo.commits] if argument == r or argument.startswith(r + "/")), None)
    if revision is None:
        return _error(404, "Invalid rev id", "RevisionNotFound")
    folder = argument[len(revision) + 1 :].strip("/")
    files = repo.commits[repo.refs.get(revision, revision)]
    inside = {p: v for p, v in files.items() if not folder or p.startswith(folder + "/")}
    if folder and not inside:
        return _error(404, "Entry not found", "EntryNotFound")
    if request.query_params.get("recursive", "").lower() in ("true", "1"):
        return [_entry(hub, p, v) for p, v in inside.items()]
    start = len(folder) + 1 if folder else 0
    folders = sorted({p[:start] + p[start:].split("/")[0] for p in inside if "/" in p[start:]})
    listed = [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in folders]
    return [*listed, *(_entry(hub, p, v) for p, v in inside.items() if "/" not in p[start:])]


def _download(hub: HubServer, repo: Repo, rest: str, request: Request) -> Response:
    rest = rest.replace("%2F", "/")
    known = sorted([*repo.refs, *repo.commits], key=len, reverse=True)
    revision = next((r for r in known if rest.startswith(r + "/")), None)
    if revision is None:
        return _error(404, "Revision not found", "RevisionNotFound")
    oid, path = repo.refs.get(revision, revision), rest[len(revision) + 1 :]
    value = repo.commits[oid].get(path)
    if value is None:
        return _error(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
    content = hub.content(value)
    etag = value[1] if isinstance(value, tuple) else _git_oid(content)
    headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if isinstance(value, tuple):
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
    asked = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked and request.method == "GET":
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Response(content[start : end + 1], 206, headers=headers)
    if request.method == "HEAD":
        headers["Content-Length"] = str(len(content))
        return Response(headers=headers)
    return Response(content, headers=headers)
