"""The page in a real browser: readable at any width, light and dark, without a network and without complaints."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_records import make_records, make_result

from codenas_hf.report.page import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = make_result(make_records(generations=2))
    return write_report(result, folder=tmp_path_factory.mktemp("report"), name="study")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_well(browser: Any, page: Path, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert said == []
    assert asked == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") == width, "nothing runs off the page"
    ink, paper = tab.evaluate(
        """() => ['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name]
            .match(/\\d+/g).slice(0, 3).reduce((sum, n) => sum + Number(n), 0))"""
    )
    assert (ink > paper) == (scheme == "dark")
    drawn = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill.match(/\\d+/g).map(Number)")
    assert (sum(drawn[:3]) > 380) == (scheme == "dark"), "pictures follow the page"
    tab.close()
