"""What a study ships: every candidate is stored, weighed and scored in the format, and a release holds its file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from architectures import make_genome, make_model
from safetensors.torch import load_file
from test_candidate import GENOME, RUNGS, evaluator
from test_export import STOCK, make_tokenizer
from test_search_job import latency_model, tiny_settings
from tokenizers import pre_tokenizers
from training_fakes import FakeTokens, tiny_model
from transformers import AutoModelForCausalLM

from codenas_hf import CodeNASForCausalLM
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.compression.formats import FORMATS
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.quantize import quantize, store_in
from codenas_hf.data import PreparedData
from codenas_hf.engine.records import Budget
from codenas_hf.folders import Release, folder_bytes
from codenas_hf.generation.llama_cpp import is_installed
from codenas_hf.generation.loading import load_model
from codenas_hf.jobs.models import export
from codenas_hf.jobs.release import score_model
from codenas_hf.jobs.releases import compare, describe
from codenas_hf.jobs.search import search
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.spaces import load_space, pick_space
from codenas_hf.jobs.study import check_format, corners, open_study, screened, ship_identity
from codenas_hf.jobs.train import train_genome
from codenas_hf.measure.candidate import CandidateEvaluator
from codenas_hf.measure.score import score_passages
from codenas_hf.measure.shipped import ShipSettings, as_shipped, check_shippable, check_widths, shipped_bytes
from codenas_hf.release.cards import model_card
from codenas_hf.release.export import export_stock
from codenas_hf.strict_yaml import SettingsError, load
from codenas_hf.training import OptimSettings, TrainSettings, train

__all__ = ["evaluator"]  # a fixture
Q8 = ShipSettings(format="q8_0")
UNKNOWN = {
    "gated gelu": "llama.cpp's llama has the activation silu, got gelu",
    "smollm3": "llama.cpp has no architecture for a smollm3",
    "qwen3 with windows": "llama.cpp's qwen3 has no sliding window",
}
OTHERS = (
    "arcee gelu",
    "gpt2 relu2 untied",
    "smollm3 with windows",
    "smollm3 with odd heads",
    "starcoder2 with windows",
)
SIZES = [name for name in STOCK if name not in (*UNKNOWN, *OTHERS)]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("words"), pre_tokenizers.ByteLevel(add_prefix_space=False))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("form", ["q8_0", "iq4_nl"])
def test_bytes_are_known_before_anything_is_built(name: str, form: str, words: Path, tmp_path: Path) -> None:
    genome = make_genome(**STOCK[name][1])
    path = write_gguf(export_stock(make_model(genome)), tmp_path / "model.gguf", tokenizer=words, form=form)
    assert shipped_bytes(genome, ShipSettings(format=form), tokenizer=words) == path.stat().st_size


def test_what_cannot_ship_is_named_before_anything_is_computed(words: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`format` must be one of bf16, q8_0, q4_0, iq4_nl, got 'int8'"):
        ShipSettings(format="int8")
    narrow = make_genome(hidden_size=80, head_dim=16)
    match = r"`model.embed_tokens.weight` \[300, 80\] cannot be stored as q8_0: q8_0 stores rows in blocks of 32"
    with pytest.raises(ValueError, match=match):
        check_shippable(narrow, Q8, tokenizer=words)
    check_widths(narrow, ShipSettings())
    for name, reason in UNKNOWN.items():
        with pytest.raises(ValueError, match=reason):
            check_shippable(make_genome(**STOCK[name][1]), Q8, tokenizer=words)
    for genome in (make_genome(residual_scalars=True), make_genome(intermediate_size=(64, 96, 64, 96))):
        with pytest.raises(ValueError, match="only a stock architecture ships as q8_0: "):
            check_shippable(genome, Q8, tokenizer=words)
    other = make_tokenizer(tmp_path / "other", pre_tokenizers.Whitespace())
    with pytest.raises(ValueError, match=r"splits text by .*, for which llama.cpp has no name"):
        check_shippable(make_genome(), Q8, tokenizer=other)


def test_a_candidate_is_scored_and_weighed_as_it_ships(
    evaluator: CandidateEvaluator, tiny_data: PreparedData, tmp_path: Path
) -> None:
    plain = evaluator(GENOME, RUNGS[0], None)
    coded = replace(evaluator, ship=ShipSettings(format="q4_0"), folder=tmp_path / "coded")
    first = coded(GENOME, RUNGS[0], None)
    second = coded(GENOME, RUNGS[1], first)
    assert second.measurements["steps_run"] == 50 - 16, "it goes on from the full precision before the decay"
    assert first.provenance["format"] == "q4_0"
    assert "format" not in plain.provenance
    assert first.objectives["bits_per_byte"] > plain.objectives["bits_per_byte"], "few bits cost quality"

    assert second.checkpoint is not None
    model = CodeNASForCausalLM.from_pretrained(second.checkpoint / "artifact")
    assert model.dtype is torch.float32, "the codes of the winner are made of the full precision"
    tokenizer = tiny_data.tokenizer(512)
    path = write_gguf(export_stock(model), tmp_path / "model.gguf", tokenizer=tokenizer, form="q4_0")
    assert second.objectives["artifact_bytes"] == path.stat().st_size
    store_in(model, FORMATS["q4_0"])
    again = score_passages(model, tiny_data.passages(512, "search", length=32, max_bytes=4000))
    assert again.bits_per_byte == pytest.approx(second.objectives["bits_per_byte"], rel=1e-6)

    with pytest.raises(ValueError, match=r"`model.embed_tokens.weight` \[512, 48\] cannot be stored as q4_0"):
        coded(replace(GENOME, hidden_size=48, head_dim=16), RUNGS[0], None)


def test_the_end_of_the_decay_computes_with_the_bytes_of_the_file() -> None:
    """With what a reader decodes, bit for bit; gradients reach the full weights, which are never rounded."""
    steps: list[int] = []
    model = tiny_model(width=32, layers=1)

    @contextmanager
    def stored(given: torch.nn.Module) -> Iterator[None]:
        full = {name: weight.detach().clone() for name, weight in given.named_parameters()}
        with as_shipped(given, ShipSettings(format="iq4_nl")):
            for name, weight in given.named_parameters():
                block = FORMATS["iq4_nl"].block_of(name, tuple(weight.shape))
                if block.points is None:
                    assert torch.equal(weight, full[name])
                    continue
                kind = getattr(gguf.GGMLQuantizationType, block.name.upper())
                decoded = gguf.quants.dequantize(quantize(full[name], block).packed(), kind)
                assert np.array_equal(weight.detach().numpy(), decoded)
            yield
        assert all(torch.equal(weight, full[name]) for name, weight in given.named_parameters())
        assert all(weight.grad is not None and bool(weight.grad.any()) for weight in given.parameters())
        steps.append(len(steps))

    settings = TrainSettings(
        sequence_length=32, tokens_per_step=64, precision="float32", quantize=0.5, optim=OptimSettings(decay_share=0.5)
    )
    train(model, FakeTokens(), Budget("steps", 20), settings=settings, stored=stored)
    assert len(steps) == 5, "half of a decay of 10 steps"
    train(model, FakeTokens(), Budget("steps", 20), settings=replace(settings, quantize=0.0), stored=stored)
    assert len(steps) == 5


def test_a_quantised_decay_is_of_a_study_with_a_format(evaluator: CandidateEvaluator, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`train.quantize` trains for a format of codes, got `ship.format` bf16"):
        load(RunSettings, overrides=["train.quantize=1"])
    with pytest.raises(SettingsError, match="`quantize` must be"):
        load(RunSettings, overrides=["train.quantize=2", "ship.format=q4_0"])
    plain = replace(evaluator, ship=ShipSettings(format="q4_0"))
    aware = replace(plain, train=replace(plain.train, quantize=1.0), folder=tmp_path / "aware")
    first, second = (run(GENOME, RUNGS[1], None) for run in (plain, aware))
    assert first.objectives["bits_per_byte"] != second.objectives["bits_per_byte"]
    assert first.checkpoint is not None
    assert second.checkpoint is not None
    states = [load_file(e.checkpoint / "training" / "constant" / "weights.safetensors") for e in (first, second)]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items()), "the same before the decay"


def test_a_space_is_screened_in_bytes_of_the_format(
    tmp_path: Path, tiny_corpus_folder: Path, tiny_data: PreparedData
) -> None:
    settings = tiny_settings(tmp_path, tiny_corpus_folder, "ship.format=q8_0", "limits.bytes=120kB")
    genes = load_space(settings.space).genes
    said: list[str] = []
    with pytest.raises(
        SettingsError, match=r"has widths that q8_0 cannot store: `model.embed_tokens.weight` \[512, 48\]"
    ):
        check_format(SearchSpace(genes), settings, say=said.append)
    block = [{"hidden_act": act, "mlp_type": "gated"} for act in ("silu", "gelu")]
    space = SearchSpace({**genes, "hidden_size": [32, 64], "block": block})
    check_format(space, settings, say=said.append)
    assert len(said) == 1
    assert "drawn architectures are left out, such as: llama.cpp's llama has the activation silu, got gelu" in said[0]
    latency = latency_model(space)
    within = screened(space, settings, data=tiny_data, latency=latency)
    rng = np.random.default_rng(1)
    genomes = [within.sample(rng) for _ in range(20)]
    assert {genome.hidden_act for genome in genomes} == {"silu"}
    for genome in genomes:
        known = within.known_objectives(genome)["artifact_bytes"]
        assert known == shipped_bytes(genome, Q8, tokenizer=tiny_data.tokenizer(512)) <= 120_000
    assert any(genome.weights_bytes() > 120_000 for genome in genomes), "more parameters fit"
    low, high = corners(within, settings, data=tiny_data, latency=latency)["artifact_bytes"]
    assert low < high <= 120_000


def test_the_format_is_part_of_what_a_study_is() -> None:
    assert ship_identity(RunSettings()) == {}, "studies that knew no format go on"
    coded = load(RunSettings, overrides=["ship.format=iq4_nl", "limits.min_bytes=10kB"])
    assert ship_identity(coded) == {"ship": {"format": "iq4_nl", "min_bytes": 10_000}}
    assert pick_space(4_000_000, device="cpu", share=8.5 / 16) == "tiny"
    assert pick_space(8_000_000, device="cpu", share=4.5 / 16) == "medium"


def test_a_release_holds_the_file_that_was_measured(tmp_path: Path, tiny_data: PreparedData) -> None:
    settings = load(
        RunSettings,
        overrides=[
            "ship.format=iq4_nl",
            "device=cpu",
            "train.precision=float32",
            "train.sequence_length=32",
            "train.tokens_per_step=256",
            "final_score_bytes=4000",
            f"folder={tmp_path}",
        ],
    )
    folder = train_genome(
        GENOME,
        Budget("steps", 12),
        folder=tmp_path / "release",
        settings=settings,
        data=tiny_data,
        say=lambda line: None,
    )
    release = Release(folder)
    record, shipped = release.read_record(), release.shipped
    assert shipped is not None
    assert shipped.name == "model-iq4_nl.gguf"
    assert record.release.format == "iq4_nl"
    size = shipped_bytes(GENOME, settings.ship, tokenizer=tiny_data.tokenizer(512))
    assert record.release.artifact_bytes == release.artifact_bytes == shipped.stat().st_size == size
    assert load_model(folder).num_bytes == folder_bytes(folder) > size, (
        "of what is loaded: the folder without the file"
    )
    model = AutoModelForCausalLM.from_pretrained(shipped.parent, gguf_file=shipped.name, dtype=torch.float32)
    score = score_model(model, settings=settings, data=tiny_data, vocab_size=512)
    assert score.bits_per_byte == pytest.approx(record.measured.bits_per_byte, rel=1e-6)

    coded, plain = record.release.files
    assert (coded.name, coded.format, coded.runtime, coded.bytes) == (shipped.name, "iq4_nl", "llama.cpp", size)
    assert (plain.name, plain.format, plain.runtime) == ("model.safetensors", "bf16", "torch")
    assert plain.bytes == folder_bytes(folder)
    folder_score = score_model(load_model(folder).model, settings=settings, data=tiny_data, vocab_size=512)
    assert plain.bits_per_byte == pytest.approx(folder_score.bits_per_byte, rel=1e-6)
    if is_installed():
        # llama.cpp rounds activations too, so that it is near and not equal.
        assert coded.bits_per_byte == pytest.approx(score.bits_per_byte, rel=0.02)
        assert coded.scored_bytes == plain.scored_bytes == record.measured.scored_bytes
        assert coded.decode_ms is not None
        assert coded.decode_ms > 0
        assert coded.protocol["threads"] == 1
    titles = [row["quantity"] for row in compare([folder]).rows]
    assert "iq4_nl in llama.cpp: artifact" in titles
    assert "bf16 in torch: bits per byte" in titles
    card = model_card(release, repo_id="me/x", layers=describe(folder)).text
    assert "| model-iq4_nl.gguf | iq4_nl | llama.cpp |" in card
    assert "to ship as a GGUF file in iq4_nl, tokenizer inside" in card

    copy = export(folder, tmp_path / "copy.gguf")
    assert copy.read_bytes() == shipped.read_bytes(), "the file of the study, not codes of the rounded weights"
    assert export(folder, tmp_path / "q8.gguf", form="q8_0").stat().st_size > size
    with pytest.raises(ValueError, match="cannot be stored as iq4_nl"):
        train_genome(
            replace(GENOME, hidden_size=48, head_dim=16),
            Budget("steps", 12),
            folder=tmp_path / "other",
            settings=settings,
            data=tiny_data,
            say=lambda line: None,
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_at_four_bits_ends_in_a_file(tmp_path: Path, tiny_corpus_folder: Path) -> None:
    settings = tiny_settings(tmp_path, tiny_corpus_folder, "ship.format=q4_0", "search.finish=null")
    with pytest.raises(SettingsError, match="cannot store"):
        search(settings, say=lambda line: None)
    assert not (settings.folder / settings.study).exists(), "nothing was prepared for what cannot be stored"
    space = Path(settings.space)
    space.write_text(space.read_text().replace("[32, 48, 64]", "[32, 64]"))
    outcome = search(settings, say=lambda line: None)
    assert outcome.winner is not None
    record, trial = Release(outcome.winner).read_record(), outcome.result.winner
    assert trial is not None
    assert trial.evaluation is not None
    assert record.release.artifact_bytes == trial.evaluation.objectives["artifact_bytes"]
    _, stored = open_study(outcome.folder)
    assert stored.ship.format == "q4_0"
    with pytest.raises(ValueError, match="ship"):
        search(replace(settings, ship=ShipSettings(format="q8_0")), say=lambda line: None)
