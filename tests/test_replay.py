"""Searches replayed from the table: what they are charged, what they are judged by, and that they repeat."""

import dataclasses
import importlib.util
import itertools

import numpy as np
import pytest

from benchmarks.peers import PEERS, native
from benchmarks.policies import SPACES, Arm, Curves, Reference, lead, measured, model_correlation, targets
from benchmarks.replay import LONG, SHORT, STAGES, Run, TableSpace, evaluate, replay, table, truth
from benchmarks.search_table import BUDGETS
from codenas_hf.engine import RandomPolicy

SLICE = TableSpace({"vocab_size": 2048, "kind": "gated"})


def test_a_space_is_a_full_factorial_and_stays_inside() -> None:
    rng = np.random.default_rng(0)
    assert (TableSpace().size(), SLICE.size(), SPACES["half"].size()) == (192, 32, 96)
    assert {genome.values for genome in TableSpace().genomes} == set(table())
    for _ in range(50):
        first, second = SLICE.sample(rng), SLICE.sample(rng)
        child = SLICE.mutate(SLICE.crossover(first, second, rng), rng)
        assert SLICE.validate(child) is None
        assert sum(a != b for a, b in zip(SLICE.mutate(first, rng).values, first.values, strict=True)) == 1
    assert SLICE.genome_from_dict(first.to_dict()) == first
    outside = next(g for g in TableSpace().genomes if g.values[0] == 1024)
    assert "is not in the space" in str(SLICE.validate(outside))


def test_the_seconds_are_those_of_the_table() -> None:
    """Along the table's own ladder exactly; a shorter ladder trains the steps between, and scores less often."""
    genome = next(genome for genome in SLICE.genomes if len(table()[genome.values]) == 1)
    (row,) = table()[genome.values]
    for before, point in zip((0, *BUDGETS), row["budgets"], strict=False):
        evaluation, seconds = evaluate(genome, point["steps"], after=before, seed=3)
        assert seconds == pytest.approx(point["cpu_seconds"])
        assert evaluation.objectives["bits_per_byte"] == point["search"]["bits_per_byte"]
        assert evaluation.objectives["artifact_bytes"] == point["artifact_bytes"]
    alone = evaluate(genome, LONG, seed=0)[1]
    continued = evaluate(genome, LONG, after=SHORT, seed=0)[1]
    last = row["budgets"][-1]
    step = (last["cpu_seconds"] - last["scoring_cpu_seconds"]) / last["steps_run"]
    assert alone - continued == pytest.approx(step * 64), "of 80 steps 64 are at the constant rate"
    assert max(p["step"] for p in evaluate(genome, SHORT, seed=0)[0].measurements["curve"]) <= 64
    assert len(evaluate(genome, LONG, seed=0)[0].measurements["curve"]) == 36


def test_a_genome_with_seeds_answers_with_one_of_them_and_is_judged_by_their_mean() -> None:
    genome = next(genome for genome in TableSpace().genomes if len(table()[genome.values]) == 3)
    ends = [row["budgets"][-1] for row in table()[genome.values]]
    answers = {evaluate(genome, LONG, seed=seed)[0].objectives["bits_per_byte"] for seed in range(40)}
    assert answers == {end["search"]["bits_per_byte"] for end in ends}
    assert truth(genome)["bits_per_byte"] == pytest.approx(np.mean([end["report"]["bits_per_byte"] for end in ends]))


def test_the_hypervolume_is_that_of_the_named_front_on_the_other_text() -> None:
    every = [(genome, truth(genome)["bits_per_byte"]) for genome in SLICE.genomes]
    assert SLICE.volume([]) == 0
    assert SLICE.volume(every) == 1
    misled = [(genome, -bits) for genome, bits in every]  # the search text says the opposite
    assert SLICE.volume(misled) < 0.6
    assert SLICE.volume(every[:8]) < 1


def test_two_workers_share_the_work_and_every_search_repeats() -> None:
    def run(stages: str = "single", **changes: object) -> Run:
        given = {"space": SLICE, "seed": 1, "generations": 4, "population": 4, **changes}
        return replay(RandomPolicy(), stages=stages, **given)  # type: ignore[arg-type]

    whole = run()
    assert (whole.seconds, whole.found, whole.volumes) == (run().seconds, run().found, run().volumes)
    spent = sum(evaluate(genome, LONG, seed=1)[1] for genome, _ in whole.found)
    assert spent / 2 <= whole.seconds[-1] <= spent
    assert (len(whole.found), whole.trials) == (16, 16)
    assert list(whole.at(np.array([0.0, whole.seconds[0], 1e9]))) == [0.0, whole.volumes[0], whole.volumes[-1]]
    cut = run(limit=whole.seconds[9])
    assert cut.found == whole.found[:10]
    exhausted = run(generations=99)
    assert len({genome.genome_id for genome, _ in exhausted.found}) == 32
    staged = {stages: run(stages, population=8) for stages in STAGES}
    assert len(staged["two"].found) == 4 * 4, "three of a generation, and one by lot"
    assert staged["two"].trials == 8 * 4 + 16
    assert staged["two"].seconds[-1] < staged["single"].seconds[-1]
    assert not staged["two"].forecasts
    low, high, came = np.array(staged["adaptive"].forecasts).T
    assert ((low < high) & (came > 1)).all()


@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_asks_evaluates_and_tells(name: str) -> None:
    if "Syne" in name and importlib.util.find_spec("syne_tune") is None:
        pytest.skip("Syne Tune is not installed")
    run = native(PEERS[name](SLICE, 0), space=SLICE, seed=0, limit=110.0)
    again = native(PEERS[name](SLICE, 0), space=SLICE, seed=0, limit=110.0)
    assert run.found == again.found
    assert run.trials >= len(run.found) >= 2
    assert run.seconds == sorted(run.seconds)
    assert run.seconds[-1] <= 110
    assert all(SLICE.validate(genome) is None for genome, _ in run.found)


def curves(*runs: tuple[float, ...]) -> list[Run]:
    """Searches whose hypervolume after 1, 2, ... seconds is given."""
    made = []
    for volumes in runs:
        run = Run(SLICE)
        run.seconds, run.volumes = [float(at + 1) for at in range(len(volumes))], list(volumes)
        made.append(run)
    return made


def test_the_cost_is_the_time_to_where_random_search_ends() -> None:
    reference = Reference.of(curves((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.6)))
    fast = reference.cost(Curves.of(curves((0.5, 0.6, 0.7, 0.8), (0.5, 0.6, 0.7, 0.8)), 4.0))
    assert fast["value"] == pytest.approx(0.25)
    assert fast["interval"][0] <= fast["value"] <= fast["interval"][1]
    assert reference.cost(Curves.of(curves((0.1,) * 4, (0.1,) * 4), 4.0)) == {"value": None, "interval": None}


def test_a_lead_is_over_the_best_peer_at_the_same_seconds() -> None:
    found = {
        Arm("half", "guided", "adaptive"): curves((0.5, 0.9), (0.5, 0.9)),
        Arm("half", "Optuna TPE", "single"): curves((0.4, 0.7), (0.4, 0.7)),
        Arm("half", "Optuna GP", "single"): curves((0.6, 0.6), (0.6, 0.6)),
    }
    assert lead(found, stages="adaptive", seconds=1.5)["value"] == pytest.approx(-0.1)
    assert lead(found, stages="adaptive", seconds=2.5) == {
        "value": pytest.approx(0.2),
        "interval": [pytest.approx(0.2)] * 2,
    }


def test_the_whole_benchmark_at_its_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(arms: list[Arm], *, seeds: int) -> dict[Arm, list[Run]]:
        return {arm: [arm.search(seed) for seed in range(seeds)] for arm in arms}

    monkeypatch.setattr("benchmarks.policies.searches", here)
    half = measured("half", policies=["random", "guided"], peers=["Optuna TPE"], seeds=2, cut=2)
    assert [(row["policy"], row["stages"]) for row in half["rows"]] == [
        *itertools.product(["random", "guided"], STAGES),
        ("Optuna TPE", "its own"),
    ]
    for row in half["rows"]:
        assert row["cost"] is None or 0 < row["cost"] <= 1
        assert 0 <= row["at_quarter"] <= 1
        assert 0.5 < row["at_full"] <= 1
        assert (row["covered"] is not None) == (row["stages"] == "adaptive")
    found = model_correlation(seeds=2)
    assert 0.5 < found["tau"]["value"] < found["share"]["value"] <= 1.1
    goals = targets(half, found)
    assert len({goal["name"] for goal in goals}) == len(goals) == 11
    assert all(dataclasses.asdict(arm)["space"] == "half" for arm in half["found"])
