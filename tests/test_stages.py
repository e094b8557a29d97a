"""Forecasts cover what comes, who goes on is worth it, and a search with adaptive stages is as repeatable as any."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_space import Evaluate, IntegerSpace, Point
from optuna.storages import InMemoryStorage
from test_study import SETTINGS, dies_between_writes, searched, study_in, without_workers

from codenas_hf.engine.evolution import RandomPolicy
from codenas_hf.engine.gaussian import GaussianProcess
from codenas_hf.engine.objectives import Frame, Objectives
from codenas_hf.engine.progress import Progress
from codenas_hf.engine.records import Budget, Evaluation, Rung, TrialRecord
from codenas_hf.engine.schedule import Schedule
from codenas_hf.engine.stages import Standing, forecasts
from codenas_hf.jobs.wanted import LadderSettings
from codenas_hf.strict_yaml import SettingsError, from_mapping

OBJECTIVES = Objectives(scales={"bits": "linear", "bytes": "linear"}, limits={"bytes": 90.0})
FRAME = Frame(objectives=OBJECTIVES, ideal={"bits": 1.0, "bytes": 0.0}, reference={"bits": 4.0, "bytes": 90.0})
ADAPTIVE = dataclasses.replace(SETTINGS, adaptive=True)
SHORT, LONG = 40, 360


def bits(x: int, y: int, steps: int) -> float:
    """A power law whose exponent depends on x alone, and its level on both."""
    return (4 + 0.03 * y - 0.01 * x) * steps ** -(0.08 + 0.002 * x)


def trial(x: int, y: int, *, steps: int = SHORT, noise: float = 0.0, rung: int = 0, price: float = 1.0) -> TrialRecord:
    """The outcome of a genome after so many steps, with the learning curve of all steps before."""
    rng = np.random.default_rng([x, y, steps])
    curve = [{"step": s, "loss": bits(x, y, s) + float(rng.normal(0, noise))} for s in range(4, steps + 1, 4)]
    value = bits(x, y, steps) + float(rng.normal(0, noise))
    evaluation = Evaluation(
        objectives={"bits": value, "bytes": float(3 * x)}, measurements={"curve": curve, "price": price}
    )
    evaluation = OBJECTIVES.checked(evaluation)
    return TrialRecord(number=0, genome=Point(x, y), rung=rung, state="complete", evaluation=evaluation)


def standing(known: Sequence[tuple[int, int]] = (), pending: Sequence[tuple[int, int]] = (), noise: float = 0) -> Any:
    return Standing(
        reached=[trial(*at, steps=LONG, rung=1, noise=noise) for at in known],
        below=[trial(*at, noise=noise) for at in known],
        pending=[trial(*at, noise=noise) for at in pending],
        ratio=LONG / SHORT,
        frame=FRAME,
        improves="bits",
    )


def random_points(n: int, seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(int(at % 30), int(at // 30)) for at in rng.permutation(900)[:n]]


def test_a_learning_curve_without_noise_is_extrapolated_exactly() -> None:
    """Before anybody went the whole way."""
    at = random_points(12, seed=0)
    found = forecasts([trial(*p) for p in at], standing=standing(), worth=0.3, price=None)
    assert [f.mean for f in found] == pytest.approx([bits(*p, LONG) for p in at], rel=1e-6)


@pytest.mark.parametrize(
    ("known", "noise", "error"), [(0, 0.02, 0.15), (3, 0.02, 0.08), (30, 0.02, 0.06), (30, 0, 0.02)]
)
def test_intervals_cover_what_comes_and_shrink_with_what_is_known(known: int, noise: float, error: float) -> None:
    inside, missed = [], []
    for seed in range(12):
        at = random_points(known + 12, seed=seed)
        candidates = [trial(*p, noise=noise) for p in at[known:]]
        found = forecasts(candidates, standing=standing(at[:known], noise=noise), worth=0.3, price=None)
        for p, each in zip(at[known:], found, strict=True):
            came = trial(*p, steps=LONG, noise=noise).evaluation
            assert came is not None
            written = each.to_dict()
            inside.append(written["low"] <= came.objectives["bits"] <= written["high"])
            missed.append(came.objectives["bits"] - written["mean"])
    assert np.mean(inside) >= 0.8
    assert np.sqrt(np.mean(np.square(missed))) < error


def test_curves_that_are_absent_or_odd_are_no_obstacle() -> None:
    plain = [dataclasses.replace(trial(x, 3)) for x in range(6)]
    bare = [
        dataclasses.replace(t, evaluation=dataclasses.replace(t.evaluation, measurements=m))  # type: ignore[type-var]
        for t, m in zip(
            plain,
            [{}, {"curve": []}, {"curve": [{"step": 0, "loss": 1}]}, {"curve": [{"step": 5, "loss": 2}]}, {}, {}],
            strict=True,
        )
    ]
    for candidates in (bare, [*bare[:3], *plain[3:]], bare[:1]):
        found = forecasts(candidates, standing=standing(), worth=0.3, price=None)
        assert all(np.isfinite(list(f.to_dict().values())).all() for f in found)
        assert all(f.to_dict()["low"] < f.mean < f.to_dict()["high"] for f in found)


def test_who_goes_on() -> None:
    known = random_points(40, seed=5)
    judge = standing([(x, y) for x, y in known if y > 9])
    good, dominated, twin, large = trial(10, 0), trial(10, 25), trial(10, 1), trial(31, 0)
    found = forecasts([dominated, twin, good, large], standing=judge, worth=0.5, price=None)
    assert [f.goes for f in found] == [False, False, True, False], "of two alike the better; none beyond the limits"
    assert found[2].chance > 0.99
    alone = forecasts([twin], standing=judge, worth=0.5, price=None)
    after = forecasts([twin], standing=dataclasses.replace(judge, pending=[good]), worth=0.5, price=None)
    assert (alone[0].goes, after[0].goes) == (True, False), "who is on the way counts"


def test_a_chance_must_be_worth_its_price() -> None:
    judge = standing(random_points(30, seed=2), noise=0.05)
    row = [(x, y) for x in range(2, 29, 3) for y in (2, 5)]

    def sent(worth: float, price: Any) -> set[Any]:
        candidates = [trial(*p, noise=0.05, price=price(p)) for p in row]
        found = forecasts(candidates, standing=judge, worth=worth, price="price")
        return {c.genome for c, f in zip(candidates, found, strict=True) if f.goes}

    assert len(sent(0.0, lambda p: 1.0)) == len(row)
    assert 0 < len(sent(0.5, lambda p: 1.0)) < len(sent(0.05, lambda p: 1.0))
    some = sent(0.3, lambda p: 1.0)
    assert sent(0.3, lambda p: 7.0) == some, "what all cost alike decides nothing"
    dear = sorted(some, key=lambda point: point.x)[0]
    assert dear not in sent(0.3, lambda p: 100.0 if p == (dear.x, dear.y) else 1.0)


def test_a_model_that_is_too_sure_of_itself_admits_it() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 2))
    smooth = GaussianProcess.fit(inputs, inputs.sum(axis=1) + rng.normal(0, 0.1, 40))
    assert smooth.candour() < 1.3
    # As if the likelihood had taken all of the noise for structure.
    sure = dataclasses.replace(smooth, variance=smooth.variance / 100)
    assert sure.candour() == pytest.approx(10 * smooth.candour(), rel=0.35)


THREE = (Rung(0, Budget("steps", 10), keep=4), Rung(1, Budget("steps", 30), keep=2), Rung(2, Budget("steps", 90)))
UNTRAINED = (Rung(0, Budget("steps", 0), keep=3), Rung(1, Budget("steps", 90)))


@pytest.mark.parametrize("rungs", [SETTINGS.rungs, THREE])
def test_the_search_is_the_same_for_every_number_of_workers_and_order(rungs: tuple[Rung, ...]) -> None:
    settings = dataclasses.replace(ADAPTIVE, rungs=rungs, lag=(1, 2))
    snapshots = [
        searched(study_in(InMemoryStorage(), settings), settings, workers=workers, order=order)
        for workers, order in [(1, 0), (2, 1), (8, 2), (50, 4)]
    ]
    runs = [without_workers(snapshot) for snapshot in snapshots]
    assert all(run == runs[0] for run in runs[1:])
    above = snapshots[0].rungs[1]
    counts = {sum(r.generation == g for r in above) for g in range(6)}
    assert len(counts) > 1, "how many go on is no constant"
    assert all(r.forecast is not None and r.forecast["low"] < r.forecast["high"] for r in above)
    assert all(r.forecast is None for r in snapshots[0].rungs[0])
    assert any(r.audit for r in above)
    fixed = dataclasses.replace(settings, adaptive=False)
    plain = searched(study_in(InMemoryStorage(), fixed), fixed, workers=2, order=0)
    assert all(r.forecast is None for r in plain.records)


def test_who_was_dropped_on_the_way_is_not_waited_for_for_ever() -> None:
    settings = dataclasses.replace(SETTINGS, rungs=THREE, lag=(1, 2))  # fixed stages drop some at each rung
    study = study_in(InMemoryStorage(), settings)
    snapshot = searched(study, settings, workers=2, order=0)
    ended = {record.genome for record in snapshot.rungs[2]}
    dropped = [r for r in snapshot.rungs[1] if r.genome not in ended and r.generation < 2]
    assert dropped
    schedule = Schedule(study, space=IntegerSpace(), policy=RandomPolicy(), settings=settings, leads=lambda: True)
    frame = Frame(objectives=settings.build_objectives(), **snapshot.facts["frame"])
    found = schedule._standing(snapshot, 5, 1, frame=frame)
    newest = 5 - settings.lag_of(2)
    assert newest > 0
    assert found.pending
    assert {record.generation for record in found.pending} == set(range(newest + 1, 5))
    assert {record.generation for record in found.reached} == set(range(newest + 1))


@pytest.mark.parametrize(("writes", "rungs"), [(7, SETTINGS.rungs), (23, SETTINGS.rungs), (23, UNTRAINED)])
def test_a_restart_between_any_two_writes_changes_nothing(
    writes: int, rungs: tuple[Rung, ...], tmp_path: Path
) -> None:
    settings = dataclasses.replace(ADAPTIVE, generations=4, lag=(1, 2), rungs=rungs)
    dies_between_writes(settings, writes, tmp_path / "j")


def test_after_a_rung_without_training_what_training_brings_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squeeze scores a cut parent as it is first; no power law begins there."""

    def broken_at_first(genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        evaluation = Evaluate()(genome, rung, previous)
        worse = {"a": evaluation.objectives["a"] + 20 * (rung.index == 0)}
        return dataclasses.replace(evaluation, objectives={**evaluation.objectives, **worse})

    monkeypatch.setattr("test_study.Evaluate", lambda: broken_at_first)
    settings = dataclasses.replace(ADAPTIVE, rungs=UNTRAINED, generations=10)
    snapshot = searched(study_in(InMemoryStorage(), settings), settings, workers=2, order=0)
    above = snapshot.rungs[1]
    assert all(r.forecast is not None and np.isfinite(list(r.forecast.values())).all() for r in above)
    missed = [
        (r.generation, r.forecast["mean"] - r.evaluation.objectives["a"])
        for r in above
        if r.forecast is not None and r.evaluation is not None
    ]
    assert all(far > 19 for generation, far in missed if generation == 0)
    late = [abs(far) for generation, far in missed if generation > 5]
    assert late
    assert np.median(late) < 1


def test_raising_the_generations_goes_on_as_if_it_had_been_so_from_the_start() -> None:
    long = dataclasses.replace(ADAPTIVE, generations=9)
    study = study_in(InMemoryStorage())
    searched(study, ADAPTIVE, workers=2, order=0)
    extended = searched(study, long, workers=2, order=1)
    assert without_workers(extended) == without_workers(
        searched(study_in(InMemoryStorage()), long, workers=5, order=2)
    )


def test_where_nobody_is_feasible_as_many_go_on_as_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def beyond(*job: Any) -> Evaluation:
        return dataclasses.replace(Evaluate()(*job), constraints={"limit.a": 1.0})

    monkeypatch.setattr("test_study.Evaluate", lambda: beyond)
    snapshot = searched(study_in(InMemoryStorage()), ADAPTIVE, workers=2, order=0)
    assert {sum(r.generation == g for r in snapshot.rungs[1]) for g in range(6)} == {3 + 1}


def test_adaptive_stages_are_another_search_and_the_plan_follows_the_record() -> None:
    identities = [s.identity_of(space=IntegerSpace(), policy=None) for s in (SETTINGS, ADAPTIVE)]
    assert identities[0] != identities[1]
    assert "adaptive" not in identities[0]
    with pytest.raises(ValueError, match="`worth` is a chance, so between 0 and 1, got 2"):
        dataclasses.replace(ADAPTIVE, worth=2)
    snapshot = searched(study_in(InMemoryStorage()), ADAPTIVE, workers=2, order=0)
    status = Progress(ADAPTIVE, shown=False).status(snapshot, now=0.0)
    assert status.planned == status.done


def test_one_setting_says_which_stages() -> None:
    def ladder(**values: Any) -> LadderSettings:
        return from_mapping(LadderSettings, values)

    assert [str(r.budget) for r in ladder(stages="single").rungs] == ["240 steps"]
    assert ladder(stages="single").expected == (12,)
    assert ladder(stages="adaptive").rungs == ladder().rungs
    assert ladder().expected == (12, 4)
    for values, message in (
        ({"keep": [13]}, "must keep 1 to 12 candidates, got 13; `population`, `budgets` and `keep` make the rungs"),
        ({"population": 2}, "must keep 1 to 2 candidates, got 3"),
        ({"budgets": ["9 steps", "3 steps"]}, "rung 1 must exceed 9 steps, got 3 steps"),
        ({"lag": [2, 1]}, "`lag` must be ascending values"),
        ({"lag": [0]}, "`lag` must be ascending values"),
        ({"time": "3h", "lag": [0]}, "`lag` must be ascending values"),
    ):
        with pytest.raises((SettingsError, ValueError), match=message):
            ladder(**values)
    assert ladder(stages="single", population=2).expected == (2,)
    assert ladder(time="3h", population=2).time is not None, "its rungs are planned"
    with pytest.raises((SettingsError, ValueError), match="`time` plans fixed stages, got `stages` 'adaptive'"):
        ladder(stages="adaptive", time="3h")
