"""Our model against stock Llama and GPT-2 of equal shape and parameter count: `python -m benchmarks.model_speed`.

Training (forward and backward), prefill, decode with a cache, and the memory of the vocabulary logits. The models of
one row take turns within each repeat, so that a busy or hot machine is shared out; the statistic is the median. The
share of the ceiling is the model's matrix products per second over those of square products of its hidden size.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.release.export import export_stock

GPT2: dict[str, Any] = {
    "norm_type": "layernorm",
    "mlp_type": "plain",
    "hidden_act": "gelu",
    "position_embedding_type": "learned",
    "max_position_embeddings": 1024,
}
SHAPES: dict[str, dict[str, int]] = {
    "1M": {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352},
    "6M": {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 704},
}
CHUNK = 512
NEW_TOKENS = 32


def make(shape: str, peer: str) -> tuple[CodeNASForCausalLM, PreTrainedModel]:
    """Ours, and the stock model with the same weights."""
    torch.manual_seed(0)
    genes: dict[str, Any] = {
        **SHAPES[shape],
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if peer == "gpt2" else 2,
    }
    ours = CodeNASForCausalLM(Genome(**genes, **(GPT2 if peer == "gpt2" else {})).to_config()).eval()
    stock = export_stock(ours)
    assert stock.config.model_type == peer
    return ours, stock


def medians(runs: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median milliseconds of each; all are warmed up twice and then take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def train_step(model: Any, tokens: torch.Tensor, **arguments: Any) -> None:
    """Forward and backward."""
    model.train()
    model.zero_grad(set_to_none=True)
    model(tokens, labels=tokens, use_cache=False, **arguments).loss.backward()


@torch.inference_mode()
def prefill(model: Any, tokens: torch.Tensor) -> None:
    """A prompt, and the logits of its last position."""
    model.eval()
    model(tokens, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def decode(model: Any, tokens: torch.Tensor) -> None:
    """New tokens one at a time after a short prompt."""
    model.eval()
    cache = DynamicCache(config=model.config)
    token = tokens[:, :16]
    for _ in range(NEW_TOKENS):
        token = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)


def matmul_ceiling(size: int, rows: int, repeats: int) -> float:
    """Floating point operations per second of the product [rows, size] x [size, size], median."""
    a, b = torch.randn(rows, size), torch.randn(size, size)
    times = []
    for _ in range(repeats * 10):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * rows * size * size / statistics.median(times)


def peak_logits_bytes(chunk: int | None, tokens: int, vocab_size: int) -> int:
    """By how many bytes one training step of a nearly empty model raises the resident memory of a fresh process."""
    code = f"""
import re, torch
from codenas_hf.architecture.genome import Genome
from codenas_hf.generation.loading import CodeNASForCausalLM
genes = dict(vocab_size={vocab_size}, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
model = CodeNASForCausalLM(Genome(**genes).to_config())
def step(rows, chunk):
    x = torch.randint(0, {vocab_size}, (rows, 256))
    model(x, labels=x, use_cache=False, loss_chunk_tokens=chunk).loss.backward()
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
step(1, 8)
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew; imports may have held more
step({tokens} // 256, {chunk})
print((kilobytes("VmHWM") - before) * 1024)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--compile", action="store_true", help="also time training under torch.compile (needs g++)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for shape in arguments.shapes:
        for peer in ("llama", "gpt2"):
            ours, stock = make(shape, peer)
            row, ratio = measure(shape, peer, ours, stock, arguments)
            rows.append(row)
            ratios |= ratio
    memory = {name: peak_logits_bytes(chunk, 8192, 8192) for name, chunk in (("all", None), ("chunked", CHUNK))}
    shares = {f"peak_{name}_bytes": value for name, value in memory.items()}
    rows.append({"shape": "vocabulary 8192, 8192 tokens", "peer": "all logits at once", **shares})
    targets = [target(f"training speed, {name}", value, 1.0, better="higher") for name, value in ratios.items()]
    targets.append(
        target("peak memory of the logits, chunked / all", memory["chunked"] / memory["all"], 0.25, better="lower")
    )
    facts = protocol(threads=arguments.threads, repeats=arguments.repeats, statistic="median", dtype="float32")
    write("model_speed", protocol=facts, rows=rows, targets=targets)


def measure(
    shape: str, peer: str, ours: CodeNASForCausalLM, stock: PreTrainedModel, arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, float]]:
    """One row, and how much faster than the peer we train."""
    tokens = torch.randint(0, ours.config.vocab_size, (8, 256), generator=torch.Generator().manual_seed(0))
    training: dict[str, Callable[[], Any]] = {
        "peer": lambda: train_step(stock, tokens),
        "ours": lambda: train_step(ours, tokens),
        "ours_chunked": lambda: train_step(ours, tokens, loss_chunk_tokens=CHUNK),
    }
    if arguments.compile:
        compiled = {"peer_compiled": torch.compile(stock), "ours_compiled": torch.compile(ours)}
        training["peer_compiled"] = lambda: train_step(compiled["peer_compiled"], tokens)
        training["ours_compiled"] = lambda: train_step(compiled["ours_compiled"], tokens)
    train_ms = medians(training, repeats=arguments.repeats)
    prefill_ms, decode_ms = (
        medians(
            {"peer": partial(run, stock, tokens[:1]), "ours": partial(run, ours, tokens[:1])},
            repeats=arguments.repeats,
        )
        for run in (prefill, decode)
    )
    matrices = sum(p.numel() for name, p in ours.named_parameters() if p.dim() == 2 and "embed_positions" not in name)
    achieved = 6 * matrices * tokens.numel() / (train_ms["ours_chunked"] / 1e3)
    ceiling = matmul_ceiling(ours.config.hidden_size, tokens.numel(), arguments.repeats)
    row = {
        "shape": shape,
        "peer": peer,
        "parameters": ours.num_parameters(),
        **{f"train_{name}_ms": round(value, 2) for name, value in train_ms.items()},
        **{f"prefill_{name}_ms": round(value, 3) for name, value in prefill_ms.items()},
        **{f"decode_{name}_ms_per_token": round(value / NEW_TOKENS, 3) for name, value in decode_ms.items()},
        "matmul_share_of_ceiling": round(achieved / ceiling, 3),
    }
    name = f"{shape} against {peer}, eager"
    ratios = {f"{name}, our chunked loss": train_ms["peer"] / train_ms["ours_chunked"]}
    ratios[f"{name}, the same loss"] = train_ms["peer"] / train_ms["ours"]
    if arguments.compile:
        ratios[f"{shape} against {peer}, compiled"] = train_ms["peer_compiled"] / train_ms["ours_compiled"]
    return row, ratios


if __name__ == "__main__":
    main()
