"""The playground as files alone, for any static host: the page of `web/`, a GGUF file, and llama.cpp for browsers.

The engine is wllama, fetched once with npm in the version of `web/engine.json` and checked against its hash there; a
copy is kept in the user's cache. Nothing of it is fetched by the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from codenas_hf.folders.places import Release, cache_folder
from codenas_hf.folders.record import Record, RecordError
from codenas_hf.generation.token_text import TokenText
from codenas_hf.quantities import quantity

HERE = Path(__file__).parent
PAGE = HERE / "web"
PINNED = PAGE / "engine.json"
ENGINES = {"one": "engine/one-thread.wasm", "threads": "engine/threads.wasm"}
PIECE_BYTES = 4 << 20  # so much at a time is fetched, hashed and put away
FORMS = ("q8_0", "f16")  # the second stores widths that are no multiple of a block
CARD = """\
---
title: {title}
emoji: 🧬
colorFrom: indigo
colorTo: yellow
sdk: static
app_file: index.html
license: mit
short_description: A small code model that runs in your browser
tags: [code, python, neural-architecture-search, gguf, wllama]
models: {models}
custom_headers:
  cross-origin-embedder-policy: require-corp
  cross-origin-opener-policy: same-origin
  cross-origin-resource-policy: cross-origin
---

# {title}

{name} completes Python in the browser: a page, {bytes:,} bytes of model, and llama.cpp as WebAssembly
(wllama {engine}, MIT). There is no server behind it, and nothing that is typed leaves the browser. The files work from
any static host, such as `python -m http.server`.
"""


def web_page(folder: Path, *, model: str, hub_id: str | None = None) -> Path:
    """Writes the page with its model and its engine into `folder`, which must be empty or absent.

    Args:
        folder: where to write.
        model: a release folder, or a study, which means its winner.
        hub_id: of the model, for a link to its card.

    Raises:
        ValueError: `folder` is not empty, the model has no GGUF file and cannot be written as one, or the engine
            cannot be had.
        FileNotFoundError: `model` is no release.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    release = Release.find(Path(model))
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))
    archive = engine_archive(pinned)
    with tempfile.TemporaryDirectory() as place:
        weights = release.shipped or _exported(release.folder, Path(place))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, folder / weights.name)
    for path in (*sorted(PAGE.glob("*.*")), HERE / "examples.json"):
        if path.name != PINNED.name:
            shutil.copyfile(path, folder / path.name)
    _unpack(archive, pinned["files"], folder / "engine")
    name = hub_id or (release.study.name if release.study else release.folder.resolve().name)
    facts = page_facts(release, folder / weights.name, name=name, hub_id=hub_id)
    (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    card = CARD.format(
        title=f"{name.rpartition('/')[2]} in the browser",
        name=name,
        models=json.dumps([hub_id] if hub_id else []),
        bytes=facts["bytes"],
        engine=pinned["version"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def page_facts(release: Release, weights: Path, *, name: str, hub_id: str | None = None) -> dict[str, Any]:
    """What the page needs to know of the model and what it tells of it, for `model.json`.

    Args:
        release: where the model comes from.
        weights: its GGUF file, in the page's folder, with the engine below it.
        name: of the model.
        hub_id: of the model, for a link to its card.

    Returns:
        `file`, `bytes` and hashes of the model (`sha256` of each `piece` bytes) and, under `engine`, of the engine
        with `one` thread or more (`threads`); `context` in tokens; whether it `fills_gaps` (None: not known); ids of
        `special` tokens, `entries` of the tokenizer; `name`, `link`, and `facts` as pairs of text.
    """
    config = release.read_config()
    tokenizer = AutoTokenizer.from_pretrained(release.folder)
    try:
        record = release.read_record()
    except (FileNotFoundError, RecordError):
        record = Record()
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    width = config.get("hidden_size") or config.get("n_embd")
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    facts = [
        (
            "Architecture",
            f"{config['model_type']}, {layers} layers, {width} wide, {config['vocab_size']:,} kinds of token",
        ),
        ("File", f"{weights.name}, {weights.stat().st_size:,} bytes"),
        ("Reads at most", f"{context:,} tokens"),
    ]
    if record.release.num_parameters:
        facts.insert(1, ("Parameters", f"{record.release.num_parameters:,}"))
    measured = record.measured
    if measured.bits_per_byte is not None:
        low, high = measured.bits_per_byte_low, measured.bits_per_byte_high
        within = f" (95 %: {low:.3f} to {high:.3f})" if low is not None and high is not None else ""
        before = "" if release.shipped else ", before it was stored in this file"
        title = quantity("bits_per_byte").title.capitalize()
        facts.append((title, f"{measured.bits_per_byte:.3f}{within} on code it has not seen{before}"))
    return {
        "name": name,
        "link": f"https://huggingface.co/{hub_id}" if hub_id else None,
        **_checked(weights, weights.parent),
        "engine": {name: _checked(weights.parent / file, weights.parent) for name, file in ENGINES.items()},
        "context": context,
        "fills_gaps": record.fills_gaps,
        "special": sorted(TokenText.of(tokenizer).special_ids),
        "entries": len(tokenizer),
        "facts": facts,
    }


def _checked(path: Path, folder: Path) -> dict[str, Any]:
    """A file as the page asks for it, with what it has to be."""
    hashes = []
    with path.open("rb") as file:
        while content := file.read(PIECE_BYTES):
            hashes.append(hashlib.sha256(content).hexdigest())
    known = {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size}
    return {**known, "piece": PIECE_BYTES, "sha256": hashes}


def engine_archive(pinned: dict[str, Any]) -> Path:
    """The engine's npm package as a file, from the user's cache or fetched with npm, always checked against its hash.

    Args:
        pinned: `package`, `version` and `integrity` as npm spells them.

    Raises:
        ValueError: npm is not here or cannot fetch it, or what came is another file.
    """
    caches = cache_folder() / "npm"
    wanted = f"{pinned['package']}@{pinned['version']}"
    kept = caches / f"{pinned['package'].rpartition('/')[2]}-{pinned['version']}.tgz"
    if not kept.is_file():
        if shutil.which("npm") is None:
            raise ValueError(f"the page needs {wanted}, which npm fetches once: install Node.js, or put it at {kept}")
        caches.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=caches) as place:
            command = ["npm", "pack", wanted, "--silent", "--pack-destination", place]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
            found = list(Path(place).glob("*.tgz"))
            if done.returncode or len(found) != 1:
                why = (done.stderr.strip().splitlines() or ["it left no file"])[-1]
                raise ValueError(f"npm could not fetch {wanted}: {why}")
            found[0].replace(kept)
    kind, _, digest = pinned["integrity"].partition("-")
    if base64.b64encode(hashlib.new(kind, kept.read_bytes()).digest()).decode() != digest:
        kept.unlink()
        raise ValueError(f"{wanted} is not the file that {PINNED.name} names: its {kind} differs; it was not used")
    return kept


def _unpack(archive: Path, files: dict[str, str], folder: Path) -> None:
    """Writes single files of an npm package: path in the package to path in `folder`."""
    with tarfile.open(archive) as package:
        for source, target in files.items():
            stream = package.extractfile(f"package/{source}")
            if stream is None:
                raise ValueError(f"{archive.name} has no {source}")
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.read())


def _exported(release: Path, place: Path) -> Path:
    """A GGUF file of a release that ships none, written by `codenas export` into `place`.

    Raises:
        ValueError: it cannot be written; in the exporter's words.
    """
    for form in FORMS:
        path = place / f"model-{form}.gguf"
        words = ["export", str(release), "--to", "gguf", "--format", form, "--out", str(path)]
        command = [sys.executable, "-m", "codenas_hf.cli.main", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return path
        if "cannot be stored" not in done.stderr:  # another form would not help
            break
    raise ValueError((done.stderr.strip().splitlines() or ["the model could not be written as GGUF"])[-1])
