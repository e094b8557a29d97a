"""What stays makes up for what leaves: outputs are missed less than by plain cutting and rounding, on any moments."""

import copy

import gguf
import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from codenas_hf.compression.formats import BLOCKS, FORMATS
from codenas_hf.compression.quantize import as_stored, quantize, store_in
from codenas_hf.compression.repair import repaired, rounded, second_moments, store_repaired

FEW_BITS = [name for name, block in BLOCKS.items() if block.points and block.bits < 8]
ROWS, COLUMNS = 40, 96


def inputs(seed: int = 0, *, rank: int = 24, noise: float = 0.3) -> torch.Tensor:
    """`[tokens, columns]` that hang together, as those of a trained model do."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(2000, rank, generator=generator)
    mixed = causes @ torch.randn(rank, COLUMNS, generator=generator)
    return mixed + noise * torch.randn(2000, COLUMNS, generator=generator)


def weight(seed: int = 1) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.1


def moments_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows / len(rows)


SINGULAR = {
    "zero": torch.zeros(COLUMNS, COLUMNS),
    "rank one": torch.ones(COLUMNS, COLUMNS),
    "idle inputs": moments_of(inputs() * (torch.arange(COLUMNS) % 3 > 0)),
    "few tokens": moments_of(inputs()[:5]),
}


def test_moments_are_means_and_shared_inputs_are_counted_once() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 6)
            self.third = nn.Linear(4, 2)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.third(self.first(rows).relu()) + self.second(rows)[..., :2]

    model = Pair()
    texts = [torch.randn(2, 5, 8), torch.randn(3, 7, 8)]
    with second_moments(model, {name: f"{name}.weight" for name in ("first", "second", "third")}) as found:
        for text in texts:
            model(text)
    rows = torch.cat([text.flatten(0, 1) for text in texts])
    assert found.sums.keys() == {"first.weight", "third.weight"} | ({"second.weight"} - found.same.keys())
    assert torch.allclose(found.sums["first.weight"], moments_of(rows), atol=1e-5)
    assert torch.allclose(found.sums["third.weight"], moments_of(model.first(rows).relu()), atol=1e-5)
    before = found.sums["first.weight"].clone()
    model(texts[0])
    assert torch.equal(found.sums["first.weight"], before)


def test_matrices_side_by_side_share_their_moments() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.up(rows) * self.gate(rows)

    model = Gated()
    with second_moments(model, {"up": "up.weight", "gate": "gate.weight"}) as found:
        model(torch.randn(2, 3, 8))
        model(torch.randn(2, 3, 8))
    assert found.sums.keys() == {"up.weight"}
    assert found.same == {"gate.weight": "up.weight"}


def test_repair_is_the_least_squares_fit_and_better_than_plain_cutting() -> None:
    rows, full = inputs(), weight()
    kept = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(2))[:64]
    wanted = rows @ full.T
    found = repaired(full, moments_of(rows), kept)
    missed = float((rows[:, kept] @ found.T - wanted).norm())
    plain = float((rows[:, kept] @ full[:, kept].T - wanted).norm())
    best = float((rows[:, kept] @ torch.linalg.lstsq(rows[:, kept], wanted).solution - wanted).norm())
    assert missed < 0.3 * plain
    assert best <= missed < 1.2 * best
    other = inputs(seed=0)[1000:] * 1.0  # of the same kind; the text is not learned by heart
    fit = repaired(full, moments_of(rows[:1000]), kept)
    assert (other[:, kept] @ fit.T - other @ full.T).norm() < 0.5 * (
        other[:, kept] @ full[:, kept].T - other @ full.T
    ).norm()


def test_a_neuron_that_others_stand_for_leaves_without_a_trace() -> None:
    rows = torch.randn(2000, COLUMNS, generator=torch.Generator().manual_seed(3))
    rows[:, 10] = rows[:, 40] - rows[:, 41]  # as large as all others, but known from two of them
    rows[:, 20] = 0
    full = weight()
    kept = torch.tensor([at for at in range(COLUMNS) if at not in (10, 20)])
    found = repaired(full, moments_of(rows), kept)
    wanted = rows @ full.T
    assert (rows[:, kept] @ found.T - wanted).norm() < 0.02 * wanted.norm()
    assert (rows[:, kept] @ full[:, kept].T - wanted).norm() > 0.05 * wanted.norm()


@pytest.mark.parametrize("name", FEW_BITS)
def test_rounding_column_by_column_misses_outputs_less(name: str) -> None:
    rows, full, block = inputs(), weight(), BLOCKS[name]
    moments = moments_of(rows)
    plain, found = quantize(full, block), rounded(full, block, moments)
    missed, before = (float((rows @ (codes.decoded() - full).T).norm()) for codes in (found, plain))
    assert missed < 0.8 * before
    assert torch.equal(found.scales, plain.scales)
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    assert np.array_equal(gguf.quants.dequantize(found.packed(), kind), found.decoded().numpy())


@pytest.mark.parametrize("name", FEW_BITS)
def test_what_was_rounded_so_is_stored_again_without_loss(name: str) -> None:
    """A file is written from the weights, so the codes must follow from them: scales too."""
    full, block = weight(), BLOCKS[name]
    full[3] = 0
    full[4, ::7] *= 50
    full[5] = -full[5].abs()
    full[6] = full[6].abs() + 1
    for moments in (moments_of(inputs()), moments_of(inputs(rank=2, noise=0.01)), *SINGULAR.values()):
        once = rounded(full, block, moments).decoded()
        again = quantize(once, block)
        assert torch.allclose(again.decoded(), once, rtol=1e-3, atol=0)
        assert torch.equal(rounded(once, block, moments).decoded(), again.decoded())


@pytest.mark.parametrize("name", FEW_BITS)
def test_inputs_that_do_not_hang_together_change_no_rounding(name: str) -> None:
    full, block = weight(), BLOCKS[name]
    plain = quantize(full, block)
    for moments in (None, torch.eye(COLUMNS), torch.diag(torch.rand(COLUMNS) + 0.1)):
        assert torch.equal(rounded(full, block, moments).codes, plain.codes)


@pytest.mark.parametrize("kind", SINGULAR)
def test_singular_moments_do_no_harm(kind: str) -> None:
    """Text that moves few inputs says nothing of the others: they stay what they were, and nothing grows large."""
    full, moments = weight(), SINGULAR[kind]
    kept = torch.arange(COLUMNS).flip(0)[:64]
    found = repaired(full, moments, kept)
    assert torch.isfinite(found).all()
    assert found.abs().max() < 10 * full.abs().max()
    codes = rounded(full, BLOCKS["iq4_nl"], moments).decoded()
    assert (codes - full).abs().max() < full.abs().max()
    if kind == "zero":
        assert torch.equal(found, full[:, kept])


def test_a_model_stored_with_repair_misses_less_and_what_is_stored_stays() -> None:
    """What no training moved is on its grid already, and is not rounded to another point of it."""
    torch.manual_seed(0)
    config = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**config, **heads)).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    text = torch.randint(64, (32, 32), generator=torch.Generator().manual_seed(1))
    wanted = model(input_ids=text).logits.detach()
    form = FORMATS["q4_0"]
    plain, mended = copy.deepcopy(model), copy.deepcopy(model)
    store_in(plain, form)
    store_repaired(mended, form, [text[:16], text[16:]])
    missed, before = (float((each(input_ids=text).logits - wanted).norm()) for each in (mended, plain))
    assert missed < 0.9 * before
    for name, parameter in mended.named_parameters():  # a file that is written from it holds it exactly
        block = form.block_of(name, tuple(parameter.shape))
        assert torch.equal(as_stored(parameter, block), parameter), name
    once = {name: parameter.detach().clone() for name, parameter in mended.named_parameters()}
    store_repaired(mended, form, [text])
    assert all(torch.equal(parameter, once[name]) for name, parameter in mended.named_parameters())
