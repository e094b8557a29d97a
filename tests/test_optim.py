"""Optimisers and the rule that carries them across widths."""

import copy

import pytest
import torch
from training_fakes import tiny_model, weights
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM

from codenas_hf.training.distil import moving
from codenas_hf.training.muon import Muon, orthogonalise
from codenas_hf.training.optim import OptimSettings, rate_factor
from codenas_hf.training.optimizers import Optimizers
from codenas_hf.training.roles import build_model, initialise, parts, shift_free


def test_orthogonalise_brings_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((12, 30), (30, 12), (16, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(3, rows, columns, generator=generator)))
        assert 0.4 < float(values.min())
        assert float(values.max()) < 1.4


def test_muon_moves_as_torch_does() -> None:
    """Same update and scaling as torch.optim.Muon; torch works in bfloat16, hence the tolerance."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(8, 24), (24, 8), (8, 24)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    first = Muon(ours, lr=0.1, weight_decay=0.1, momentum=0.9, iterations=5)
    second = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, momentum=0.9)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    for a, b, c in zip(ours, theirs, start, strict=True):
        moved = (b - c).norm()
        assert float(((a - b).norm() / moved).detach()) < 0.02


def test_muon_iterates_as_often_as_it_is_told() -> None:
    generator = torch.Generator().manual_seed(2)
    gradient = torch.randn(8, 24, generator=generator)
    for iterations in (1, 3, 5):
        weight = torch.nn.Parameter(torch.zeros(8, 24))
        weight.grad = gradient.clone()
        Muon([weight], lr=1.0, momentum=0.0, iterations=iterations).step()
        torch.testing.assert_close(weight.detach(), -orthogonalise(gradient[None], iterations=iterations)[0])


def test_muon_takes_transposed_matrices_and_stacks() -> None:
    """The same update, however the matrix is stored."""
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(24, 8, generator=generator)
    plain, transposed = torch.nn.Parameter(torch.zeros(24, 8)), torch.nn.Parameter(torch.zeros(8, 24))
    stack = torch.nn.Parameter(torch.zeros(2, 24, 8))
    plain.grad, transposed.grad = gradient.clone(), gradient.mT.contiguous()
    stack.grad = torch.stack([gradient, -gradient])
    Muon([plain, stack], lr=1.0).step()
    Muon([{"params": [transposed], "transposed": True}], lr=1.0).step()
    torch.testing.assert_close(transposed.detach().mT, plain.detach())
    torch.testing.assert_close(stack.detach(), torch.stack([plain.detach(), -plain.detach()]))


def test_every_stock_model_has_its_roles() -> None:
    """Tables are embeddings under every name, and the matrices that write the residual stream start at zero."""
    config = GPT2Config(vocab_size=48, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = build_model(GPT2LMHeadModel, config, settings=OptimSettings(), seed=0)
    role = {part.name.removeprefix("transformer."): part.role for part in parts(model)}
    assert {role["wte.weight"], role["wpe.weight"]} == {"embedding"}
    assert role["h.1.attn.c_attn.weight"] == role["h.1.mlp.c_fc.weight"] == "matrix"
    assert role["h.1.attn.c_proj.weight"] == role["h.1.mlp.c_proj.weight"] == "out"
    assert {role["ln_f.weight"], role["ln_f.bias"]} == {"last_norm"}
    matrices = {part.name for part in parts(model) if part.role in ("matrix", "out")}
    optimizers = Optimizers(model, settings=OptimSettings())
    (muon,) = (o for o in optimizers.all if isinstance(o, Muon))
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for group in muon.param_groups for p in group["params"]} == matrices
    assert all(group["transposed"] for group in muon.param_groups)
    wide = dict(model.named_parameters())["transformer.h.0.mlp.c_fc.weight"]
    assert float(wide.std().detach()) == pytest.approx(16**-0.5, rel=0.2)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="Muon takes matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)


def test_width_rule_starts_logits_alike_at_every_width() -> None:
    ids = torch.arange(40)[None]
    spread = []
    for width in (16, 64, 256):
        model = tiny_model(width=width, layers=1, tied=False)
        spread.append(float(model(input_ids=ids).logits.std()))
        assert not model.model.layers[0].mlp.down_proj.weight.any()
        assert float(model.model.layers[0].mlp.up_proj.weight.std()) == pytest.approx(width**-0.5, rel=0.1)
    # A sum over the width of independent terms, times 1/width: it falls as 1/sqrt(width) before training.
    assert spread[0] / spread[2] == pytest.approx(4, rel=0.35)


def test_adamw_rate_of_matrices_falls_with_width_and_muons_does_not() -> None:
    def rates(width: int, kind: str) -> dict[str, float]:
        model = tiny_model(width=width)
        settings = OptimSettings(optimizer=kind, base_width=16)  # type: ignore[arg-type]
        names = {id(p): n for n, p in model.named_parameters()}
        return {
            names[id(p)]: group["lr"]
            for optimizer in Optimizers(model, settings=settings).all
            for group in optimizer.param_groups
            for p in group["params"]
        }

    matrix, embedding, gain = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"
    narrow, wide = rates(16, "adamw"), rates(64, "adamw")
    assert wide[matrix] == pytest.approx(narrow[matrix] / 4)
    assert wide[embedding] == narrow[embedding]
    assert wide[gain] < narrow[gain]
    narrow, wide = rates(16, "muon"), rates(64, "muon")
    assert wide[matrix] == narrow[matrix]


def test_what_softmax_does_not_see_of_a_readout_does_not_drift() -> None:
    """Forty steps with and without: the same probabilities, but only one of the two has logits around zero."""
    ids = torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(0))
    logits = []
    for centred in (True, False):
        model = tiny_model(tied=False)
        optimizers = Optimizers(model, settings=OptimSettings())
        if not centred:
            optimizers._centred = []
        for _ in range(40):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizers.step()
            optimizers.zero_grad()
        rows = model.lm_head.weight.detach()
        assert (float(rows.mean(0).abs().max()) < 1e-6) == centred
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(logits[0].softmax(-1), logits[1].softmax(-1), atol=1e-3, rtol=0)
    assert float(logits[0].mean(-1).abs().max()) < 1e-4 < 0.1 < float(logits[1].mean(-1).abs().max())


def test_a_readout_is_left_alone_where_a_shift_would_change_the_model() -> None:
    tiny = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    assert [p.shape for p in shift_free(tiny_model(tied=False))] == [tiny_model().lm_head.weight.shape]
    assert shift_free(tiny_model(tied=True)) == []
    assert shift_free(torch.nn.Linear(3, 3)) == []
    capped = Gemma2Config(**tiny, **heads, head_dim=8, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    assert shift_free(Gemma2ForCausalLM(capped)) == []
    with_bias = PhiForCausalLM(PhiConfig(**tiny, **heads, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        with_bias.lm_head.bias.normal_()
    assert {id(p) for p in shift_free(with_bias)} == {id(p) for p in with_bias.lm_head.parameters()}


@pytest.mark.parametrize("what", ["norms", "low_rank"])
def test_a_readout_that_is_frozen_or_corrected_is_left_alone(what: str) -> None:
    model = tiny_model(tied=False)
    with moving(model, what, rank=1):  # type: ignore[arg-type]
        assert shift_free(model) == []
    assert len(shift_free(model)) == 1


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    first = weights(tiny_model(seed=1))
    torch.manual_seed(6)
    assert torch.equal(first, weights(tiny_model(seed=1)))
    assert not torch.equal(first, weights(tiny_model(seed=2)))


def test_initialise_model_keeps_what_the_class_drew() -> None:
    model = tiny_model(initialise="model")
    before = weights(model)
    initialise(model, settings=OptimSettings(initialise="model"), seed=3)
    assert torch.equal(before, weights(model))
    assert float(model.model.norm.weight.mean()) == 1.0


def test_schedule_warms_up_stays_and_decays_to_zero() -> None:
    settings = OptimSettings(warmup_steps=10, decay_share=0.25)
    rate = [rate_factor(s / 200, s, settings=settings, planned_steps=200) for s in range(200)]
    assert rate[0] == pytest.approx(0.1)
    assert rate[9:151] == pytest.approx([1.0] * 142)
    assert rate[175] == pytest.approx(0.5)
    assert 0 < rate[199] < 0.05
    short = [rate_factor(s / 20, s, settings=settings, planned_steps=20) for s in range(20)]
    assert short[2] == 1.0, "warm-up takes at most a tenth of the budget"
    cosine = OptimSettings(schedule="cosine", warmup_steps=0)
    assert rate_factor(1.0, 99, settings=cosine, planned_steps=100) == pytest.approx(0.1)


def test_state_survives_a_round_trip_and_refuses_strangers() -> None:
    model = tiny_model()
    optimizers = Optimizers(model, settings=OptimSettings())
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizers.step()
    state = copy.deepcopy(optimizers.state_dict())
    assert any(key.endswith("|momentum_buffer") for key in state)
    fresh = Optimizers(model, settings=OptimSettings())
    fresh.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(ValueError, match="written by another optimiser than AdamW"):
        Optimizers(model, settings=OptimSettings(optimizer="adamw")).load_state_dict(state)
    with pytest.raises(ValueError, match=r"has 'other\.weight', which this model does not train"):
        fresh.load_state_dict({"other.weight|step": torch.ones(())})


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("learning_rate", 0.0, "`learning_rate` must be above 0"),
        ("momentum", 1.0, "`momentum` must be at least 0 and below 1"),
        ("weight_decay", -1.0, "`weight_decay` must be 0 or more"),
        ("gradient_clip", 0.0, "`gradient_clip` must be above 0"),
        ("base_width", 0, "`base_width` must be 1 or more"),
    ],
)
def test_settings_refuse_what_cannot_work(field: str, value: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        OptimSettings(**{field: value})  # type: ignore[arg-type]
