"""What the page without a server costs: `python -m benchmarks.web --model runs/two_stage`.

The page of a release, made by `spaces_app/bundle.py --web`, is loaded from `python -m http.server` by headless
Chromium, all of it on one core and with an empty cache each time. Measured: bytes, compressed as static hosts send
them, and with the page's own clock the time until it is ready, the time until the first token, and tokens per second,
greedy and with one thread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import protocol, target, write

ROOT = Path(__file__).parent.parent
NEW_TOKENS = 128
PROMPTS = (
    "def total(numbers):\n    result = 0\n    for number in numbers:\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import os\nimport sys\n\n\ndef main(arguments):\n",
)
LEFT_OUT = {"README.md", "LICENCE.txt", "threads.wasm"}  # not asked for, on one thread
READY = "document.getElementById('loading').hidden && !document.getElementById('complete').disabled"
MARKS = "['bytes', 'ready'].map(name => performance.getEntriesByName(name)[0].startTime)"
COMPLETE = """async ([prompt, length]) => {
  const wish = { prompt, suffix: null, length, temperature: 0, topP: 1, penalty: 1, seed: 0, stops: [] };
  let last;
  for await (last of codenas.engine.complete(wish)) ;
  return { first: last.first, since: last.since, tokens: last.growth.count };
}"""


def compressed_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of a page's model as it is, and of everything else that is asked for, each file through gzip."""
    weights: str = json.loads((folder / "model.json").read_text(encoding="utf-8"))["file"]
    rest = [p for p in folder.rglob("*") if p.is_file() and p.name != weights and p.name not in LEFT_OUT]
    return (folder / weights).stat().st_size, sum(len(gzip.compress(p.read_bytes(), 9)) for p in rest)


def measure_load(browser: Any, where: str) -> dict[str, Any]:
    """One visit with an empty cache: milliseconds until bytes, ready and first token, and a pace per prompt."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(where)
        while not page.evaluate(READY):
            page.wait_for_timeout(50)
        bytes_ms, ready_ms = page.evaluate(MARKS)
        runs = [page.evaluate(COMPLETE, [prompt, NEW_TOKENS]) for prompt in PROMPTS]
    paces = [1000 * (run["tokens"] - 1) / run["since"] for run in runs if run["tokens"] > 16]
    first_ms = ready_ms - bytes_ms + runs[0]["first"]
    return {"ready_s": ready_ms / 1000, "first_token_s": first_ms / 1000, "tokens_per_second": paces}


def measure(folder: Path, *, repeats: int) -> list[dict[str, Any]]:
    """Several visits to a page on one core of this machine."""
    from playwright.sync_api import sync_playwright

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # for what is started from here, too
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            where = "http://127.0.0.1:" + server.stdout.readline().split(" port ")[1].split(" ")[0]
            with sync_playwright() as playwright:
                flags = ["--no-sandbox", "--disable-gpu"]
                browser = playwright.chromium.launch(executable_path=chromium, args=flags)
                version = browser.version
                visits = [measure_load(browser, where) | {"chromium": version} for _ in range(repeats)]
                browser.close()
        finally:
            server.terminate()
    return visits


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the page of each release, measures it and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", action="append", required=True, help="a release folder or a study; may be repeated")
    parser.add_argument("--repeats", type=int, default=10, help="visits (default: 10)")
    options = parser.parse_args(arguments)
    rows, begun = [], time.perf_counter()
    for model in options.model:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "page"
            script = ROOT / "spaces_app" / "bundle.py"
            subprocess.run([sys.executable, str(script), str(folder), "--web", "--model", model], check=True)
            weights, rest = compressed_bytes(folder)
            facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            visits = measure(folder, repeats=options.repeats)
        values = {
            "ready_s": [visit["ready_s"] for visit in visits],
            "first_token_s": [visit["first_token_s"] for visit in visits],
            "tokens_per_second": [pace for visit in visits for pace in visit["tokens_per_second"]],
        }
        row: dict[str, Any] = {
            "model": f"{facts['name']}, {facts['file']}",
            "model_bytes": weights,
            "page_and_engine_bytes": rest,
        }
        for name, found in values.items():
            row |= {name: statistics.median(found), f"{name}_range": [min(found), max(found)]}
        rows.append(row)
        print(row)
    small = [row for row in rows if row["model_bytes"] <= 4e6]
    targets = [target("page and engine, compressed, MB", rows[0]["page_and_engine_bytes"] / 1e6, 4, better="lower")]
    if small:
        slowest = min(row["tokens_per_second"] for row in small)
        latest = max(row["first_token_s"] for row in small)
        targets.append(target("tokens a second, one core", slowest, 100, better="higher"))
        targets.append(target("seconds from the last byte to the first token", latest, 1, better="lower"))
    known = protocol(
        chromium=visits[0]["chromium"],
        visits=options.repeats,
        completions_a_visit=len(PROMPTS),
        new_tokens=NEW_TOKENS,
        numbers="medians, with the lowest and the highest",
        cores_used="1, for server and browser",
        compression="gzip -9 of each file, the model as it is",
        seconds=round(time.perf_counter() - begun),
    )
    write("web", protocol=known, rows=rows, targets=targets)


if __name__ == "__main__":
    main()
