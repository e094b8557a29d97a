"""Which policy finds the better front for the same number of evaluations?

Ours against Optuna's samplers and chance, on a made-up law of code language models: quality, bytes and latency of five
genes, with the noise that a short training has. Every policy goes through the same schedule (population, lag) with the
same number of evaluations and seeds; the measure is the hypervolume of the noise-free front that it names, relative to
that of all genomes. The law is made up: what counts is the order, not the values.

    python -m benchmarks.policies [--smoke]
"""

import argparse
import functools
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage

from benchmarks.results_file import protocol, target, write
from codenas_hf.engine import (
    Evaluation,
    Frame,
    GeneticPolicy,
    Objectives,
    OptunaPolicy,
    RandomPolicy,
    RegularizedEvolution,
    Screened,
    SearchSettings,
    single_stage,
)
from codenas_hf.engine.schedule import Schedule
from codenas_hf.engine.study import Study

GENES: dict[str, list[Any]] = {
    "width": [64, 96, 128, 160, 192, 256, 320, 384],
    "layers": [2, 3, 4, 6, 8, 10, 12],
    "feed_forward": [1.5, 2.0, 2.5, 3.0, 4.0],
    "vocabulary": [1024, 2048, 4096, 8192],
    "kv_heads": [1, 2, 4],
    "activation": ["silu", "gelu"],
}
NOISE = 0.01
OBJECTIVES = Objectives(scales={"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"})


@dataclass(frozen=True)
class Shape:
    genes: tuple[Any, ...]

    @property
    def genome_id(self) -> str:
        return sha256(json.dumps(self.genes).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return dict(zip(GENES, self.genes, strict=True))


class Shapes:
    """All combinations of the genes."""

    genes = GENES

    def sample(self, rng: np.random.Generator) -> Shape:
        return Shape(tuple(values[int(rng.integers(len(values)))] for values in GENES.values()))

    def mutate(self, genome: Shape, rng: np.random.Generator) -> Shape:
        at = int(rng.integers(len(GENES)))
        others = [value for value in list(GENES.values())[at] if value != genome.genes[at]]
        return Shape((*genome.genes[:at], others[int(rng.integers(len(others)))], *genome.genes[at + 1 :]))

    def crossover(self, first: Shape, second: Shape, rng: np.random.Generator) -> Shape:
        return Shape(tuple(pair[int(rng.integers(2))] for pair in zip(first.genes, second.genes, strict=True)))

    def validate(self, genome: Shape) -> None:
        return None

    def size(self) -> int:
        return int(np.prod([len(values) for values in GENES.values()]))

    def genome_from_dict(self, data: Mapping[str, Any]) -> Shape:
        return Shape(tuple(data[gene] for gene in GENES))


def law(genome: Shape) -> Evaluation:
    """Bits per byte, bytes and milliseconds without noise."""
    width, layers, feed_forward, vocabulary, kv_heads, activation = genome.genes
    inner = layers * width**2 * (2 + 0.5 * kv_heads + 3 * feed_forward)
    parameters = inner + vocabulary * width
    shape = 0.02 * abs(np.log2(width / layers) - 5) + 0.03 * abs(np.log2(vocabulary / 2048)) + 0.02 / kv_heads
    quality = 1.1 + 9.0 * inner**-0.18 + shape + 0.02 * (activation == "gelu") + 0.015 * abs(feed_forward - 2.5)
    milliseconds = 0.05 + layers * (0.08 + 0.02 * kv_heads) + parameters * 4e-7
    return Evaluation(
        objectives={"bits_per_byte": quality, "artifact_bytes": 2 * parameters + 4096, "decode_ms": milliseconds}
    )


def policies() -> dict[str, Any]:
    """Ours, and Optuna's through the adapter."""
    tpe = functools.partial(optuna.samplers.TPESampler, constant_liar=True)
    genetic = GeneticPolicy(objectives=OBJECTIVES)
    return {
        "random": RandomPolicy(),
        "genetic": genetic,
        "genetic, screened": Screened(policy=genetic, objectives=OBJECTIVES),
        "regularised evolution": RegularizedEvolution(objectives=OBJECTIVES),
        "Optuna NSGA-II": OptunaPolicy(
            name="nsga2",
            sampler=lambda s: optuna.samplers.NSGAIISampler(seed=s, population_size=24),
            objectives=OBJECTIVES,
        ),
        "Optuna TPE": OptunaPolicy(name="tpe", sampler=lambda s: tpe(seed=s), objectives=OBJECTIVES),
    }


def search(policy: Any, *, evaluations: int, seed: int) -> list[Shape]:
    """The genomes that are evaluated, in order."""
    settings = SearchSettings(
        objectives=OBJECTIVES.scales, population=24, generations=evaluations // 24, rungs=single_stage(), seed=seed
    )
    study = Study(InMemoryStorage(), name="s", space=Shapes(), rungs=1, objectives=OBJECTIVES)  # type: ignore[arg-type]
    schedule = Schedule(study, space=Shapes(), policy=policy, settings=settings, leads=lambda: True)
    while True:
        snapshot = schedule.advance(study.snapshot())
        if schedule.done(snapshot):
            return [record.genome for record in snapshot.rungs[0]]  # type: ignore[misc]
        while (claim := study.claim(member=0, worker="w")) is not None:
            genome: Any = claim.record.genome
            noise = np.random.default_rng([seed, int(genome.genome_id, 16)]).normal(0, NOISE)
            exact = law(genome).objectives
            study.finish(claim, Evaluation(objectives={**exact, "bits_per_byte": exact["bits_per_byte"] + noise}))


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one seed, few evaluations, nothing is written")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=240)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.evaluations = 2, 96
    everything = [law(Shape(genes)) for genes in itertools.product(*GENES.values())]
    frame = Frame.derive(OBJECTIVES, everything, ideal={}, reference={})
    best = frame.hypervolume(everything)
    rows, volumes = [], {}
    for name, policy in policies().items():
        begin = time.perf_counter()
        found = [search(policy, evaluations=arguments.evaluations, seed=seed) for seed in range(arguments.seeds)]
        seconds = (time.perf_counter() - begin) / arguments.seeds
        volumes[name] = np.array([frame.hypervolume([law(genome) for genome in genomes]) / best for genomes in found])
        half = 1.96 * volumes[name].std(ddof=1) / np.sqrt(arguments.seeds)
        rows.append(
            {
                "policy": name,
                "relative_hypervolume": float(volumes[name].mean()),
                "half_width_95": float(half),
                "evaluations": arguments.evaluations,
                "seeds": arguments.seeds,
                "seconds_per_search": seconds,
            }
        )
        print(rows[-1], flush=True)
    if not arguments.smoke:
        ours = max(float(volumes[name].mean()) for name in ("genetic", "genetic, screened"))
        peers = max(float(volumes[name].mean()) for name in volumes if name.startswith("Optuna"))
        goals = [
            target("hypervolume, ours less the best Optuna sampler", ours - peers, 0.0, better="higher"),
            target(
                "hypervolume, ours less random search", ours - float(volumes["random"].mean()), 0.0, better="higher"
            ),
        ]
        about = protocol(genomes=len(everything), noise_bits_per_byte=NOISE, population=24, lag=2)
        write("policies", protocol=about, rows=rows, targets=goals)


if __name__ == "__main__":
    main()
