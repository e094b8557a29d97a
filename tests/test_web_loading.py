"""How the page without a server loads: what it shows meanwhile, and what it says where it cannot."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import web_page as pages
from web_model import CHROMIUM, READY, chromium, plain_server, until

from benchmarks.playground_load import random_model
from benchmarks.web import watched_memory

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(npm=True) as started:
        yield started


@pytest.fixture(scope="module")
def folder(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose files come in many pieces."""
    place = tmp_path_factory.mktemp("loading")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PIECE_BYTES", 20_000)
        site = pages.web_page(place / "site", model=str(random_model(place / "random")))
    facts = json.loads((site / "model.json").read_text())
    assert len(facts["sha256"]) > 2
    return site


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with plain_server(folder) as found:
        yield found


@contextmanager
def halting_server(folder: Path, *, ends: bool) -> Iterator[tuple[str, threading.Event]]:
    """A server that sends half of the model and waits for the event; then it goes on, or breaks off."""
    go_on = threading.Event()

    class Halting(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            half = len(content) // 2 if self.path.endswith(".gguf") else len(content)
            outputfile.write(content[:half])
            outputfile.flush()
            if half < len(content):
                go_on.wait(60)
                if ends:
                    outputfile.write(content[half:])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Halting, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", go_on
        finally:
            go_on.set()
            server.shutdown()


def test_a_bar_shows_how_much_is_there(browser: Any, folder: Path) -> None:
    with halting_server(folder, ends=True) as (where, go_on), browser.new_context() as context:
        page = context.new_page()
        page.goto(where)
        until(page, "document.getElementById('progress-text').innerText.startsWith('Fetching the model')")
        bar = page.get_by_role("progressbar", name="Fetching the model and its engine")
        assert bar.is_visible()
        assert 0 < bar.evaluate("bar => bar.value") < 1
        assert page.is_disabled("#complete")
        go_on.set()
        until(page, READY)
        assert bar.is_hidden()
        assert page.locator("#said").inner_text() == "The model is ready"


def test_the_benchmark_sees_the_memory_of_a_page(browser: Any, address: str) -> None:
    with watched_memory() as most, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        until(page, READY)
        page.wait_for_timeout(200)
    assert 50e6 < most["page_memory_bytes"] < most["chromium_memory_bytes"]


def test_a_connection_that_breaks_is_told(browser: Any, folder: Path) -> None:
    with halting_server(folder, ends=False) as (where, go_on):
        go_on.set()
        assert "broke off on its way. Load the page again" in problem_of(browser, where)


def spoiled(folder: Path, target: Path, how: str) -> Path:
    """A copy of the page whose model is not whole."""
    shutil.copytree(folder, target)
    weights = target / "model-q8_0.gguf"
    content = bytearray(weights.read_bytes())
    if how == "changed":
        content[len(content) // 2] ^= 1
    if how == "gone":
        weights.unlink()
    else:
        weights.write_bytes(content[:-100] if how == "cut" else content)
    return target


@pytest.mark.parametrize(
    ("how", "message"), [("cut", "is damaged"), ("changed", "is damaged"), ("gone", "is not there (404)")]
)
def test_a_damaged_file_is_told(browser: Any, folder: Path, tmp_path: Path, how: str, message: str) -> None:
    with plain_server(spoiled(folder, tmp_path / "site", how)) as where:
        assert message in problem_of(browser, where)


def problem_of(browser: Any, where: str, script: str = "") -> str:
    """What the page says that does not get ready."""
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script(script)
        page.goto(where)
        until(page, "!document.getElementById('problem').hidden")
        assert page.is_disabled("#complete")
        assert page.locator("#loading").is_hidden()
        return str(page.locator("#problem").inner_text())


def test_a_browser_without_webassembly_is_told(browser: Any, address: str) -> None:
    assert "has no WebAssembly" in problem_of(browser, address, "delete globalThis.WebAssembly")


def test_short_memory_is_told(browser: Any, address: str) -> None:
    small = browser.browser_type.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--js-flags=--wasm-max-mem-pages=64"]
    )
    try:
        assert "is short of memory" in problem_of(small, address)
    finally:
        small.close()
