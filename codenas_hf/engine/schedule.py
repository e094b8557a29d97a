"""Which generation may be proposed and who is promoted: decided from the record alone, so a restart decides alike.

Generation g reads rung r of the generations up to g - lag[r] only. All of those are finished by then, however many
workers there are and whoever was faster: that makes the search deterministic without anybody waiting at a barrier.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .objectives import Frame, Objectives
from .pareto import front
from .promotion import promoted_indices
from .records import Evaluation, Genome, Policy, TrialRecord
from .settings import SearchSettings
from .stages import Forecast, Standing, forecasts
from .study import Snapshot, Study

logger = logging.getLogger(__name__)

_AUDIT = 1 << 20  # third word of the seed of an audit; proposals use their round


class PolicyError(RuntimeError):
    """A policy did not keep its contract."""


class Schedule:
    """Adds to a study's queues what its record calls for.

    Args:
        study: where trials are added.
        space: what is searched.
        policy: proposes.
        settings: population, rungs, lag, audit, seed.
        leads: asked before every step; a process that does not lead any more adds nothing.
    """

    def __init__(
        self, study: Study, *, space: Any, policy: Policy, settings: SearchSettings, leads: Callable[[], bool]
    ) -> None:
        self._study = study
        self._space = space
        self._policy = policy
        self._settings = settings
        self._objectives = settings.build_objectives()
        self._leads = leads
        self._size: int | None = None

    def advance(self, snapshot: Snapshot) -> Snapshot:
        """Adds all trials that can be added now; returns the record after that."""
        while self._step(snapshot):
            snapshot = self._study.snapshot()
        return snapshot

    def done(self, snapshot: Snapshot) -> bool:
        """Whether nothing is left to propose, promote or finish."""
        facts = snapshot.facts
        if not self._proposed_all(facts):
            return False
        generations, closed = proposed(facts), closed_generations(snapshot)
        return all(value >= generations for value in closed)

    def queues(self, snapshot: Snapshot) -> list[int]:
        """Rungs in the order in which waiting trials are to be taken; that changes when things are done, not what.

        The highest first, since later generations read them. Once all generations are proposed nobody reads anything
        any more, but what the last of them promotes waits for its last evaluation below: then the lowest come first,
        and the long evaluations of higher rungs are left to fill that time.
        """
        rungs = range(len(self._settings.rungs))
        return list(rungs if self._proposed_all(snapshot.facts) else reversed(rungs))

    def _proposed_all(self, facts: Any) -> bool:
        return proposed(facts) >= self._settings.generations or self._exhausted(facts)

    def _step(self, snapshot: Snapshot) -> bool:
        facts, closed = snapshot.facts, closed_generations(snapshot)
        if "frame" not in facts and self._set_frame(snapshot, closed[0]):
            return True
        for rung in range(1, len(self._settings.rungs)):
            generation = promoted(facts, rung)
            if generation < min(closed[rung - 1], proposed(facts)) and self._leads():
                self._promote(snapshot, generation, rung)
                return True
        generation = proposed(facts)
        if self._proposed_all(facts):
            return False
        if any(generation - self._settings.lag_of(rung) >= value for rung, value in enumerate(closed)):
            return False
        if not self._leads():
            return False
        self._propose(snapshot, generation)
        return True

    def _exhausted(self, facts: Any) -> bool:
        generations = proposed(facts)
        return generations > 0 and facts[f"proposed:{generations - 1}"] < self._settings.population

    def _set_frame(self, snapshot: Snapshot, closed: int) -> bool:
        settings = self._settings
        names = self._objectives.names
        evaluations = []
        if not all(name in settings.ideal and name in settings.reference for name in names):
            for generation in range(closed):  # the first one, unless all of it failed
                evaluations = [
                    record.evaluation
                    for record in snapshot.rungs[0]
                    if record.generation == generation and record.evaluation is not None
                ]
                if evaluations:
                    break
            else:
                return False
        if not self._leads():
            return False
        frame = Frame.derive(self._objectives, evaluations, ideal=settings.ideal, reference=settings.reference)
        self._study.set_fact("frame", frame.to_dict())
        return True

    def _promote(self, snapshot: Snapshot, generation: int, rung: int) -> None:
        below = [
            record
            for record in snapshot.rungs[rung - 1]
            if record.generation == generation and record.evaluation is not None
        ]
        chosen, forecast = self._judged(snapshot, below, generation, rung)
        rest = sorted(set(range(len(below))) - set(chosen))
        rng = np.random.default_rng([self._settings.seed, generation, _AUDIT + rung])
        audits = [rest[int(i)] for i in rng.permutation(len(rest))[: self._settings.audit]]
        present = {record.genome.genome_id for record in snapshot.rungs[rung]}
        for index in (*chosen, *audits):
            record = below[index]
            if record.genome.genome_id not in present:
                self._study.add(
                    rung,
                    record.genome,
                    generation=generation,
                    parent=record.number,
                    audit=index in audits,
                    forecast=forecast[index].to_dict() if forecast else None,
                )
        self._study.set_fact(f"promoted:{rung}:{generation}", len(chosen) + len(audits))

    def _judged(
        self, snapshot: Snapshot, below: Sequence[TrialRecord], generation: int, rung: int
    ) -> tuple[list[int], list[Forecast]]:
        """Indices of those of `below` that go on to `rung`; with adaptive stages also the forecast of each."""
        if not below:
            return [], []
        settings = self._settings
        frame = Frame(objectives=self._objectives, **snapshot.facts["frame"])
        forecast: list[Forecast] = []
        if settings.adaptive:
            standing = self._standing(snapshot, generation, rung, frame=frame)
            forecast = forecasts(below, standing=standing, worth=settings.worth, price=settings.price)
            if any(record.evaluation is not None and record.evaluation.feasible for record in below):
                return [index for index, each in enumerate(forecast) if each.goes], forecast
        chosen = promoted_indices(
            [record.evaluation for record in below if record.evaluation is not None],
            frame=frame,
            improves=settings.improved,
            keep=settings.rungs[rung - 1].keep or 0,
        )
        return chosen, forecast

    def _standing(self, snapshot: Snapshot, generation: int, rung: int, *, frame: Frame) -> Standing:
        """What was certain when `generation` was proposed, and what earlier generations did at the rung below."""
        last, here = self._settings.rungs[-1], self._settings.rungs[rung - 1]
        newest = generation - self._settings.lag_of(last.index)
        read = {r.genome.genome_id: r for r in snapshot.rungs[-1] if r.generation <= newest}
        earlier = [r for r in snapshot.rungs[rung - 1] if r.generation < generation and r.evaluation is not None]
        sent = {record.parent for record in snapshot.rungs[rung]}
        return Standing(
            reached=[record for record in read.values() if record.evaluation is not None],
            below=[record for record in earlier if record.genome.genome_id in read],
            pending=[r for r in earlier if r.number in sent and r.generation > newest],  # of others the end is known
            ratio=last.budget.amount / here.budget.amount if here.budget.amount else 1.0,  # no law begins at nothing
            frame=frame,
            improves=self._settings.improved,
        )

    def _propose(self, snapshot: Snapshot, generation: int) -> None:
        genomes = self._draw(snapshot, generation)
        present = [record for record in snapshot.rungs[0] if record.generation == generation]
        for record, genome in zip(present, genomes, strict=False):
            if record.genome.genome_id != genome.genome_id:
                raise PolicyError(
                    f"the policy proposed {genome.genome_id} where it had proposed {record.genome.genome_id} before "
                    "the restart: a policy must be a pure function of its arguments"
                )
        for genome in genomes[len(present) :]:
            self._study.add(0, genome, generation=generation)
        self._study.set_fact(f"proposed:{generation}", len(genomes))
        if len(genomes) < self._settings.population:
            logger.warning(
                "Space exhausted: generation %d has %d new genomes instead of %d, and is the last.",
                generation,
                len(genomes),
                self._settings.population,
            )

    def _draw(self, snapshot: Snapshot, generation: int) -> list[Genome]:
        settings = self._settings
        records = self.visible(snapshot, generation)
        known = {record.genome.genome_id for record in records}
        genomes: list[Genome] = []
        if self._size is None:
            self._size = self._space.size()
        for attempt in range(settings.patience.redraws):
            if len(genomes) == settings.population or len(known) >= self._size:
                break
            pending = [
                TrialRecord(number=-1, genome=genome, rung=0, state="waiting", generation=generation)
                for genome in genomes
            ]
            rng = np.random.default_rng([settings.seed, generation, attempt])
            n = settings.population - len(genomes)
            for genome in self._policy.propose([*records, *pending], space=self._space, n=n, rng=rng)[:n]:
                if genome.genome_id not in known and self._space.validate(genome) is None:
                    known.add(genome.genome_id)
                    genomes.append(genome)
        return genomes

    def visible(self, snapshot: Snapshot, generation: int) -> list[TrialRecord]:
        """What the policy may read for a generation: all earlier genomes, and the results that are old enough.

        A result that is not old enough is hidden even where it is there, else faster workers would change the search.
        """
        records = []
        for rung, trials in enumerate(snapshot.rungs):
            newest = generation - self._settings.lag_of(rung)
            for record in trials:
                if record.generation <= newest:
                    records.append(dataclasses.replace(record, worker=None))
                elif rung == 0 and record.generation < generation:
                    hidden = dataclasses.replace(record, state="waiting", evaluation=None, failure=None, worker=None)
                    records.append(hidden)
        return records


def proposed(facts: Any) -> int:
    """How many generations are proposed."""
    return _count(facts, "proposed:{}")


def promoted(facts: Any, rung: int) -> int:
    """How many generations are promoted to `rung`."""
    return _count(facts, f"promoted:{rung}:{{}}")


def _count(facts: Any, key: str) -> int:
    count = 0
    while key.format(count) in facts:
        count += 1
    return count


def closed_generations(snapshot: Snapshot) -> list[int]:
    """For each rung, how many generations, counted from the first without a gap, have finished there for good."""
    result: list[int] = []
    for rung, records in enumerate(snapshot.rungs):
        opened = proposed(snapshot.facts) if rung == 0 else promoted(snapshot.facts, rung)
        unfinished = Counter(record.generation for record in records if record.state in ("waiting", "running"))
        limit = min([opened, *unfinished])
        result.append(limit if rung == 0 else min(limit, result[-1]))
    return result


def unconfirmed(
    snapshot: Snapshot, *, front: Sequence[TrialRecord], passes: int
) -> tuple[int, list[TrialRecord]] | None:
    """Who is to be confirmed next, and in which pass; None when all are.

    Who was timed badly by chance may have left the front for that alone: every pass is over all who were in it.
    """
    done = Counter((trial.rung, trial.parent) for trial in snapshot.confirmed)
    kept = {(trial.rung, trial.parent) for trial in snapshot.confirmed if trial.evaluation is not None}
    missing = {key for key in kept | {(record.rung, record.number) for record in front} if done[key] < passes}
    if not missing:
        return None
    turn = min(done[key] for key in missing)
    keys = [key for key in missing if done[key] == turn]
    return turn, [record for record in snapshot.records if (record.rung, record.number) in keys]


def superseded(
    snapshot: Snapshot, *, confirming: bool, objectives: Objectives
) -> list[tuple[TrialRecord, Evaluation]]:
    """Evaluations whose candidates can no longer be promoted from there or win there.

    Below the last rung: those that were not promoted, and those whose next evaluation is finished, once a higher rung
    has a feasible outcome. At the last rung: those that are dominated, unless confirmations may still change values.
    """
    result: list[tuple[TrialRecord, Evaluation]] = []
    last = len(snapshot.rungs) - 1
    feasible = [any(r.evaluation is not None and r.evaluation.feasible for r in rung) for rung in snapshot.rungs]
    for rung, records in enumerate(snapshot.rungs[:-1]):
        if not any(feasible[rung + 1 :]):
            continue
        following = {record.parent: record for record in snapshot.rungs[rung + 1]}
        for record in records:
            if record.evaluation is None or f"promoted:{rung + 1}:{record.generation}" not in snapshot.facts:
                continue
            after = following.get(record.number)
            if after is not None and after.state in ("waiting", "running"):
                continue
            kept = after.evaluation.checkpoint if after is not None and after.evaluation is not None else None
            if kept is None or kept != record.evaluation.checkpoint:
                result.append((record, record.evaluation))
    if not confirming and feasible[last]:
        done = [record for record in snapshot.rungs[last] if record.evaluation is not None]
        evaluations = [record.evaluation for record in done if record.evaluation is not None]
        best = set(front(objectives.matrix(evaluations), objectives.violation(evaluations)).tolist())
        result += [(done[i], evaluation) for i, evaluation in enumerate(evaluations) if i not in best]
    return result
