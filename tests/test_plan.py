"""Search by the clock: durations, the plan that fills them, and the space that nobody named."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest

from codenas_hf.data import PreparedData
from codenas_hf.folders import StudyFolder
from codenas_hf.hardware import Hardware
from codenas_hf.jobs.durations import Duration
from codenas_hf.jobs.plan import FEWEST_STEPS, Pace, Plan, make_plan, study_plan
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.spaces import largest_bytes, limit_lines, load_space, pick_space, with_space
from codenas_hf.jobs.study import forget_waiting, waiting
from codenas_hf.strict_yaml import SettingsError, dump, load

CPU = Hardware("cpu", "x", 2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("3h", 10800), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)]
)
def test_durations_are_read_and_written_back(text: str, seconds: float) -> None:
    found = Duration.parse(text)
    assert found.seconds == seconds
    assert Duration.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", "3", "3 hours", "h", "-3h", "30m1h", "0s", "3hh", "1e3s", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@pytest.mark.parametrize("word", ["search.time=3", "search.time=soon", "search.finish=1.5"])
def test_a_setting_that_is_no_duration(word: str) -> None:
    name = word.partition("=")[0]
    with pytest.raises(SettingsError, match=rf"`{name}`: a duration reads like 30m, 3h, 1h30m or 90s"):
        load(RunSettings, overrides=[word])


def test_settings_with_durations_are_written_and_read(tmp_path: Path) -> None:
    settings = load(RunSettings, overrides=["search.time=3h", "search.finish=10m"])
    path = tmp_path / "settings.yaml"
    path.write_text(dump(settings))
    assert load(RunSettings, path) == settings
    assert load(RunSettings, overrides=["search.finish=null"]).search.finish is None
    assert load(RunSettings, overrides=["search.finish=auto"]).search.finish == "auto"


PACE = Pace(step_s=0.16, evaluation_s=1.0, report_s=1.0, score_s=10.0)


def planned(seconds: float, **changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        **{"spent_s": 30.0, "pace": PACE, "workers": 2, "audit": 1, "decay_share": 0.2},
        **changes,
    }
    return make_plan(seconds, **arguments)


@pytest.mark.parametrize("seconds", [600, 1800, 7200, 28800])
@pytest.mark.parametrize("step_s", [0.02, 0.16, 1.0])
@pytest.mark.parametrize("workers", [1, 2, 16])
def test_a_plan_fills_its_time(seconds: float, step_s: float, workers: int) -> None:
    pace = dataclasses.replace(PACE, step_s=step_s)
    try:
        plan = planned(seconds, pace=pace, workers=workers)
    except SettingsError:
        assert seconds / step_s * workers < 2000  # where not even two generations of four fit
        return
    total = plan.spent_s + plan.search_s + plan.measure_s + plan.finish_s
    assert total <= seconds
    assert total > 0.9 * seconds
    assert plan.steps[0] >= FEWEST_STEPS
    assert plan.generations >= 2
    assert plan.keep < plan.population


def test_only_the_winner_is_scored_at_the_end() -> None:
    """The front is timed; its report text belongs to its evaluations."""
    slow = dataclasses.replace(PACE, score_s=PACE.score_s + 40)
    assert planned(1800, pace=slow).measure_s == pytest.approx(planned(1800).measure_s + 40)
    assert planned(1800).measure_s > 2 * planned(1800).final_s, "and each of the front is timed"


def test_more_time_buys_candidates_and_steps() -> None:
    short, long = planned(600), planned(28800)
    assert long.generations * long.population > 2 * short.generations * short.population
    assert long.steps[0] > 2 * short.steps[0]


def test_the_explicit_training_of_the_winner_is_kept() -> None:
    assert planned(1800, finish_s=0.0).finish_s == 0
    assert planned(1800, finish_s=0.0).search_s > planned(1800, finish_s=900.0).search_s


def test_another_time_for_the_same_study_keeps_its_rungs() -> None:
    first = planned(1800)
    more = planned(7200, earlier=first)
    assert (more.population, more.keep, more.steps) == (first.population, first.keep, first.steps)
    assert more.generations > first.generations


def test_too_little_time_says_how_much_is_needed() -> None:
    with pytest.raises(SettingsError, match=r"`search.time`: 60 s is too short: .* give (\d+) (s|min)"):
        planned(60)


@pytest.mark.parametrize("finish_s", [None, 0.0, 600.0])
def test_as_much_as_is_said_to_be_needed_is_enough(finish_s: float | None) -> None:
    with pytest.raises(SettingsError) as refused:
        planned(60, finish_s=finish_s)
    needed = re.search(r"give (\d+) (s|min) or more", str(refused.value))
    assert needed is not None
    seconds = int(needed[1]) * {"s": 1, "min": 60}[needed[2]]
    assert planned(seconds, finish_s=finish_s).steps[0] >= FEWEST_STEPS


def test_a_time_beside_what_it_plans_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"`search.time` \(3h\) plans `search.generations`"):
        RunSettings.of("search.time=3h", "search.generations=8")
    assert RunSettings.of("search.time=3h", "search.seed=8").search.time == Duration(10800)


def test_a_time_of_a_file_is_not_overridden_in_silence(tmp_path: Path) -> None:
    stored = tmp_path / "settings.yaml"
    begun = RunSettings.of("search.time=3h")
    planned = dataclasses.replace(begun.search, generations=4, population=12)
    stored.write_text(dump(dataclasses.replace(begun, search=planned)))
    for word in ("search.generations=8", "search.population=8", "search.keep=[1]"):
        with pytest.raises(SettingsError, match=r"`search.time` \(3h\) plans `search\.\w+`: .* search.time=null"):
            RunSettings.of(word, config=[stored])
        with pytest.raises(SettingsError, match=r"`search.time` \(5h\) plans"):
            RunSettings.of(word, "search.time=5h", config=[stored])
    mine = RunSettings.of("search.time=null", "search.generations=8", config=[stored]).search
    assert (mine.time, mine.generations, mine.population) == (None, 8, 12)
    assert RunSettings.of("search.time=6h", config=[stored]).search.time == Duration(21600)
    plain = tmp_path / "later.yaml"
    plain.write_text("search:\n  time: null\n")
    assert RunSettings.of("search.generations=8", config=[stored, plain]).search.generations == 8


def test_a_plan_is_a_fact_of_the_study(
    tmp_path: Path, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once: a second start, however fast the machine is then, has the same rungs."""
    paces = iter([PACE, dataclasses.replace(PACE, step_s=0.5), dataclasses.replace(PACE, step_s=0.5)])
    monkeypatch.setattr("codenas_hf.jobs.plan.measure_pace", lambda *args, **keywords: next(paces))
    said: list[str] = []

    def start(words: str) -> tuple[RunSettings, Plan | None]:
        return study_plan(
            load(RunSettings, overrides=words.split()),
            folder=tmp_path,
            space=load_space("tiny"),
            data=tiny_data,
            hardware=CPU,
            started=time.monotonic(),
            say=said.append,
        )

    first, plan = start("search.time=30m")
    assert not StudyFolder(tmp_path).plan.exists()  # not before the folder is known to hold this study
    assert start("search.time=30m") == (first, plan)  # as another process of the launch
    waiting(StudyFolder(tmp_path).plan).replace(StudyFolder(tmp_path).plan)
    kept = StudyFolder(tmp_path).plan.read_bytes()
    assert start("search.time=30m") == (first, plan)
    assert plan is not None
    assert first.search.generations == plan.generations
    assert [budget.amount for budget in first.search.budgets] == list(plan.steps)
    assert first.search.keep == (plan.keep,)
    assert any(line.startswith("plan      30 min") for line in said)
    longer, _ = start("search.time=8h")
    assert longer.search.rungs == first.search.rungs
    assert StudyFolder(tmp_path).plan.read_bytes() == kept
    forget_waiting(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == ["plan.json"]
    plain, none = start("search.seed=1")
    assert none is None
    assert plain.search.population == RunSettings().search.population


def test_the_space_follows_from_limits_and_device() -> None:
    assert pick_space(4_000_000, device="cpu") == "tiny"
    assert pick_space(8_000_000, device="cpu") == "tiny"
    assert pick_space(20_000_000, device="cpu") == "medium"
    assert pick_space(None, device="cpu") == "tiny"
    assert pick_space(None, device="cuda") == "large"
    assert pick_space(100_000_000, device="cuda") == "large"
    assert pick_space(4_000_000, device="cuda") == "tiny"
    assert pick_space(None, device="cpu", fewest_bytes=10_000_000) == "medium"
    assert with_space(load(RunSettings, overrides=["device=cpu", "limits.bytes=4MB"])).space == "tiny"
    assert with_space(load(RunSettings, overrides=["space=large"])).space == "large"


def test_a_limit_that_a_space_cannot_fill_is_said_with_what_to_change() -> None:
    tiny = load_space("tiny")
    assert 5_000_000 < largest_bytes(tiny) < 8_000_000

    def lines(*words: str) -> list[str]:
        return limit_lines(load(RunSettings, overrides=words), space=tiny, device="cpu")

    assert len(lines("space=tiny", "limits.bytes=4MB", "limits.decode_ms=5")) == 1
    (_, wide) = lines("space=tiny", "limits.bytes=40MB")
    assert "less than half of limits.bytes: space=medium has larger ones" in wide
    small = tiny.with_limits(extra=lambda genome: "slow" if genome.weights_bytes() > 1_000_000 else None)
    (_, slow) = limit_lines(
        load(RunSettings, overrides=["space=tiny", "limits.bytes=4MB", "limits.decode_ms=1"]),
        space=small,
        device="cpu",
    )
    assert "limits.decode_ms=1 keeps larger ones out" in slow
    assert "none" in lines("space=tiny")[0]


def test_shipped_limits_give_way_to_any_named_limit() -> None:
    if Hardware.discover().device == "cuda":
        pytest.skip("configs/gpu.yaml is laid there")
    assert (RunSettings.of().limits.bytes, RunSettings.of().limits.decode_ms) == (4_000_000, 5)
    named = RunSettings.of("limits.decode_ms=3").limits
    assert (named.bytes, named.decode_ms) == (None, 3)
