"""What a search shows while it runs: a live display on a terminal, plain lines elsewhere, the front at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .dots import plot
from .pareto import front
from .records import TrialRecord
from .result import SearchResult
from .settings import SearchSettings
from .study import Snapshot

_WINDOW_S = 600.0
_CURVE_HEIGHT = 8


@dataclass(frozen=True)
class Status:
    """The figures of the display.

    Args:
        generation: the newest that is proposed, counted from 1.
        generations: how many there will be.
        done: finished trials at each rung.
        planned: trials at each rung once the search is finished.
        running: trials that run now, in all processes.
        failures: failed trials.
        front: members of the front so far.
        best: raw values of its first member, by objective; None before the first feasible trial.
        volume: hypervolume of all feasible trials so far, in units of the box between ideal and reference; None while
            these are not fixed.
        seconds_left: from the rate of the last ten minutes, weighted by the rungs' budgets; None while unknown.
    """

    generation: int
    generations: int
    done: tuple[int, ...]
    planned: tuple[int, ...]
    running: int
    failures: int
    front: int
    best: TrialRecord | None
    volume: float | None
    seconds_left: float | None

    @property
    def share(self) -> float:
        """Of all trials, those that are finished."""
        return sum(self.done) / sum(self.planned)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is not known yet is absent."""
        best = None if self.best is None or self.best.evaluation is None else dict(self.best.evaluation.objectives)
        known = {
            "generation": self.generation,
            "generations": self.generations,
            "done": list(self.done),
            "planned": list(self.planned),
            "running": self.running,
            "failed": self.failures,
            "front": self.front,
            "best": best,
            "hypervolume": self.volume,
            "seconds_left": self.seconds_left,
        }
        return {name: value for name, value in known.items() if value is not None}

    def line(self) -> str:
        """One line without colours."""
        rungs = ", ".join(f"rung {i}: {n}/{m}" for i, (n, m) in enumerate(zip(self.done, self.planned, strict=True)))
        best = "none yet" if self.best is None else values(self.best)
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return (
            f"generation {self.generation}/{self.generations}, {rungs}, {self.running} running, "
            f"{self.failures} failed, front {self.front}, best {best}{left}"
        )


class Progress:
    """Shows a search, in one process of it.

    Args:
        settings: of the search.
        shown: False in all ranks but the first.
        console: where; standard error when None, so that output stays clean.
        every_s: seconds between two plain lines.
        follow: told the figures whenever one more trial is finished, and at the beginning.
    """

    def __init__(
        self,
        settings: SearchSettings,
        *,
        shown: bool,
        console: Console | None = None,
        every_s: float = 30.0,
        follow: Callable[[Status], None] | None = None,
    ) -> None:
        self._settings = settings
        self._console = console or Console(stderr=True)
        self._shown = shown
        self._every_s = every_s
        self._live: Live | None = None
        self._last = -float("inf")
        self._marks: deque[tuple[float, float]] = deque()
        self._follow = follow
        self._told: tuple[int, ...] | None = None
        self._volumes: list[tuple[float, float]] = []

    def __enter__(self) -> Progress:
        if self._shown and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, snapshot: Snapshot, busy: Sequence[Any] = ()) -> None:
        """Shows where the search is; cheap to call often."""
        now = time.monotonic()
        due = now - self._last >= (0.5 if self._live is not None else self._every_s)
        counts = tuple(_finished(snapshot))
        news = self._follow is not None and counts != self._told
        if not self._shown or not (due or news):
            return
        status = self.status(snapshot, now=now)
        if self._follow is not None and news:
            self._told = counts
            self._follow(status)
        if not due:
            return
        self._last = now
        if self._live is not None:
            if status.volume is not None and (not self._volumes or status.share > self._volumes[-1][0]):
                self._volumes.append((status.share, status.volume))
            self._live.update(_panel(status, self._volumes, width=self._console.width), refresh=True)
        else:
            self._console.print(status.line(), highlight=False, soft_wrap=True)

    def status(self, snapshot: Snapshot, *, now: float) -> Status:
        """The figures at the time `now` of a monotonic clock."""
        settings = self._settings
        result = SearchResult.of(snapshot, objectives=settings.build_objectives(), rungs=tuple(settings.rungs))
        planned = [settings.population * settings.generations]
        for rung in settings.rungs[:-1]:
            sent = [snapshot.facts.get(f"promoted:{rung.index + 1}:{g}") for g in range(settings.generations)]
            known = [count for count in sent if count is not None]
            each = mean(known) if known and settings.adaptive else (rung.keep or 0) + settings.audit
            planned.append(sum(known) + round(each * (len(sent) - len(known))))
        done = _finished(snapshot)
        return Status(
            generation=1 + max((record.generation for record in snapshot.records), default=-1),
            generations=settings.generations,
            done=tuple(done),
            planned=tuple(planned),
            running=sum(record.state == "running" for record in (*snapshot.records, *snapshot.confirmed)),
            failures=len(result.failures),
            front=len(result.front),
            best=result.front[0] if result.front else None,
            volume=_volume(result),
            seconds_left=self._left(done, planned, now),
        )

    def _left(self, done: Sequence[int], planned: Sequence[int], now: float) -> float | None:
        amounts = [rung.budget.amount for rung in self._settings.rungs]
        costs = [amount - before for amount, before in zip(amounts, [0.0, *amounts[:-1]], strict=True)]
        work = sum(n * cost for n, cost in zip(done, costs, strict=True))
        total = sum(n * cost for n, cost in zip(planned, costs, strict=True))
        self._marks.append((now, work))
        while self._marks[0][0] < now - _WINDOW_S and len(self._marks) > 2:
            self._marks.popleft()
        (begin, first), passed = self._marks[0], now - self._marks[0][0]
        if work <= first or passed <= 0 or now == begin:
            return None
        return max(0.0, total - work) * passed / (work - first)

    def finish(self, result: SearchResult) -> None:
        """Shows the front, its winner, and why it won."""
        self.__exit__()
        if not self._shown:
            return
        if not result.front:
            problem = "every trial failed" if result.failures else "no trial is feasible"
            self._console.print(f"The search has no front: {problem}.", highlight=False)
            for record in result.failures[:3]:
                reason = f"  trial {record.number} at rung {record.rung}: {record.failure}"
                self._console.print(reason, highlight=False, markup=False)
            return
        self._console.print(front_table(result))
        self._console.print(reason_of(result), highlight=False, soft_wrap=True)


def front_table(result: SearchResult) -> Table:
    """The front, best fitness first."""
    names = result.objectives.names
    table = Table(title=f"Front at rung {result.front[0].rung}: {len(result.front)} of {len(result.records)} trials")
    for name in ("genome", *names, "fitness"):
        table.add_column(name, justify="left" if name == "genome" else "right")
    for record in result.front:
        fitness = result.fitness(record)
        cells = [f"{record.evaluation.objectives[name]:.6g}" for name in names if record.evaluation is not None]
        style = "bold" if record is result.winner else None
        table.add_row(record.genome.genome_id, *cells, "" if fitness is None else f"{fitness:.4f}", style=style)
    return table


def reason_of(result: SearchResult) -> str:
    """One sentence: why the winner won."""
    winner, frame = result.winner, result.frame
    if winner is None or winner.evaluation is None or frame is None:
        return "There is no winner."
    distances = frame.distances(winner.evaluation)
    deciding = result.objectives.deciding
    parts = [f"{weight:.2f} x {distances[name]:.3f} ({name})" for name, weight in deciding.items()]
    return (
        f"Winner: {winner.genome.genome_id}, {values(winner)}: the highest fitness on the front, "
        f"{frame.fitness(winner.evaluation):.4f} = 1 - [{' + '.join(parts)}], where each distance is 0 at the ideal "
        "and 1 at the reference point."
    )


def values(record: TrialRecord) -> str:
    """Objectives of a record on one line."""
    if record.evaluation is None:
        return "no evaluation"
    return " ".join(f"{name} {value:.5g}" for name, value in record.evaluation.objectives.items())


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _finished(snapshot: Snapshot) -> list[int]:
    """Finished trials at each rung."""
    return [sum(record.state in ("complete", "fail") for record in records) for records in snapshot.rungs]


def _volume(result: SearchResult) -> float | None:
    """Of all feasible trials of all rungs, so that it never falls."""
    if result.frame is None:
        return None
    found = [record.evaluation for record in result.records if record.evaluation is not None]
    feasible = [evaluation for evaluation in found if evaluation.feasible]
    if not feasible:
        return 0.0
    return result.frame.hypervolume([feasible[index] for index in front(result.objectives.matrix(feasible))])


def _panel(status: Status, volumes: Sequence[tuple[float, float]], *, width: int) -> RenderableType:
    """The figures, and below them how the hypervolume has grown."""
    table = Table.grid(padding=(0, 2))
    rungs = "   ".join(f"rung {i} {n}/{m}" for i, (n, m) in enumerate(zip(status.done, status.planned, strict=True)))
    left = "unknown yet" if status.seconds_left is None else f"about {duration(status.seconds_left)}"
    rows = {
        "generation": f"{status.generation}/{status.generations}   {rungs}   {status.running} running",
        "front": f"{status.front} members   best {'none yet' if status.best is None else values(status.best)}",
        "failed": str(status.failures),
        "left": left,
    }
    for name, text in rows.items():
        table.add_row(name, text)
    if len(volumes) < 2:
        return table
    shares, values_seen = zip(*volumes, strict=True)
    lines = plot(shares, values_seen, width=max(20, min(100, width - 12)), height=_CURVE_HEIGHT)
    title = Text("hypervolume of the front, over the share of the trials that are finished", style="dim")
    return Group(table, title, *(Text(line, no_wrap=True) for line in lines))
