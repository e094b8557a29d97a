"""Tokens per second of the training loop against `transformers.Trainer`: `python -m benchmarks.train_speed`.

The same model, shapes and tokens. `equal` trains both with fused AdamW, float32, without gradient accumulation;
`defaults` lets each choose (ours: Muon, bfloat16 where the processor has it, chunked loss; Trainer: what
TrainingArguments says).
Arms are interleaved, so that a busy moment of the machine meets all of them; each trainer has a process of its own, so
that neither finds what the other sets (ours keeps the memory that a step frees). Beside tokens per second: the share
of the ceiling of plain matrix products, measured in between, and the share of our step that is neither forward,
backward nor optimiser.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.engine import Budget
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.training import OptimSettings, TrainSettings, build_model, train
from codenas_hf.training.budgets import flops_per_token

LENGTH, SEQUENCES = 256, 4


class RandomTokens:
    """Uniform tokens: speed does not depend on what is learned."""

    digest = "random"
    bytes_per_token = 3.0

    def __init__(self, vocab_size: int) -> None:
        self.ids = np.random.default_rng(0).integers(vocab_size, size=(256, LENGTH))

    def batch(self, step: int, *, sequences: int, length: int, **_: Any) -> dict[str, np.ndarray]:
        """Rows in turn, each one document."""
        ids = self.ids[(step * sequences + np.arange(sequences)) % len(self.ids), :length]
        return {"input_ids": ids, "labels": ids.copy(), "position_ids": np.tile(np.arange(length), (sequences, 1))}


def ours(genome: Genome, *, steps: int, settings: TrainSettings) -> float:
    """Tokens per second of our loop."""
    torch.set_num_threads(1)
    model = build_model(CodeNASForCausalLM, genome.to_config(), settings=settings.optim, seed=0)
    return train(model, RandomTokens(genome.vocab_size), Budget("steps", steps), settings=settings).tokens_per_second


def trainers(genome: Genome, *, steps: int, equal: bool) -> float:
    """Tokens per second of `Trainer`, from its own timing of the training loop."""
    torch.set_num_threads(1)
    model = CodeNASForCausalLM(genome.to_config())
    rows = RandomTokens(genome.vocab_size).ids
    dataset = [{"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(row)} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        same: dict[str, Any] = (
            {"optim": "adamw_torch_fused", "lr_scheduler_type": "constant", "max_grad_norm": 1.0} if equal else {}
        )
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=SEQUENCES, report_to=[],
            save_strategy="no", disable_tqdm=True, logging_steps=500 if not equal else 10, use_cpu=True, **same,
        )  # fmt: skip
        output = Trainer(model=model, args=arguments, train_dataset=dataset).train()
    return steps * SEQUENCES * LENGTH / float(output.metrics["train_runtime"])


def matmul_flops(genome: Genome) -> float:
    """Operations per second of plain float32 products of the shapes in the model, forward only."""
    x = torch.randn(SEQUENCES * LENGTH, genome.hidden_size)
    weights = [torch.randn(genome.hidden_size, n) for n in (genome.hidden_size, genome.at("intermediate_size", 0))]
    count, start = 0.0, time.perf_counter()
    while time.perf_counter() - start < 0.5:
        for weight in weights:
            x @ weight
            count += 2.0 * x.numel() * weight.shape[1]
    return count / (time.perf_counter() - start)


def outside_share(genome: Genome, *, steps: int, settings: TrainSettings) -> float:
    """Share of our loop's time that is neither forward, backward nor optimiser, by wrapping those three."""
    inside = [0.0]

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                inside[0] += time.perf_counter() - start

        return call

    from accelerate import Accelerator

    from codenas_hf.training.optimizers import Optimizers

    model = build_model(CodeNASForCausalLM, genome.to_config(), settings=settings.optim, seed=0)
    model.forward = timed(model.forward)
    accelerator = Accelerator(cpu=True)
    accelerator.backward = timed(accelerator.backward)
    step, Optimizers.step = Optimizers.step, timed(Optimizers.step)  # type: ignore[method-assign]
    try:
        tokens = RandomTokens(genome.vocab_size)
        result = train(model, tokens, Budget("steps", steps), settings=settings, accelerator=accelerator)
    finally:
        Optimizers.step = step  # type: ignore[method-assign]
    return 1 - inside[0] / result.seconds


def main() -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of one run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--genomes", nargs="+", type=Path, default=None, help="genome files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(__file__).parent.parent / "configs" / "genomes"
    names = ("llama_l8h512_1mb", "llama_l8h512_2mb", "searched_4mb")
    files = arguments.genomes or [folder / f"{name}.yaml" for name in names]
    shape = {"sequence_length": LENGTH, "tokens_per_step": LENGTH * SEQUENCES}
    default = TrainSettings(**shape)  # type: ignore[arg-type]
    equal = TrainSettings(**shape, precision="float32", optim=OptimSettings(optimizer="adamw"))  # type: ignore[arg-type]
    rows, ratios = [], {"defaults": [], "equal": []}  # type: ignore[var-annotated]
    apart = multiprocessing.get_context("spawn")
    for file in files:
        genome = Genome.from_yaml(file)
        speeds: dict[str, list[float]] = {}
        with ExitStack() as stack:
            mine, theirs = (stack.enter_context(ProcessPoolExecutor(1, mp_context=apart)) for _ in range(2))
            for repeat in range(arguments.repeats + 1):
                found = {"matmul": matmul_flops(genome)}
                for arm, how in {"defaults": default, "equal": equal}.items():
                    found[f"ours {arm}"] = mine.submit(ours, genome, steps=arguments.steps, settings=how).result()
                    same = arm == "equal"
                    found[f"Trainer {arm}"] = theirs.submit(
                        trainers, genome, steps=arguments.steps, equal=same
                    ).result()
                if repeat:  # the first round warms up
                    for name, value in found.items():
                        speeds.setdefault(name, []).append(value)
        model = CodeNASForCausalLM(genome.to_config())
        flops = flops_per_token(model, length=LENGTH)
        for arm in ("defaults", "equal"):
            pairs = [a / b for a, b in zip(speeds[f"ours {arm}"], speeds[f"Trainer {arm}"], strict=True)]
            ratios[arm].append(statistics.median(pairs))
            settings = default if arm == "defaults" else equal
            rows.append(
                {
                    "genome": file.stem,
                    "settings": arm,
                    "parameters_millions": genome.num_parameters() / 1e6,
                    "tokens_per_s": statistics.median(speeds[f"ours {arm}"]),
                    "trainer_tokens_per_s": statistics.median(speeds[f"Trainer {arm}"]),
                    "ratio": ratios[arm][-1],
                    "share_of_matmul_ceiling": statistics.median(
                        s * flops / m for s, m in zip(speeds[f"ours {arm}"], speeds["matmul"], strict=True)
                    ),
                    "share_outside": outside_share(genome, steps=arguments.steps, settings=settings),
                }
            )
            print(rows[-1], flush=True)
    targets = [
        target("tokens/s against Trainer, defaults of both, lowest", min(ratios["defaults"]), 1.3, better="higher"),
        target("tokens/s against Trainer, equal settings, lowest", min(ratios["equal"]), 1.0, better="higher"),
    ]
    facts = protocol(
        threads=1, steps=arguments.steps, repeats=arguments.repeats, tokens_per_step=LENGTH * SEQUENCES, context=LENGTH
    )
    write("train_speed", protocol=facts, rows=rows, targets=targets)


if __name__ == "__main__":
    main()
