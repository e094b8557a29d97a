"""The model: causal, the same with and without cache, padding and packing, for every gene; and how it trains."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import GENES, make_genome, make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, StaticCache
from transformers.modeling_utils import AttentionInterface

import codenas_hf.modeling_codenas as modeling
from codenas_hf import CodeNASForCausalLM
from codenas_hf.modeling_codenas import CodeNASForTokenClassification

TOLERANCE = 1e-4  # the logits are of order 10, in float32


def tokens(length: int = 24, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(model: CodeNASForCausalLM, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return model(x, **({"use_cache": False} | arguments)).logits


def worst(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).abs().max().item()


@torch.inference_mode()
def leak(model: CodeNASForCausalLM, x: torch.Tensor) -> float:
    """How far a changed token moves the logits before it."""
    changed = x.clone()
    changed[:, 15] = 3 + (x[:, 15] - 2) % 297
    assert worst(logits(model, changed)[:, 15], logits(model, x)[:, 15]) > 1e-2, "the change must be seen at all"
    return worst(logits(model, changed)[:, :15], logits(model, x)[:, :15])


def in_steps(model: CodeNASForCausalLM, x: torch.Tensor, cache: Any, chunk: int) -> torch.Tensor:
    """Logits of a prefill of 10 tokens, single tokens, and one last chunk, through a cache."""
    cuts = [0, 10, *range(11, x.shape[1] - chunk + 1), x.shape[1]]
    found = []
    for start, end in pairwise(cuts):
        output = model(x[:, start:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", GENES)
def test_conformance(name: str, tmp_path: Path) -> None:
    model, x = make_model(make_genome(**GENES[name])), tokens()
    plain = logits(model, x)
    assert leak(model, x) == 0
    with torch.inference_mode():
        assert worst(in_steps(model, x, None, 5), plain) < TOLERANCE
        assert worst(in_steps(model, x, StaticCache(config=model.config, max_cache_len=40), 1), plain) < TOLERANCE
    padded = torch.cat((torch.zeros(2, 5, dtype=torch.long), x), dim=1)
    mask = (torch.arange(29) >= 5).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert worst(logits(model, padded, attention_mask=mask, position_ids=positions)[:, 5:], plain) < TOLERANCE
    assert worst(logits(model, x, logits_to_keep=3), plain[:, -3:]) < TOLERANCE
    model.set_attn_implementation("eager")
    assert worst(logits(model, x), plain) < TOLERANCE
    model.set_attn_implementation("sdpa")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), x), plain)


@pytest.mark.parametrize("name", GENES)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model, x = make_model(make_genome(**GENES[name])), tokens()
    positions = torch.cat((torch.arange(9), torch.arange(15))).expand(2, -1)
    packed = logits(model, x, position_ids=positions)
    assert worst(packed[:, :9], logits(model, x[:, :9])) < TOLERANCE
    assert worst(packed[:, 9:], logits(model, x[:, 9:])) < TOLERANCE
    assert worst(packed[:, 9:], logits(model, x)[:, 9:]) > 1e-2


def test_the_causal_test_fails_without_the_mask() -> None:
    model, x = make_model(make_genome()), tokens()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    assert leak(model, x) > 1e-2


def test_the_causal_test_fails_for_a_convolution_that_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make_model(make_genome(layer_pattern="cf")), tokens()
    monkeypatch.setattr(modeling.CodeNASShortConv, "forward", _looks_ahead)
    assert leak(model, x) > 1e-2


def _looks_ahead(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    gate_in, gate_out, x = self.in_proj(hidden_states).chunk(3, dim=-1)
    return self.out_proj(gate_out * torch.roll(gate_in * x, -1, dims=1))


@pytest.mark.parametrize("name", [name for name in GENES if name not in ("llama", "untied")])
def test_each_gene_changes_the_computation(name: str) -> None:
    """From the same random numbers, so that only the gene can make the difference."""
    torch.manual_seed(0)
    base = CodeNASForCausalLM(make_genome().to_config()).eval()
    torch.manual_seed(0)
    changed = CodeNASForCausalLM(make_genome(**GENES[name]).to_config()).eval()
    same_shape = dict(base.named_parameters())
    with torch.no_grad():
        for key, parameter in changed.named_parameters():
            if key in same_shape and parameter.shape == same_shape[key].shape:
                parameter.copy_(same_shape[key])
    assert worst(logits(changed, tokens()), logits(base, tokens())) > 1e-4


def test_layer_repeats_keeps_the_bytes_and_deepens() -> None:
    once, twice = make_genome(num_hidden_layers=2), make_genome(num_hidden_layers=4, layer_repeats=2)
    assert once.weights_bytes() == twice.weights_bytes()
    model = make_model(twice)
    output = model(tokens(), use_cache=True, output_hidden_states=True)
    assert len(output.hidden_states) == 5
    assert len(output.past_key_values) == 4


def test_softcap_bounds_the_logits() -> None:
    assert logits(make_model(make_genome(final_logit_softcapping=5.0)), tokens()).abs().max() <= 5


@pytest.mark.parametrize("name", ["llama", "softcap", "untied", "conv"])
@pytest.mark.parametrize("counted", [False, True])
def test_the_chunked_loss_is_the_loss(name: str, counted: bool) -> None:
    model, x = make_model(make_genome(**GENES[name])), tokens()
    labels = x.clone()
    labels[0, 4:9] = -100
    arguments = {"labels": labels, "use_cache": False} | ({"num_items_in_batch": torch.tensor(50)} if counted else {})
    full, chunked = model(x, **arguments), model(x, loss_chunk_tokens=7, **arguments)
    assert chunked.logits is None
    assert chunked.loss.item() == pytest.approx(full.loss.item(), rel=1e-6)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(chunked.loss, parameters), torch.autograd.grad(full.loss, parameters), strict=True
    ):
        assert worst(ours, theirs) < 1e-5


def test_the_chunked_loss_holds_few_logits_and_takes_autocast() -> None:
    model, x = make_model(make_genome()), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = model(x, labels=x, use_cache=False).loss
        chunked = model(x, labels=x, use_cache=False, loss_chunk_tokens=16).loss
    chunked.backward()
    assert chunked.item() == pytest.approx(full.item(), rel=1e-2)
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_the_chunked_loss_refuses_what_it_cannot_do() -> None:
    model, x = make_model(make_genome()), tokens()
    with pytest.raises(ValueError, match="`loss_chunk_tokens` must be 1 or more, got 0"):
        model(x, labels=x, loss_chunk_tokens=0)
    model.lm_head = torch.nn.Linear(64, 300, bias=True)
    with pytest.raises(ValueError, match="`loss_chunk_tokens` needs a plain lm_head"):
        model(x, labels=x, loss_chunk_tokens=8)


@pytest.mark.parametrize("name", ["llama", "conv, sliding, alibi", "layer_repeats, conv", "per layer"])
def test_ways_to_generate(name: str) -> None:
    model, x = make_model(make_genome(**GENES[name])), tokens(12)
    mask = torch.ones_like(x)
    mask[0, :4] = 0
    common = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    greedy = model.generate(x, **common)
    assert torch.equal(greedy, model.generate(x, use_cache=False, **common))
    assert torch.equal(greedy, model.generate(x, cache_implementation="static", disable_compile=True, **common))
    one = {**common, "attention_mask": mask[1:]}
    assert torch.equal(model.generate(x[1:], prompt_lookup_num_tokens=3, **one), greedy[1:])
    beams = model.generate(x, num_beams=3, **common)
    assert torch.equal(beams, model.generate(x, num_beams=3, use_cache=False, **common))
    sampled = model.generate(x, **(common | {"do_sample": True}))
    assert sampled.shape == (2, 18)


@pytest.mark.parametrize("name", ["llama", "conv, sliding, alibi", "layer_repeats, conv"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    model, x = make_model(make_genome(**GENES[name])).train(), tokens()
    parameters = list(model.parameters())
    plain = torch.autograd.grad(model(x, labels=x, use_cache=False).loss, parameters)
    model.activation_checkpointing_enable()
    for ours, theirs in zip(
        torch.autograd.grad(model(x, labels=x, use_cache=False).loss, parameters), plain, strict=True
    ):
        assert worst(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    "name", ["conv of 4 taps, sliding", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qk_norm", "per layer"))]
)
def test_compiles_in_one_graph(name: str) -> None:
    model, x = make_model(make_genome(**GENES[name])), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        assert worst(compiled(x, use_cache=False).logits, logits(model, x)) < TOLERANCE


def test_embeddings_can_be_resized() -> None:
    model = make_model(make_genome())
    before = logits(model, tokens())
    model.resize_token_embeddings(310)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert worst(logits(model, tokens())[..., :300], before) == 0
    assert model.config.vocab_size == 310


def test_classification_heads() -> None:
    config = make_genome(**GENES["conv"]).to_config(pad_token_id=0, eos_token_id=1)
    config.num_labels = 3
    whole = AutoModelForSequenceClassification.from_config(config)
    assert whole(tokens(), labels=torch.tensor([0, 2])).logits.shape == (2, 3)
    each = CodeNASForTokenClassification(config)
    assert each(tokens()).logits.shape == (2, 24, 3)


def test_fresh_buffers_and_scalars_are_right_after_loading(tmp_path: Path) -> None:
    # Loading builds on the meta device; a buffer that nobody refills holds garbage.
    model = make_model(make_genome(position_embedding_type="alibi", residual_scalars=True))
    model.save_pretrained(tmp_path)
    loaded = CodeNASForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.layers[1].self_attn.slopes, modeling.alibi_slopes(4))
    fresh = CodeNASForCausalLM(model.config)
    assert fresh.model.residual_scale.tolist() == [1.0] * 4


def test_what_a_backend_cannot_express_is_refused() -> None:
    def fake(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        assert mask is None
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2), None

    AttentionInterface.register("vllm", fake)
    x = tokens()
    model = make_model(make_genome(**GENES["qk_norm"]))
    plain = logits(model, x)
    model.set_attn_implementation("vllm")
    assert worst(logits(model, x), plain) < TOLERANCE
    for name, message in {
        "alibi": "cannot express the bias of `position_embedding_type` 'alibi'",
        "softcap": "cannot express `final_logit_softcapping`",
        "conv": "cannot express `layer_types`",
        "layer_repeats": "cannot express `layer_repeats`",
    }.items():
        model = make_model(make_genome(**GENES[name]))
        model.set_attn_implementation("vllm")
        with pytest.raises(ValueError, match=message):
            logits(model, x)


def test_flash_attention_is_refused_where_it_would_drop_the_bias() -> None:
    model = make_model(make_genome(**GENES["alibi"]))
    with pytest.raises(ValueError, match="flash attention cannot express the bias"):
        model.set_attn_implementation("flash_attention_2")


def test_flex_attention_is_refused_where_it_is_wrong() -> None:
    model = make_model(make_genome(head_dim=16))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="flex_attention on a CPU needs `head_dim` 32 or more, got 16"):
        logits(model, tokens())


def test_the_tensor_parallel_plan_names_what_is_there() -> None:
    for name in ("llama", "relu2", "qk_norm", "per layer"):
        model = make_model(make_genome(**GENES[name]))
        modules = {key.replace(f".{i}.", ".*.") for i in range(4) for key, _ in model.model.named_modules()}
        assert set(model.config.base_model_tp_plan) <= modules, name


def test_learned_positions_end() -> None:
    model = make_model(make_genome(**GENES["learned"]))
    assert logits(model, tokens(64)).shape[1] == 64
    with pytest.raises(ValueError, match=r"the text has 65 tokens, but the model learned 64 positions"):
        logits(model, tokens(65))


def test_needs_exactly_one_input() -> None:
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        make_model(make_genome()).model()


def test_the_vllm_plugin_finds_the_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    from codenas_hf.generation import loading

    loading.register()
    monkeypatch.setattr(loading, "CONFIG_MAPPING", {"codenas": StaticCache})
    with pytest.raises(loading.ModelTypeError, match="`codenas` should belong to"):
        loading.register()
