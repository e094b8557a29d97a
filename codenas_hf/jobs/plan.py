"""A search by the clock: from one number, `search.time`, to population, generations, rungs and finishing training."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..architecture.genome import Genome
from ..architecture.space import SearchSpace
from ..data import PreparedData
from ..engine import Budget
from ..engine.progress import duration
from ..folders import StudyFolder, read_json, write_json
from ..hardware import Hardware, exclusively
from ..strict_yaml import SettingsError
from .cost import seconds_per_step
from .settings import RunSettings
from .study import waiting

Say = Callable[[str], None]

RATIO = 4  # the long rung over the short one
FINISH_SHARE = 0.25  # of the time, for the training of the winner; it also takes up what the estimate was wrong by
FEWEST_STEPS = 20  # at rung 0: below, the warm-up is all that is compared
# What the shipped search spends: 48 candidates on 5,760 steps. More time buys candidates and steps alike.
CANDIDATES, STEPS = 48, 5760
FRONT = 10  # members that are timed at the end
FIXED_S = 0.6  # of an evaluation: a process, the leak gate, files
# Of a training step's time for as many tokens: a forward pass alone, but in float32 and with each passage's context.
# 0.6 to 1.0 for six shapes of the space `tiny` on a processor that trains in bfloat16.
SCORING = 0.75
TIMING_S = 4.0  # of one member of the front, both passes


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast this machine is with this space and text.

    Args:
        step_s: one training step of a candidate that a search looks at, one compute thread.
        evaluation_s: what an evaluation costs besides training.
        report_s: what one of the last rung costs more, which is scored on the report text too.
        score_s: what scoring the winner costs at the end.
        timing_s: of one model, timed alone.
    """

    step_s: float
    evaluation_s: float
    report_s: float
    score_s: float
    timing_s: float = TIMING_S


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search by the clock does; a fact of its study.

    Args:
        time_s: what was asked for.
        spent_s: of it, what preparing took.
        population, generations, keep, steps: the search; `steps` are the totals of its two rungs.
        search_s, measure_s, finish_s: what the search, the measuring of its front and the training of the winner are
            expected to take.
        final_s: of timing and scoring the winner; its share of `measure_s`.
        step_s: the measured pace.
    """

    time_s: float
    spent_s: float
    population: int
    generations: int
    keep: int
    steps: tuple[int, int]
    search_s: float
    measure_s: float
    finish_s: float
    final_s: float
    step_s: float

    def lines(self, *, workers: int, audit: int) -> list[str]:
        """For people."""
        first, second = self.steps
        return [
            f"plan      {duration(self.time_s)}, {duration(self.spent_s)} of it spent on preparing: "
            f"{self.generations} generations of {self.population}, {workers} at a time; "
            f"{self.population} x {first} steps, then {self.keep + audit} x {second} steps",
            f"          search {duration(self.search_s)}, measuring the front {duration(self.measure_s)}, training "
            f"the winner on {duration(self.finish_s)}; as measured, {self.step_s:.2g} s a step",
        ]


def make_plan(
    time_s: float,
    *,
    spent_s: float,
    pace: Pace,
    workers: int,
    audit: int,
    decay_share: float,
    earlier: Plan | None = None,
    finish_s: float | None = None,
) -> Plan:
    """Fills the time.

    Args:
        time_s: from the start of the command to the released winner.
        spent_s: what is over already.
        pace: as measured.
        workers: candidates at a time.
        audit: promoted by lot, in each generation.
        decay_share: of a rung's budget; the rung above continues from before it.
        earlier: the plan of the same study for another time: its rungs stay, generations change.
        finish_s: training of the winner; None takes a share of the time.

    Raises:
        SettingsError: too little time for two generations of four.
    """
    final_s = pace.timing_s + pace.score_s
    measure_s = FRONT * pace.timing_s + final_s  # the front's report text is part of its evaluations
    left = time_s - spent_s - measure_s
    share, fixed_s = (FINISH_SHARE, 0.0) if finish_s is None else (0.0, finish_s)  # of the time, for the winner
    finish_s = share * left + fixed_s
    search_s = left - finish_s

    def fixed(population: int) -> tuple[int, float, float]:
        """How many go on; steps of a generation for each step of rung 0; seconds besides."""
        keep = max(1, population // 4)
        promoted = keep + audit
        return (
            keep,
            population + promoted * (RATIO - 1 + decay_share),
            population * pace.evaluation_s + promoted * (pace.evaluation_s + pace.report_s),
        )

    def steps(population: int, generations: int) -> int:
        _, each, besides = fixed(population)
        return math.floor((workers * search_s / generations - besides) / (each * pace.step_s))

    if earlier is not None:
        population, first = earlier.population, earlier.steps[0]
        keep, each, besides = fixed(population)
        generations = max(1, math.floor(workers * search_s / (each * first * pace.step_s + besides)))
    else:
        population = max(12, 2 * workers)
        wanted = CANDIDATES * math.sqrt(max(0.0, workers * search_s) / pace.step_s / STEPS)
        generations = max(2, round(wanted / population))
        while (first := steps(population, generations)) < FEWEST_STEPS and (generations > 2 or population > 4):
            population, generations = (population, generations - 1) if generations > 2 else (population - 1, 2)
        keep, each, besides = fixed(population)
        if first < FEWEST_STEPS:
            least = 2 * (each * FEWEST_STEPS * pace.step_s + besides) / workers / (1 - share)
            needed = 60 * math.ceil((spent_s + measure_s + 1.1 * least + fixed_s) / 60)  # as it is shown
            raise SettingsError(
                f"`search.time`: {duration(max(time_s, 0))} is too short: preparing took {duration(spent_s)}, "
                f"measuring the front takes {duration(measure_s)}, and two generations of four with the training "
                f"of the winner {duration(least + fixed_s)}; give {duration(needed)} or more"
            )
    expected = generations * (each * first * pace.step_s + besides) / workers
    return Plan(
        time_s=time_s,
        spent_s=spent_s,
        population=population,
        generations=generations,
        keep=keep,
        steps=(first, RATIO * first),
        search_s=expected,
        measure_s=measure_s,
        finish_s=finish_s,
        final_s=final_s,
        step_s=pace.step_s,
    )


def measure_pace(settings: RunSettings, *, space: SearchSpace, data: PreparedData, hardware: Hardware) -> Pace:
    """Times steps of three architectures and expects those of the others in proportion to their products.

    A search leans to the larger ones within the limits, so its mean candidate is taken between the mean of the space
    and its upper fifth.
    """
    rng = np.random.default_rng(0)
    genomes = sorted((space.sample(rng) for _ in range(65)), key=_products)
    work = np.array([_products(genome) for genome in genomes], dtype=np.float64)
    places = [len(genomes) * share // 100 for share in (15, 50, 85)]
    measured = [
        seconds_per_step(genomes[i], settings=settings, data=data, device=hardware.device, steps=4) for i in places
    ]
    slope, start = np.polyfit(work[places], measured, 1)
    if slope < 0 or start < 0:  # noise: in proportion then
        slope, start = float(np.sum(measured) / np.sum(work[places])), 0.0
    expected = start + slope * work
    step_s = float((expected.mean() + np.quantile(expected, 0.8)) / 2)
    middle = genomes[places[1]]
    tokens_per_byte = 1 / data.tokens(middle.vocab_size, "train").bytes_per_token
    byte_s = SCORING * step_s * tokens_per_byte / settings.train.tokens_per_step
    return Pace(
        step_s=step_s,
        evaluation_s=FIXED_S + byte_s * settings.candidate.score_bytes,
        report_s=byte_s * settings.candidate.report_bytes,
        score_s=byte_s * settings.final_score_bytes,
    )


def _products(genome: Genome) -> float:
    """Weights that a token is multiplied with; a table that is only looked up costs nothing."""
    table = 0 if genome.tie_word_embeddings else genome.vocab_size * genome.hidden_size
    return float(genome.num_parameters() - table)


def read_plan(folder: Path) -> Plan | None:
    """The plan of a study; None where it has none."""
    return _read(StudyFolder(folder).plan)


def _read(note: Path) -> Plan | None:
    if not note.exists():
        return None
    stored = read_json(note)
    return Plan(**{**stored, "steps": tuple(stored["steps"])})


def study_plan(
    settings: RunSettings,
    *,
    folder: Path,
    space: SearchSpace,
    data: PreparedData,
    hardware: Hardware,
    started: float,
    say: Say,
) -> tuple[RunSettings, Plan | None]:
    """The settings with the search planned by the clock; unchanged without `search.time`.

    The plan is made by the first process of the study, and kept: later ones, on whatever machine, have the same rungs.
    Another time for the same study keeps its rungs and changes the number of generations. A new plan waits until the
    folder is known to hold this study (`study.keep_facts`).

    Args:
        settings: of the run.
        folder: of the study.
        space: within the limits.
        data: of the study.
        hardware: that is used.
        started: when the command began, by the monotonic clock.
        say: told the plan.

    Raises:
        SettingsError: too little time, or a study that was begun without a plan.
    """
    ladder = settings.search
    if ladder.time is None:
        return settings, None
    workers = ladder.workers_per_rank or hardware.count
    note = StudyFolder(folder).plan
    with exclusively(folder / ".plan.lock"):
        earlier = read_plan(folder)
        if earlier is None and StudyFolder(folder).settings.exists():
            raise SettingsError(
                f"`search.time`: {folder} was begun without one, and its rungs stay as they are: leave it out, begin "
                "another with study=NAME, or put this one aside with --fresh"
            )
        same = (p for p in (earlier, _read(waiting(note))) if p is not None and p.time_s == ladder.time.seconds)
        plan = next(same, None)
        if plan is None:
            plan = make_plan(
                ladder.time.seconds,
                pace=measure_pace(settings, space=space, data=data, hardware=hardware),
                spent_s=time.monotonic() - started,
                workers=workers,
                audit=ladder.audit,
                decay_share=settings.train.optim.decay_share,
                earlier=earlier,
                finish_s=None if ladder.finish == "auto" else 0.0 if ladder.finish is None else ladder.finish.seconds,
            )
            write_json(waiting(note), dataclasses.asdict(plan))
    for line in plan.lines(workers=workers, audit=ladder.audit):
        say(line)
    planned = dataclasses.replace(
        ladder,
        population=plan.population,
        generations=plan.generations,
        budgets=tuple(Budget("steps", steps) for steps in plan.steps),
        keep=(plan.keep,),
    )
    return dataclasses.replace(settings, search=planned), plan
