"""A synthetic study for the tests of reports: made-up records with the shape of a real two-rung search."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codenas_hf.engine.objectives import Objectives, Scale
from codenas_hf.engine.records import Budget, Evaluation, Rung, TrialRecord
from codenas_hf.engine.result import SearchResult
from codenas_hf.engine.study import Snapshot

CHOICES = {
    "hidden_size": [128, 192, 256, 320],
    "num_layers": [2, 4, 6, 8],
    "feed_forward": [2.0, 3.0, 4.0],
    "vocab_size": [1024, 2048, 4096],
    "activation": ["silu", "gelu"],
}


@dataclass(frozen=True)
class PlainGenome:
    genes: tuple[tuple[str, Any], ...]

    @property
    def genome_id(self) -> str:
        return hashlib.sha256(repr(self.genes).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.genes)


def outcome(genes: dict[str, Any], rung: int, rng: np.random.Generator) -> Evaluation:
    """A plausible law: more parameters and more training lower bits per byte, silu is a little better."""
    width, layers, vocab = genes["hidden_size"], genes["num_layers"], genes["vocab_size"]
    params = vocab * width + layers * width**2 * (4 + 3 * genes["feed_forward"])
    steps = (50, 300)[rung]
    quality = 1.1 + 9.0 * params**-0.18 + 3.0 * steps**-0.45 + 0.03 * (genes["activation"] == "gelu")
    quality += 0.012 * abs(math.log2(vocab / 2048)) + rng.normal(0, 0.012)
    train = steps * params * 4e-8
    loss = quality * math.log(2) * 3.2
    return Evaluation(
        objectives={
            "bits_per_byte": float(quality),
            "artifact_bytes": float(round(2 * params + 4000)),
            "decode_ms": float(0.12 + layers * 0.11 + params * 1.1e-7 + rng.normal(0, 0.005)),
        },
        constraints={"artifact_bytes": 2 * params - 14e6},
        measurements={
            "num_parameters": int(params),
            "loss": float(loss),
            "next_token_accuracy": float(math.exp(-loss / 3)),
            "curve": [
                {"step": s, "loss": float(loss + 3.0 * (s**-0.45 - steps**-0.45))} for s in range(5, steps + 1, 5)
            ],
        },
        seconds={"build": 0.2, "train": float(train), "evaluate": float(0.06 * train + 0.1), "measure": 0.05},
        provenance={"seed": 0, "device": "synthetic"},
    )


def make_records(*, seed: int = 0, generations: int = 4, population: int = 12, top: int = 3) -> list[TrialRecord]:
    """Both rungs of a search: `population` candidates a generation, `top` and one audit promoted, one failure each."""
    rng = np.random.default_rng(seed)
    records: list[TrialRecord] = []
    counts = [0, 0]
    best: list[dict[str, Any]] = []
    seen: set[str] = set()
    for generation in range(generations):
        rows = []
        while len(rows) < population:
            genes = {name: choices[int(rng.integers(len(choices)))] for name, choices in CHOICES.items()}
            if best and rng.random() < 0.6:
                parent = best[int(rng.integers(len(best)))]
                genes = {n: v if rng.random() < 0.3 else parent[n] for n, v in genes.items()}
            genome = PlainGenome(tuple(genes.items()))
            if genome.genome_id in seen:
                continue
            seen.add(genome.genome_id)
            common = {"genome": genome, "generation": generation, "worker": "host:1"}
            if len(rows) == population - 1:
                failed = TrialRecord(counts[0], rung=0, state="fail", failure="RuntimeError: loss is nan", **common)
                rows.append((failed, math.inf))
            else:
                done = outcome(genes, 0, rng)
                trial = TrialRecord(counts[0], rung=0, state="complete", evaluation=done, **common)
                rows.append((trial, done.objectives["bits_per_byte"]))
            counts[0] += 1
        records += [trial for trial, _ in rows]
        ranked = [trial for trial, quality in sorted(rows, key=lambda row: row[1]) if math.isfinite(quality)]
        for trial in [*ranked[:top], *ranked[-2:-1]]:
            done = outcome(dict(trial.genome.genes), 1, rng)
            records.append(
                TrialRecord(
                    counts[1],
                    trial.genome,
                    1,
                    "complete",
                    done,
                    None,
                    trial.number,
                    trial.generation,
                    "host:1",
                    audit=trial not in ranked[:top],
                )
            )
            counts[1] += 1
        best += [dict(trial.genome.genes) for trial in ranked[:top]]
    return records


SCALES: dict[str, Scale] = {"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"}


def make_result(
    records: Sequence[TrialRecord],
    *,
    scales: Mapping[str, Scale] = SCALES,
    limits: Mapping[str, float] | None = None,
    frame: Mapping[str, Mapping[str, float]] | None = None,
) -> SearchResult:
    """The outcome of a search of two rungs with these records, as a study's storage would give it."""
    rungs = (Rung(0, Budget("steps", 50), 3), Rung(1, Budget("steps", 300)))
    by_rung = tuple(tuple(r for r in records if r.rung == rung.index) for rung in rungs)
    snapshot = Snapshot(rungs=by_rung, confirmed=(), facts={} if frame is None else {"frame": frame})
    return SearchResult.of(snapshot, objectives=Objectives(scales=scales, limits=limits or {}), rungs=rungs)
