"""Does one learning rate suit every shape? `python -m benchmarks.width_transfer`.

Trains Llama shapes of four widths and three depths for the same steps over a grid of factors on all learning rates,
with the width rule, and without it as the peer (weights as the model class draws them, AdamW at one rate). Reported:
each shape's best factor, and what the common factor 1 costs it. Finished runs are kept in `--folder` and found again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.measure.score import score_passages
from codenas_hf.training import DivergenceError, OptimSettings, TrainSettings, build_model, train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHAPES = ((48, 4), (96, 4), (144, 4), (192, 4), (96, 2), (96, 8))  # width, layers
RULES = {
    "Muon, width rule": OptimSettings(),
    "AdamW, width rule": OptimSettings(optimizer="adamw"),
    "AdamW, no rule": OptimSettings(
        optimizer="adamw", initialise="model", adamw_learning_rate=3e-3, learning_rate=3e-3
    ),
}


def scaled(optim: OptimSettings, factor: float) -> OptimSettings:
    """All learning rates times `factor`."""
    names = ("matrix_learning_rate", "adamw_learning_rate", "learning_rate")
    return replace(optim, **{name: factor * getattr(optim, name) for name in names})


def bits_per_byte(shape: tuple[int, int], optim: OptimSettings, *, data: PreparedData, steps: int) -> float | None:
    """Trains one shape and scores it; None where it diverged."""
    width, layers = shape
    genome = Genome(
        vocab_size=1024, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 24 // 2 * 2 or 2,
        head_dim=24, intermediate_size=8 * width // 3 // 8 * 8,
    )  # fmt: skip
    settings = TrainSettings(optim=optim)
    model = build_model(CodeNASForCausalLM, genome.to_config(), settings=optim, seed=0)
    try:
        train(model, data.tokens(1024, "train"), Budget("steps", steps), settings=settings)
        return score_passages(model, data.passages(1024, "search", length=256, max_bytes=150_000)).bits_per_byte
    except (DivergenceError, ValueError):
        return None


def main() -> None:
    """Measures what is missing and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--data-bytes", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/width_transfer"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = CorpusSettings(max_bytes=arguments.data_bytes)
    data = prepare_data(
        corpus=corpus, tokenizer=TokenizerSettings(), vocab_sizes=[1024], folder=arguments.folder / "data"
    )
    rows, penalties = [], []
    for rule in arguments.rules:
        for shape in SHAPES:
            found: dict[float, float] = {}
            for factor in FACTORS:
                key = f"{rule} {shape} {factor:g} {arguments.steps} {data.digest[:12]}".replace(" ", "_")
                path = arguments.folder / f"{key}.json"
                if not path.exists():
                    bits = bits_per_byte(shape, scaled(RULES[rule], factor), data=data, steps=arguments.steps)
                    path.write_text(json.dumps(bits), encoding="utf-8")
                    print(key, bits, flush=True)
                value = json.loads(path.read_text(encoding="utf-8"))
                if value is not None:
                    found[factor] = value
            if 1.0 not in found:
                continue
            best = min(found, key=lambda factor: found[factor])
            row = {"rule": rule, "width": shape[0], "layers": shape[1], "best_factor": best, "best_bpb": found[best]}
            rows.append(row | {"cost_of_factor_1_bpb": found[1.0] - found[best]})
            rows[-1] |= {f"bpb_at_{factor:g}": value for factor, value in found.items()}
            if rule == "Muon, width rule":
                penalties.append(found[1.0] / found[best] - 1)
    goals = []
    if penalties:
        goals = [target("most that one rate for all shapes costs, share", max(penalties), 0.01, better="lower")]
    write("width_transfer", protocol=protocol(threads=1, steps=arguments.steps), rows=rows, targets=goals)


if __name__ == "__main__":
    main()
