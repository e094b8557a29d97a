"""What does nothing is cut without a trace; what is left is an ordinary model that loads from its folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_onnx import stock
from transformers import AutoModelForCausalLM

from codenas_hf.compression.prune import measure_importance, pruned

IDS = [torch.randint(320, (3, 40), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS[0]).logits


@pytest.mark.parametrize("kind", ["llama", "qwen3", "arcee", "smollm3"])
def test_idle_neurons_and_heads_leave_without_a_trace(kind: str) -> None:
    model = stock(kind, num_attention_heads=8, num_key_value_heads=4, head_dim=16)
    idle = torch.arange(0, 96, 3)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, idle] = 0  # 32 of 96 neurons
            layer.self_attn.o_proj.weight[:, 32:64] = 0  # the second of four groups of two heads
            layer.self_attn.o_proj.weight[:, 96:] = 0  # and the last
    importance = measure_importance(model, IDS)
    assert importance.num_tokens == 360
    assert (importance.neurons[:, idle] == 0).all()
    assert np.flatnonzero(importance.groups[0] == 0).tolist() == [1, 3]
    smaller = pruned(model, importance, neurons=64, groups=2)
    assert smaller.config.intermediate_size == 64
    assert smaller.config.num_attention_heads == 4
    assert torch.allclose(logits(smaller), logits(model), atol=1e-5)
    assert smaller.num_parameters() < model.num_parameters()


def test_the_least_important_go_first() -> None:
    model = stock("llama")
    importance = measure_importance(model, IDS)
    before = logits(model)
    best = pruned(model, importance, neurons=64)
    flipped = replace(importance, neurons=-importance.neurons)
    worst = pruned(model, flipped, neurons=64)
    assert (logits(best) - before).norm() < (logits(worst) - before).norm()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "arcee"])
@pytest.mark.parametrize("tied", [True, False])
def test_idle_dimensions_leave_without_a_trace_though_norms_divide_by_fewer(kind: str, tied: bool) -> None:
    model = stock(kind, tie_word_embeddings=tied, rms_norm_eps=1e-12)  # it would divide by more where little is
    idle = torch.arange(1, 64, 2)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, idle] = 0
        model.model.norm.weight[::4] = 0  # a norm that leaves a dimension out
        for layer in model.model.layers:
            layer.input_layernorm.weight.mul_(1.7)
            layer.self_attn.o_proj.weight[idle] = 0
            layer.mlp.down_proj.weight[idle] = 0
    smaller = pruned(model, measure_importance(model, IDS), width=32)
    assert smaller.config.hidden_size == 32
    assert torch.allclose(logits(smaller), logits(model), atol=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_stablelm_loses_width_and_heads_though_both_parts_may_share_a_norm(parallel: bool) -> None:
    model = stock("stablelm", use_parallel_residual=parallel, layer_norm_eps=1e-12)
    assert (model.model.layers[0].post_attention_layernorm is None) == parallel
    with torch.no_grad():
        stream = [model.model.embed_tokens.weight.T]
        for layer in model.model.layers:
            layer.input_layernorm.weight.mul_(1.7)
            layer.self_attn.o_proj.weight[:, 32:] = 0  # the second of two groups of two heads
            stream += [layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight]
        for matrix in stream:
            matrix[1::2] = 0  # dimensions that nothing writes; the others keep a mean of 0, which the norm subtracts
            matrix[::2] -= matrix[::2].mean(dim=0)
    smaller = pruned(model, measure_importance(model, IDS), width=32, groups=1)
    assert (smaller.config.hidden_size, smaller.config.num_attention_heads) == (32, 2)
    assert torch.allclose(logits(smaller), logits(model), atol=1e-5)


def test_a_layer_that_changes_nothing_is_the_least_important_and_leaves_without_a_trace() -> None:
    model = stock("smollm3", num_hidden_layers=3)
    with torch.no_grad():
        for weight in (model.model.layers[1].mlp.down_proj.weight, model.model.layers[1].self_attn.o_proj.weight):
            weight.zero_()
    importance = measure_importance(model, IDS)
    assert int(importance.layers.argmin()) == 1
    smaller = pruned(model, importance, without_layers=[1])
    assert smaller.config.num_hidden_layers == 2
    assert torch.allclose(logits(smaller), logits(model), atol=1e-5)


def test_the_result_loads_from_its_folder(tmp_path: Path) -> None:
    model = stock("llama", tie_word_embeddings=True)
    smaller = pruned(model, measure_importance(model, IDS), neurons=32)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(smaller))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_everything_kept_is_the_same_model() -> None:
    model = stock("qwen3")
    assert torch.equal(logits(pruned(model, measure_importance(model, IDS))), logits(model))


def test_what_cannot_be_done_is_refused() -> None:
    model = stock("llama")
    importance = measure_importance(model, IDS)
    with pytest.raises(ValueError, match=r"`neurons` must lie between 1 and 96, got 97"):
        pruned(model, importance, neurons=97)
    with pytest.raises(ValueError, match=r"`neurons` 48 leaves rows of 48, which 4- and 8-bit formats cannot store"):
        pruned(model, importance, neurons=48)
    with pytest.raises(ValueError, match=r"`width` 40 leaves rows of 40"):
        pruned(model, importance, width=40)
    with pytest.raises(ValueError, match=r"`without_layers` must leave some of 2 layers"):
        pruned(model, importance, without_layers=[0, 1])
    with pytest.raises(ValueError, match=r"`batches` holds no text"):
        measure_importance(model, [])
    with pytest.raises(ValueError, match=r"a gpt2 cannot be pruned here: its layers have no self_attn.q_proj"):
        measure_importance(stock("gpt2"), IDS)
