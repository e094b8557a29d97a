"""Attention in blocks: the numbers of whole products, in the time and memory of a part of them."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from codenas_hf import CodeNASConfig, CodeNASForCausalLM
from codenas_hf.training.attention import _BLOCK, NAME, blocks_attention_forward, fast_attention
from codenas_hf.training.memory import keep_freed_memory

STOCK: dict[str, Any] = {
    "llama": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    ),
    "qwen3 with windows": Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, use_sliding_window=True, sliding_window=40, max_window_layers=1,
    ),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=512, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0
    ),
    "ours": CodeNASConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1,
    ),
}  # fmt: skip


def packed(rows: int, length: int, *, documents: int) -> torch.Tensor:
    """A mask of documents that do not see each other, [rows, 1, length, length], to add."""
    document = torch.arange(length) * documents // length
    positions = torch.arange(length)
    seen = (positions[:, None] >= positions) & (document[:, None] == document)
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min).expand(rows, 1, -1, -1).contiguous()


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The definition, in the precision of its arguments."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + mask, dim=-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "length"), [(7, 16), (2, _BLOCK), (1, _BLOCK + 1), (3, 2 * _BLOCK + 44)], ids=lambda value: str(value)
)
def test_forward_and_gradients_are_those_of_the_definition(rows: int, length: int, dtype: torch.dtype) -> None:
    """Rows in groups, rows in one block, in several, and a last block that is not full; two heads share a key."""
    torch.manual_seed(0)
    shapes = [(rows, heads, length, 16) for heads in (4, 2, 2)]
    exact = [torch.randn(shape, dtype=torch.float64).to(dtype).double().requires_grad_() for shape in shapes]
    blocks = [x.detach().to(dtype).requires_grad_() for x in exact]
    mask, back = packed(rows, length, documents=3), torch.randn(rows, length, 4, 16)
    expected = whole(*exact, mask.double())
    expected.backward(back.double())
    found, weights = blocks_attention_forward(torch.nn.Identity(), *blocks, mask)
    found.backward(back.to(dtype))
    assert weights is None
    # sums over blocks are kept in float32; bfloat16 has eight binary digits, and a gradient is some roundings long
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float64 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found.double(), expected, **close)
    for ours, theirs in zip(blocks, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **close)


@pytest.mark.parametrize("name", STOCK)
def test_a_model_learns_what_it_would_learn_in_whole_products(name: str) -> None:
    """Loss and gradients of a model in bfloat16: as near to those of float32 as whole products are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(STOCK[name], attn_implementation="sdpa")
    ids = torch.randint(64, (2, 300))
    positions = torch.cat([torch.arange(120), torch.arange(180)]).expand(2, -1)  # two documents in a row

    def gradients(dtype: torch.dtype) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradients(torch.float32)
    model.set_attn_implementation("eager")
    plain = gradients(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    with fast_attention(model, torch.bfloat16, length=300):
        assert model.config._attn_implementation == NAME
        found = gradients(torch.bfloat16)
    assert model.config._attn_implementation == "sdpa"
    assert (found - exact).norm() <= 2 * (plain - exact).norm() + 1e-4 * exact.norm()
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_a_row_that_sees_nothing_spoils_nothing() -> None:
    """Padding on the left."""
    torch.manual_seed(0)
    x, mask = torch.randn(1, 2, 6, 8), packed(1, 6, documents=1)
    mask[:, :, :, :2] = torch.finfo(torch.float32).min
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = blocks_attention_forward(torch.nn.Identity(), x, x, x, mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 2:].float(), whole(x, x, x, mask)[:, 2:], rtol=0.05, atol=0.05)


def test_what_blocks_cannot_do_goes_to_the_kernel() -> None:
    """Dropout and other than causal lengths, as torch has them; a bias of positions stays with whole products."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 5, 8)
    found, _ = blocks_attention_forward(torch.nn.Identity(), query, key, key, torch.zeros(1, 1, 1, 5))
    torch.testing.assert_close(found, whole(query, key, key, torch.zeros(1, 1, 1, 5)))
    same = torch.randn(1, 2, 5, 8)
    dropped, _ = blocks_attention_forward(
        torch.nn.Identity(), same, same, same, packed(1, 5, documents=1), dropout=0.9
    )
    assert not torch.allclose(dropped, whole(same, same, same, packed(1, 5, documents=1)))
    alibi = CodeNASForCausalLM(
        CodeNASConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            position_embedding_type="alibi",
        )
    )  # fmt: skip
    with fast_attention(alibi, torch.bfloat16, length=16):
        assert alibi.config._attn_implementation == "eager"
        alibi(input_ids=torch.zeros((1, 16), dtype=torch.long), use_cache=False)


@pytest.mark.parametrize(
    ("most", "set_to"),
    [(1 << 40, {-3: 1 << 30, -1: (1 << 31) - 1}), (1 << 25, {-3: 1 << 25, -1: (1 << 31) - 1}), (0, {})],
)
def test_a_c_library_that_takes_no_such_threshold_is_left_as_it_is(
    most: int, set_to: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == -3 and value > most:
            return 0
        taken[option] = value
        return 1

    monkeypatch.setattr("codenas_hf.training.memory.ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert taken == set_to


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_a_process_that_keeps_what_it_frees_asks_for_no_pages() -> None:
    program = """
import resource, sys
import torch
from codenas_hf.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    a = torch.ones(12_000_000)
    b = a + a
    del a, b
for _ in range(20):  # until the heap has the holes that a step needs
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for how in ("keep", "give back"):
        done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True, text=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["give back"] / 2
