"""What the page without a server costs: `python -m benchmarks.web --model runs/two_stage --onnx runs/two_stage`.

The page of a release, made by `spaces_app/bundle.py --web`, is loaded from `python -m http.server` by headless
Chromium, all of it on one core and with an empty cache each time. Measured: bytes, compressed as static hosts send
them, and with the page's own clock the time until it is ready, the time until the first token, and tokens per second,
greedy and with one thread. One more visit watches memory: the most that the page's process and all of Chromium's
together hold (what several share is split among them).

`--onnx` names a release that transformers.js reads as well, in 8 and in 4 bits: the engine that was not chosen.
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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import web_readers
from benchmarks.results_file import protocol, target, write

ROOT = Path(__file__).parent.parent
NEW_TOKENS = 128
PROMPTS = (
    "def total(numbers):\n    result = 0\n    for number in numbers:\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import os\nimport sys\n\n\ndef main(arguments):\n",
)
OURS = f"wllama {json.loads((ROOT / 'spaces_app' / 'web' / 'engine.json').read_text())['version']}"
LEFT_OUT = {"README.md", "LICENCE.txt", "threads.wasm"}  # not asked for, on one thread
READY = "document.getElementById('loading').hidden && !document.getElementById('complete').disabled"
LAST_BYTE = "Math.max(...performance.getEntriesByType('resource').map(entry => entry.responseEnd))"
MARKS = "['bytes', 'ready'].map(name => performance.getEntriesByName(name)[0].startTime)"
COMPLETE = """async ([prompt, length]) => {
  const wish = { prompt, suffix: null, length, temperature: 0, topP: 1, penalty: 1, seed: 0, stops: [] };
  let last;
  for await (last of codenas.engine.complete(wish)) ;
  return { first: last.first, since: last.since, tokens: last.growth.count };
}"""


def compressed_bytes(folder: Path, weights: str) -> tuple[int, int]:
    """Bytes of a page's model as it is, and of everything else that is asked for, each file through gzip."""
    rest = [p for p in folder.rglob("*") if p.is_file() and p.name != weights and p.name not in LEFT_OUT]
    (model,) = folder.rglob(weights)
    return model.stat().st_size, sum(len(gzip.compress(p.read_bytes(), 9)) for p in rest)


def visit_page(page: Any, where: str) -> dict[str, Any]:
    """One visit to our page: milliseconds until bytes and ready, and what each prompt took."""
    page.goto(where)
    while not page.evaluate(READY):
        page.wait_for_timeout(50)
    bytes_ms, ready_ms = page.evaluate(MARKS)
    return {"bytes": bytes_ms, "ready": ready_ms, "runs": [page.evaluate(COMPLETE, [p, NEW_TOKENS]) for p in PROMPTS]}


def visit_reader(page: Any, where: str, *, wish: dict[str, Any]) -> dict[str, Any]:
    """The same of a page with transformers.js."""
    page.goto(where)
    answer = web_readers.in_page(page, wish)
    runs = [run | {"tokens": len(run["ids"])} for run in answer["found"]]
    return {"bytes": page.evaluate(LAST_BYTE), "ready": answer["ready"], "runs": runs}


Visit = Callable[[Any, str], dict[str, Any]]


def measured(browser: Any, where: str, visit: Visit) -> dict[str, Any]:
    """One visit with an empty cache: seconds until ready and first token, and a pace per prompt."""
    with browser.new_context() as context:
        found = visit(context.new_page(), where)
    paces = [1000 * (run["tokens"] - 1) / run["since"] for run in found["runs"] if run["tokens"] > 16]
    first_ms = found["ready"] - found["bytes"] + found["runs"][0]["first"]
    return {"ready_s": found["ready"] / 1000, "first_token_s": first_ms / 1000, "tokens_per_second": paces}


def chromium_bytes() -> tuple[int, int]:
    """Memory of the largest page's process, and of all of Chromium's, as far as this process started them."""
    parents, words = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words[int(place.name)] = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
    ours = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    pages, everything = [0], 0
    for number in ours:
        if "chrom" not in words.get(number, "").split("\0")[0]:
            continue
        try:
            rows = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        shared = next((1024 * int(row.split()[1]) for row in rows if row.startswith("Pss:")), 0)
        everything += shared
        if "--type=renderer" in words[number]:
            pages.append(shared)
    return max(pages), everything


@contextmanager
def watched_memory() -> Iterator[dict[str, int]]:
    """The most bytes that Chromium holds while the block runs, looked at every 20 ms."""
    most = {"page_memory_bytes": 0, "chromium_memory_bytes": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for name, found in zip(most, chromium_bytes(), strict=True):
                most[name] = max(most[name], found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def measure(folder: Path, visit: Visit, *, repeats: int) -> dict[str, Any]:
    """Several visits to a page on one core of this machine, and one that watches memory."""
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
                visits = [measured(browser, where, visit) for _ in range(repeats)]
                with watched_memory() as most:
                    measured(browser, where, visit)
                version = browser.version
                browser.close()
        finally:
            server.terminate()
    return row_of(visits) | most | {"chromium": version}


def row_of(visits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over visits, with the lowest and the highest."""
    values = {
        "ready_s": [visit["ready_s"] for visit in visits],
        "first_token_s": [visit["first_token_s"] for visit in visits],
        "tokens_per_second": [pace for visit in visits for pace in visit["tokens_per_second"]],
    }
    row: dict[str, Any] = {}
    for name, found in values.items():
        row |= {name: statistics.median(found), f"{name}_range": [min(found), max(found)]}
    return row


def page_row(model: str, place: Path, *, repeats: int) -> dict[str, Any]:
    """The row of our page with a release."""
    folder = place / "page"
    script = ROOT / "spaces_app" / "bundle.py"
    subprocess.run([sys.executable, str(script), str(folder), "--web", "--model", model], check=True)
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    weights, rest = compressed_bytes(folder, facts["file"])
    known: dict[str, Any] = {"model": f"{facts['name']}, {facts['file']}", "engine": OURS}
    known |= {"model_bytes": weights, "page_and_engine_bytes": rest}
    return known | measure(folder, visit_page, repeats=repeats)


def reader_row(model: str, place: Path, *, form: str, repeats: int) -> dict[str, Any]:
    """The row of transformers.js with a release, exported in one form."""
    export = place / "export" / form
    words = ["export", model, "--to", "onnx", "--format", form, "--out", str(export)]
    subprocess.run([sys.executable, "-m", "codenas_hf.cli.main", *words], check=True)
    folder = web_readers.site(place / form, web_readers.packages(), export)
    (path,) = export.rglob("*.onnx")
    weights, rest = compressed_bytes(folder, path.name)
    wish = web_readers.asked(export, form=form, prompts=list(PROMPTS), count=NEW_TOKENS)
    known: dict[str, Any] = {"model": f"{Path(model).name}, {path.name}"}
    known |= {"engine": f"transformers.js {web_readers.version()}", "model_bytes": weights}
    visit = partial(visit_reader, wish=wish)
    return known | {"page_and_engine_bytes": rest} | measure(folder, visit, repeats=repeats)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the page of each release, measures it and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", action="append", required=True, help="a release folder or a study; may be repeated")
    parser.add_argument("--onnx", action="append", default=[], help="one that transformers.js reads; may be repeated")
    parser.add_argument("--repeats", type=int, default=10, help="visits (default: 10)")
    options = parser.parse_args(arguments)
    rows, begun = [], time.perf_counter()
    asked = [partial(page_row, model) for model in options.model]
    asked += [partial(reader_row, model, form=form) for model in options.onnx for form in ("int8", "int4")]
    for row_of_one in asked:
        with tempfile.TemporaryDirectory() as place:
            row = row_of_one(Path(place), repeats=options.repeats)
        version = row.pop("chromium")
        rows.append(row)
        print(row)
    known = protocol(
        chromium=version,
        visits=options.repeats,
        completions_a_visit=len(PROMPTS),
        new_tokens=NEW_TOKENS,
        numbers="medians, with the lowest and the highest; of memory the most in one visit",
        cores_used="1, for server and browser",
        compression="gzip -9 of each file, the model as it is",
        transformers_js="with ONNX Runtime's build for processors, which computes in float32",
        seconds=round(time.perf_counter() - begun),
    )
    write("web", protocol=known, rows=rows, targets=targets_of([row for row in rows if row["engine"] == OURS]))


def targets_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets that these rows say something of."""
    small = [row for row in rows if row["model_bytes"] <= 4e6]
    large = [row for row in rows if 4e6 < row["model_bytes"] <= 60e6]
    found = [target("page and engine, compressed, MB", rows[0]["page_and_engine_bytes"] / 1e6, 4, better="lower")]
    if small:
        slowest = min(row["tokens_per_second"] for row in small)
        latest = max(row["first_token_s"] for row in small)
        found.append(target("tokens a second, one core", slowest, 100, better="higher"))
        found.append(target("seconds from the last byte to the first token", latest, 1, better="lower"))
    if large:
        most = max(row["page_memory_bytes"] for row in large) / 1e6
        found.append(target("memory of the page with up to 60 MB of model, MB", most, 500, better="lower"))
    return found


if __name__ == "__main__":
    main()
