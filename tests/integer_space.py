"""A made-up search space of integers whose front is known in closed form, and evaluators for it. No torch here."""

import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import light_codenas  # noqa: F401  # before codenas_hf
import numpy as np

from codenas_hf.engine.records import Evaluation, Rung


@dataclass(frozen=True)
class Point:
    x: int
    y: int

    @property
    def genome_id(self) -> str:
        return hashlib.sha256(f"{self.x},{self.y}".encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        return {"x": self.x, "y": self.y}


@dataclass(frozen=True)
class IntegerSpace:
    """Points (x, y) of a square of `side` * `side`.

    The objectives of `evaluate` are x + y and (side - 1 - x) + y: nothing dominates (x, 0), for every x, and (x, 0)
    dominates each (x, y) with y > 0. So the front is y = 0.
    """

    side: int = 32

    @property
    def genes(self) -> dict[str, list[int]]:
        return {"x": list(range(self.side)), "y": list(range(self.side))}

    def sample(self, rng: np.random.Generator) -> Point:
        return Point(*(int(v) for v in rng.integers(self.side, size=2)))

    def mutate(self, genome: Point, rng: np.random.Generator) -> Point:
        steps = [(dx, dy) for dx in (-1, 0, 1) for dy in (-2, -1, 0, 1) if (dx, dy) != (0, 0)]
        while True:
            dx, dy = steps[int(rng.integers(len(steps)))]
            point = Point(genome.x + dx, genome.y + dy)
            if self.validate(point) is None:
                return point

    def crossover(self, first: Point, second: Point, rng: np.random.Generator) -> Point:
        return Point(first.x, second.y) if rng.random() < 0.5 else Point(second.x, first.y)

    def validate(self, genome: Point) -> str | None:
        inside = 0 <= genome.x < self.side and 0 <= genome.y < self.side
        return None if inside else f"{genome} lies outside"

    def size(self) -> int:
        return self.side**2

    def genome_from_dict(self, data: Mapping[str, Any]) -> Point:
        return Point(**data)


@dataclass(frozen=True)
class Evaluate:
    """Deterministic in genome and rung; says in `log` what it did, one line per finished evaluation.

    Args:
        side: of the space.
        seconds: longest time that an evaluation takes; it differs from genome to genome.
        log: where to say it; None for nowhere.
        spoil: what goes wrong for points with x % 4 == 3.
    """

    side: int = 32
    seconds: float = 0.0
    log: Path | None = None
    spoil: str | None = None

    def __call__(self, genome: Point, rung: Rung, previous: Evaluation | None) -> Evaluation:
        pause = int(genome.genome_id, 16) % 97 / 97 * self.seconds
        if pause:
            time.sleep(pause)
        if self.spoil and genome.x % 4 == 3:
            return self._spoilt(genome)
        noise = 0.0 if rung.index else int(genome.genome_id, 16) % 31 / 100
        trained = rung.budget.amount - (previous.measurements["trained"] if previous else 0)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{rung.index} {genome.x} {genome.y} {os.getpid()} {os.getppid()}\n")
        return Evaluation(
            objectives={"a": genome.x + genome.y + noise, "b": self.side - 1 - genome.x + genome.y + noise},
            measurements={"trained": rung.budget.amount, "now": trained, "threads": os.environ.get("OMP_NUM_THREADS")},
        )

    def _spoilt(self, genome: Point) -> Evaluation:
        match self.spoil:
            case "raise":
                raise ArithmeticError(f"no good: {genome.x}")
            case "nan":
                return Evaluation(objectives={"a": float("nan"), "b": 1.0})
            case "infinity":
                return Evaluation(objectives={"a": 1.0, "b": float("inf")})
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                raise SystemExit(3)
            case "vanish":
                os._exit(0)
            case "hang":
                time.sleep(600)
            case "memory":
                block = bytearray(600 << 20)  # beyond what a process has that was forked with torch in it
                block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
                time.sleep(600)
            case "full disk":
                raise OSError(28, "No space left on device", "checkpoint")
            case "nothing":
                return None  # type: ignore[return-value]
            case "names":
                return Evaluation(objectives={"a": 1.0, "c": 1.0})
            case "object":
                return Evaluation(objectives={"a": 1.0, "b": 1.0}, measurements={"what": object()})
        raise AssertionError(self.spoil)


@dataclass(frozen=True)
class Confirm:
    """Says in `log` whom it confirmed; makes points with x > 20 worse, so that the front changes."""

    log: Path
    fail_at: int | None = None

    def __call__(self, genome: Point, rung: Rung, previous: Evaluation | None) -> Evaluation:
        assert previous is not None
        with open(self.log, "a") as file:
            file.write(f"{rung.index} {genome.x} {genome.y}\n")
        if genome.x == self.fail_at:
            raise ArithmeticError("not confirmed")
        worse = 40 * (genome.x > 20)
        return Evaluation(objectives={name: value + worse for name, value in previous.objectives.items()})


@dataclass(frozen=True)
class Interrupting(Confirm):
    """Presses Ctrl-C for a process while it confirms the first."""

    pid: int = 0

    def __call__(self, genome: Point, rung: Rung, previous: Evaluation | None) -> Evaluation:
        if not self.log.exists():
            os.kill(self.pid, signal.SIGINT)
        return super().__call__(genome, rung, previous)


@dataclass(frozen=True)
class Passes:
    """Confirms in three passes; what it says differs from pass to pass, and half of them fail after the first."""

    log: Path
    passes: int = 3

    def __call__(self, genome: Any, rung: Any, previous: Evaluation | None) -> Evaluation:
        assert previous is not None
        turn = previous.measurements.get("turn", 0) + 1
        with open(self.log, "a") as file:
            file.write(f"{turn} {genome.x} {genome.y}\n")
        lot = int(genome.genome_id, 16)
        if lot % 2 == 0 and turn == 2:
            raise ArithmeticError("not this time")
        # In the first pass half of them look so bad that they leave the front; the next pass takes that back.
        worse = {1: 40.0, 2: -40.0}.get(turn, 0.0) * (lot % 2)
        values = {name: value + worse for name, value in previous.objectives.items()}
        return Evaluation(objectives=values, measurements={"turn": turn})


@dataclass(frozen=True)
class Keeping:
    """Writes a checkpoint, continues the one below, deletes what the engine gives up."""

    folder: Path

    def __call__(self, genome: Any, rung: Any, previous: Evaluation | None) -> Evaluation:
        before = previous.checkpoint.read_text() if previous is not None and previous.checkpoint else ""
        file = self.folder / f"{genome.genome_id}-{rung.index}"
        file.write_text(f"{before}{rung.index}")
        return dataclasses.replace(Evaluate()(genome, rung, previous), checkpoint=file)

    def discard(self, evaluation: Evaluation) -> None:
        assert evaluation.checkpoint is not None
        evaluation.checkpoint.unlink(missing_ok=True)
