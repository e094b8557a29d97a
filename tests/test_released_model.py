"""The model that comes with the package: small, whole, and asked where nothing was searched yet."""

import inspect
import json
import math
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codenas_hf.cli.main import main
from codenas_hf.folders import Release, bundled_folder
from codenas_hf.folders.places import RELEASED


@pytest.fixture(scope="module")
def release() -> Release:
    return Release(bundled_folder(RELEASED))


def test_it_is_small_and_says_what_it_is(release: Release) -> None:
    files = [path for path in release.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7_000_000
    record, card = release.read_record(), (release.folder / "README.md").read_text()
    assert record.measured is not None
    assert record.measured.bits_per_byte is not None
    assert f"{record.measured.bits_per_byte:.4f}" in card
    assert release.shipped is not None
    assert record.release.files[0].name == release.shipped.name
    assert record.release.files[0].bytes == release.shipped.stat().st_size
    for path in files:
        if path.suffix in (".json", ".yaml", ".md"):
            assert str(Path.home()) + "/" not in path.read_text(), path.name


def test_transformers_loads_it_and_it_has_learned_python(release: Release) -> None:
    model = AutoModelForCausalLM.from_pretrained(release.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(release.folder)
    text = inspect.getsource(textwrap.wrap) + inspect.getsource(json.JSONDecoder.decode)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
    assert float(loss) / math.log(2) / len(text.encode()) < 2.5  # 8 untrained


def test_a_prompt_is_all_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODENAS_CACHE", str(tmp_path / "cache"))
    assert main(["complete", "def add(a, b):", "--max-new-tokens", "16"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("def add(a, b):\n")
    assert error.startswith("model     model_cards/codenas-py-4mb\n")
