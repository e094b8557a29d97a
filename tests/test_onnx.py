"""ONNX Runtime computes from our files what our own dequantised model computes, with and without a past."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from codenas_hf.compression.formats import FORMATS
from codenas_hf.compression.onnx import write_onnx
from codenas_hf.compression.quantize import store_in

LLAMA = dict(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
GPT2 = dict(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0)
STORED = {"fp32": None, "int8": "q8_0", "int4": "q4_0"}


def stock(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else LLAMA) | settings)
    return AutoModelForCausalLM.from_config(config).eval()


class Reader:
    """A file in ONNX Runtime, its cache kept as the caller's arrays."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.past: dict[str, Any] = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values"):
                self.past[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)

    def __call__(self, ids: list[int]) -> Any:
        total = len(ids) + next(iter(self.past.values())).shape[2]
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, total), np.int64), **self.past}
        names = [value.name for value in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, feed), strict=True))
        self.past = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        return found["logits"][0]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("llama", "int4"),
        pytest.param("llama", "fp32", marks=pytest.mark.slow),
        pytest.param("llama", "int8", marks=pytest.mark.slow),
        pytest.param("gpt2", "fp32", marks=pytest.mark.slow),
        pytest.param("gpt2", "int4", marks=pytest.mark.slow),
        pytest.param("qwen3", "fp32", marks=pytest.mark.slow),
        pytest.param("qwen3", "int4", marks=pytest.mark.slow),
        pytest.param("arcee", "int8", marks=pytest.mark.slow),
        pytest.param("stablelm", "int8", marks=pytest.mark.slow),
        pytest.param("starcoder2", "int8", marks=pytest.mark.slow),
        pytest.param("smollm3", "int8", marks=pytest.mark.slow),
    ],
)
def test_the_readers_logits_are_those_of_our_dequantised_model(kind: str, form: str, tmp_path: Path) -> None:
    model = stock(kind)
    reader = Reader(write_onnx(model, tmp_path / "model.onnx", form=form))
    ours = copy.deepcopy(model)
    if STORED[form]:
        store_in(ours, FORMATS[STORED[form]])  # type: ignore[index]
    ids = torch.randint(320, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ours(ids).logits[0].numpy()
    first, second, third = (reader(ids[0, a:b].tolist()) for a, b in ((0, 9), (9, 10), (10, 24)))
    assert np.abs(np.concatenate([first, second, third]) - expected).max() < 1e-4


def test_names_sizes_and_one_table(tmp_path: Path) -> None:
    graph = onnx.load(write_onnx(stock("llama", tie_word_embeddings=True), tmp_path / "a.onnx", form="int4"))
    inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.graph.input}
    assert list(inputs)[:2] == ["input_ids", "attention_mask"]
    assert set(inputs) - {"input_ids", "attention_mask"} == {
        f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")
    }
    assert [d.dim_value for d in inputs["past_key_values.0.key"]][1::2] == [2, 16]
    assert inputs["past_key_values.0.key"][0].dim_param == "batch_size"  # or transformers.js takes it for 0
    assert {value.name for value in graph.graph.output} == {
        "logits", *(f"present.{layer}.{part}" for layer in range(2) for part in ("key", "value"))
    }  # fmt: skip
    tables = [t for t in graph.graph.initializer if 320 in t.dims]
    assert [(t.name.rpartition(".")[2], list(t.dims)) for t in tables] == [("codes", [320, 64]), ("scales", [320, 2])]
    assert "/" not in "".join(node.doc_string for node in graph.graph.node)  # no paths of this machine


def test_what_cannot_be_stored_is_said_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match="ONNX form must be one of fp32, int8, int4, got 'int3'"):
        write_onnx(stock("llama"), path, form="int3")
    with pytest.raises(ValueError, match=r"cannot be stored: q[48]_0 stores rows in blocks of 32"):
        write_onnx(stock("llama", intermediate_size=80), path, form="int4")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
