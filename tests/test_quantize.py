"""What is computed equals what the reader decodes, bit for bit; errors come before anything is changed."""

import gguf
import numpy as np
import pytest
import torch

from codenas_hf.compression.formats import BLOCKS, FORMATS, find_format
from codenas_hf.compression.quantize import as_stored, nearest, quantize, store_in, stored_bytes, stored_weights

CODED = [name for name, block in BLOCKS.items() if block.points]


def weights(rows: int = 48, columns: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=generator) * torch.logspace(-1.5, 2, rows)[:, None]
    matrix[3] = 0
    matrix[4, ::7] *= 50
    matrix[5] = -matrix[5].abs()
    return matrix


@pytest.mark.parametrize("name", CODED)
def test_our_decoding_is_the_readers(name: str) -> None:
    found = quantize(weights(), BLOCKS[name])
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    theirs = gguf.quants.dequantize(found.packed(), kind)
    assert np.array_equal(theirs, found.decoded().numpy())
    assert found.packed().nbytes == BLOCKS[name].num_bytes(*weights().shape)


@pytest.mark.parametrize("name", CODED)
def test_each_weight_takes_the_nearest_point(name: str) -> None:
    """Also beyond the outer points and on the borders, where the lower one is taken."""
    points = torch.tensor(BLOCKS[name].points, dtype=torch.float32)
    borders = (points[1:] + points[:-1]) / 2
    values = torch.cat([points, borders, borders + 1e-4, borders - 1e-4, points * 3, torch.linspace(-140, 140, 4099)])
    values = torch.nn.functional.pad(values, (0, -len(values) % 32)).view(-1, 32)
    for size in (1.0, -0.5, 0.0):
        codes, error = nearest(values.clone(), torch.full((len(values),), size), BLOCKS[name])
        wanted = torch.zeros_like(values) if size == 0 else values / size
        assert torch.equal(codes.long(), torch.bucketize(wanted, borders))
        assert torch.allclose(error, ((points[codes.long()] * size - values) ** 2).sum(dim=1))


@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4"])
def test_no_worse_than_the_reference_encoder(name: str) -> None:
    matrix = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    reference = gguf.quants.dequantize(gguf.quants.quantize(matrix.numpy(), kind), kind)
    ours = quantize(matrix, BLOCKS[name]).decoded().numpy()
    assert np.linalg.norm(ours - matrix.numpy()) <= 1.0001 * np.linalg.norm(reference - matrix.numpy())


def test_no_other_power_of_two_is_better() -> None:
    matrix, block = weights(64, 32), BLOCKS["mxfp4"]
    found = quantize(matrix, block)
    missed = (found.decoded() - matrix).square().sum(dim=1)
    for shift in (-3, -2, -1, 1, 2, 3):
        _, error = nearest(matrix.clone(), found.scales.float().squeeze(1) * 2.0**shift, block)
        assert (missed <= error * 1.0001 + 1e-12).all(), shift


@pytest.mark.parametrize("name", CODED)
def test_what_is_stored_is_stored_again_without_loss(name: str) -> None:
    once = quantize(weights(), BLOCKS[name]).decoded()
    again = quantize(once, BLOCKS[name]).decoded()
    assert torch.allclose(again, once, rtol=1e-3, atol=0)  # a scale may round differently by its last bit


@pytest.mark.parametrize("name", ["bf16", "f16", "f32"])
def test_floating_point_formats_round_and_nothing_else(name: str) -> None:
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[name]
    assert torch.equal(as_stored(weights(), BLOCKS[name]), weights().to(dtype).float())


def test_rows_that_are_no_whole_blocks_and_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="q8_0 stores rows in blocks of 32 weights, got rows of 112"):
        quantize(torch.zeros(4, 112), BLOCKS["q8_0"])
    with pytest.raises(ValueError, match="does not fit q4_0"):
        quantize(torch.full((1, 32), torch.inf), BLOCKS["q4_0"])
    with pytest.raises(ValueError, match="bf16 stores numbers as they are"):
        quantize(torch.zeros(1, 32), BLOCKS["bf16"])
    with pytest.raises(ValueError, match=r"must be one of bf16, .*, got 'int3'"):
        find_format("int3")


def test_a_model_is_stored_layer_by_layer_and_tied_tables_once() -> None:
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(64, 32),
            "proj": torch.nn.Linear(32, 64, bias=False),
            "norm": torch.nn.LayerNorm(32),
        }
    )
    model["lm_head"] = torch.nn.Linear(32, 64, bias=False)
    model["lm_head"].weight = model["embed"].weight
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    form = FORMATS["iq4_nl"]
    store_in(model, form)
    for name, parameter in model.named_parameters():
        block = form.block_of(name, tuple(parameter.shape))
        assert torch.equal(parameter, as_stored(before[name], block)), name
    names = {form.block_of(name, tuple(p.shape)).name for name, p in model.named_parameters()}
    assert names == {"iq4_nl", "q8_0", "f32"}


def test_bytes_are_those_of_the_packed_tensors() -> None:
    shapes = {"model.embed_tokens.weight": (64, 32), "q_proj.weight": (32, 32), "norm.weight": (32,)}
    assert stored_bytes(shapes, FORMATS["iq4_nl"]) == 64 * 34 + 32 * 18 + 32 * 4
    assert stored_bytes(shapes, FORMATS["bf16"]) == 2 * (64 * 32 + 32 * 32 + 32)


def test_a_layer_that_cannot_be_stored_is_named() -> None:
    model = torch.nn.ModuleDict({"narrow": torch.nn.Linear(48, 4, bias=False)})
    with pytest.raises(ValueError, match=r"`narrow.weight` \[4, 48\] cannot be stored as q8_0"):
        store_in(model, FORMATS["q8_0"])


def test_gradients_pass_straight_through() -> None:
    layer = torch.nn.Linear(32, 4, bias=False)
    full = layer.weight.detach().clone()
    inputs = torch.randn(8, 32)
    with stored_weights(layer, FORMATS["q4_0"]):
        assert torch.equal(layer.weight, as_stored(full, BLOCKS["q4_0"]))
        layer(inputs).sum().backward()
    assert torch.equal(layer.weight, full)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, inputs.sum(dim=0).expand(4, 32))
