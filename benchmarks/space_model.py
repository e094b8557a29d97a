"""Which default policy finds more in the main job's own space? Asked of models of it: trainings are too few to tell.

    python -m benchmarks.space_model --collect runs/defaults_front  # what those searches trained, into the data file
    python -m benchmarks.space_model                                # some fifteen minutes on one core

Two policies differ by less than three real searches of each can show (`defaults_front`), and the search table has no
genes that hardly matter, of which a real space is full. So the trainings of `defaults_front` teach a model of the
space, of which any number of searches can be asked, in the engine's own schedule and with the stages of the main job.
A model favours the policy that believes in its kind: there are two, a Gaussian process as in `guided`, and a ridge
regression on products of genes as in `screened`. Ideal and reference are those of the real searches, and the noise
that is added to a training is that of another seed in the search table; fronts are judged without it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.storages import InMemoryStorage

from benchmarks.results_file import RESULTS, protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.engine import Budget, Evaluation, Frame, Objectives, Rung, SearchSettings, front
from codenas_hf.engine.gaussian import GaussianProcess
from codenas_hf.engine.schedule import Schedule
from codenas_hf.engine.study import Study
from codenas_hf.engine.surrogate import Features, Ridge
from codenas_hf.jobs.policies import POLICIES
from codenas_hf.jobs.spaces import load_space
from codenas_hf.jobs.study import open_study
from codenas_hf.jobs.wanted import objective_limits
from codenas_hf.measure.latency import LatencyModel

Floats = NDArray[np.float64]
Kind = Literal["Gaussian process", "ridge"]
DATA = Path(__file__).parent / "space_model_data.json"
KINDS: tuple[Kind, ...] = ("Gaussian process", "ridge")
ARMS = ("guided", "screened", "random")
SEEDS, POPULATION, KEEP, GENERATIONS = 20, 12, 3, 6  # of the main job, as `search.time=12m` plans it
MOMENTS = (24, 48, 72)  # trainings of the first rung
OBJECTIVES = Objectives(scales={"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"})


def collect(folder: Path) -> Path:
    """Writes the data file from the studies in a folder of `defaults_front`."""
    rows: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}
    for number, place in enumerate(sorted(path.parent for path in folder.glob("*-12m-*/settings.yaml"))):
        result, settings = open_study(place)
        assert result.frame is not None
        points = {"ideal": dict(result.frame.ideal), "reference": dict(result.frame.reference)}
        kept = {"space": settings.space, "limits": objective_limits(settings.limits), "frame": points}
        kept["latency"] = json.loads((place / "latency.json").read_text(encoding="utf-8"))
        bits: dict[str, list[float | None]] = {}
        for record in result.records:
            if record.evaluation is not None and isinstance(record.genome, Genome):
                found = bits.setdefault(record.genome.genome_id, [None, None])
                found[record.rung] = record.evaluation.objectives["bits_per_byte"]
                if record.rung == 0:
                    total = record.evaluation.objectives["artifact_bytes"]
                    rows.append({"search": number, "genes": record.genome.to_dict(), "bytes": total, "bits": found})
    genes = [row["genes"] for row in rows]
    common = {name: value for name, value in genes[0].items() if all(each[name] == value for each in genes)}
    for row in rows:
        row["genes"] = {name: value for name, value in row["genes"].items() if name not in common}
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = json.dumps({**kept, "common": common})[:-1]
    DATA.write_text(f'{head}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    return DATA


@dataclass(frozen=True)
class SpaceModel:
    """Bits per byte of every genome of a space at both rungs, learned from trainings.

    Args:
        kind: of the model.
        space: with what is known of its genomes.
        features: of genomes.
        rungs: a model of each rung; the second is of what it changes.
    """

    kind: Kind
    space: SearchSpace
    features: Features
    rungs: tuple[GaussianProcess | Ridge, ...]

    @classmethod
    def fit(cls, kind: Kind) -> SpaceModel:
        """Of the data file; each search has had steps of its own, so its mean difference is taken out."""
        data = stored()
        space, rows = the_space(), data["rows"]
        genomes = data["genomes"]
        features = Features.of(genomes)
        values = np.array([row["bits"][0] for row in rows])
        search = np.array([row["search"] for row in rows])
        shift, inputs = np.zeros(search.max() + 1), _inputs(kind, features, space, genomes)
        fitted = _fitted(kind, inputs, values)
        for _ in range(5):
            rest = values - _predicted(fitted, inputs)
            shift = np.array([rest[search == number].mean() for number in range(len(shift))])
            fitted = _fitted(kind, inputs, values - shift[search])
        above = np.array([row["bits"][1] is not None for row in rows])
        change = np.array([row["bits"][1] - row["bits"][0] for row in rows if row["bits"][1] is not None])
        second = _fitted(kind, inputs[above], change)
        return cls(kind, space, features, (fitted, second))

    def bits(self, genomes: Sequence[Genome], rung: int) -> Floats:
        """Without noise, `[n]`."""
        inputs = _inputs(self.kind, self.features, self.space, genomes)
        found = [_predicted(model, inputs) for model in self.rungs[: rung + 1]]
        return np.asarray(np.sum(found, axis=0), dtype=np.float64)


@functools.cache
def noise() -> float:
    """Standard deviation of a training's bits per byte over seeds: the median of the budgets of the search table."""
    table = json.loads((RESULTS / "search_table.json").read_text(encoding="utf-8"))
    return float(statistics.median(row["seed_deviation"] for row in table["rows"]))


def _inputs(kind: Kind, features: Features, space: SearchSpace, genomes: Sequence[Genome]) -> Floats:
    known = np.log2([[*space.known_objectives(genome).values()] for genome in genomes])
    genes = features.plain(genomes) if kind == "Gaussian process" else features.matrix(genomes)
    return np.hstack([genes, known])


def _fitted(kind: Kind, inputs: Floats, values: Floats) -> GaussianProcess | Ridge:
    return GaussianProcess.fit(inputs, values) if kind == "Gaussian process" else Ridge.fit(inputs, values[:, None])


def _predicted(model: GaussianProcess | Ridge, inputs: Floats) -> Floats:
    found = model.predict(inputs)[0] if isinstance(model, GaussianProcess) else model.predict(inputs)[:, 0]
    return np.asarray(found, dtype=np.float64)


@functools.cache
def stored() -> Mapping[str, Any]:
    """The data file."""
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return {**found, "genomes": [Genome.from_dict({**found["common"], **row["genes"]}) for row in found["rows"]]}


@functools.cache
def the_space() -> SearchSpace:
    """The space of the searches within their limits; bytes and latency as they were known there."""
    data = stored()
    latency = LatencyModel.from_dict(data["latency"])
    beside: dict[int, list[float]] = {}
    for row, genome in zip(data["rows"], data["genomes"], strict=True):
        beside.setdefault(genome.vocab_size, []).append(row["bytes"] - genome.weights_bytes())

    @functools.cache
    def known(genome: Genome) -> Mapping[str, float]:
        total = genome.weights_bytes() + statistics.median(beside[genome.vocab_size])
        return {"artifact_bytes": float(total), "decode_ms": latency.predict_decode_ms(genome)}

    def beyond(genome: Genome) -> str | None:
        found = known(genome)
        return None if all(found[name] <= most for name, most in data["limits"].items()) else "it is beyond the limits"

    return load_space(data["space"]).with_limits(extra=beyond, known=known)


@functools.cache
def model(kind: Kind) -> SpaceModel:
    """A fitted model of the space."""
    return SpaceModel.fit(kind)


@functools.cache
def frame(kind: Kind) -> Frame:
    """Between the best and the worst of five hundred genomes by chance."""
    rng, known = np.random.default_rng(0), model(kind)
    drawn = [known.space.sample(rng) for _ in range(500)]
    return Frame.derive(OBJECTIVES, _judged(known, drawn), ideal={}, reference={})


def _judged(known: SpaceModel, genomes: Sequence[Genome]) -> list[Evaluation]:
    bits = known.bits(genomes, 1)
    pairs = zip(genomes, bits, strict=True)
    return [Evaluation(objectives={"bits_per_byte": float(b), **known.space.known_objectives(g)}) for g, b in pairs]


def outcome(policy: str, kind: Kind, *, seed: int, generations: int = GENERATIONS) -> list[float]:
    """One search: hypervolume of the front that it would name after each `MOMENTS` trainings of the first rung, and
    bits per byte of its winner, the best within the limits. Both without noise."""
    known = model(kind)
    limits, points = stored()["limits"], stored()["frame"]
    objectives = replace(OBJECTIVES, limits=limits)
    settings = SearchSettings(
        objectives=OBJECTIVES.scales,
        population=POPULATION,
        generations=generations,
        rungs=(Rung(0, Budget("steps", 1), keep=KEEP), Rung(1, Budget("steps", 4))),
        limits=limits,
        **points,
        seed=seed,
    )
    study = Study(InMemoryStorage(), name="s", space=known.space, rungs=2, objectives=objectives)
    proposer = POLICIES[policy](objectives, points["reference"], POPULATION)
    schedule = Schedule(study, space=known.space, policy=proposer, settings=settings, leads=lambda: True)
    found: list[tuple[Genome, float]] = []
    first, reached = 0, dict.fromkeys((each for each in MOMENTS if each <= POPULATION * generations), 0.0)
    while not schedule.done(schedule.advance(study.snapshot())):
        claim = study.claim(member=0, worker="w")
        assert claim is not None
        genome, rung = claim.record.genome, claim.record.rung
        assert isinstance(genome, Genome)
        luck = np.random.default_rng([seed, int(genome.genome_id, 16), rung]).normal() * noise()
        bits = float(known.bits([genome], rung)[0] + luck)
        study.finish(claim, Evaluation(objectives={"bits_per_byte": bits, **known.space.known_objectives(genome)}))
        first += rung == 0
        if rung == 1:
            found.append((genome, bits))
        for moment in reached:
            if first <= moment:
                reached[moment] = _volume(found, known)
    winner, _ = min(found, key=lambda pair: pair[1])
    return [*reached.values(), float(known.bits([winner], 1)[0])]


def _volume(found: Sequence[tuple[Genome, float]], known: SpaceModel) -> float:
    """Of the front that a search would name, judged without noise."""
    if not found:
        return 0.0
    judged = _judged(known, [genome for genome, _ in found])
    pairs = zip(judged, found, strict=True)
    seen = [Evaluation(objectives={**each.objectives, "bits_per_byte": bits}) for each, (_, bits) in pairs]
    named = front(OBJECTIVES.matrix(seen))
    return frame(known.kind).hypervolume([judged[int(at)] for at in named])


def main() -> Path:
    """Searches and writes the result file, or collects what it needs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="only write the data file, from these searches")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    if options.collect is not None:
        return collect(options.collect)
    rows, goals = [], []
    for kind in KINDS:
        all_of = {arm: np.array([outcome(arm, kind, seed=seed) for seed in range(options.seeds)]) for arm in ARMS}
        for arm, found in all_of.items():
            middle, half = found.mean(axis=0), 1.96 * found.std(axis=0, ddof=1) / len(found) ** 0.5
            after = {f"after_{each}": float(value) for each, value in zip(MOMENTS, middle[:-1], strict=True)}
            winner = {"winner": float(middle[-1]), "winner_half_width_95": float(half[-1])}
            rows.append({"model": kind, "policy": arm, **after, "half_width_95": float(half[-2]), **winner})
        lead = all_of["guided"] - all_of["screened"]
        middle, half = lead.mean(axis=0), 1.96 * lead.std(axis=0, ddof=1) / len(lead) ** 0.5
        of = [f"hypervolume of the default policy less that of the old default, {each} trainings" for each in MOMENTS]
        of.append("bits per byte of the default policy's winner less that of the old default's")
        for what, mean, width in zip(of, middle, half, strict=True):
            better: Literal["higher", "lower"] = "lower" if what == of[-1] else "higher"
            interval = [float(mean - width), float(mean + width)]
            goals.append(target(f"{kind}: {what}", float(mean), 0, better=better, interval=interval))
    about = protocol(
        seeds=options.seeds,
        trainings=len(stored()["rows"]),
        noise=noise(),
        stages="two",
        evaluations="counted at the first rung; a third as many at the second",
    )
    return write("space_model", protocol=about, rows=rows, targets=goals)


if __name__ == "__main__":
    print(main())
