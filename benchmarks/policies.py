"""Which policy, with which stages, finds the better front in the same seconds?

Ours and Optuna's and Syne Tune's, replayed from the search table: real trainings, charged what they took (two
workers, virtual time; see `replay`), judged on text that no search reads. The reference is random search with one
stage, two or adaptive ones, half of the space each time (96 evaluations of all 192 genomes, 48 of the reported half).
A policy's cost is the time at which its mean hypervolume reaches that which random search ends with, over random
search's time. What was tried on the policy was tried on the half with gated feed-forward networks; the other half is
reported, and all.

    python -m benchmarks.policies [--smoke]

Syne Tune (in the extra `bench`) is no dependency of the tests: its row is left out, and that is said, where it is not
installed. Optuna's Gaussian process thinks for longer than all others together, so it has fewer seeds, the
reported half alone, and less time. NePS is not run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS, native
from benchmarks.replay import (
    LONG,
    POPULATION,
    SHORT,
    STAGES,
    WORKERS,
    Floats,
    Run,
    Stages,
    TableSpace,
    evaluate,
    objectives,
    replay,
    table,
    truth,
)
from benchmarks.results_file import commit, protocol, target, write
from codenas_hf.engine import RankCorrelation, TrialRecord
from codenas_hf.engine.guided import Model
from codenas_hf.folders import read_json, write_json
from codenas_hf.jobs.policies import POLICIES

SPACES = {"all": TableSpace(), "tuned half": TableSpace({"kind": "gated"}), "half": TableSpace({"kind": "plain"})}
REPORTED = ("half", "all")
FOLDER = Path("runs/policies")  # finished searches, by commit
KNOWN, WINDOW = 48, 2.0  # records that the model has seen, and the ratio of bytes within which its order is judged
RESAMPLES = 2000
SLOW, SLOW_SEEDS = "Optuna GP", 10
SHARES = (0.25, 0.5, 1.0)  # of random search's seconds with two stages
COLUMNS = (
    *("space", "policy", "stages", "cost", "cost_interval", "cost_to_single", "cost_to_single_interval"),
    *("at_quarter", "at_half", "at_full", "half_width_95", "evaluations", "covered"),
)


@dataclass(frozen=True)
class Arm:
    """One way to search a space.

    Args:
        space: name in `SPACES`.
        policy: name in `POLICIES` or `PEERS`.
        stages: who goes on; a peer has its own way.
        generations: at most; None goes on until the time is over.
        limit: virtual seconds.
    """

    space: str
    policy: str
    stages: Stages
    generations: int | None = None
    limit: float = float("inf")

    def search(self, seed: int) -> Run:
        """With one seed."""
        space = SPACES[self.space]
        if self.policy in PEERS:
            return native(PEERS[self.policy](space, seed), space=space, seed=seed, limit=self.limit)
        policy = POLICIES[self.policy](objectives(), {}, POPULATION)
        generations = self.generations or -(-space.size() // POPULATION)
        return replay(policy, space=space, stages=self.stages, seed=seed, generations=generations, limit=self.limit)


def searches(arms: Sequence[Arm], *, seeds: int) -> dict[Arm, list[Run]]:
    """All arms with all seeds, on all cores; what is finished is kept in `FOLDER`, where the same commit finds it."""
    found: dict[Arm, list[Run]] = {}
    folder = FOLDER / commit()
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for arm in arms:
            count = min(seeds, SLOW_SEEDS) if arm.policy == SLOW else seeds
            place = folder / f"{hashlib.sha256(f'{arm} {count}'.encode()).hexdigest()[:16]}.json"
            if not place.exists():
                runs = list(pool.map(_search, [(arm, seed) for seed in range(count)]))
                write_json(place, {"runs": [run.to_dict() for run in runs]})
            found[arm] = [Run(SPACES[arm.space], **run) for run in read_json(place)["runs"]]
    return found


def _search(job: tuple[Arm, int]) -> Run:
    arm, seed = job
    return arm.search(seed)


@dataclass(frozen=True)
class Curves:
    """Relative hypervolume of some searches over time.

    Args:
        grid: virtual seconds, `[points]`.
        values: `[seeds, points]`.
    """

    grid: Floats
    values: Floats

    @classmethod
    def of(cls, runs: Sequence[Run], end: float) -> Curves:
        """Up to `end` seconds."""
        grid = np.linspace(0, end, 801)
        return cls(grid, np.stack([run.at(grid) for run in runs]))

    def mean(self, weights: Floats) -> Floats:
        """`[resamples, points]` of weights `[resamples, seeds]` that add up to 1."""
        return np.asarray(weights @ self.values)

    def reaches(self, level: Floats, weights: Floats) -> Floats:
        """When the mean reaches each level `[resamples]`; infinite where it does not."""
        above = self.mean(weights) >= level[:, None] - 1e-12
        return np.where(above.any(axis=1), self.grid[above.argmax(axis=1)], np.inf)


def resampled(seeds: int, *, stream: int) -> Floats:
    """Weights of the seeds: all alike in the first row, then as many bootstrap samples. `[1 + RESAMPLES, seeds]`."""
    rng = np.random.default_rng(stream)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    return np.vstack([np.full(seeds, 1 / seeds), drawn])


def summary(values: Floats) -> dict[str, Any]:
    """The value of the first row and the 95 % interval of the others; None where an end is infinite."""
    low, high = np.quantile(values[1:], [0.025, 0.975], method="closest_observation")
    return {
        "value": float(values[0]) if np.isfinite(values[0]) else None,
        "interval": [float(low), float(high)] if np.isfinite([low, high]).all() else None,
    }


@dataclass(frozen=True)
class Reference:
    """Random search with some stages, at its end: its seconds and its hypervolume by resample `[1 + RESAMPLES]`."""

    seconds: Floats
    level: Floats

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Reference:
        """Of searches that have ended."""
        weights = resampled(len(runs), stream=0)
        return cls(weights @ [run.seconds[-1] for run in runs], weights @ [run.volumes[-1] for run in runs])

    def cost(self, curves: Curves) -> dict[str, Any]:
        """Of other searches, to get as far; None where they have not by the end of the curves."""
        return summary(self.reaches(curves) / self.seconds)

    def reaches(self, curves: Curves) -> Floats:
        """When other searches have got as far, by resample."""
        return curves.reaches(self.level, resampled(len(curves.values), stream=1))


def measured(space: str, *, policies: Sequence[str], peers: Sequence[str], seeds: int, cut: int = 1) -> dict[str, Any]:
    """Rows, and what the targets are made of, of one space.

    Args:
        space: name in `SPACES`.
        policies: names in `POLICIES`.
        peers: names in `PEERS`.
        seeds: searches of each.
        cut: so many times fewer generations, to try it out.
    """
    half = SPACES[space].size() // 2 // POPULATION // cut
    base = searches([Arm(space, "random", stages, half) for stages in STAGES], seeds=seeds)
    references = {arm.stages: Reference.of(runs) for arm, runs in base.items()}
    ends = {stages: float(reference.seconds[0]) for stages, reference in references.items()}
    limits = {stages: max(ends["two"], ends[stages]) for stages in STAGES}
    arms = [Arm(space, policy, stages, limit=limits[stages]) for policy in policies for stages in STAGES]
    arms += [Arm(space, peer, "single", limit=ends["two" if peer == SLOW else "single"]) for peer in peers]
    found = searches(arms, seeds=seeds)
    curves = {arm: Curves.of(runs, arm.limit) for arm, runs in found.items()}
    rows = []
    for arm, runs in found.items():
        own = Curves.of(runs, ends[arm.stages])
        volumes = np.stack([run.at(np.array(SHARES) * ends["two"]) for run in runs])
        cost, to_single = references[arm.stages].cost(own), references["single"].cost(Curves.of(runs, arm.limit))
        inside = [low <= came <= high for run in runs for low, high, came in run.forecasts]
        rows.append(
            {
                "space": f"{space}, {SPACES[space].size()}",
                "policy": arm.policy,
                "stages": "its own" if arm.policy in PEERS else arm.stages,
                "cost": cost["value"],
                "cost_interval": cost["interval"],
                "cost_to_single": to_single["value"],
                "cost_to_single_interval": to_single["interval"],
                **dict(zip(("at_quarter", "at_half", "at_full"), volumes.mean(axis=0).tolist(), strict=True)),
                "half_width_95": float(1.96 * volumes[:, -1].std(ddof=1) / np.sqrt(len(runs))),
                "evaluations": statistics.fmean(run.trials for run in runs),
                "covered": statistics.fmean(inside) if inside else None,
            }
        )
        print({name: rows[-1][name] for name in COLUMNS if name in rows[-1]}, flush=True)
    return {"rows": rows, "references": references, "ends": ends, "found": found, "curves": curves}


def lead(found: Mapping[Arm, Sequence[Run]], *, stages: Stages, seconds: float) -> dict[str, Any]:
    """Hypervolume of ours less that of the best peer at the same seconds; the best of each resample."""
    moment = np.array([seconds])
    volumes = {arm: np.array([run.at(moment)[0] for run in runs]) for arm, runs in found.items()}
    ours = next(v for arm, v in volumes.items() if (arm.policy, arm.stages) == ("guided", stages))
    peers = [v for arm, v in volumes.items() if arm.policy in PEERS]
    best = np.max([resampled(len(v), stream=2 + at) @ v for at, v in enumerate(peers)], axis=0)
    return summary(resampled(len(ours), stream=1) @ ours - best)


def saved(space: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Share of the seconds that adaptive stages save the guided policy over two, at equal hypervolume.

    Returns:
        By what sets that hypervolume: the end of the guided search in two stages, or that of random search.
    """
    weights = resampled(len(next(iter(space["found"].values()))), stream=1)
    curves = {arm.stages: curve for arm, curve in space["curves"].items() if arm.policy == "guided"}
    levels = {"guided with two": curves["two"].mean(weights)[:, -1], "random search": space["references"]["two"].level}
    found = {}
    for name, level in levels.items():
        two, adaptive = (curves[stages].reaches(level, weights) for stages in ("two", "adaptive"))
        found[name] = summary(1 - np.where(np.isfinite(adaptive), adaptive, curves["adaptive"].grid[-1]) / two)
    return found


def model_correlation(*, seeds: int) -> dict[str, Any]:
    """Kendall's tau between the model's order after 48 records and the table's, among genomes of like bytes.

    Over the ceiling: the tau between the table's values and themselves with the noise of one seed added.
    """
    space, shares, taus = SPACES["all"], [], []
    noise = seed_deviation()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = [space.genomes[int(at)] for at in rng.permutation(space.size())]
        outcomes = [evaluate(genome, LONG, seed=seed)[0] for genome in order]
        records = [
            TrialRecord(number=at, genome=genome, rung=0, state="complete", evaluation=outcome)
            for at, (genome, outcome) in enumerate(zip(order[:KNOWN], outcomes, strict=False))
        ]
        rest = order[KNOWN:]
        predicted = Model.fit(records, space=space, objectives=objectives()).predict(rest)[0][:, 0]
        came = np.array([outcome.objectives["bits_per_byte"] for outcome in outcomes[KNOWN:]])
        size = np.log2([truth(genome)["artifact_bytes"] for genome in rest])
        tau, ceiling = (
            _in_window(predicted, came, size),
            _in_window(came + rng.normal(0, noise, len(came)), came, size),
        )
        taus.append(tau)
        shares.append(tau / ceiling)
    weights = resampled(seeds, stream=1)
    return {"tau": summary(weights @ np.array(taus)), "share": summary(weights @ np.array(shares))}


def _in_window(first: Floats, second: Floats, size: Floats) -> float:
    """Mean tau over the windows that begin at each genome and reach twice its bytes."""
    found = []
    for low in size:
        inside = (size >= low) & (size <= low + np.log2(WINDOW))
        tau = RankCorrelation.of(list(zip(first[inside].tolist(), second[inside].tolist(), strict=True)))
        if tau is not None and inside.sum() >= 10:
            found.append(tau.tau)
    return statistics.fmean(found)


@functools.cache
def seed_deviation() -> float:
    """Of the last budget on the search text, pooled over the genomes with seeds."""
    spreads = [
        statistics.variance([row["budgets"][-1]["search"]["bits_per_byte"] for row in rows])
        for rows in table().values()
        if len(rows) > 1
    ]
    return float(statistics.fmean(spreads) ** 0.5)


def targets(half: Mapping[str, Any], correlation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, on the half that is reported; a lead counts by the low end of its interval."""
    row = next(row for row in half["rows"] if (row["policy"], row["stages"]) == ("guided", "adaptive"))
    goals = [
        target(f"guided, adaptive: seconds over those of random search with {of}", row[name], 0.2, better="lower",
               interval=row[f"{name}_interval"])
        for name, of in [("cost", "the same stages"), ("cost_to_single", "one stage")]
    ]  # fmt: skip
    # With one stage too, as the peers that know no stages: what is the policy's own, and what its stages add.
    moments: list[tuple[Stages, float]] = [*(("adaptive", share) for share in SHARES), ("single", 1.0)]
    for stages, share in moments:
        found = lead(half["found"], stages=stages, seconds=share * half["ends"]["two"])
        name = f"guided, {stages}: low end of its lead over the best peer that ran, {share:g} of the seconds"
        goals.append(target(name, found["interval"][0], 0, better="higher", interval=found["interval"]))
    order = correlation["share"]
    return [
        *goals,
        *(
            target(f"share of the seconds of two stages that adaptive ones save to where {name} ends", fewer["value"],
                   0.3, better="higher", interval=fewer["interval"])
            for name, fewer in saved(half).items()
        ),
        target("model after 48 records: tau over its ceiling", order["value"], 0.9, better="higher",
               interval=order["interval"]),
        target("forecasts that hold what came, at least", row["covered"], 0.80, better="higher"),
        target("forecasts that hold what came, at most", row["covered"], 0.97, better="lower"),
    ]  # fmt: skip


def main() -> Path | None:
    """Searches, prints and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two seeds, few evaluations, nothing is written")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--tuning", action="store_true", help="ours on the half for trying things; nothing is written")
    parser.add_argument("--without", nargs="+", default=[], help="peers or policies that are left out")
    parser.add_argument("--spaces", nargs="+", choices=REPORTED, default=REPORTED, help="the half is always needed")
    options = parser.parse_args()
    seeds = 2 if options.smoke else options.seeds
    peers = [name for name in PEERS if "MOASHA" not in name or importlib.util.find_spec("syne_tune")]
    peers, policies = ([name for name in names if name not in options.without] for names in (peers, POLICIES))
    if options.tuning:
        measured("tuned half", policies=["guided"], peers=[], seeds=seeds)
        return None
    found = {
        space: measured(
            space,
            policies=policies,
            peers=[name for name in peers if space == "half" or name != SLOW],
            seeds=seeds,
            cut=2 if options.smoke else 1,
        )
        for space in (REPORTED[:1] if options.smoke else options.spaces)
    }
    correlation = model_correlation(seeds=seeds)
    goals = targets(found["half"], correlation)
    for goal in goals:
        print(goal)
    if options.smoke:
        return None
    about = protocol(
        objectives=list(objectives().names), seeds=seeds, seeds_of_the_slow=f"{min(seeds, SLOW_SEEDS)} of {SLOW}",
        workers=WORKERS, population=POPULATION, budgets=f"{SHORT} and {LONG} steps",
        absent=[name for name in (*POLICIES, *PEERS) if name not in (*policies, *peers)],
        random_seconds={name: {s: round(x) for s, x in each["ends"].items()} for name, each in found.items()},
        tau=round(correlation["tau"]["value"], 3),
        statistic="mean of the seeds, 95 % intervals from resampling them; no cost: not as far in that time",
    )  # fmt: skip
    rows = [row for each in found.values() for row in each["rows"]]
    return write("policies", protocol=about, rows=rows, targets=goals, columns=COLUMNS)


if __name__ == "__main__":
    print(main())
