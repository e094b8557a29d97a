"""`codenas train`, whole: it says how it goes, and leaves a folder that generates."""

import json
import re
from pathlib import Path

import pytest

from codenas_hf.data import PreparedData
from codenas_hf.evaluation.suite import load_model
from codenas_hf.genome import Genome
from codenas_hf.search import Budget
from codenas_hf.settings import RunSettings
from codenas_hf.strict_yaml import load
from codenas_hf.training_job import _curve_lines, train_genome


def settings(folder: Path, *more: str) -> RunSettings:
    words = [f"folder={folder}", "train.sequence_length=64", "train.tokens_per_step=256", "train.log_every=5"]
    return load(RunSettings, overrides=[*words, "train.precision=float32", "final_score_bytes=8000", *more])


def test_a_genome_is_trained_said_and_released(tmp_path: Path, tiny_data: PreparedData) -> None:
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    said: list[str] = []
    folder = train_genome(
        genome,
        Budget("steps", 40),
        folder=tmp_path / "out",
        settings=settings(tmp_path, "log_with=[tensorboard]"),
        data=tiny_data,
        say=said.append,
    )
    record = json.loads((folder / "record.json").read_text())
    losses = [point["loss"] for point in record["training"]["curve"]]
    assert losses[-1] < losses[0] - 0.5
    assert any("40 steps" in line and "bytes each" in line and "tokens a second" in line for line in said)
    assert any("bits per byte" in line for line in said)
    loaded = load_model(folder)
    inputs = loaded.tokenizer("def f(", return_tensors="pt")
    assert loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert list((tmp_path / "trackers").glob("events*"))


def test_the_curve_is_said_in_bits_per_byte_and_not_too_often() -> None:
    said: list[str] = []
    on_point = _curve_lines(2.0, say=said.append)
    for second in range(1, 301):
        on_point({"step": second, "tokens": 100 * second, "seconds": float(second), "loss": 1.3862944}, second / 300)
    assert 5 < len(said) < 40
    shares = [int(re.match(r" *(\d+)%", line).group(1)) for line in said]  # type: ignore[union-attr]
    assert shares == sorted(shares)
    assert "1.0000 bits per byte" in said[0]
    assert "100 tokens a second" in said[0]


@pytest.mark.parametrize(("name", "message"), [("nosuch", "is no tracker of accelerate"), ("aim", "is not installed")])
def test_a_tracker_that_is_not_there(name: str, message: str, tmp_path: Path, tiny_data: PreparedData) -> None:
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    with pytest.raises(ValueError, match=message):
        train_genome(
            genome,
            Budget("steps", 1),
            folder=tmp_path / "out",
            settings=settings(tmp_path, f"log_with=[{name}]"),
            data=tiny_data,
            say=lambda text: None,
        )
