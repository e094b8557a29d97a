"""Families of architecture search on one slice of the search table: chance, a model, reinforcement, a supernet.

    python -m benchmarks.families --supernet      # trains two supernets (some 13 minutes on two cores), then:
    python -m benchmarks.families                 # replays the others; supernets that are trained are read

The slice has one vocabulary and kind, which is what a supernet can express: 32 genomes. Every family ends with the
same step, training what it names from nothing to the last budget, and is charged all of its seconds; of two workers a
supernet has one, and half its seconds are charged as if two had shared it. With 32 genomes all are scored by
inherited weights; evolution on these scores would find no more. Families without a supernet are shown on the whole
table too.

`reinforce` is a controller of one categorical distribution a gene, moved by the policy gradient with a moving
baseline and a bonus for entropy, as ENAS's without its recurrence. Its reward weighs all objectives alike.
A gradient through the supernet's choices (DARTS) and NePS are not run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pool import work_off
from benchmarks.replay import (
    LONG,
    POPULATION,
    WORKERS,
    Floats,
    Run,
    TableSpace,
    evaluate,
    objectives,
    replay,
    table,
    truth,
)
from benchmarks.results_file import RESULTS, protocol, read, write
from benchmarks.search_table import CHOICES
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Evaluation, Genome, Objectives, RankCorrelation, TrialRecord, front
from codenas_hf.engine.evolution import draw_new
from codenas_hf.folders import read_json
from codenas_hf.jobs.policies import POLICIES

SLICE = TableSpace({"vocab_size": 2048, "kind": "gated"})
SPACES = {"slice": (SLICE, 4), "all": (TableSpace(), POPULATION)}  # and the population of a generation
SUPERNET_SEEDS, SUPERNET_STEPS = 2, 1500
COLUMNS = (
    *("space", "family", "seconds", "evaluations", "hypervolume", "half_width_95", "each_seed"),
    *("tau", "tau_interval"),
)


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """A controller that learns which value of each gene pays (Williams 1992; Zoph and Le 2017, arXiv:1611.01578).

    Args:
        objectives: scales of the study.
        rate: of the steps in the logits.
        entropy: weight of the bonus.
        memory: of the moving baseline, a trial.
    """

    objectives: Objectives
    rate: float = 0.15
    entropy: float = 0.05
    memory: float = 0.9

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Genome]:
        """At most `n` new genomes, drawn from the controller; one that is known gives way to one by chance."""
        chances = [softmax(logits) for logits in self.controller(records, space=space).values()]

        def draw() -> Genome:
            drawn = [
                values[int(rng.choice(len(values), p=chance))]
                for values, chance in zip(space.genes.values(), chances, strict=True)
            ]
            genome: Genome = space.genome_from_dict(dict(zip(space.genes, drawn, strict=True)))
            return genome

        return draw_new(draw, records, n=n, again=lambda _: space.sample(rng))

    def controller(self, records: Sequence[TrialRecord], *, space: Any) -> dict[str, Floats]:
        """The logits of each gene's values after all finished trials, in their order: nothing else is remembered."""
        logits = {gene: np.zeros(len(values)) for gene, values in space.genes.items()}
        known = [record for record in records if record.rung == 0 and record.evaluation is not None]
        if len(known) < 2:
            return logits
        values = self.objectives.matrix([record.evaluation for record in known if record.evaluation is not None])
        rewards = -((values - values.min(axis=0)) / (np.ptp(values, axis=0) + 1e-12)).mean(axis=1)
        rewards = rewards / (rewards.std() + 1e-12)
        baseline = float(rewards[0])
        for record, reward in zip(known, rewards, strict=True):
            chosen = record.genome.to_dict()
            for gene, choices in space.genes.items():
                chance = softmax(logits[gene])
                information = np.log(chance)
                taken = np.array([float(choice == chosen[gene]) for choice in choices])
                bonus = -chance * (information - float(chance @ information))
                logits[gene] = logits[gene] + self.rate * (
                    (reward - baseline) * (taken - chance) + self.entropy * bonus
                )
            baseline = self.memory * baseline + (1 - self.memory) * float(reward)
        return logits


def softmax(logits: Floats) -> Floats:
    """Chances of logits."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def replayed(name: str, space_name: str, *, seeds: int) -> dict[str, Any]:
    """Some searches of one family that trains every genome alone, half of the space each, in one stage."""
    space, population = SPACES[space_name]
    policy: Any = (
        Reinforce(objectives=objectives()) if name == "reinforce" else POLICIES[name](objectives(), {}, population)
    )
    generations = space.size() // 2 // population
    runs = [
        replay(policy, space=space, stages="single", seed=seed, generations=generations, population=population)
        for seed in range(seeds)
    ]
    return row(name, space_name, runs)


def row(name: str, space: str, runs: Sequence[Run], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One line of the table."""
    ends = [run.volumes[-1] for run in runs]
    return {
        "space": f"{space}, {SPACES[space][0].size()}",
        "family": name,
        "seconds": statistics.fmean(run.seconds[-1] for run in runs),
        "evaluations": statistics.fmean(run.trials for run in runs),
        "hypervolume": statistics.fmean(ends),
        "half_width_95": 1.96 * statistics.stdev(ends) / len(ends) ** 0.5 if len(ends) > 2 else None,
        "each_seed": ", ".join(f"{end:.3f}" for end in ends),
        **(more or {}),
    }


def retrained(scores: Mapping[str, float], *, space: TableSpace, seed: int, begun: float) -> Run:
    """The genomes that scores name, trained from nothing by two workers, the largest last.

    Args:
        scores: bits per byte by `genome_id`.
        space: of the genomes.
        seed: which of the table's trainings.
        begun: seconds spent before.
    """
    guessed = [
        Evaluation(objectives={**truth(genome), "bits_per_byte": scores[genome.genome_id]}) for genome in space.genomes
    ]
    named = [space.genomes[int(at)] for at in front(objectives().matrix(guessed))]
    run, free = Run(space), [begun] * WORKERS
    ended = []
    for genome in sorted(named, key=lambda genome: truth(genome)["artifact_bytes"]):
        evaluation, seconds = evaluate(genome, LONG, seed=seed)
        at = free.index(min(free))
        free[at] += seconds
        ended.append((free[at], genome, evaluation.objectives["bits_per_byte"]))
    for moment, genome, bits in sorted(ended, key=lambda each: each[0]):
        run.add(moment, genome, bits)
    run.trials = len(named)
    return run


def supernet_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each supernet.

    Args:
        found: of each seed, as `supernet.inherited_scores` gives it.
    """
    rows = []
    for seed, each in enumerate(found):
        alone = [
            statistics.fmean(r["budgets"][-1]["search"]["bits_per_byte"] for r in table()[genome.values])
            for genome in SLICE.genomes
        ]
        inherited = [each["scores"][genome.genome_id] for genome in SLICE.genomes]
        tau = RankCorrelation.of(list(zip(inherited, alone, strict=True)))
        assert tau is not None
        begun = (each["train_seconds"] + each["score_seconds"]) / WORKERS
        run = retrained(each["scores"], space=SLICE, seed=seed, begun=begun)
        more = {"tau": tau.tau, "tau_interval": [tau.low, tau.high], "supernet_seconds": begun, "steps": each["steps"]}
        rows.append(row(f"supernet, seed {seed}", "slice", [run], more))
    return rows


def everything_alone() -> Run:
    """All genomes of the slice, trained one by one: what a supernet has to be cheaper than."""
    run, free = Run(SLICE), [0.0] * WORKERS
    for genome in SLICE.genomes:
        evaluation, seconds = evaluate(genome, LONG, seed=0)
        at = free.index(min(free))
        free[at] += seconds
        run.add(max(free), genome, evaluation.objectives["bits_per_byte"])
        run.trials += 1
    return run


def supernets(folder: Path, *, train: bool) -> list[dict[str, Any]]:
    """What was found in the folder, or is trained now; a process and a thread for each."""
    notes = {folder / f"supernet-{seed}" / "scores.json": ["--folder", str(folder), "--one", str(seed)]
             for seed in range(SUPERNET_SEEDS)}  # fmt: skip
    if train:
        prepared(folder)
        work_off(lambda: notes, module="benchmarks.families", workers=WORKERS)
    return [read_json(note) for note in notes if note.exists()]


def prepared(folder: Path) -> PreparedData:
    """The text of the table, or what it is on this machine now."""
    return prepare_data(
        corpus=CorpusSettings(max_bytes=40_000_000), tokenizer=TokenizerSettings(),
        vocab_sizes=CHOICES["vocab_size"], folder=folder / "data",
    )  # fmt: skip


def main() -> Path | None:
    """Replays, reads or trains, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of the families that are replayed")
    parser.add_argument("--folder", type=Path, default=Path("runs/families"))
    parser.add_argument("--supernet", action="store_true", help="train what is missing; resumable")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        from benchmarks.supernet import inherited_scores

        place = options.folder / f"supernet-{options.one}"
        inherited_scores(SLICE, prepared(options.folder), seed=options.one, steps=SUPERNET_STEPS, folder=place)
        return None
    rows = [
        replayed(name, space, seeds=options.seeds) for space in SPACES for name in ("random", "reinforce", "guided")
    ]
    found = supernets(options.folder, train=options.supernet)
    rows += [*supernet_rows(found), row("all trained alone", "slice", [everything_alone()])]
    about = protocol(
        objectives=list(objectives().names), seeds=options.seeds, workers=WORKERS, stages="single",
        slice=dict(SLICE.fixed), supernet_steps=SUPERNET_STEPS,
        supernets=f"{len(found)} of {SUPERNET_SEEDS} trained", not_run="a gradient through choices, NePS",
        table_data=read(RESULTS / "search_table.json")["protocol"]["data"],
        supernet_data=sorted({each["data"][:16] for each in found}),
        statistic="relative hypervolume on the report text at the end of each search; tau of inherited against "
        "trained-alone bits per byte, search text, 32 genomes",
    )  # fmt: skip
    for each in rows:
        print(each)
    return write("families", protocol=about, rows=rows, columns=COLUMNS)


if __name__ == "__main__":
    print(main())
