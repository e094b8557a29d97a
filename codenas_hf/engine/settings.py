"""What a search is asked to do, and the two usual ladders of rungs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .objectives import Objectives
from .records import Budget, Rung

_ABSENT = object()


def single_stage(*, budget: Budget = Budget("steps", 300)) -> tuple[Rung, ...]:  # noqa: B008  # frozen
    """One rung: every candidate gets the whole budget."""
    return (Rung(0, budget),)


def two_stage(
    *,
    population: int = 24,
    keep: int = 6,
    budgets: Sequence[Budget] = (Budget("steps", 50), Budget("steps", 300)),  # frozen
) -> tuple[Rung, ...]:
    """A rung for every candidate, and a second one for the best `keep` of each generation, which continue.

    Args:
        population: candidates in a generation; only checked against `keep`.
        keep: how many of a generation go on.
        budgets: total training at each of the two rungs.

    Raises:
        ValueError: not two budgets, or more kept than there are.
    """
    if len(budgets) != 2:
        raise ValueError(f"`budgets` must have two values, one per rung, got {len(budgets)}")
    if keep > population:
        raise ValueError(f"`keep` ({keep}) must not exceed the population ({population})")
    return (Rung(0, budgets[0], keep=keep), Rung(1, budgets[1]))


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the engine waits before it gives up on something.

    Args:
        redraws: rounds of proposals for a generation before the space counts as exhausted.
        kills: how often an evaluation that somebody else killed is started again before it counts as failed.
        heartbeat_s: seconds between the signs of life of a process, on a server database.
        lease_s: without a sign of life for so long, a process counts as dead.
        full_disk_s: how long a write to the journal waits for space on a full disk.
        server_s: how long a database server may be away.
        start_s: how long a rank waits for rank 0 to open the study.

    Raises:
        ValueError: a negative value, or a lease that is not longer than two heartbeats.
    """

    redraws: int = 64
    kills: int = 1
    heartbeat_s: float = 5.0
    lease_s: float = 30.0
    full_disk_s: float = 60.0
    server_s: float = 300.0
    start_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("redraws", "kills", "full_disk_s", "server_s", "start_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"`patience.{name}` must be 0 or more, got {getattr(self, name)}")
        if not 0 < 2 * self.heartbeat_s < self.lease_s:
            raise ValueError(
                f"`patience.lease_s` must exceed two heartbeats of {self.heartbeat_s:g} s, got {self.lease_s:g}"
            )


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Everything about a search but its space, its evaluator and its policy.

    Args:
        objectives: name to "linear" or "log2", the scale on which values are compared; a plain sequence of names means
            all linear. All are minimised; the first is the one that reports call the quality.
        population: candidates in a generation.
        generations: how many; may be raised later, the search goes on from where it was.
        rungs: the ladder, see `two_stage` and `single_stage`.
        improves: the objective that training improves, whose best within the limits always goes on to the next rung;
            the first when None.
        weights: name to weight in the fitness that picks the winner off the front; all equal when empty. They count
            over the objectives without a limit, and may change at any time.
        limits: name to the maximum of the raw objective; a candidate beyond it is infeasible.
        ideal: name to the raw value that has fitness 1; derived from the first generation where absent.
        reference: name to the raw value that has fitness 0 and bounds the hypervolume; likewise.
        seed: of all proposals.
        lag: generation g reads the results at rung r of generations up to g - lag[r]; 1 is a barrier. Rungs beyond the
            last value add 2 each.
        audit: candidates of each generation that are promoted by lot, so that rungs can be compared fairly.
        adaptive: forecasts decide who goes on and how many, see `stages`; `keep` counts only while nobody is feasible,
            and where it is said how much is planned.
        worth: with adaptive stages, the chance of entering the front at which a candidate of median price goes on.
        price: with adaptive stages, the measurement to which the seconds of further training are proportional; all
            cost the same when None. Seconds themselves would not be the same for another number of workers.
        identity: what else makes this search what it is, such as the hash of its data. JSON values.
        name: of the study in the storage; the folder's name when None.
        storage: Optuna storage URL of a server database that many machines share; None is a journal in the folder.
        workers_per_rank: evaluations at the same time in each rank; the share of the machine's cores when None.
        threads_per_worker: compute threads of each evaluation.
        time_limit_s: of one evaluation; None means no limit.
        memory_limit_bytes: of one evaluation, as proportional set size; None means no limit.
        environment: further environment variables of the evaluating processes.
        world_size: how many ranks there must be; `CODENAS_WORLD` in the environment does the same.
        patience: how long to wait before giving up on something.

    Raises:
        ValueError: a value that cannot be used; the message names it.
    """

    objectives: Mapping[str, Literal["linear", "log2"]] | Sequence[str]
    population: int = 12
    generations: int = 4
    rungs: Sequence[Rung] = field(default_factory=two_stage)
    improves: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    ideal: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    lag: tuple[int, ...] = (1, 2)
    audit: int = 1
    adaptive: bool = False
    worth: float = 0.3
    price: str | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    storage: str | None = None
    workers_per_rank: int | None = None
    threads_per_worker: int = 1
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    world_size: int | None = None
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if isinstance(self.objectives, str):
            raise ValueError(f"`objectives` must be a mapping or a sequence of names, got {self.objectives!r}")
        if not isinstance(self.objectives, Mapping):
            object.__setattr__(self, "objectives", dict.fromkeys(self.objectives, "linear"))
        object.__setattr__(self, "rungs", tuple(self.rungs))
        for name in ("population", "generations", "threads_per_worker", "workers_per_rank", "world_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        for name in ("time_limit_s", "memory_limit_bytes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be positive, or None for no limit, got {value}")
        if not 0 <= self.worth <= 1:
            raise ValueError(f"`worth` is a chance, so between 0 and 1, got {self.worth}")
        if self.seed < 0 or self.audit < 0:
            raise ValueError(f"`seed` and `audit` must be 0 or more, got {self.seed} and {self.audit}")
        if not self.lag or min(self.lag) < 1 or list(self.lag) != sorted(self.lag):
            raise ValueError(f"`lag` must be ascending values of at least 1, one per rung, got {self.lag}")
        self._check_rungs()
        objectives = self.build_objectives()
        objectives.check_names("improves", {self.improved: None})
        for name, point in (("ideal", self.ideal), ("reference", self.reference)):
            objectives.check_names(name, point)
            for key, value in point.items():
                objectives.scaled(key, value)
        for key in set(self.ideal) & set(self.reference):
            if not self.ideal[key] < self.reference[key]:
                raise ValueError(f"`ideal` must lie below `reference`, got {self.ideal[key]} for {key!r}")

    def _check_rungs(self) -> None:
        if not self.rungs or [rung.index for rung in self.rungs] != list(range(len(self.rungs))):
            raise ValueError(f"`rungs` must be numbered 0, 1, 2, ..., got {[rung.index for rung in self.rungs]}")
        entering = self.population
        for rung, following in zip(self.rungs[:-1], self.rungs[1:], strict=True):
            if rung.keep is None or rung.keep > entering:
                raise ValueError(f"`rungs`: rung {rung.index} must keep 1 to {entering} candidates, got {rung.keep}")
            if following.budget.kind != rung.budget.kind or following.budget.amount <= rung.budget.amount:
                raise ValueError(
                    f"`rungs`: a budget is the total at its rung, so rung {following.index} must exceed "
                    f"{rung.budget}, got {following.budget}"
                )
            entering = rung.keep + self.audit
        if self.rungs[-1].keep is not None:
            raise ValueError(
                f"`rungs`: nothing follows the last rung, so its `keep` is None, got {self.rungs[-1].keep}"
            )

    def build_objectives(self) -> Objectives:
        """The objectives with their scales, weights and limits."""
        return Objectives(scales=dict(self.objectives), weights=self.weights, limits=self.limits)  # type: ignore[arg-type]

    @property
    def improved(self) -> str:
        """The objective that training improves."""
        return self.improves or next(iter(self.objectives))

    def lag_of(self, rung: int) -> int:
        """How many generations back the results of `rung` are read."""
        return self.lag[rung] if rung < len(self.lag) else self.lag[-1] + 2 * (rung - len(self.lag) + 1)

    def identity_of(self, *, space: Any, policy: Any) -> dict[str, Any]:
        """What must be the same whenever this search goes on. JSON values."""
        return {
            "space": _description(space),
            "policy": getattr(policy, "policy_name", type(policy).__qualname__),
            "rungs": [rung.to_dict() for rung in self.rungs],
            "objectives": {"scales": self.build_objectives().scales, "limits": dict(self.limits)},
            "ideal": dict(self.ideal),
            "reference": dict(self.reference),
            "population": self.population,
            "seed": self.seed,
            "lag": [self.lag_of(rung.index) for rung in self.rungs],
            "audit": self.audit,
            "identity": dict(self.identity),
            # Absent where they are as in studies that knew nothing else.
            **({} if self.improved == next(iter(self.objectives)) else {"improves": self.improved}),
            **({"adaptive": {"worth": self.worth, "price": self.price}} if self.adaptive else {}),
        }


def comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what is no part of it any more: weights, and all of a policy but its name.

    Which member of the front wins is a question that is asked of a finished record, so it cannot make another search.
    """
    kept = dict(identity)
    if "objectives" in kept:
        kept["objectives"] = {name: value for name, value in kept["objectives"].items() if name != "weights"}
    if "policy" in kept:
        kept["policy"] = str(kept["policy"]).partition("(")[0]
    return kept


def different(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, each in words; nothing where they are the same search."""
    before, now = _flat(comparable(stored)), _flat(comparable(given))
    if before.get("policy") == "Seeded" == str(now.get("policy")).partition(" ")[0]:
        before["policy"] = now["policy"]  # searches of before did not keep which policy followed the given genomes
    return [
        f"{key}: stored {_brief(before, key)}, given {_brief(now, key)}"
        for key in sorted({*before, *now})
        if before.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]


class RanksError(RuntimeError):
    """The processes that the launcher started are not those that the search needs."""


def wait_for(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    """Waits until `condition` holds, which another rank sees to.

    Raises:
        RanksError: it does not within `seconds`; begins with `problem`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RanksError(f"{problem} within {seconds:g} s: look at the output of the other ranks")
        time.sleep(0.1)


@dataclass(frozen=True)
class World:
    """Which rank this process is, as the launcher says in the environment."""

    rank: int
    size: int
    local_size: int

    @classmethod
    def read(cls) -> World:
        """From RANK, WORLD_SIZE and LOCAL_WORLD_SIZE; one plain process without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=size,
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
        )

    def check(self, wanted: int | None) -> None:
        """Compares with `wanted` and with CODENAS_WORLD.

        Raises:
            RanksError: there are more or fewer ranks than asked for.
        """
        for source, value in (("world_size", wanted), ("CODENAS_WORLD", os.environ.get("CODENAS_WORLD"))):
            if value is not None and not str(value).isdecimal():
                raise RanksError(f"{source} must be a number of ranks, got {value!r}; unset it, or correct it")
            if value is not None and int(value) != self.size:
                raise RanksError(
                    f"{source} asks for {value} ranks, but the launcher started {self.size}: on CPUs use "
                    f"`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 --num_processes {value} "
                    "--main_process_port 0 ...` (`accelerate launch --cpu --num_processes N` starts one)"
                )

    def workers(self, asked: int | None, *, threads: int) -> int:
        """Evaluations at the same time in this rank: as asked, or its share of the cores."""
        if asked is not None:
            return asked
        return max(1, len(os.sched_getaffinity(0)) // (self.local_size * threads))


def _description(space: Any) -> Any:
    if hasattr(space, "to_dict"):
        return space.to_dict()
    name = f"{type(space).__module__}.{type(space).__qualname__}".removeprefix("__main__.").removeprefix(
        "__mp_main__."
    )
    genes = getattr(space, "genes", None)
    return {
        "type": name,
        "genes": None if genes is None else {gene: list(values) for gene, values in genes.items()},
    }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested JSON value by the dotted names of its leaves; lists of plain values are leaves, empty mappings none."""
    if isinstance(value, Mapping):
        parts = {f"{name}.{key}" if name else key: inner for key, inner in value.items()}
    elif isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
        parts = {f"{name}[{index}]": inner for index, inner in enumerate(value)}
    else:
        return {name: value}
    return {key: leaf for part, inner in parts.items() for key, leaf in _flat(inner, part).items()}


def _brief(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    text = json.dumps(values[key], sort_keys=True)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"
