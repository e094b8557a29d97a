"""Makes the playground's two pictures: `python docs/playground_screenshots.py --runs runs`.

It needs Chromium and playwright. One is wide and light with two models side by side, one as on a phone and dark; both
show real completions of the models given.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "spaces_app"), str(ROOT)]

from chooser import PlaygroundSettings, find_models  # noqa: E402
from interface import Page, launch_options  # noqa: E402

PICTURES = {
    "playground-wide": {"viewport": {"width": 1280, "height": 960}, "color_scheme": "light"},
    "playground-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 2},
}


def take(browser: Any, url: str, *, name: str, folder: Path, compare: bool) -> Path:
    """One picture of the page after a completion."""
    context = browser.new_context(**PICTURES[name])
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#about svg")
    if compare:
        page.locator("#compare input").click()
        page.wait_for_selector("#right", state="visible")
    page.click("#complete")
    panel = "right" if compare else "left"
    ended = f"(document.querySelector('#{panel} .measures')?.innerText ?? '').match(/\\d tokens?,/)"
    page.wait_for_function(ended, timeout=120_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    context.close()
    return path


def main() -> None:
    """Serves the playground for as long as it takes to photograph it."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--model", action="append", default=[], help="a further model folder or Hub id")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    settings = PlaygroundSettings(runs=options.runs, models=tuple(options.model), any_model=False)
    offered = find_models(settings)
    if not offered:
        raise SystemExit(f"no model under {options.runs}: name one with --model")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    demo = Page(settings).build()
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name in PICTURES:
            compare = name.endswith("wide") and len(offered) > 1
            path = take(browser, url, name=name, folder=options.out, compare=compare)
            sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
