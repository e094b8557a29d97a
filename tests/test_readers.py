"""Each format in each reader: the greedy tokens of our own dequantised model, which has learned its text."""

import copy
import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import python_module
from test_export import make_tokenizer
from test_onnx import GPT2, LLAMA, STORED, Reader
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from codenas_hf.compression.formats import BLOCKS, FORMATS, PACKED_FORMS, Format
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.onnx import write_onnx
from codenas_hf.compression.packed import write_packed
from codenas_hf.compression.quantize import as_stored, store_in
from codenas_hf.compression.squeezing import FILE_TYPE
from codenas_hf.folders import Release
from codenas_hf.generation.llama_cpp import LlamaCppError, LlamaCppRuntime, is_installed
from codenas_hf.generation.loading import load_model
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.release.export import write_release

LLAMA_CPP = pytest.mark.skipif(not is_installed(), reason="needs xllamacpp: pip install 'codenas-hf[fast]'")
TEXT = "\n".join(python_module(random.Random(seed)) for seed in range(9))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("words"), pre_tokenizers.ByteLevel(add_prefix_space=False))


@functools.cache
def _trained(kind: str, ids: tuple[int, ...], steps: int, settings: tuple[tuple[str, Any], ...]) -> PreTrainedModel:
    return train_by_heart(kind, torch.tensor(ids), steps=steps, **dict(settings))


def trained(kind: str, ids: torch.Tensor, *, steps: int = 400, **settings: Any) -> PreTrainedModel:
    """A copy of what `train_by_heart` gives: tests of several formats share one training."""
    return copy.deepcopy(_trained(kind, tuple(ids.tolist()), steps, tuple(settings.items())))


def train_by_heart(kind: str, ids: torch.Tensor, *, steps: int, **settings: Any) -> PreTrainedModel:
    """A stock model that knows some code by heart: few of its choices are near ties."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else LLAMA) | {"vocab_size": 300} | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(SPAN - 64, (8,), generator=rng)
        batch = torch.stack([ids[at : at + 64] for at in starts.tolist()])
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def tokens_of(words: Path) -> torch.Tensor:
    """The text as tokens."""
    return torch.tensor(AutoTokenizer.from_pretrained(words)(TEXT[:4000])["input_ids"])


def prompts_of(ids: torch.Tensor) -> list[list[int]]:
    """50 beginnings of what the model has learned, 12 to 27 tokens each."""
    starts = torch.randint(SPAN - 60, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    return [ids[at : at + 12 + at % 16].tolist() for at in starts]


def disagreements(
    ours: PreTrainedModel, theirs: Any, prompts: list[list[int]], *, count: int = 32, tie: float | None = None
) -> tuple[int, int]:
    """Prompts whose greedy tokens differ, and those of them where the first difference is no near tie of ours."""
    different = wrong = 0
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(theirs.logits(ids)[: ours.config.vocab_size].argmax()))
        with torch.no_grad():  # in one pass: up to the first difference the tokens before are the same
            logits = ours(torch.tensor([ids[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        found = torch.tensor(ids[len(prompt) :])
        places = (logits.argmax(dim=-1) != found).nonzero()
        if len(places):
            first = logits[int(places[0])]
            different += 1
            wrong += float(first.max() - first[found[int(places[0])]]) > (TIE if tie is None else tie)
    return different, wrong


SPAN = 256  # tokens that the model learns by heart
OTHERS = ("qwen2", "qwen3", "arcee", "stablelm", "starcoder2", "gpt2")
# Beside weights in few bits llama.cpp rounds activations too, and its cache is float16: of two logits that are nearer
# either may win, in a few prompts: how near and how many depends on the processor that trains the model and reads it.
# What was learned by heart is far apart; a mistake in the file changes every prompt.
TIE = 0.3
MOST = 5  # of 50 prompts
PAIRS = [("llama", form) for form in ("f32", "q8_0", "iq4_nl")] + [
    pytest.param(kind, form, marks=pytest.mark.slow)
    for kind, form in [
        ("llama", "bf16"),
        ("llama", "f16"),
        ("llama", "q4_0"),
        *((kind, form) for kind in OTHERS for form in ("f32", "q8_0", "iq4_nl")),
    ]
]


@LLAMA_CPP
@pytest.mark.parametrize(("kind", "form"), PAIRS)
def test_llama_cpp_gives_the_tokens_of_our_dequantised_model(
    kind: str, form: str, words: Path, tmp_path: Path
) -> None:
    ids = tokens_of(words)
    model = trained(kind, ids, tie_word_embeddings=kind != "qwen3")
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=words, form=form)
    ours = copy.deepcopy(model)
    store_in(ours, FORMATS[form])
    different, wrong = disagreements(ours, LlamaCppRuntime(path), prompts_of(ids))
    assert wrong == 0
    assert different <= MOST


@LLAMA_CPP
@pytest.mark.parametrize(
    "name", ["q5_0", "mxfp4", *(pytest.param(n, marks=pytest.mark.slow) for n in ("q4_1", "q5_1"))]
)
def test_llama_cpp_reads_the_blocks_that_only_squeezes_have(name: str, words: Path, tmp_path: Path) -> None:
    ids, block = tokens_of(words), BLOCKS[name]
    model = trained("llama", ids, tie_word_embeddings=True)
    form = Format(name=name, matrix=block, embedding=block, readers=("llama.cpp",), file_type=FILE_TYPE)
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=words, form=form)
    ours = copy.deepcopy(model)
    store_in(ours, form)
    different, wrong = disagreements(ours, LlamaCppRuntime(path), prompts_of(ids))
    assert wrong == 0
    assert different <= MOST


@LLAMA_CPP
def test_biases_of_queries_and_keys_lie_as_the_rows_of_their_matrices(words: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **LLAMA | {"vocab_size": 300, "attention_bias": True})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.normal_(0, 0.2 if weight.dim() == 2 else 1.0)
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=words, form="f32")
    ids = tokens_of(words)[:40]
    with torch.no_grad():
        wanted = model(ids[None]).logits[0].numpy()
    assert np.abs(LlamaCppRuntime(path).all_logits(ids.tolist()) - wanted).max() < 0.05 * wanted.std()


class Onnx:
    """A file in ONNX Runtime, asked for whole texts."""

    def __init__(self, path: Path) -> None:
        self.reader = Reader(path)
        self.empty = dict(self.reader.past)

    def logits(self, ids: list[int]) -> Any:
        self.reader.past = dict(self.empty)
        return self.reader(ids)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_onnx_runtime_gives_the_tokens_of_our_dequantised_model(form: str, words: Path, tmp_path: Path) -> None:
    ids = tokens_of(words)
    model = trained("llama", ids, tie_word_embeddings=True)
    path = write_onnx(model, tmp_path / "model.onnx", form=form)
    ours = copy.deepcopy(model)
    if STORED[form]:
        store_in(ours, FORMATS[STORED[form]])  # type: ignore[index]
    assert disagreements(ours, Onnx(path), prompts_of(ids)) == (0, 0), "it computes in float32, as we do"


@pytest.mark.parametrize("form", ["int4", pytest.param("int8", marks=pytest.mark.slow)])
def test_transformers_gives_the_tokens_of_our_dequantised_model(form: str, words: Path, tmp_path: Path) -> None:
    ids = tokens_of(words)
    model = trained("llama", ids, tie_word_embeddings=True)
    write_packed(model, tmp_path, form=form)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = copy.deepcopy(model)
    with torch.no_grad():
        for weight in ours.parameters():
            if weight.dim() == 2:
                weight.copy_(as_stored(weight, PACKED_FORMS[form]))
    assert disagreements(ours, TorchRuntime(loaded), prompts_of(ids)) == (0, 0)


@LLAMA_CPP
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_is_loaded_into_transformers(kind: str, words: Path, tmp_path: Path) -> None:
    ids = tokens_of(words)
    model = trained(kind, ids, steps=5)
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=words, form="f32")
    loaded = load_model(path)
    with torch.inference_mode():
        assert (loaded.model(ids[None, :40]).logits - model(ids[None, :40]).logits).abs().max() < 1e-4
    assert loaded.tokenizer(TEXT[:200])["input_ids"] == AutoTokenizer.from_pretrained(words)(TEXT[:200])["input_ids"]


@LLAMA_CPP
def test_what_was_read_from_a_gguf_file_is_written_without_it(words: Path, tmp_path: Path) -> None:
    """A configuration that says `gguf` would have transformers look for packed weights where there are none."""
    path = write_gguf(trained("llama", tokens_of(words), steps=5), tmp_path / "m.gguf", tokenizer=words, form="q8_0")
    model = load_model(path).model
    assert not hasattr(model.config, "quantization_config")
    folder = write_release(model, folder=tmp_path / "release", tokenizer=words, dtype="float32")
    path.unlink()
    assert "quantization_config" not in Release(folder).read_config()
    assert not hasattr(load_model(folder).model.config, "quantization_config")


def test_a_kept_prefix_changes_nothing_and_is_not_computed_again(words: Path, tmp_path: Path) -> None:
    ids = torch.tensor(AutoTokenizer.from_pretrained(words)(TEXT)["input_ids"])
    path = write_gguf(trained("llama", ids, steps=5), tmp_path / "model.gguf", tokenizer=words, form="f32")
    runtime = LlamaCppRuntime(path)
    assert runtime.context_tokens == 128
    long = ids[:90].tolist()
    first = runtime.logits(long).copy()
    before = runtime.computed_tokens
    runtime.logits([*long[:60], 9, 9])
    assert runtime.computed_tokens == before + 2
    assert np.abs(runtime.logits(long) - first).max() < 0.02  # the cache is float16, and sums run in other blocks
    every = runtime.all_logits(long)
    assert every.shape == (len(long), runtime.vocab_size)
    for length in (1, 40, 90):
        assert np.abs(every[length - 1] - runtime.logits(long[:length])).max() < 0.02
    with pytest.raises(ValueError, match="129 tokens do not fit a context of 128"):
        runtime.logits(ids[:129].tolist())


@LLAMA_CPP
def test_what_is_no_gguf_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF and then nothing")
    with pytest.raises(LlamaCppError, match=r"llama.cpp cannot read .*broken.gguf: damaged, or an architecture"):
        LlamaCppRuntime(path)
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        LlamaCppRuntime(tmp_path / "none.gguf")
