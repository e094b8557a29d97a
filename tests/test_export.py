"""Export: each stock row bit-equal, a release folder that strangers load, GGUF that llama.cpp reads."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import GENES, make_genome, make_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from codenas_hf import CodeNASConfig, CodeNASForCausalLM
from codenas_hf.cli.main import mistake
from codenas_hf.compression.gguf import check_architecture, write_gguf
from codenas_hf.compression.gguf_words import PRE_TYPES
from codenas_hf.data.tokenizer import PATTERNS
from codenas_hf.folders import Record, folder_bytes
from codenas_hf.generation.loading import load_model
from codenas_hf.release import export
from codenas_hf.release.export import ExportError, export_stock, write_release
from codenas_hf.release.spelling import copy_tokenizer, model_config, tokenizer_config, without_places

PLAIN_LN = {"norm_type": "layernorm", "mlp_type": "plain"}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "untied, wide heads, theta": (
        "llama",
        {"tie_word_embeddings": False, "head_dim": 32, "rope_theta": 5e4, "num_key_value_heads": 1},
    ),
    "gated gelu": ("llama", {"hidden_act": "gelu"}),
    "qwen3": ("qwen3", {"qk_norm": True}),
    "qwen3 with windows": ("qwen3", {"qk_norm": True, "layer_pattern": "sf", "sliding_window": 6}),
    "arcee": ("arcee", {"mlp_type": "plain", "hidden_act": "relu2"}),
    "arcee gelu": ("arcee", {"mlp_type": "plain", "hidden_act": "gelu"}),
    "smollm3": ("smollm3", {"position_embedding_type": "none"}),
    "smollm3 with windows": ("smollm3", {"layer_pattern": "ssf", "sliding_window": 6}),
    "smollm3 with odd heads": ("smollm3", {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}),
    "stablelm": ("stablelm", {"norm_type": "layernorm"}),
    "stablelm parallel": ("stablelm", {"norm_type": "layernorm", "parallel_residual": True}),
    "starcoder2": ("starcoder2", {**PLAIN_LN, "hidden_act": "gelu"}),
    "starcoder2 with windows": (
        "starcoder2",
        {**PLAIN_LN, "hidden_act": "silu", "layer_pattern": "s", "sliding_window": 6, "head_dim": 32},
    ),
    "gpt2": (
        "gpt2",
        {**PLAIN_LN, "hidden_act": "gelu", "position_embedding_type": "learned", "num_key_value_heads": 4},
    ),
    "gpt2 relu2 untied": (
        "gpt2",
        {
            **PLAIN_LN,
            "hidden_act": "relu2",
            "position_embedding_type": "learned",
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
}
NOT_STOCK: dict[str, str] = {
    "conv": "has `layer_types`",
    "residual_scalars": "has `residual_scalars`",
    "softcap": "has `final_logit_softcapping`",
    "layer_repeats": "has `layer_repeats`",
    "per layer": "lets `num_attention_heads`.* differ between layers",
    "alibi": "has position_embedding_type .*, not alibi",
    "parallel": "has parallel_residual False, not True",
}


@pytest.mark.parametrize("name", STOCK)
def test_stock_rows_are_bit_equal(name: str) -> None:
    expected, genes = STOCK[name]
    model = make_model(make_genome(**genes))
    stock = export_stock(model)
    assert stock.config.model_type == expected
    assert type(stock).__module__.startswith("transformers.models.")
    tokens = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, stock(tokens).logits)
        arguments = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        assert torch.equal(model.generate(tokens, **arguments), stock.generate(tokens, **arguments))


@pytest.mark.parametrize("name", NOT_STOCK)
def test_says_which_gene_forbids_a_stock_export(name: str) -> None:
    with pytest.raises(ValueError, match=f"no stock architecture equals this model: .*{NOT_STOCK[name]}"):
        export_stock(make_model(make_genome(**GENES[name])))


def test_an_export_with_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, row: Any) -> Any:
        stock = original(model, row)
        with torch.no_grad():
            stock.model.norm.weight.mul_(1.001)
        return stock

    original = export._as_stock
    monkeypatch.setattr(export, "_as_stock", wrong)
    with pytest.raises(ExportError, match=r"as llama the logits differ by .*, expected none; not exported"):
        export_stock(make_model(make_genome()))


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    step = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# As the tokenizer.json of models that llama.cpp knows under these names has them.
SPLITS = {
    "qwen2": _split(PATTERNS["qwen2"]),
    "llama-bpe": _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 300 entries with the qwen2 pre-tokenizer."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), SPLITS["qwen2"])


def make_tokenizer(folder: Path, split: pre_tokenizers.PreTokenizer, *, vocab_size: int = 300) -> Path:
    """A byte-level BPE tokenizer that splits text as told."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = split
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    words.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=special[0], eos_token=special[0], pad_token=special[-1]
    )
    wrapped.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "conv"])
def test_a_release_folder_loads_and_says_where_it_comes_from(name: str, tokenizer: Path, tmp_path: Path) -> None:
    genome = make_genome(**GENES[name])
    model = make_model(genome).train()
    folder = write_release(
        model,
        folder=tmp_path / "winner",
        tokenizer=tokenizer,
        record=Record(provenance={"seed": 3}),
        settings="train:\n  seed: 3\n",
    )
    assert model.training, "the model is left alone"
    record = Record.read(folder)
    assert record.provenance["seed"] == 3
    assert record.release.architecture == ("llama" if name == "llama" else "codenas")
    assert record.release.num_parameters == genome.num_parameters()
    assert record.release.weights_bytes == genome.weights_bytes("bfloat16")
    assert record.release.artifact_bytes == folder_bytes(folder) > record.release.weights_bytes + 10_000
    assert "seed: 3" in (folder / "settings.yaml").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.eos_token_id == 0
    assert len(AutoTokenizer.from_pretrained(folder)) == 300
    code = {path.name for path in folder.glob("*.py")}
    assert code == (set() if name == "llama" else {"configuration_codenas.py", "modeling_codenas.py"})
    assert [path.name for path in tmp_path.iterdir()] == ["winner"], "no rest of the draft stays"
    assert CodeNASConfig._auto_class is None
    assert CodeNASForCausalLM._auto_class is None


# What transformers 4.57 reads of a configuration, and takes where it is absent.
OLDER_DEFAULTS: dict[str, dict[str, float]] = {
    "llama": {"rope_theta": 1e4},
    "qwen3": {"rope_theta": 1e4},
    "arcee": {"rope_theta": 1e4},
    "smollm3": {"rope_theta": 2e6},
    "stablelm": {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
    "starcoder2": {"rope_theta": 1e4},
    "gpt2": {},
    "codenas": {},
}


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "arcee", "smollm3 with windows", "stablelm", "starcoder2", "gpt2", "conv"]
)
def test_older_readers_find_the_same_model_in_the_configuration(name: str, tokenizer: Path, tmp_path: Path) -> None:
    genes = GENES["conv"] if name == "conv" else STOCK[name][1]
    theta = {} if genes.get("position_embedding_type", "rope") != "rope" else {"rope_theta": 5e5}
    model = make_model(make_genome(**{**genes, **theta}))
    folder = write_release(model, folder=tmp_path / "w", tokenizer=tokenizer)
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    older = {n: config.get(n, default) for n, default in OLDER_DEFAULTS[config["model_type"]].items()}
    rope = {"partial_rotary_factor": 1.0, **(config.get("rope_parameters") or {})}
    assert older == {n: rope[n] for n in older}
    if theta:
        assert config["rope_theta"] == 5e5


def test_a_scaled_rotary_embedding_is_spelled_as_older_readers_know_it() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    config = model_config({"rope_parameters": rope, "model_type": "llama"})
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert (config["rope_theta"], config["rope_parameters"]) == (5e5, rope)
    loaded = LlamaConfig(**{n: v for n, v in config.items() if n != "model_type"})
    assert loaded.rope_parameters == rope


def test_the_tokenizer_is_copied_and_says_nothing_of_this_machine(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tokenizer, source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    # As transformers 5 spells what it has loaded from a folder.
    config |= {"tokenizer_class": "TokenizersBackend", "is_local": True, "local_files_only": False}
    config |= {"name_or_path": str(source), "extra_special_tokens": [], "fim_prefix_token": "<|fim_prefix|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "codenas_tokenizer.json").write_text("{}")
    folder = write_release(make_model(make_genome()), folder=tmp_path / "w", tokenizer=source, record=Record())
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & set(written)
    # transformers 4 fails at a list here; both versions make attributes of a mapping.
    assert written["extra_special_tokens"] == {"fim_prefix_token": "<|fim_prefix|>"}
    assert AutoTokenizer.from_pretrained(folder).fim_prefix_token == "<|fim_prefix|>"
    assert not (folder / "codenas_tokenizer.json").exists()
    for path in folder.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.json"):
        copy_tokenizer(tmp_path, folder)


def test_extra_tokens_in_a_list_keep_a_name_that_both_versions_read() -> None:
    config = tokenizer_config({"extra_special_tokens": ["<a>"], "tokenizer_class": "LlamaTokenizerFast"})
    assert config == {"additional_special_tokens": ["<a>"], "tokenizer_class": "LlamaTokenizerFast"}


def test_the_umask_decides_who_may_read_a_release(tokenizer: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = write_release(make_model(make_genome()), folder=tmp_path / "w", tokenizer=tokenizer, record=Record())
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
        path.name: "0o644" for path in folder.iterdir()
    }
    assert folder.stat().st_mode & 0o777 == 0o755


def test_an_older_transformers_is_told_what_the_pair_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    older = types.ModuleType("transformers")
    older.GenerationConfig = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", older)
    source = Path(export.__file__).parents[1] / "configuration_codenas.py"
    with pytest.raises(ImportError, match=r"needs transformers 5\.23 or newer.*pip install -U transformers"):
        exec(compile(source.read_text(encoding="utf-8"), str(source), "exec"), {"__name__": "pair"})


STRANGER = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "codenas_hf":
            raise ImportError("this process must not have codenas_hf")

sys.meta_path.insert(0, Blocked())
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
words = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = words("def f(x):", return_tensors="pt")
print(json.dumps({
    "class": type(model).__name__,
    "base": type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__,
    "tokens": model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist(),
}))
"""


def test_a_process_without_this_package_generates_from_the_folder(tokenizer: Path, tmp_path: Path) -> None:
    model = make_model(make_genome(**GENES["conv, sliding, alibi"]))
    folder = write_release(model, folder=tmp_path / "winner", tokenizer=tokenizer, record=Record(), dtype="float32")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout)
    ids = AutoTokenizer.from_pretrained(tokenizer)("def f(x):", return_tensors="pt")
    model.generation_config.eos_token_id = 0
    assert answer["tokens"] == model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert (answer["class"], answer["base"]) == ("CodeNASForCausalLM", "CodeNASModel")


def test_a_failed_release_leaves_the_earlier_one(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = make_model(make_genome()), tmp_path / "winner"
    write_release(model, folder=folder, tokenizer=tokenizer, record=Record(genome_id="1"))
    monkeypatch.setattr(
        export, "_logits_difference", lambda first, second: 0.25 if second.dtype != torch.float32 else 0
    )
    with pytest.raises(
        ExportError, match=r"the written model's logits differ by 0.25, expected none; nothing released"
    ):
        write_release(model, folder=folder, tokenizer=tokenizer, record=Record(genome_id="2"))
    monkeypatch.undo()
    assert Record.read(folder).genome_id == "1"
    monkeypatch.setattr(os, "rename", _fails_once(os.rename))
    with pytest.raises(OSError, match="disk full"):
        write_release(model, folder=folder, tokenizer=tokenizer, record=Record(genome_id="3"))
    monkeypatch.undo()
    assert Record.read(folder).genome_id == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["winner"]
    write_release(model, folder=folder, tokenizer=tokenizer, record=Record(genome_id="4"), stock=False)
    record = Record.read(folder)
    assert (record.genome_id, record.release.architecture) == ("4", "codenas")


def _fails_once(rename: Any) -> Any:
    def failing(source: Any, target: Any) -> None:
        if Path(target).name == "winner" and not Path(source).name.endswith("-old"):
            raise OSError("disk full")
        rename(source, target)

    return failing


def test_release_refuses_what_does_not_fit(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 300 entries, expected at most the model's `vocab_size` 280"):
        write_release(
            make_model(make_genome(vocab_size=280)), folder=tmp_path / "w", tokenizer=tokenizer, record=Record()
        )
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, float16, got 'int8'"):
        write_release(
            make_model(make_genome()), folder=tmp_path / "w", tokenizer=tokenizer, record=Record(), dtype="int8"
        )


def stock_model(seed: int = 0, **genes: Any) -> PreTrainedModel:
    return export_stock(make_model(make_genome(**genes), seed=seed))


GGUF_GENES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, wide heads, theta": {"tie_word_embeddings": False, "head_dim": 32, "rope_theta": 5e4},
}


@pytest.mark.parametrize("name", GGUF_GENES)
def test_gguf_read_back_by_transformers_is_equal(name: str, tokenizer: Path, tmp_path: Path) -> None:
    model = make_model(make_genome(**GGUF_GENES[name]))
    write_gguf(export_stock(model), tmp_path / "model.gguf", tokenizer=tokenizer, form="f32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    tokens = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"residual_scalars": True}, "llama.cpp has no architecture for a codenas here; there are llama"),
        ({"hidden_act": "gelu"}, "llama.cpp's llama has the activation silu, got gelu"),
        ({"qk_norm": True, "layer_pattern": "s", "sliding_window": 16}, "llama.cpp's qwen3 has no sliding window"),
    ],
)
def test_gguf_refuses_other_architectures(
    genes: dict[str, Any], message: str, tokenizer: Path, tmp_path: Path
) -> None:
    model = make_model(make_genome(**genes))
    with pytest.raises(ValueError, match=message):
        write_gguf(
            model if "residual_scalars" in genes else export_stock(model),
            tmp_path / "model.gguf",
            tokenizer=tokenizer,
        )


@pytest.mark.parametrize(("kind", "name"), [("arcee", "mlp_bias"), ("qwen3", "attention_bias")])
def test_gguf_refuses_biases_that_llama_cpp_does_not_read(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"llama.cpp's {kind} has no biases, got `{name}`"):
        check_architecture(AutoConfig.for_model(kind, **{name: True}))


SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_gguf_refuses_scaled_positions(name: str, tokenizer: Path, tmp_path: Path) -> None:
    """llama.cpp would compute them as plain ones, and say nothing."""
    rope = {"rope_type": name, "rope_theta": 1e4, **SCALED[name]}
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=300, max_position_embeddings=256, rope_parameters=rope)  # fmt: skip
    message = f"expected the `rope_type` default, got {name}; take a model"
    with pytest.raises(ValueError, match=message):
        check_architecture(config)
    with pytest.raises(ValueError, match=message):
        write_gguf(AutoModelForCausalLM.from_config(config), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_gguf_that_transformers_cannot_read_is_said_in_one_line(tokenizer: Path, tmp_path: Path) -> None:
    model = export_stock(make_model(make_genome(mlp_type="plain", hidden_act="relu2")))
    assert model.config.model_type == "arcee"
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"transformers cannot read .*model.gguf: .*arcee") as caught:
        load_model(path)
    assert mistake(caught.value) == str(caught.value)


def test_without_gguf_the_extra_is_named(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install") as caught:
        write_gguf(stock_model(), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert str(mistake(caught.value)).endswith(("'codenas-hf[export]'", "'codenas-hf[fast]'"))  # both bring it


STRANGE: dict[str, tuple[str, Any, str]] = {
    "line": (
        "pre_tokenizer",
        _split(PATTERNS["line"]),
        "for which llama.cpp has no name; expected the split of qwen2",
    ),
    "digits before": (
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), SPLITS["qwen2"]]),
        "for which llama.cpp has no name",
    ),
    "a space before": ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True), "has no name"),
    "NFC": ("normalizer", normalizers.NFC(), r"it changes the text first \(NFC\)"),
    "template": (
        "post_processor",
        processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]),
        r"it adds tokens to every text \(TemplateProcessing\)",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_gguf_names_what_of_a_tokenizer_llama_cpp_lacks(name: str, tokenizer: Path, tmp_path: Path) -> None:
    part, value, message = STRANGE[name]
    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    setattr(words, part, value)
    other = tmp_path / "other"
    shutil.copytree(tokenizer, other)
    words.save(str(other / "tokenizer.json"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the good file")
    with pytest.raises(ValueError, match=message):
        write_gguf(stock_model(), path, tokenizer=other)
    assert path.read_bytes() == b"the good file"


@pytest.mark.parametrize("name", SPLITS)
def test_the_pre_tokenizer_in_a_gguf_is_read_from_the_tokenizer(name: str, tmp_path: Path) -> None:
    import gguf

    folder = make_tokenizer(tmp_path / "words", SPLITS[name])
    path = write_gguf(stock_model(), tmp_path / "model.gguf", tokenizer=folder)
    field = gguf.GGUFReader(str(path)).fields["tokenizer.ggml.pre"]
    assert bytes(field.parts[field.data[0]]).decode() == name
    assert set(PRE_TYPES.values()) == set(SPLITS)


def test_a_full_disk_leaves_the_old_gguf(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    path = write_gguf(stock_model(), tmp_path / "model.gguf", tokenizer=tokenizer)
    before = path.read_bytes()
    path.chmod(0o600)

    def full(self: Any, **known: Any) -> None:
        self.fout[0].write(b"torn")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
        with pytest.raises(OSError, match=r"could not be written .*No space left.*make room on the disk"):
            write_gguf(stock_model(seed=1), path, tokenizer=tokenizer)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    write_gguf(stock_model(seed=1), path, tokenizer=tokenizer)
    assert path.read_bytes() != before


def test_a_missing_gguf_package_says_what_to_install(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r'pip install "codenas-hf\[export\]"'):
        write_gguf(stock_model(), tmp_path / "model.gguf", tokenizer=tokenizer)


def test_gguf_refuses_an_unknown_format_and_a_width_that_it_cannot_store(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the storage format must be one of bf16, f32, .*, got 'int4'"):
        write_gguf(stock_model(), tmp_path / "model.gguf", tokenizer=tokenizer, form="int4")
    odd = stock_model(intermediate_size=112)
    with pytest.raises(ValueError, match=r"`model.layers.0.mlp.down_proj.weight` .* cannot be stored as q8_0"):
        write_gguf(odd, tmp_path / "model.gguf", tokenizer=tokenizer, form="q8_0")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder with node-llama-cpp, kept between runs; its package holds llama.cpp as a prebuilt program."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are needed to run llama.cpp; install Node.js 20 or newer")
    folder = Path(os.environ.get("CODENAS_NODE_FOLDER", Path(tempfile.gettempdir()) / "codenas_node_llama_cpp"))
    if not (folder / "node_modules" / "node-llama-cpp").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "node-llama-cpp@3.22.1"]
        environment = os.environ | {"NODE_LLAMA_CPP_SKIP_DOWNLOAD": "true"}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        if run.returncode:
            pytest.skip(f"node-llama-cpp cannot be installed: {run.stderr[-300:]}")
    return folder


@pytest.mark.node
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SPLITS)
def test_llama_cpp_splits_text_as_the_tokenizer_does(name: str, tmp_path: Path, node_folder: Path) -> None:
    folder = make_tokenizer(tmp_path / "words", SPLITS[name], vocab_size=1200)
    path = write_gguf(stock_model(vocab_size=1200), tmp_path / "model.gguf", tokenizer=folder)
    text = Path(export.__file__).read_text(encoding="utf-8")
    text += "\n\tx = 12345 + 0x1F  # déjà vu, it's WE'LL  \r\n\r\n   \t  if(a<=b):...  naïve 漢字 ٣٤٥ 🙂\n\n"
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    shutil.copy(Path(__file__).parent / "read_gguf.mjs", node_folder)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"text": text, "ids": ids[:8], "count": 0}))
    command = ["node", "read_gguf.mjs", str(path), str(request)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=node_folder, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1])["tokens"] == ids


@pytest.mark.node
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GGUF_GENES)
def test_llama_cpp_reads_the_gguf(name: str, tokenizer: Path, tmp_path: Path, node_folder: Path) -> None:
    text = "def f(x):\n    if x == 12345:\n        return x  # déjà vu it's\n\t\n"
    ids = AutoTokenizer.from_pretrained(tokenizer)(text)["input_ids"]
    # llama.cpp keeps its cache in float16: take weights whose eight choices are no near
    # ties, and not the end of text, at which llama.cpp stops.
    for seed in range(100):
        model = make_model(make_genome(**GGUF_GENES[name]), seed=seed)
        tokens = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        ours = tokens[0, len(ids) :]
        with torch.inference_mode():
            best = model(tokens[:, :-1]).logits[0, len(ids) - 1 :].topk(2).values
        if 0 not in ours.tolist() and (best[:, 0] - best[:, 1]).min() > 0.1:
            break
    else:
        pytest.fail("no weights with clear choices among 100 seeds")
    path = write_gguf(export_stock(model), tmp_path / "model.gguf", tokenizer=tokenizer, form="f32")
    shutil.copy(Path(__file__).parent / "read_gguf.mjs", node_folder)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"text": text, "ids": ids, "count": 8}))
    run = subprocess.run(
        ["node", "read_gguf.mjs", str(path), str(request)],
        capture_output=True,
        text=True,
        cwd=node_folder,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert answer["tokens"] == ids
    assert answer["greedy"] == ours.tolist()


def test_a_release_never_takes_the_place_of_something_else(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious.txt").write_text("work of years")
    with pytest.raises(FileExistsError, match=r"mine is there already and holds no record.json"):
        write_release(make_model(make_genome()), folder=folder, tokenizer=tokenizer, record=Record())
    assert (folder / "precious.txt").read_text() == "work of years"
    (folder / "precious.txt").unlink()
    write_release(make_model(make_genome()), folder=folder, tokenizer=tokenizer, record=Record())
    write_release(make_model(make_genome(), seed=1), folder=folder, tokenizer=tokenizer, record=Record())
    with pytest.raises(FileExistsError, match="is no release and is not replaced"):
        write_release(make_model(make_genome()), folder=tmp_path / "mine/config.json", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/my code", "my code"),
        ("git:/home/me/repo", "git:repo"),
        ("file:///home/me/x.jsonl", "file://x.jsonl"),
        ("sqlite:////home/me/s.db", "sqlite:///s.db"),
        ("the file '/home/me/a/b.py' is gone", "the file 'b.py' is gone"),
        ("postgresql://me:secret@db/x", "postgresql://***@db/x"),
        *((text, text) for text in ("~/code", "runs", "a/b/c", "https://hf.co/a/b/", "hub:a/b", "application/json")),
        *((text, text) for text in ("</p></div>", "bits / byte", "s3://bucket/a/b", "iVBOR/a/b", "+/a/b/")),
    ],
)
def test_of_a_path_from_the_root_the_name_stays(text: str, left: str) -> None:
    assert without_places(text) == left


def test_places_in_names_of_values_lose_no_value() -> None:
    found = without_places({"/a/code": 1, "/b/code": [2, "/c/d"], "n": {"k": None}})
    assert found == {"code": 1, "code (2)": [2, "d"], "n": {"k": None}}
