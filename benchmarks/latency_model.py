"""How well decode latency is predicted from the genome alone: `python -m benchmarks.latency_model`.

Fits the latency model on shapes of a space as a study does, then times other shapes of that space alone under the full
protocol, and compares. Beside it stands the simplest peer: latency proportional to the parameter count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.measure.latency import LatencyModel, default_protocol
from codenas_hf.measure.timing import measure_latency


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spaces", nargs="+", default=["tiny", "medium"])
    parser.add_argument("--held-out", type=int, default=24, help="shapes to time that the fit has not seen")
    parser.add_argument("--shapes", type=int, default=28, help="shapes of the fit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    configs = Path(__file__).parent.parent / "configs" / "spaces"
    rows, targets = [], []
    how = default_protocol(arguments.device)
    for name in arguments.spaces:
        space = SearchSpace.from_yaml(configs / f"{name}.yaml")
        start = time.perf_counter()
        model = LatencyModel.fit(space, device=arguments.device, shapes=arguments.shapes, seed=0)
        fit_s = time.perf_counter() - start
        rng = np.random.default_rng(1)
        genomes = [space.sample(rng) for _ in range(arguments.held_out)]
        built = (CodeNASForCausalLM(genome.to_config()).to(arguments.device) for genome in genomes)
        timed = np.array([measure_latency(network, how).decode_ms for network in built])
        predicted = np.array([model.predict_decode_ms(genome) for genome in genomes])
        sizes = np.array([float(genome.num_parameters()) for genome in genomes])
        scaled = sizes * np.exp(np.mean(np.log(timed / sizes)))
        for method, values in (("per-operation model", predicted), ("parameter count", scaled)):
            rows.append(
                {
                    "space": name,
                    "method": method,
                    "mean_relative_error": float((np.abs(values - timed) / timed).mean()),
                    "rank_correlation": spearman(values, timed),
                    "timed_ms": [float(timed.min()), float(timed.max())],
                    "fit_s": fit_s if method == "per-operation model" else None,
                }
            )
            print(rows[-1], flush=True)
        targets += [
            target(f"{name}: mean relative error", rows[-2]["mean_relative_error"], 0.10, better="lower"),
            target(f"{name}: rank correlation", rows[-2]["rank_correlation"], 0.95, better="higher"),
        ]
    facts = protocol(**how.to_dict(), shapes=arguments.shapes, held_out=arguments.held_out)
    write("latency_model", protocol=facts, rows=rows, targets=targets)


if __name__ == "__main__":
    main()
