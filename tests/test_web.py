"""What the page without a server is made of: a checked engine, the model with its facts, a card for a static Space."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import web_page as pages
import yaml
from bundle import bundle
from web_page import engine_archive, web_page

from benchmarks import web_readers
from benchmarks.playground_load import random_model
from codenas_hf.folders import Release
from codenas_hf.folders.record import Measured, Record, ReleaseFacts

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that ships a GGUF file (the page copies it as it is), with a record."""
    folder = random_model(tmp_path_factory.mktemp("web") / "tiny")
    (folder / "model-q4_0.gguf").write_bytes(b"GGUF and more")
    measured = Measured(bits_per_byte=1.5, bits_per_byte_low=1.4, bits_per_byte_high=1.6)
    Record(measured=measured, release=ReleaseFacts(num_parameters=12345)).write(folder)
    return folder


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The pinned engine's files, empty, as an npm package in the user's cache; how it is pinned."""
    pinned = json.loads(pages.PINNED.read_text())
    kept = tmp_path / "cache" / "npm" / f"wllama-{pinned['version']}.tgz"
    kept.parent.mkdir(parents=True)
    with tarfile.open(kept, "w:gz") as package:
        for name in pinned["files"]:
            content = name.encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    pinned["integrity"] = "sha512-" + base64.b64encode(hashlib.sha512(kept.read_bytes()).digest()).decode()
    (tmp_path / "engine.json").write_text(json.dumps(pinned))
    monkeypatch.setattr(pages, "PINNED", tmp_path / "engine.json")
    monkeypatch.setenv("CODENAS_CACHE", str(tmp_path / "cache"))
    return pinned


def test_a_page_is_whole(release: Path, engine: dict[str, object], tmp_path: Path) -> None:
    folder = web_page(tmp_path / "page", model=str(release), hub_id="me/tiny")
    facts = json.loads((folder / "model.json").read_text())
    for part in (facts, *facts["engine"].values()):
        content = (folder / part["file"]).read_bytes()
        assert len(content) == part["bytes"]
        assert [hashlib.sha256(content).hexdigest()] == part["sha256"]
    assert facts["special"] == list(range(8))
    assert facts["context"] == 1024
    assert facts["fills_gaps"] is Release(release).read_record().fills_gaps
    told = dict(facts["facts"])
    assert told["Parameters"] == "12,345"
    assert told["Bits per byte"] == "1.500 (95 %: 1.400 to 1.600) on code it has not seen"
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_file"], front["models"]) == ("static", "index.html", ["me/tiny"])
    assert front["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    assert len(front["short_description"]) <= 60
    assert "LICENCE" in (folder / "engine" / "LICENCE.txt").read_text()
    assert not list(folder.rglob("engine.json"))
    for path in folder.glob("*.*"):  # nothing is asked of another host
        if path.suffix in (".html", ".js", ".css"):
            assert not re.search(r"""(?:https?:|["'`(])//""", path.read_text(encoding="utf-8")), path.name
    with pytest.raises(ValueError, match="is not empty"):
        web_page(folder, model=str(release))


def test_another_file_than_the_pinned_one_is_not_used(engine: dict[str, object], tmp_path: Path) -> None:
    kept = engine_archive(engine)
    kept.write_bytes(kept.read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"@wllama/wllama@.* is not the file that engine.json names"):
        engine_archive(engine)
    assert not kept.exists()


def test_without_npm_it_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODENAS_CACHE", str(tmp_path))
    monkeypatch.setattr(pages.shutil, "which", lambda name: None)
    with pytest.raises(
        ValueError, match=r"the page needs @wllama/wllama@.*, which npm fetches once: install Node\.js"
    ):
        engine_archive(json.loads(pages.PINNED.read_text()))


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("code EINTEGRITY", ValueError, "other files than transformers_js/package-lock.json names"),
        ("code ENOTFOUND", OSError, "npm could not fetch transformers.js: npm error code ENOTFOUND"),
        (None, OSError, "npm is needed to fetch transformers.js; install Node.js"),
    ],
)
def test_the_other_reader_is_fetched_whole_or_not_at_all(
    said: str | None, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said:
        (tmp_path / "npm").write_text(f"#!/bin/sh\necho npm error {said} >&2\nexit 1\n")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error, match=message):
        web_readers.packages(tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*/node_modules"))


def test_a_model_that_llama_cpp_cannot_read_is_refused(engine: dict[str, object], tmp_path: Path) -> None:
    folder = random_model(tmp_path / "odd")
    words = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(words | {"pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(ValueError, match=r"for which llama\.cpp has no name"):
        web_page(tmp_path / "page", model=str(folder))
    assert not (tmp_path / "page").exists()


def test_the_command_wants_one_release(tmp_path: Path) -> None:
    for words, message in (
        (["--model", "a", "--model", "b"], "a page has one model"),
        (["--model", str(tmp_path)], "is no release"),
    ):
        command = [sys.executable, str(ROOT / "spaces_app" / "bundle.py"), str(tmp_path / "page"), "--web", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr.strip().splitlines()[-1]


def test_the_space_with_a_server_carries_nothing_of_the_page(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "space")
    assert not (folder / "web_page.py").exists()
    assert not (folder / "web").exists()
