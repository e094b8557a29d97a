"""What a person wants of a search: limits, weights, how many candidates and how long; read without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..engine import Budget, Rung, SearchSettings, single_stage
from ..folders.ranges import check_range
from ..folders.share import Share
from ..quantities import OBJECTIVES
from .durations import Duration
from .policies import POLICIES

PLANNED = ("population", "generations", "budgets", "keep")  # by `search.time`, in words of the same command


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """The budget of whoever will use the winner; None means no limit.

    Args:
        bytes: most bytes to ship: weights, tokenizer, configuration. Sizes such as `20MB` are read.
        min_bytes: fewest bytes of weights, for those who want to use a budget up.
        decode_ms: slowest decoding, milliseconds per token at batch 1 on the study's device.

    Raises:
        ValueError: not positive, or nothing fits between the two sizes.
    """

    bytes: int | None = None
    min_bytes: int | None = None
    decode_ms: float | None = None

    def __post_init__(self) -> None:
        check_range(
            self, "bytes", "min_bytes", "decode_ms", above=0, optional=True, advice="leave it out for no limit"
        )
        if self.bytes is not None and self.min_bytes is not None and self.min_bytes >= self.bytes:
            raise ValueError(f"`min_bytes` ({self.min_bytes}) must be below `bytes` ({self.bytes})")


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """On which device decoding is fast or slow.

    Args:
        file: from `codenas latency --out FILE` on another machine: candidates are predicted for that one, and nothing
            is timed here but the released winner. None takes this machine.
    """

    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """How much each objective counts when one winner is picked off the front.

    Raises:
        ValueError: a negative weight, or all are 0.
    """

    bits_per_byte: float = 0.5
    artifact_bytes: float = 0.3
    decode_ms: float = 0.2

    def __post_init__(self) -> None:
        check_range(self, "bits_per_byte", "artifact_bytes", "decode_ms", least=0)
        if not any((self.bits_per_byte, self.artifact_bytes, self.decode_ms)):
            raise ValueError("weights must not all be 0; leave one out for its default")


def weights_of(weights: WeightSettings) -> dict[str, float]:
    """The weights by objective."""
    return {name: getattr(weights, name) for name in OBJECTIVES}


@dataclass(frozen=True, kw_only=True)
class LadderSettings:
    """The search: how many candidates, how long each trains, who goes on.

    Args:
        time: how long everything may take, such as `3h` or `30m`, from the start of the command to the released
            winner: population, generations, budgets and keep are then planned from the measured speed of this machine.
        finish: how long the winner trains on, on all cores, before it is released: a duration; `auto`, as long as the
            promoted rungs took or 3 minutes, whichever is less, or what `time` leaves; null for not at all.
        population: candidates in a generation.
        generations: how many; a finished study goes on when this is raised.
        budgets: total training at each rung, such as `[50 steps, 300 steps]`.
        stages: `fixed`, so many go on as `keep` says; `adaptive`, forecasts from the learning curves decide who and
            how many, and `keep` only says what to expect; `single`, all of them get the last budget at once.
        keep: how many of a generation go on from each rung but the last.
        audit: candidates promoted by lot besides, so that the rungs can be compared fairly.
        policy: who proposes, a name in `POLICIES`; docs/search.md says what each does.
        seed: of everything that is drawn.
        seeds: genome files that the first generation starts from.
        lag: how many generations back each rung's results are read; 1 waits for everybody.
        storage: URL of a database that several machines share; a journal file in the study's folder without.
        share: where machines without a common folder leave checkpoints for each other, by the hash of their content: a
            folder, `hf://buckets/OWNER/NAME`, or another place that fsspec opens; only with `storage`.
        workers_per_rank: candidates at a time in each process; its share of the cores, or of the GPUs, when null.
        time_limit_s: of one evaluation; null for none.
        memory_limit_bytes: of one evaluation; null for none.

    Raises:
        ValueError: a number out of range, numbers of rungs that do not fit together, or no such policy.
    """

    time: Duration | None = None
    finish: Literal["auto"] | Duration | None = "auto"
    population: int = SearchSettings.population
    generations: int = SearchSettings.generations
    budgets: tuple[Budget, ...] = (Budget("steps", 60), Budget("steps", 240))
    stages: Literal["single", "fixed", "adaptive"] = "fixed"
    keep: tuple[int, ...] = (3,)
    audit: int = SearchSettings.audit
    policy: str = "guided"
    seed: int = SearchSettings.seed
    seeds: tuple[Path, ...] = ()
    lag: tuple[int, ...] = SearchSettings.lag
    storage: str | None = None
    share: str | None = None
    workers_per_rank: int | None = None
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        # Here too, and not in the engine alone: that is asked after the text has been prepared.
        check_range(self, "population", "generations", least=1)
        check_range(self, "audit", "seed", least=0)
        check_range(self, "workers_per_rank", least=1, optional=True)
        check_range(self, "time_limit_s", "memory_limit_bytes", above=0, optional=True)
        if self.policy not in POLICIES:
            raise ValueError(f"`policy` must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if self.share is not None and self.storage is None:
            raise ValueError(
                f"`share` ({Share(self.share).shown}) is for studies of several machines, which need a database: give "
                "`storage` too, or leave `share` out"
            )
        if len(self.keep) != len(self.budgets) - 1:
            raise ValueError(
                f"`keep` must have one number less than `budgets`, got {len(self.keep)} and {len(self.budgets)}; "
                "a search in one stage has one budget and `keep: []`"
            )
        engine = SearchSettings(objectives=OBJECTIVES, lag=self.lag, audit=self.audit)
        if self.time is None:  # else they are planned
            try:
                replace(engine, population=self.population, rungs=self.rungs)
            except ValueError as error:
                raise ValueError(f"{error}; `population`, `budgets` and `keep` make the rungs") from error
        if self.time is not None and self.stages != "fixed":
            raise ValueError(
                f"`time` plans fixed stages, got `stages` {self.stages!r}: leave one of the two out, or say yourself "
                "how many `generations` there shall be"
            )

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The ladder as the engine takes it."""
        if self.stages == "single":
            return single_stage(budget=self.budgets[-1])
        return tuple(
            Rung(index, budget, keep=keep)
            for index, (budget, keep) in enumerate(zip(self.budgets, (*self.keep, None), strict=True))
        )

    @property
    def expected(self) -> tuple[int, ...]:
        """Candidates of a generation at each rung; with adaptive stages what to expect."""
        return (self.population, *(rung.keep + self.audit for rung in self.rungs if rung.keep is not None))


def objective_limits(limits: LimitSettings) -> dict[str, float]:
    """The user's limits by objective."""
    wanted = {"artifact_bytes": limits.bytes, "decode_ms": limits.decode_ms}
    return {name: float(value) for name, value in wanted.items() if value is not None}
