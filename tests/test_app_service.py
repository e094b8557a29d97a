"""The playground for programs: API, MCP, queue, the folder of a Space, and the load benchmark."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import bundle
import pytest
from chooser import PlaygroundSettings
from gradio_client import Client
from gradio_client.exceptions import AppError
from playground_server import Server, make_runs, served

from benchmarks.playground_load import Visitor, crowd, main, out_of_order

HEADER = "def total(numbers):\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("playground"))


@pytest.fixture(scope="module")
def server(runs: Path):
    with served(PlaygroundSettings(runs=runs, any_model=False)) as started:
        yield started


def test_client_streams_and_lists_models(server: Server) -> None:
    client = Client(server.url, verbose=False)
    offered = client.predict(api_name="/list_models")
    assert [entry["name"] for entry in offered] == ["alpha (winner)", "beta (winner)"]
    job = client.submit(
        prompt=HEADER, model=offered[1]["source"], max_new_tokens=200, one_block=False, api_name="/complete"
    )
    pieces = list(job)
    assert pieces[-1]["model"] == "beta (winner)"
    assert pieces[-1]["ended"]
    assert len(pieces) > 2
    for name, parameters in {"complete": 10, "list_models": 0}.items():
        assert len(client.view_api(return_format="dict")["named_endpoints"][f"/{name}"]["parameters"]) == parameters
    assert len(client.view_api(return_format="dict")["named_endpoints"]) == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 10**6}, "1,000,000 characters"),
        ({"max_new_tokens": 0}, "between 1 and 512, got '0'"),
        ({"max_new_tokens": 10**9}, "between 1 and 512"),
        ({"max_new_tokens": [1]}, "between 1 and 512"),
        ({"model": "<script>alert(1)</script>"}, "This playground offers"),
        ({"model": ["a"]}, "`model` must be text"),
        ({"examples": {"a": 1}}, "must be text"),
    ],
)
def test_bad_call_gets_a_clear_error(server: Server, bad: dict, message: str) -> None:
    client = Client(server.url, verbose=False)
    with pytest.raises(AppError, match=message):
        client.predict(**{"prompt": HEADER, "api_name": "/complete", **bad})


def test_hostile_prompt_comes_back_as_plain_text(server: Server) -> None:
    client = Client(server.url, verbose=False)
    prompt = "# <|endoftext|> <script>alert(1)</script> \x00\x1b\n"
    answer = client.predict(prompt=prompt, max_new_tokens=5, api_name="/complete")
    assert answer["remarks"] == ["2 control characters were left out."]
    assert answer["prompt_tokens"] > 20


def test_visitors_at_once_learn_their_position_and_come_in_order(server: Server) -> None:
    everybody, _, _ = asyncio.run(crowd(server.url, visitors=6, new_tokens=20, process=os.getpid()))
    assert all(one.succeeded for one in everybody)
    assert out_of_order(everybody) == 0
    assert {one.position for one in everybody} >= {1, 2, 3}
    assert max(one.known_s for one in everybody) < max(one.done_s for one in everybody)


def test_mcp_client_calls_the_tools(server: Server) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> tuple[dict[str, dict], object, object]:
        async with streamable_http_client(f"{server.url}gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                tools = {tool.name: tool.inputSchema for tool in (await session.list_tools()).tools}
                good = await session.call_tool("complete", {"prompt": HEADER, "max_new_tokens": 5})
                bad = await session.call_tool("complete", {"prompt": HEADER, "max_new_tokens": 0})
                return tools, good, bad

    tools, good, bad = asyncio.run(talk())
    assert set(tools) == {"complete", "list_models"}
    assert all(field["description"] for field in tools["complete"]["properties"].values())
    assert tools["complete"]["required"] == ["prompt"]
    assert "'completion':" in good.content[0].text
    assert bad.isError
    assert "between 1 and 512" in bad.content[0].text


@pytest.mark.slow
def test_bundle_runs_with_its_requirements_alone(runs: Path, tmp_path: Path) -> None:
    space = bundle.bundle(tmp_path / "space", models=(str(runs / "alpha" / "winner"), "owner/model"))
    assert 'models: ["owner/model"]' in (space / "README.md").read_text()
    assert json.loads((space / "models.json").read_text()) == ["models/alpha", "owner/model"]
    script = (
        "import importlib.util, json, sys\n"
        "import app, completion\n"
        "assert importlib.util.find_spec('codenas_hf').origin.startswith(sys.path[0])\n"
        "assert importlib.util.find_spec('codenas_hf.engine') is None\n"
        "page = app.Page(app.settings_from(app.parse_arguments([]), host='0.0.0.0'))\n"
        "page.build()\n"
        "request = completion.CompletionRequest(prompt='def f(x):\\n', max_new_tokens=4)\n"
        "prepared = completion.prepare(request, settings=page.settings)\n"
        "source = app.find_models(page.settings)[0][1]\n"
        "*_, last = page.completer.run(source, prepared)\n"
        "print(json.dumps([last.model, last.new_tokens, last.ended]))\n"
    )
    # -S: no site, so neither this repository's editable install nor its .pth file is seen, only plain packages.
    paths = [str(space), sysconfig.get_paths()["purelib"]]
    program = f"import sys; sys.path[:0] = {paths!r}\n{script}"
    environment = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    name, tokens, ended = json.loads(run.stdout.splitlines()[-1])
    assert (name, bool(ended)) == ("alpha", True)
    assert tokens <= 4


def test_bundle_holds_just_what_the_playground_imports(tmp_path: Path) -> None:
    space = bundle.bundle(tmp_path / "space")
    package = sorted(str(path.relative_to(space)) for path in (space / "codenas_hf").rglob("*.py"))
    assert "codenas_hf/generation/decode.py" in package
    assert "codenas_hf/generation/token_text.py" in package  # which decode.py imports
    assert not any("search" in name or "candidate" in name for name in package)
    assert "import" not in (space / "codenas_hf" / "__init__.py").read_text()
    assert {"app.py", "examples.json", "style.css", "requirements.txt", "README.md"} <= {
        f.name for f in space.iterdir()
    }
    assert not (space / "bundle.py").exists()


def test_bundle_takes_a_study_for_its_winner_and_leaves_what_was_asked(runs: Path, tmp_path: Path) -> None:
    study = tmp_path / "mine"
    shutil.copytree(runs / "alpha", study)
    (study / "study.journal").touch()
    (study / "winner" / "completions.jsonl").touch()
    space = bundle.bundle(tmp_path / "space", models=(str(study),))
    assert json.loads((space / "models.json").read_text()) == ["models/mine"]
    there = {path.name for path in (space / "models" / "mine").iterdir()}
    assert {"config.json", "model.safetensors"} <= there
    assert not {"winner", "study.journal", "completions.jsonl"} & there


def test_bundle_names_modules_and_never_what_a_package_imports(tmp_path: Path) -> None:
    # The __init__ files of a bundle are empty: what they offer elsewhere is not there.
    space = bundle.bundle(tmp_path / "space")
    missing = []
    for path in space.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            start = path.parents[node.level - 1] if node.level else space
            source = start.joinpath(*(node.module or "").split("."))
            if (node.level or (node.module or "").startswith("codenas_hf")) and source.is_dir():
                names = [alias.name for alias in node.names if not (source / f"{alias.name}.py").is_file()]
                missing += [f"{path.relative_to(space)}: {name}" for name in names]
    assert missing == []


def test_requirements_name_what_the_bundle_imports(tmp_path: Path) -> None:
    space = bundle.bundle(tmp_path / "space")
    own = {path.stem for path in space.glob("*.py")} | {"codenas_hf", "spaces"}
    imported = set()
    for path in space.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.split(".")[0] for name in names}
    lines = (space / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[\[<>=]", line)[0] for line in lines if line and not line.startswith("#")}
    came_along = {"numpy", "tokenizers", "yaml"}  # of transformers
    assert imported - own - set(sys.stdlib_module_names) <= required | came_along


def test_bundle_refuses_a_folder_in_use_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        bundle.bundle(tmp_path)
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="codenas_hf is not installed here"):
        bundle.bundle(tmp_path / "new")


def test_order_of_service_is_counted_in_pairs() -> None:
    def visitor(position: int, finished: int) -> Visitor:
        return Visitor(0, position=position, finished=finished)

    assert out_of_order([visitor(0, 1), visitor(1, 2), visitor(2, 3)]) == 0
    assert out_of_order([visitor(1, 3), visitor(2, 2), visitor(3, 1)]) == 3


@pytest.mark.slow
def test_load_benchmark_measures_a_small_crowd(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke", "--visitors", "8", "--new-tokens", "8"])
    row = json.loads(capsys.readouterr().out)
    assert row["succeeded"] == 8
    assert row["pairs_out_of_order"] == 0
