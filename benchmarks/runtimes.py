"""Whether runtimes agree about which architecture is fast: `python -m benchmarks.runtimes`.

Architectures of a search space, with weights as they come, are timed in torch (a model of transformers, called token
by token: what a study with `ship.runtime=torch` predicts) and in llama.cpp, in turns: of each architecture first the
one, then the other, and all of it in rounds. A time is the lowest of an architecture's rounds. Kendall's tau says how
far two orders agree, with the interval of 2,000 resamples of the architectures. The tau of the earlier and the later
rounds of one runtime is what the noise of the machine leaves of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import protocol, write
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.engine.result import kendall_tau
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.jobs.latency import timer_of
from codenas_hf.measure.shipped import ShipSettings
from codenas_hf.measure.timing import TimingProtocol, device_noise


def tau_row(what: str, first: list[float], second: list[float]) -> dict[str, Any]:
    """Kendall's tau of two orders of the same architectures, with its interval."""
    a, b = np.array(first), np.array(second)
    draws = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    low, high = np.nanpercentile([kendall_tau(a[draw], b[draw]) for draw in draws], [2.5, 97.5])
    interval = [round(float(low), 3), round(float(high), 3)]
    return {"compared": what, "kendall_tau": round(kendall_tau(a, b), 3), "interval": interval}


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--genomes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--format", default="q8_0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noise = [device_noise(torch.device("cpu"))]
    space = SearchSpace.from_yaml(Path(__file__).parents[1] / "configs" / "spaces" / f"{arguments.space}.yaml")
    rng = np.random.default_rng(0)
    drawn = {genome.genome_id: genome for genome in (space.sample(rng) for _ in range(3 * arguments.genomes))}
    genomes = list(drawn.values())[: arguments.genomes]
    how = TimingProtocol(cache="dynamic", warmup=1, repeats=2)
    names = ("torch", f"llama.cpp {arguments.format}")
    timers = [timer_of(ShipSettings(format=arguments.format, runtime=name)) for name in ("torch", "llama.cpp")]  # type: ignore[arg-type]
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        found: dict[str, list[float]] = {name: [] for name in names}
        for genome in genomes:
            for name, timer in zip(names, timers, strict=True):
                found[name].append(timer(CodeNASForCausalLM(genome.to_config()), how).decode_ms)
        for name in names:
            times[name].append(found[name])
    noise.append(device_noise(torch.device("cpu")))
    best = {name: np.min(rounds, axis=0).tolist() for name, rounds in times.items()}
    counts = {
        "layers": [float(genome.num_hidden_layers) for genome in genomes],
        "parameters": [float(genome.num_parameters()) for genome in genomes],
    }
    rows = [tau_row(" and ".join(names), best[names[0]], best[names[1]])]
    half = arguments.rounds // 2
    for name in names:
        parts = [np.min(times[name][part], axis=0).tolist() for part in (slice(half), slice(half, None))]
        rows.append(tau_row(f"{name}: earlier and later rounds", *parts))
        rows += [tau_row(f"{name} and the number of {what}", best[name], values) for what, values in counts.items()]
    rows += [
        {
            "genome": genome.genome_id[:8],
            "layers": genome.num_hidden_layers,
            "parameters": genome.num_parameters(),
            **{f"{name}_ms": round(best[name][at], 4) for name in names},
        }
        for at, genome in enumerate(genomes)
    ]
    facts = protocol(
        **how.to_dict(),
        noise_before_and_after=[round(value, 2) for value in noise],
        space=arguments.space,
        genomes=len(genomes),
        rounds=arguments.rounds,
        statistic="lowest of the rounds; Kendall's tau-b, 95 % of 2,000 resamples of the architectures",
    )
    write("runtimes", protocol=facts, rows=rows, columns=("compared", "kendall_tau", "interval"))


if __name__ == "__main__":
    main()
