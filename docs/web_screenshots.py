"""Makes the pictures of the page without a server: `python docs/web_screenshots.py --model runs/two_stage`.

It needs Chromium, playwright and npm. Desktop, phone, and dark; each shows a real completion of the release given.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
PICTURES = {
    "web-desktop": {"viewport": {"width": 1180, "height": 860}, "color_scheme": "light"},
    "web-dark": {"viewport": {"width": 1180, "height": 860}, "color_scheme": "dark"},
    "web-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
DONE = "!document.getElementById('copy').disabled"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain file server without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def take(where: str, out: Path) -> None:
    """All pictures of the page at `where`."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, settings in PICTURES.items():
            context = browser.new_context(**settings)
            page = context.new_page()
            page.goto(where)
            page.wait_for_selector("#loading", state="hidden", timeout=120_000)
            page.evaluate("document.getElementById('examples-box').open = false")
            page.click("#complete")
            page.wait_for_timeout(300)
            while not page.evaluate(DONE):
                page.wait_for_timeout(200)
            page.evaluate("document.activeElement.blur()")
            path = out / f"{name}.png"
            picture = Image.open(io.BytesIO(page.screenshot())).quantize(64)  # flat colours: a third of the bytes
            picture.save(path, optimize=True)
            sys.stdout.write(f"{path}: {path.stat().st_size / 1000:.0f} kB\n")
            context.close()
        browser.close()


def main() -> None:
    """Builds the page and serves it for as long as it takes to photograph it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a release folder or a study")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        script = ROOT / "spaces_app" / "bundle.py"
        command = [sys.executable, str(script), f"{place}/page", "--web", "--model", options.model]
        subprocess.run(command, check=True)
        handler = functools.partial(Quiet, directory=f"{place}/page")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            take(f"http://127.0.0.1:{server.server_port}", options.out)
            server.shutdown()


if __name__ == "__main__":
    main()
