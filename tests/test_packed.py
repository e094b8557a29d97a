"""A packed folder loads with plain transformers, and every weight is bit for bit what was measured."""

import copy
import json
from pathlib import Path

import pytest
import torch
from test_onnx import stock
from transformers import AutoModelForCausalLM

from codenas_hf.compression.formats import PACKED_FORMS
from codenas_hf.compression.packed import write_packed
from codenas_hf.compression.quantize import as_stored


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", PACKED_FORMS)
@pytest.mark.parametrize("kind", ["llama", "arcee"])
def test_transformers_reads_the_same_weights(kind: str, form: str, tied: bool, tmp_path: Path) -> None:
    model = stock(kind, tie_word_embeddings=tied)
    before = copy.deepcopy(model.state_dict())
    size = write_packed(model, tmp_path, form=form)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for (name, theirs), ours in zip(loaded.named_parameters(), model.parameters(), strict=True):
        expected = as_stored(ours, PACKED_FORMS[form]) if ours.dim() == 2 else ours
        assert torch.equal(theirs, expected), name
    assert loaded.config.tie_word_embeddings == tied
    plain = sum(2 * parameter.numel() for parameter in model.parameters())
    assert size < (0.72 if form == "int8" else 0.45) * plain  # of such a tiny model, names and norms included


def test_a_layout_that_it_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="packed form must be one of int8, int4, got 'q8_0'"):
        write_packed(stock("llama"), tmp_path, form="q8_0")
    with pytest.raises(ValueError, match="is a Conv1D, which compressed-tensors does not store"):
        write_packed(stock("gpt2"), tmp_path, form="int8")
    with pytest.raises(ValueError, match=r"`model.layers.0.mlp.down_proj` \[64, 80\] cannot be stored"):
        write_packed(stock("llama", intermediate_size=80), tmp_path, form="int8")
    assert not list(tmp_path.iterdir())


def test_the_scheme_names_no_package_of_ours(tmp_path: Path) -> None:
    write_packed(stock("llama"), tmp_path, form="int4")
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "codenas" not in text
    assert json.loads(text)["quantization_config"]["config_groups"]["all"]["weights"]["num_bits"] == 4
