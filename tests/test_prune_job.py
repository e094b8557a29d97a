"""`codenas prune`, whole: from a release to a smaller release that remembers what it was cut from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import codenas_hf
from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.stock import find_row
from codenas_hf.cli.main import main
from codenas_hf.compression.prune import measure_importance, pruned
from codenas_hf.data import PreparedData
from codenas_hf.engine import Budget
from codenas_hf.folders import Record, Release
from codenas_hf.folders.record import Squeezed
from codenas_hf.generation.loading import load_model
from codenas_hf.jobs import prune as job
from codenas_hf.jobs.prune import cut, prune, shapes_within
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.train import train_genome
from codenas_hf.release.cards import model_card
from codenas_hf.report.architecture import architecture_table, tensors_of_folder
from codenas_hf.strict_yaml import load

GENOME = Genome(
    vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=128,
)  # fmt: skip


def words(folder: Path) -> list[str]:
    source = Path(codenas_hf.__file__).parent
    return [
        f"folder={folder}",
        f"corpus.sources=[{source}]",
        "corpus.benchmarks=[]",
        "corpus.held_out_fraction=0.2",
        "train.sequence_length=64",
        "train.tokens_per_step=256",
        "train.precision=float32",
        "final_score_bytes=8000",
        "device=cpu",
    ]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, tiny_data: PreparedData) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    settings = load(RunSettings, overrides=words(folder))
    say: Any = lambda text: None  # noqa: E731
    return train_genome(
        GENOME, Budget("steps", 60), folder=folder / "first", settings=settings, data=tiny_data, say=say
    )


def test_a_release_is_cut_in_steps_and_is_a_release_again(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (parent / "model.safetensors").read_bytes()
    command = ["prune", str(parent), "--to", "50%", "--budget", "48 steps", "--out", str(tmp_path / "half")]
    plain = job.run_training

    def killed(*arguments: Any, **named: Any) -> Any:
        if named["state"].name == "state-3":
            raise KeyboardInterrupt
        return plain(*arguments, **named)

    monkeypatch.setattr(job, "run_training", killed)
    assert main([*command, *words(tmp_path)]) == 130
    monkeypatch.undo()
    first = capsys.readouterr().out
    assert main([*command, *words(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "cut       2 of 4" in first
    assert "cut       2 of 4" not in said, "what was done before the interruption is not done again"
    assert "cut       4 of 4" in said
    record = Record.read(tmp_path / "half")
    assert record.start is not None
    assert (record.start.folder, record.start.kept) == ("first", 0.5)
    assert record.training.steps == 48
    assert [point["step"] for point in record.training.curve] == sorted(p["step"] for p in record.training.curve)
    genome = Genome.from_dict(record.genome or {})
    model = load_model(tmp_path / "half").model
    assert model.num_parameters() == genome.num_parameters() <= GENOME.num_parameters() / 2
    assert genome.num_parameters() > 0.35 * GENOME.num_parameters()
    assert model.config.hidden_size == genome.hidden_size
    bits = record.measured.bits_per_byte
    assert bits is not None
    assert record.start.bits_per_byte is not None
    assert bits < record.start.bits_per_byte + 1.0, "what was learned is not lost"
    assert (parent / "model.safetensors").read_bytes() == before
    half = Release(tmp_path / "half")
    layers = architecture_table(tensors_of_folder(half.folder), half.read_config())
    card = model_card(half, repo_id="someone/half", layers=layers).text
    assert "from the release `first`" in card
    assert "cut to" in card
    assert "It began with the release `first`" in card
    assert "codenas prune start --to 0.5" in card


def test_shapes_are_the_largest_within_a_number_of_parameters() -> None:
    found = shapes_within(GENOME, GENOME.num_parameters() / 2)
    assert found
    for shape in found:
        assert shape.num_parameters() <= GENOME.num_parameters() / 2
        assert shape.hidden_size % 32 == 0
        assert int(shape.intermediate_size) % 32 == 0  # type: ignore[arg-type]
    sizes = [(s.hidden_size, s.intermediate_size, s.num_key_value_heads) for s in found]
    assert len(set(sizes)) == len(sizes)
    assert not shapes_within(GENOME, 1000)
    assert shapes_within(GENOME, GENOME.num_parameters()) == [GENOME]


def test_no_shape_is_one_that_its_architecture_refuses() -> None:
    whole = replace(GENOME, hidden_size=160, num_attention_heads=5, num_key_value_heads=5, head_dim=32)
    found = shapes_within(whole, whole.num_parameters() / 2)
    assert len({shape.hidden_size for shape in found}) > 1
    for shape in found:
        row, _ = find_row(shape.to_config())
        assert row is not None
        AutoConfig.for_model(row.model_type, **row.settings(shape.to_config())).validate()


def test_the_shape_that_loses_least_is_taken(parent: Path, tiny_data: PreparedData) -> None:
    model = load_model(parent).model
    tokens = tiny_data.tokens(512, "train")
    rows = [torch.from_numpy(tokens.batch(at, sequences=4, length=64, seed=0)["input_ids"]) for at in range(2)]
    most = 0.7 * GENOME.num_parameters()
    smaller, genome = cut(model, GENOME, most, batches=rows)
    importance = measure_importance(model, rows)

    def loss(shape: Genome) -> float:
        sizes = {"neurons": shape.intermediate_size, "groups": shape.num_key_value_heads, "width": shape.hidden_size}
        other = pruned(model, importance, **sizes).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            return sum(float(other(input_ids=ids, labels=ids).loss) for ids in rows)

    losses = {shape.genome_id: loss(shape) for shape in shapes_within(GENOME, most)}
    assert len(losses) > 1
    assert genome.genome_id == min(losses, key=losses.__getitem__)
    assert smaller.num_parameters() == genome.num_parameters() <= most


def test_what_cannot_be_cut_is_refused_before_anything_is_prepared(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share, message in (("0", "must lie above 0 and below 1, got 0"), ("0.01", "cannot be cut to 0.01 of its")):
        assert main(["prune", str(parent), "--to", share, "--out", str(tmp_path / "out"), *words(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="is no release: name a folder"):
        prune(tmp_path, 0.5)
    squeezed = tmp_path / "squeezed"
    squeezed.mkdir()
    Record(squeezed=Squeezed(parent="big", digest="d", genome={}, genome_id="g")).write(squeezed)
    with pytest.raises(ValueError, match="is cut from big already"):  # and would lose the parent and its licence
        prune(squeezed, 0.5)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "data").exists()
