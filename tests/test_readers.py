"""Each format in each reader: the greedy tokens of our own dequantised model, which has learned its text."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export import make_tokenizer
from test_onnx import GPT2, LLAMA
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from codenas_hf.compression.formats import FORMATS
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.quantize import store_in
from codenas_hf.generation.llama_cpp import LlamaCppError, LlamaCppRuntime, is_installed
from codenas_hf.generation.torch_runtime import TorchRuntime

pytestmark = pytest.mark.skipif(not is_installed(), reason="needs xllamacpp: pip install 'codenas-hf[fast]'")
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_[a-d]*.py")))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("words"), pre_tokenizers.ByteLevel(add_prefix_space=False))


def trained(kind: str, ids: torch.Tensor, *, steps: int = 120, **settings: Any) -> PreTrainedModel:
    """A stock model that knows some code by heart: few of its choices are near ties."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else LLAMA) | {"vocab_size": 300} | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rows = ids[:SPAN].view(-1, 64)
    for step in range(steps):
        batch = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))[:4]]
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def disagreements(ours: PreTrainedModel, theirs: Any, prompts: list[list[int]], *, count: int = 32) -> tuple[int, int]:
    """Prompts whose greedy tokens differ, and those of them where the first difference is no near tie of ours."""
    mine = TorchRuntime(ours)
    different = wrong = 0
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(count):
            logits = mine.logits(ids)
            wanted, found = int(logits.argmax()), int(theirs.logits(ids)[: len(logits)].argmax())
            if wanted != found:
                different += 1
                wrong += float(logits[wanted] - logits[found]) > TIE
                break
            ids.append(wanted)
    return different, wrong


SPAN = 256  # tokens that the model learns by heart
OTHERS = ("qwen2", "qwen3", "arcee", "stablelm", "starcoder2", "gpt2")
# Beside weights in few bits llama.cpp rounds activations too: of logits that are as near as this either may win. It is
# much for a model this small; a mistake in the file would change every prompt, and by far more.
TIE = 0.5
PAIRS = [("llama", form) for form in ("f32", "bf16", "q8_0", "iq4_nl")] + [
    pytest.param(kind, form, marks=pytest.mark.slow)
    for kind, form in [
        ("llama", "f16"),
        ("llama", "q4_0"),
        *((kind, form) for kind in OTHERS for form in ("f32", "q8_0", "iq4_nl")),
    ]
]


@pytest.mark.parametrize(("kind", "form"), PAIRS)
def test_llama_cpp_gives_the_tokens_of_our_dequantised_model(
    kind: str, form: str, words: Path, tmp_path: Path
) -> None:
    ids = torch.tensor(AutoTokenizer.from_pretrained(words)(TEXT[:4000])["input_ids"])
    model = trained(kind, ids, tie_word_embeddings=kind != "qwen3")
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=words, form=form)
    ours = copy.deepcopy(model)
    store_in(ours, FORMATS[form])  # type: ignore[index]
    starts = torch.randint(SPAN - 60, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [ids[at : at + 12 + at % 16].tolist() for at in starts]
    different, wrong = disagreements(ours, LlamaCppRuntime(path), prompts)
    assert wrong == 0
    assert different <= (5 if form in ("f32", "f16") else 20)  # of 50; llama.cpp's cache is float16


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


def test_what_is_no_gguf_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF and then nothing")
    with pytest.raises(LlamaCppError, match=r"llama.cpp cannot read .*broken.gguf: damaged, or an architecture"):
        LlamaCppRuntime(path)
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        LlamaCppRuntime(tmp_path / "none.gguf")
