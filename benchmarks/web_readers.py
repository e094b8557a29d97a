"""transformers.js, which reads what `codenas export --to onnx` writes: fetched with npm, run in Node and in a page.

`transformers_js/package-lock.json` names version and hash of each package; `npm ci` takes no other, and runs no script
of theirs. Tests and `benchmarks.web` ask it through `transformers_js/read.mjs`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codenas_hf.folders.places import cache_folder

READER = Path(__file__).parent / "transformers_js"
PAGE = ("index.html", "read.mjs")
# What a page needs of the packages: the part of ONNX Runtime that computes on the processor, without a GPU's.
LIBRARIES = {
    "@huggingface/transformers/dist/transformers.web.min.js": "transformers.js",
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "onnxruntime.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
DTYPES = {"fp32": "fp32", "int8": "q8", "int4": "q4"}  # transformers.js's names of what `ONNX_FORMS` writes
# In Node ONNX Runtime rounds activations to 8 bits beside such weights, unless the pipeline gets these options.
EXACT = {"extra": {"session": {"qdq_matmulnbits_accuracy_level": "1"}}}
IN_NODE = """
import { readFileSync } from "node:fs";
import { complete } from "./read.mjs";
console.log(JSON.stringify(await complete(JSON.parse(readFileSync(0, "utf-8")))));
"""


def version() -> str:
    """The version of transformers.js that is read with."""
    wanted: dict[str, Any] = json.loads((READER / "package.json").read_text(encoding="utf-8"))
    return str(wanted["dependencies"]["@huggingface/transformers"])


def packages(place: Path | None = None) -> Path:
    """A folder with transformers.js and what it needs, about 0.5 GB, fetched once.

    Args:
        place: where it is kept; None: in the user's cache.

    Raises:
        OSError: npm is not here, or cannot fetch what the lock file names.
        ValueError: what came is another file.
    """
    lock = (READER / "package-lock.json").read_bytes()
    folder = (place or cache_folder() / "npm") / f"transformers_js-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "node_modules").is_dir():
        if shutil.which("npm") is None:
            raise FileNotFoundError("npm is needed to fetch transformers.js; install Node.js 20 or newer")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(READER / name, draft)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=draft)
            if "EINTEGRITY" in done.stderr:
                raise ValueError(f"npm got other files than {READER.name}/package-lock.json names: {done.stderr}")
            if done.returncode:
                raise OSError(f"npm could not fetch transformers.js: {done.stderr.strip()[-300:]}")
            modules = Path(draft) / "node_modules"
            folder.mkdir(exist_ok=True)
            if not (folder / "node_modules").is_dir():  # another process may have been as quick
                modules.rename(folder / "node_modules")
    shutil.copy(READER / "read.mjs", folder)
    return folder


def asked(
    export: Path, *, form: str, prompts: list[str], count: int, session: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `read.mjs` is asked in Node: greedy tokens of an exported folder after each prompt, on one thread."""
    place = {"root": str(export.parent), "name": export.name, "dtype": DTYPES[form], "device": "cpu"}
    return {**place, "prompts": prompts, "count": count, "session": {"intraOpNumThreads": 1, **(session or {})}}


def in_node(folder: Path, wish: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of `read.mjs` in Node.

    Args:
        folder: from `packages`.
        wish: from `asked`.

    Raises:
        OSError: Node is not here, or the reader failed; in its words.
    """
    command = ["node", "--input-type=module", "--eval", IN_NODE]
    done = subprocess.run(command, input=json.dumps(wish), capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise OSError(f"transformers.js failed: {done.stderr.strip()[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def site(folder: Path, packages: Path, export: Path) -> Path:
    """A folder for any static host whose page reads an exported model: the page, `lib/`, `models/<export>`."""
    for name in PAGE:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(READER / name, folder)
    for source, name in LIBRARIES.items():
        (folder / "lib").mkdir(exist_ok=True)
        shutil.copy(packages / "node_modules" / source, folder / "lib" / name)
    shutil.copytree(export, folder / "models" / export.name)
    return folder


def in_page(page: Any, wish: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of `read.mjs` in a page of a browser that has gone to `site`."""
    call = "async wish => (await import('./read.mjs')).complete(wish)"
    place = {"root": "./models/", "device": "wasm", "wasm": {"wasm": "./lib/ort-wasm-simd-threaded.wasm"}}
    found: dict[str, Any] = page.evaluate(call, {**wish, **place, "session": {}})
    return found
