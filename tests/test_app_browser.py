"""The playground in a browser: type, complete, stop, compare, fill a gap, errors, phone width, light and dark."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import completion
import pytest
from chooser import PlaygroundSettings
from playground_server import Server, make_runs, served
from web_model import chromium

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runs = make_runs(tmp_path_factory.mktemp("browser"))
    with served(PlaygroundSettings(runs=runs)) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Any]:
    """Opens the playground; at the end of the test no page may have complained."""
    opened, complaints = [], []

    def open_(size: str = "wide", scheme: str = "light") -> Any:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(server.url)
        page.wait_for_selector("#complete")
        page.wait_for_selector("#about svg")
        return page

    yield open_
    for context in opened:
        context.close()
    assert complaints == []


@pytest.fixture
def slow_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion that never ends by itself, ten words a second."""

    def words(model: Any, tokenizer: Any, prompt: str, *, settings: Any, suffix: str | None = None) -> Iterator[str]:
        for number in range(600):
            yield f"\n    word{number} = {number}"
            time.sleep(0.1)

    monkeypatch.setattr(completion, "stream", words)


def write(page: Any, text: str, *, where: str = "prompt") -> None:
    """Replaces what stands in an editor, as keys would."""
    page.locator(f"#{where} .cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)


def finish(page: Any, panel: str = "left") -> str:
    """Waits until a panel's completion has ended; its text."""
    page.wait_for_function(
        f"(document.querySelector('#{panel} .measures')?.innerText ?? '').match(/\\d tokens?,/)", timeout=60_000
    )
    return page.locator(f"#{panel} pre").inner_text()


def test_type_and_complete(open_page: Any) -> None:
    page = open_page()
    write(page, "def mul(a, b):")
    page.click("#complete")
    assert finish(page).startswith("def mul(a, b):")
    measures = page.locator("#left .measures").inner_text()
    assert "first token" in measures
    assert page.locator("#left mark").count() >= 1


def test_keyboard_completes(open_page: Any) -> None:
    page = open_page()
    write(page, "x = 1")
    page.keyboard.press("Control+Enter")
    assert finish(page).startswith("x = 1")


def test_stop_keeps_and_judges_what_is_there(open_page: Any, slow_words: None) -> None:
    page = open_page()
    page.click("#complete")
    page.wait_for_function("document.querySelector('#left pre')?.innerText.includes('word4')")
    start = time.monotonic()
    page.click("#stop")
    text = finish(page)
    assert time.monotonic() - start < 5
    assert "stopped by you" in page.locator("#left .measures").inner_text()
    assert "Python reads" in page.locator("#left .measures").inner_text()
    page.wait_for_timeout(700)
    assert page.locator("#left pre").inner_text() == text


def test_stop_takes_a_waiting_visitor_out_of_the_queue(open_page: Any, slow_words: None) -> None:
    first, second = open_page(), open_page()
    first.click("#complete")
    first.wait_for_function("document.querySelector('#left pre')?.innerText.includes('word1')")
    second.click("#complete")
    second.wait_for_function("document.querySelector('#left').innerText.match(/queue: 1\\/1/)")
    second.click("#stop")
    second.wait_for_function("!document.querySelector('#left').innerText.match(/queue/)")
    first.click("#stop")
    finish(first)


def test_leaving_frees_the_model_for_the_next(open_page: Any, slow_words: None) -> None:
    first, second = open_page(), open_page()
    first.click("#complete")
    first.wait_for_function("document.querySelector('#left pre')?.innerText.includes('word1')")
    second.click("#complete")
    first.close()
    second.wait_for_function("document.querySelector('#left pre')?.innerText.includes('word1')", timeout=15_000)
    second.click("#stop")
    finish(second)


def test_two_models_stand_side_by_side(open_page: Any) -> None:
    page = open_page()
    assert not page.locator("#right").is_visible()
    page.locator("#compare input").click()
    page.wait_for_selector("#right", state="visible")
    page.wait_for_function("document.querySelectorAll('#about svg').length === 2")
    page.click("#complete")
    finish(page, "right")
    names = [page.locator(f"#{panel} .model-name").inner_text() for panel in ("left", "right")]
    assert names == ["alpha (winner)", "beta (winner)"]
    boxes = [page.locator(f"#{panel}").bounding_box() for panel in ("left", "right")]
    assert boxes[0]["y"] == boxes[1]["y"]


def test_gap_is_filled_where_the_cursor_was(open_page: Any) -> None:
    page = open_page()
    write(page, "x = \nprint(x)")
    page.keyboard.press("Control+Home")
    page.keyboard.press("End")
    page.click("#marker")
    assert page.locator("#prompt .cm-content").inner_text().startswith("x = <FILL_HERE>\n")
    page.click("#complete")
    text = finish(page)
    assert text.startswith("x = ")
    assert text.rstrip().endswith("print(x)")
    assert "FILL_HERE" not in text


def test_errors_say_how_to_mend_them(open_page: Any) -> None:
    page = open_page()
    for prompt, message in (
        ("   ", "The prompt is empty. Write"),
        ("<FILL_HERE><FILL_HERE>", "<FILL_HERE> may stand"),
    ):
        write(page, prompt)
        page.wait_for_timeout(300)
        page.click("#complete")
        page.wait_for_function(f"document.body.innerText.includes({message!r})")
        page.locator(".toast-close").first.click()
    box = page.locator("#model input")
    box.click()
    box.fill("no such/<b>model</b>/here")
    box.press("Enter")
    write(page, "x = 1")
    page.click("#complete")
    page.wait_for_function("document.body.innerText.includes('is neither a folder here nor a Hub id')")


def test_short_prompt_offers_examples(open_page: Any) -> None:
    page = open_page()
    page.get_by_role("button", name="No examples").click()
    page.wait_for_selector("#hint", state="visible")
    assert "one or two example functions" in page.locator("#hint").inner_text()
    page.click("#add")
    page.wait_for_function("document.querySelector('#shots .cm-content').innerText.includes('def count_words')")
    page.wait_for_selector("#hint", state="hidden")
    assert page.locator("#picks input:checked").count() == 2
    page.locator("#picks label", has_text="Clamp a number").click()
    page.wait_for_function("!document.querySelector('#shots .cm-content').innerText.includes('def clamp')")


def test_hostile_code_is_only_text(open_page: Any) -> None:
    page = open_page()
    hostile = "s = '</code></pre><img src=x onerror=alert(1)><script>alert(2)</script><|endoftext|>'"
    write(page, hostile)
    page.click("#complete")
    assert finish(page).startswith(hostile)
    assert page.locator("#left img, #left script").count() == 0
    page.locator("#about").scroll_into_view_if_needed()
    page.get_by_text("Card", exact=True).click()
    page.wait_for_function("document.querySelector('#card')?.innerText.includes('Card of alpha')")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_follows_the_colour_scheme(open_page: Any, tmp_path: Path, size: str, scheme: str) -> None:
    page = open_page(size, scheme)
    page.locator("#compare input").click()
    page.click("#complete")
    finish(page, "right")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    for name in ("prompt", "complete", "left", "right", "shots", "about"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size][0]
    boxes = [page.locator(f"#{panel}").bounding_box() for panel in ("left", "right")]
    assert (boxes[0]["y"] == boxes[1]["y"]) == (size == "wide")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(number) for number in re.findall(r"\d+", colour)[:3])
    assert (brightness > 380) == (scheme == "light")
