"""`codenas squeeze`, whole: a small parent is searched, healed, released; what cannot be squeezed is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_parents import TEXTS, edit, small_parent
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from codenas_hf.cli.main import main
from codenas_hf.compression.formats import BLOCKS
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.quantize import as_stored
from codenas_hf.compression.squeezing import SqueezeGenome
from codenas_hf.compression.vocabulary import VocabularyError
from codenas_hf.folders import Release, StudyFolder
from codenas_hf.generation.llama_cpp import is_installed
from codenas_hf.jobs import parents, squeeze_prepare, squeeze_release
from codenas_hf.jobs.parents import ParentError, find_parent
from codenas_hf.jobs.release import measure_model
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.squeeze import SqueezeOutcome, read_squeeze_genome, squeeze, uniform_squeezes
from codenas_hf.jobs.squeeze_latency import SqueezeLatency
from codenas_hf.jobs.squeeze_prepare import Prepared
from codenas_hf.jobs.status import study_row
from codenas_hf.jobs.study import open_study
from codenas_hf.release.squeezed import squeezed_text
from codenas_hf.strict_yaml import SettingsError

SPACE = """\
vocab_sizes: [400, 700, 5000]
neuron_shares: [0.4, 0.7, 1.0]
embedding: [q8_0, q4_0]
matrices: [q8_0, q4_1, iq4_nl]
sections: 2
"""
GENOME = """\
vocab_size: 400
neurons: 64
groups: 2
embedding: q8_0
attention: [q8_0, iq4_nl]
feed_forward: [q4_1, iq4_nl]
"""


def words(tmp_path: Path, corpus: Path, *others: str) -> list[str]:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE, encoding="utf-8")
    return [
        f"folder={tmp_path / 'runs'}",
        f"space={space}",
        f"corpus.sources=[{corpus}]",
        "corpus.benchmarks=[]",
        "corpus.near_threshold=null",
        "corpus.held_out_fraction=0.2",
        "device=cpu",
        "limits.bytes=200kB",
        "search.population=4",
        "search.generations=2",
        "search.workers_per_rank=2",
        "candidate.score_bytes=2000",
        "final_score_bytes=4000",
        "candidate.window_tokens=64",
        "squeeze.importance_tokens=512",
        "train.sequence_length=64",
        "train.tokens_per_step=128",
        "train.micro_sequences=2",
        "squeeze.heal_budget=512 tokens",
        *others,
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squeeze")
    small_parent(folder / "parent")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real code, in eight projects: enough to count a vocabulary on."""
    folder = tmp_path_factory.mktemp("corpus")
    for at, text in enumerate(TEXTS):
        pieces = text.split("\n\n\n")
        for number, piece in enumerate(pieces):
            path = folder / f"project_{at}" / f"module_{number}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(piece + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test hangs on a timing: a slice takes as long as it is large."""
    fit = SqueezeLatency.fit.__func__  # type: ignore[attr-defined]
    timed = classmethod(
        lambda cls, parent, choices, **others: fit(
            cls, parent, choices, **others, time_slice=lambda g: 1.0 + g.vocab_size / 1000 - len(g.without_layers) / 10
        )
    )
    monkeypatch.setattr(squeeze_prepare.SqueezeLatency, "fit", timed)


def test_a_squeeze_from_parent_to_release(place: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["squeeze", str(place / "parent"), *words(place, corpus)]
    assert main(typed) == 0
    said = capsys.readouterr().out
    assert "licence apache-2.0" in said
    folder = place / "runs" / "squeeze"
    release = Release(folder / "winner")
    record = release.read_record()
    assert record.squeezed is not None
    assert (record.squeezed.parent, record.squeezed.licence) == ("parent", "apache-2.0")
    assert record.squeezed.healing == "all weights, 512 tokens"
    assert str(squeezed_text(record)).endswith(
        "Then it was healed by a short training: all weights, 512 tokens. On the same report text the parent "
        f"has {record.squeezed.parent_bits_per_byte:.4f} bits per byte."
    )
    assert release.artifact_bytes <= 200_000
    result, _ = open_study(folder)
    assert result.winner is not None
    assert result.finished
    assert result.winner.evaluation is not None
    assert result.winner.evaluation.objectives["artifact_bytes"] == release.artifact_bytes
    assert isinstance(result.winner.genome, SqueezeGenome)
    assert len({record.genome.genome_id for record in result.records}) == 8
    assert (StudyFolder(folder).report / "index.html").is_file()
    # What ships answers like what lies beside it for transformers.
    model = AutoModelForCausalLM.from_pretrained(release.folder, dtype=torch.float32)
    assert model.config.model_type == "llama"
    tokenizer = AutoTokenizer.from_pretrained(release.folder)
    for text in (TEXTS[0], "é日\x00\u2028"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    if is_installed():
        (file,) = record.release.files
        assert file.bits_per_byte == pytest.approx(record.measured.bits_per_byte, rel=0.02)
    # The same command shows what is finished, and the usual verbs work on it.
    assert main(typed) == 0
    assert main(["complete", str(release.folder), "def f(", "--max-new-tokens", "4"]) == 0
    assert main(["status", str(place / "runs")]) == 0
    assert study_row(folder)["bits_per_byte"] == record.measured.bits_per_byte
    assert main(["winner", str(folder), "limits.bytes=190kB"]) in (0, 1)
    assert main(["winner", str(folder), "limits.bytes=200kB", "--release", str(place / "other")]) == 2
    assert "codenas squeeze --genome FILE" in capsys.readouterr().err
    for verb in ("train", "prune"):
        more = ["--to", "50%"] if verb == "prune" else []
        assert main([verb, str(folder), *more]) == 2
        assert "squeeze" in capsys.readouterr().err
    assert main(["show", str(release.folder)]) == 0


def test_a_squeezed_model_is_fine_tuned(
    place: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`codenas train FOLDER --fine-tune` goes on from the squeezed weights, with their tokenizer, in their formats."""
    folder = released(place / "parent", corpus, tmp_path)
    before = Release(folder).read_record()
    out = tmp_path / "mine"
    text = [word for word in words(tmp_path, corpus) if word.startswith(("corpus", "train", "candidate", "device"))]
    typed = ["train", str(folder), *text, "--fine-tune", "--budget", "2048 tokens", "--out", str(out)]
    measured: list[dict[str, torch.Tensor]] = []

    def measure(model: torch.nn.Module, **others: Any) -> Any:
        measured.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return measure_model(model, **others)

    monkeypatch.setattr("codenas_hf.jobs.train.measure_model", measure)
    assert main(typed) == 0
    record = Release(out).read_record()
    assert record.start is not None
    assert record.start.folder == folder.name
    assert record.training is not None
    assert record.training.tokens == 2048
    assert record.measured.bits_per_byte < record.start.bits_per_byte
    assert record.squeezed == before.squeezed
    assert "On the same report text" not in str(squeezed_text(record)), "it is another text now"
    assert Release(out).artifact_bytes == pytest.approx(Release(folder).artifact_bytes, rel=0.01)
    (weights,) = measured  # rounded by what matrices take in before anything is measured, so that nothing rounds again
    for name, block in (("3.self_attn.o_proj", "iq4_nl"), ("0.mlp.down_proj", "q4_1")):
        weight = weights[f"model.layers.{name}.weight"]
        assert torch.allclose(as_stored(weight, BLOCKS[block]), weight, rtol=1e-3, atol=1e-6), name
    assert main(["complete", str(out), "def f(", "--max-new-tokens", "4"]) == 0


LOAD_ALONE = """
import sys
sys.modules |= dict.fromkeys(("codenas_hf", "gguf", "kernels"))  # importing them fails
from transformers import AutoModelForCausalLM, AutoTokenizer
model, words = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
print(model.generate(**words("def f(", return_tensors="pt"), max_new_tokens=4, do_sample=False).shape[1])
"""


def test_a_parent_in_a_gguf_file_leaves_an_ordinary_model(place: Path, corpus: Path, tmp_path: Path) -> None:
    """It loads where neither this package nor the one that reads GGUF files is."""
    model = AutoModelForCausalLM.from_pretrained(place / "parent", dtype=torch.float32)
    file = write_gguf(model, tmp_path / "parent.gguf", tokenizer=place / "parent", form="q8_0")
    folder = released(file, corpus, tmp_path)
    assert "quantization_config" not in Release(folder).read_config()
    said = subprocess.run([sys.executable, "-c", LOAD_ALONE, folder], capture_output=True, text=True, check=True)
    assert int(said.stdout) > 4
    assert "gguf" not in said.stderr.lower()


def applied(parent: Path, corpus: Path, folder: Path, *others: str) -> SqueezeOutcome:
    """A genome applied to a parent, which nothing heals."""
    file = folder / "genome.yaml"
    file.write_text(GENOME, encoding="utf-8")
    wanted = words(folder, corpus, "study=one", f"squeeze.parent={parent}", "squeeze.heal_budget=null", *others)
    return squeeze(RunSettings.of(*wanted, config=["squeeze"]), genome=file, say=lambda line: None)


def released(parent: Path, corpus: Path, folder: Path) -> Path:
    """The release of it."""
    outcome = applied(parent, corpus, folder)
    assert outcome.winner is not None
    return outcome.winner


def test_a_genome_is_applied_without_a_search(place: Path, corpus: Path, tmp_path: Path) -> None:
    outcome = applied(place / "parent", corpus, tmp_path)
    assert outcome.result is None
    assert outcome.winner is not None
    record = Release(outcome.winner).read_record()
    assert record.squeezed is not None
    assert record.squeezed.healing is None
    assert "Nothing was trained" in str(squeezed_text(record))
    file = tmp_path / "genome.yaml"
    assert record.squeezed.genome_id == read_squeeze_genome(file).genome_id
    assert applied(place / "parent", corpus, tmp_path).winner == outcome.winner, "finished"
    with pytest.raises(SettingsError, match=r"holds another squeeze .* study=NAME"):
        applied(place / "parent", corpus, tmp_path, "squeeze.heal.moves=norms")
    assert Release(outcome.winner).read_record() == record
    StudyFolder(tmp_path / "runs" / "one").journal.touch()
    with pytest.raises(SettingsError, match=r"runs/one holds a search, .* study=NAME, or --fresh"):
        applied(place / "parent", corpus, tmp_path)
    over = RunSettings.of(*words(place, corpus, "study=two", f"squeeze.parent={place / 'parent'}",
                                 "limits.bytes=100kB"), config=["squeeze"])  # fmt: skip
    with pytest.raises(SettingsError, match=r"artifact_bytes .* is over"):
        squeeze(over, genome=file, say=lambda line: None)
    file.write_text("vocab_size: 400\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"is no squeeze genome: .* lacks"):
        squeeze(over, genome=file, say=lambda line: None)


def test_processes_that_cannot_share_a_step_are_told_before_the_search(
    place: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("codenas_hf.jobs.squeeze.prepare_squeeze", lambda *args, **others: pytest.fail("prepared"))
    wanted = RunSettings.of(*words(place, corpus, f"squeeze.parent={place / 'parent'}"), config=["squeeze"])
    with pytest.raises(ValueError, match="2 sequences, which 3 processes cannot share"):
        squeeze(wanted, say=lambda line: None)


def prepared(place: Path, corpus: Path, *others: str) -> Prepared:
    """What a squeeze of the parent stands on."""
    settings = RunSettings.of(*words(place, corpus, f"squeeze.parent={place / 'parent'}", *others),
                              config=["squeeze"])  # fmt: skip
    return squeeze_prepare.prepare_squeeze(
        settings,
        choices=squeeze_prepare.load_choices(settings.space),
        source=find_parent(str(place / "parent")),
        folder=settings.folder / settings.study,
        hardware=squeeze_prepare.Hardware.discover("cpu"),
        say=lambda line: None,
    )


def test_other_amounts_of_text_are_another_parent(place: Path, corpus: Path) -> None:
    first, again = (prepared(place, corpus, "study=amounts") for _ in range(2))
    watched = prepared(place, corpus, "study=amounts", "squeeze.importance_tokens=1024")
    counted = prepared(place, corpus, "study=amounts", "squeeze.count_bytes=60000")
    assert again.parent.folder == first.parent.folder
    assert first.parent.importance.num_tokens < watched.parent.importance.num_tokens
    assert first.parent.kept(400).tolist() != counted.parent.kept(400).tolist()
    # A study is told apart by it, and so are the tokens that it is healed on.
    assert len({ready.space.digest for ready in (first, watched, counted)}) == 3


def test_a_latency_is_of_this_device_unless_the_study_began_with_it(place: Path, corpus: Path) -> None:
    first = prepared(place, corpus, "study=timed")
    (shared,) = first.parent.folder.parent.glob(f"latency-{first.parent.folder.name}-*.json")
    known = json.loads(shared.read_text(encoding="utf-8"))
    elsewhere: list[dict[str, Any]] = [
        {"fingerprint": known["fingerprint"] | {"name": "a telephone"}},
        {"runtime": "another"},
    ]
    for facts in elsewhere:
        edit(shared, costs_ms={"call": 9.0}, **facts)
        assert prepared(place, corpus, "study=timed").latency == first.latency, "timed again"
        assert json.loads(shared.read_text(encoding="utf-8")) == known
    edit(shared, costs_ms={"call": 9.0})
    assert prepared(place, corpus, "study=timed").latency.costs == {"call": 9.0}, "timed here before"
    own = StudyFolder(place / "runs" / "timed").latency
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(json.dumps(known | elsewhere[0]), encoding="utf-8")
    assert prepared(place, corpus, "study=timed").latency.fingerprint["name"] == "a telephone"
    shared.write_text(json.dumps(known), encoding="utf-8")


def test_a_vocabulary_too_large_to_train_on_is_refused_where_anything_heals(
    place: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squeeze_prepare, "LARGEST_VOCABULARY", 700)
    rungs = ("search.budgets=[0 steps,8 steps]", "search.keep=[1]")
    for heals in ((), ("squeeze.heal_budget=null", *rungs)):
        with pytest.raises(SettingsError, match=r"what is healed has at most 700 entries .* got 907; leave these out"):
            prepared(place, corpus, "study=large", *heals)
    assert 907 in prepared(place, corpus, "study=large", "squeeze.heal_budget=null").space.layouts


def test_uniform_squeezes_keep_the_limits(place: Path, corpus: Path) -> None:
    ready = prepared(place, corpus, "study=three")
    found = uniform_squeezes(ready.space)
    assert found
    assert all(ready.space.validate(genome) is None for genome in found)
    assert len({(genome.vocab_size, genome.attention, genome.embedding) for genome in found[:6]}) == 6
    assert found[0].neurons == max(genome.neurons for genome in found)


def refused(folder: Path, *, match: str, error: type[Exception] = ParentError) -> None:
    with pytest.raises(error, match=match):
        find_parent(str(folder))


def test_what_cannot_be_squeezed_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(place / "parent", tmp_path / name))

    monkeypatch.setattr(parents, "load_model", lambda *args: pytest.fail("nothing may be loaded"))
    edit(copy("remote") / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    refused(tmp_path / "remote", match="brings code of its own .*which is never run")
    edit(copy("other") / "config.json", model_type="mamba")
    refused(tmp_path / "other", match="is a mamba; parents are llama, qwen2")
    edit(copy("few bits") / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(tmp_path / "few bits", match="is stored as gptq: name the model in full precision, or a GGUF file of it")
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    edit(copy("scaled") / "config.json", rope_parameters=scaled)
    refused(tmp_path / "scaled", match="nothing that is cut from .* could ship: .* `rope_type` default, got linear")
    edit(copy("older") / "config.json", rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0})
    refused(tmp_path / "older", match="`rope_type` default, got dynamic")
    edit(copy("gelu") / "config.json", hidden_act="gelu")
    refused(tmp_path / "gelu", match="could ship: llama.cpp's llama has the activation silu, got gelu")
    weights = copy("pickled") / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    refused(tmp_path / "pickled", match=r"has no \*\.safetensors but pytorch_model\.bin")
    path = copy("unigram") / "tokenizer.json"
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, "model": {"type": "Unigram", "vocab": []}}), encoding="utf-8")
    refused(tmp_path / "unigram", match="the tokenizer is a Unigram", error=VocabularyError)
    (copy("nd") / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n", encoding="utf-8")
    refused(tmp_path / "nd", match=r"\(cc-by-nc-nd-4.0\) forbids what is made from it")
    card = copy("file")
    (card / "README.md").unlink()
    (card / "LICENSE").write_text("Creative Commons Attribution-NoDerivatives", encoding="utf-8")
    refused(card, match="forbids")
    (card / "LICENSE").write_text("Apache License\nVersion 2.0", encoding="utf-8")
    assert find_parent(str(card)).licence == "apache-2.0"
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", match=r"holds no config\.json and no GGUF file")
    (copy("slow") / "tokenizer.json").unlink()
    refused(tmp_path / "slow", match=r"has no tokenizer\.json")
    refused(tmp_path / "nowhere", match="no such folder or file", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, "the rotary positions of .* are scaled: expected the scaling none, got linear"),
        ("rope_freqs.weight", "are scaled: expected the scaling none, got by a tensor of factors"),
        ("blk.0.attn_q.bias", "holds biases, which transformers does not read"),
    ],
)
def test_what_transformers_would_leave_out_of_a_gguf_file_is_refused(
    tensor: str | None, message: str, tmp_path: Path
) -> None:
    """The parent would be another model."""
    import gguf

    path = tmp_path / "parent.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    if tensor is None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    else:
        writer.add_tensor(tensor, np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(path, match=message)


def test_scaled_positions_and_biases_are_no_genome_of_ours() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 96,
             "vocab_size": 300}  # fmt: skip
    plain = AutoConfig.for_model("llama", **sizes)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    others = [{"rope_parameters": rope}, {"attention_bias": True}, {"mlp_bias": True}]
    configs = [plain, *(AutoConfig.for_model("llama", **sizes, **settings) for settings in others)]
    models: list[Any] = [SimpleNamespace(config=config) for config in configs]
    genomes = [squeeze_release._architecture(model) for model in models]
    assert [genome is None for genome in genomes] == [False, True, True, True]


def test_a_corpus_too_small_says_how_much_is_needed(place: Path, tmp_path: Path, tiny_corpus_folder: Path) -> None:
    settings = RunSettings.of(
        *words(tmp_path, tiny_corpus_folder, f"squeeze.parent={place / 'parent'}", "squeeze.count_bytes=2000"),
        config=["squeeze"],
    )
    with pytest.raises(VocabularyError, match=r"too few to choose 400 entries by; give at least 8,000 tokens"):
        squeeze(settings, say=lambda line: None)


def test_what_a_squeeze_is_not(place: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["squeeze", "a", "b"]) == 2
    assert "one parent at a time" in capsys.readouterr().err
    assert main(["squeeze", *words(place, corpus, "space=tiny")]) == 2
    assert "is of architectures" in capsys.readouterr().err
    assert main(["squeeze", *words(place, corpus, "search.time=1h")]) == 2
    assert "`search.time`" in capsys.readouterr().err
