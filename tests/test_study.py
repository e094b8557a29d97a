"""The record and the queue, and what the schedule makes of them; every order of finishing gives the same search."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from integer_space import Evaluate, IntegerSpace, Point
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from sqlalchemy.exc import OperationalError

from codenas_hf.engine.evolution import GeneticPolicy, RandomPolicy, Seeded
from codenas_hf.engine.journal import GuardedJournal
from codenas_hf.engine.members import Members, host_key, parent_key
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.places import found_place, stored_place
from codenas_hf.engine.records import Budget, Evaluation, Rung, TrialRecord
from codenas_hf.engine.result import RankCorrelation, SearchResult, kendall_tau
from codenas_hf.engine.schedule import PolicyError, Schedule, closed_generations
from codenas_hf.engine.settings import (
    Patience,
    RanksError,
    SearchSettings,
    World,
    different,
    single_stage,
    two_stage,
)
from codenas_hf.engine.storage import ServerAway, StorageError, first_line, open_storage, patiently
from codenas_hf.engine.study import Claim, IdentityError, Snapshot, Study

SPACE = IntegerSpace()
SETTINGS = SearchSettings(
    objectives=("a", "b"), population=8, generations=6, rungs=two_stage(population=8, keep=3), lag=(2, 4)
)


OBJECTIVES = SETTINGS.build_objectives()


def study_in(storage: BaseStorage, settings: SearchSettings = SETTINGS, space: Any = SPACE) -> Study:
    return Study(storage, name="s", space=space, rungs=len(settings.rungs), objectives=settings.build_objectives())


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    """The contract below holds on every kind of storage; PostgreSQL has its own test."""
    return open_storage(f"sqlite:///{tmp_path}/db" if request.param == "sqlite" else None, folder=tmp_path)


def outcome(value: float = 1.0, **more: Any) -> Evaluation:
    return Evaluation(objectives={"a": value, "b": 2.0}, **more)


def claimed(study: Study, member: int = 0) -> Claim:
    claim = study.claim(member=member, worker="here:1")
    assert claim is not None
    return claim


def test_a_trial_is_added_claimed_and_told_once(storage: BaseStorage) -> None:
    study = study_in(storage)
    study.add(0, Point(1, 2), generation=0)
    study.add(0, Point(3, 4), generation=0)
    assert [r.state for r in study.snapshot().rungs[0]] == ["waiting"] * 2
    claim = claimed(study)
    assert (claim.record.genome, claim.record.state, claim.record.worker, claim.previous) == (
        *(Point(1, 2), "running", "here:1"),
        None,
    )
    full = outcome(
        checkpoint=Path("x/y"), measurements={"n": [1, None]}, constraints={"c": 1.0}, seconds={"train": 2.0}
    )
    study.finish(claim, full)
    study.finish(claim, outcome(7.0))  # too late
    study.fail(claim, "too late as well")
    second = claimed(study)
    study.fail(second, "no good")
    assert study.claim(member=0, worker="here:1") is None
    first, last = study.snapshot().rungs[0]
    assert first == TrialRecord(0, Point(1, 2), 0, "complete", full, worker="here:1")
    assert last == TrialRecord(1, Point(3, 4), 0, "fail", failure="no good", worker="here:1")


def test_who_has_lost_a_trial_tells_nothing_and_gives_nothing_back(
    storage: BaseStorage, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_in(storage)
    study.add(0, Point(1, 2), generation=0)
    slept = claimed(study, member=0)
    study.recover(lambda trial: True)
    second = claimed(study, member=1)
    study.finish(slept, outcome(7.0))
    study.fail(slept, "late")
    study.release(slept)
    (record,) = study.snapshot().rungs[0]
    assert record.state == "running"
    assert "another process has it now" in caplog.text
    study.finish(second, outcome(3.0))
    (record,) = study.snapshot().rungs[0]
    assert record.evaluation == outcome(3.0)


def test_who_has_lost_a_trial_that_nobody_took_yet_still_tells_its_outcome(storage: BaseStorage) -> None:
    study = study_in(storage)
    study.add(0, Point(1, 2), generation=0)
    slept = claimed(study, member=0)
    study.recover(lambda trial: True)
    study.finish(slept, outcome(7.0))
    assert study.claim(member=1, worker="there:2") is None
    (record,) = study.snapshot().rungs[0]
    assert record.evaluation == outcome(7.0)


def test_a_trial_that_went_back_runs_in_nobodys_name_until_the_next_one_says_who_it_is(storage: BaseStorage) -> None:
    """Else it would run for ever where who had it before lives, and who took it next died before it could write so."""
    study = study_in(storage)
    study.add(0, Point(1, 2), generation=0)
    first = claimed(study, member=0)
    study.release(first)
    storage.set_trial_state_values(first.trial_id, optuna.trial.TrialState.RUNNING)
    running = storage.get_trial(first.trial_id)
    assert study.runner(running) is None
    members = Members(storage, study.members_study, rank=0, heartbeat_s=None, lease_s=-1)
    members.join()
    assert members.number == 0
    assert members.runner_is_dead(running, members.living())


class LostAnswer:
    """A storage that does what it is asked, and whose first answer to a new trial is lost."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage, self.lost = storage, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def create_new_trial(self, *args: Any, **known: Any) -> int:
        number = self._storage.create_new_trial(*args, **known)
        if not self.lost:
            self.lost = True
            raise StorageInternalError("the server went away")
        return number


def test_the_time_that_a_server_is_away_is_told_once_and_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("codenas_hf.engine.storage.time.monotonic", lambda: now[0])
    monkeypatch.setattr("codenas_hf.engine.storage.time.sleep", lambda seconds: None)
    away, gone = ServerAway(None, seconds=60), StorageInternalError("gone")
    now[0] += 10
    away.wait(gone)
    assert (away.gone, away.missed(), away.missed()) == (True, 10, 0)
    now[0] += 40
    away.wait(gone)  # it reads, but writes nothing: that is no answer
    assert away.missed() == 40
    now[0] += 20
    with pytest.raises(StorageError, match="the database server is away"):
        away.wait(gone)
    away.answered()
    now[0] += 5
    assert (away.gone, away.missed()) == (False, 5)


def test_an_entry_whose_answer_was_lost_does_not_lead_for_ever(
    storage: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(storage)
    unlucky: Any = LostAnswer(storage)
    members = Members(unlucky, study.members_study, rank=0, heartbeat_s=None, lease_s=30)
    monkeypatch.setattr("codenas_hf.engine.storage.time.sleep", lambda seconds: None)
    patiently(members.join, url=None, seconds=60)
    assert members.leads()
    assert list(members.living()) == [members.number] == [1]
    members.leave()


def test_higher_rungs_come_first_and_know_the_outcome_below(storage: BaseStorage) -> None:
    study = study_in(storage)
    for x in range(2):
        study.add(0, Point(x, 0), generation=0)
    first = claimed(study)
    study.finish(first, outcome(3.0, checkpoint=Path("c")))
    study.add(1, first.record.genome, generation=0, parent=first.record.number, audit=True)
    assert [record.audit for rung in study.snapshot().rungs for record in rung] == [False, False, True]
    second = claimed(study)
    assert (second.record.rung, second.record.parent, second.previous) == (1, 0, outcome(3.0, checkpoint=Path("c")))
    study.finish(second, outcome(2.0))
    study.add(study.confirmations, Point(0, 0), generation=0, parent=0, rung=1)
    assert claimed(study).record.genome == Point(1, 0)  # confirmations are claimed only by who asks for them
    third = study.claim(member=0, worker="here:1", queues=[study.confirmations])
    assert third is not None
    assert (third.record.rung, third.previous) == (1, outcome(2.0))


def test_two_processes_never_claim_the_same_trial(tmp_path: Path) -> None:
    first, second = (study_in(open_storage(None, folder=tmp_path)) for _ in range(2))
    for x in range(6):
        first.add(0, Point(x, 0), generation=0)
    numbers = [claimed(study).record.number for study in (first, second) * 3]
    assert sorted(numbers) == list(range(6))


def test_recovery_requeues_what_was_running_and_keeps_outcomes(storage: BaseStorage) -> None:
    study = study_in(storage)
    for x in range(4):
        study.add(0, Point(x, 0), generation=0)
    claims = [claimed(study, member=x) for x in range(4)]
    # What a crash leaves between the two writes of an outcome:
    storage.set_trial_user_attr(claims[1].trial_id, "evaluation", outcome(5.0).to_dict())
    storage.set_trial_user_attr(claims[2].trial_id, "failure", "no good")
    again = study_in(storage)
    assert again.recover(lambda trial: trial.user_attrs["claim"]["member"] != 3) == 1
    rows = again.snapshot().rungs[0]
    assert [r.state for r in rows] == ["waiting", "complete", "fail", "running"]
    assert rows[1].evaluation == outcome(5.0)
    assert (rows[2].failure, rows[0].worker) == ("no good", None)
    assert claimed(again).record == dataclasses.replace(rows[0], state="running", worker="here:1")


def test_a_genome_that_stands_twice_counts_once(storage: BaseStorage) -> None:
    study = study_in(storage)
    for x in (1, 2, 1):
        study.add(0, Point(x, 0), generation=0)
    assert [r.genome for r in study.snapshot().rungs[0]] == [Point(1, 0), Point(2, 0)]


def test_optuna_tools_see_genes_values_and_constraints(tmp_path: Path) -> None:
    study = study_in(open_storage(None, folder=tmp_path))
    study.add(0, Point(1, 2), generation=0)
    study.finish(claimed(study), outcome(4.0, constraints={"limit.a": 3.0}))
    seen = optuna.load_study(storage=open_storage(None, folder=tmp_path), study_name="s/rung0")
    assert seen.metric_names == ["a", "b"]
    assert (seen.trials[0].params, seen.trials[0].values) == ({"x": 1, "y": 2}, [4.0, 2.0])
    assert seen.trials[0].constraints == {"limit.a": 3.0}
    assert json.loads(seen.trials[0].user_attrs["genome"]) == {"x": 1, "y": 2}
    assert seen.best_trials == []  # Optuna heeds the constraint too


def test_trials_share_the_choices_of_their_genes_in_memory(tmp_path: Path) -> None:
    study_in(open_storage(None, folder=tmp_path)).add(0, Point(1, 2), generation=0)
    study = study_in(open_storage(None, folder=tmp_path))
    study.add(0, Point(3, 4), generation=0)
    study.finish(claimed(study), outcome())
    study.snapshot()
    trials = [study.storage.get_trial(number) for number in range(2)]
    assert trials[0].distributions is trials[1].distributions
    assert {name: each.to_external_repr(5) for name, each in trials[0].distributions.items()} == {"x": 5, "y": 5}


def test_another_identity_is_refused_by_name(storage: BaseStorage) -> None:
    study = study_in(storage)
    policy = GeneticPolicy(objectives=SETTINGS.build_objectives())
    identity = SETTINGS.identity_of(space=SPACE, policy=policy)
    assert not study.check_identity(identity, create=False)
    assert study.check_identity(identity, create=True)
    assert study.check_identity(identity, create=False)
    more = dataclasses.replace(SETTINGS, generations=9, workers_per_rank=3, time_limit_s=5, memory_limit_bytes=1 << 30)
    assert study.check_identity(more.identity_of(space=SPACE, policy=policy), create=True)
    other = dataclasses.replace(SETTINGS, seed=3, limits={"a": 5}, identity={"data": "abc"})
    differing = r'\(identity.data: stored nothing, given "abc"; objectives.limits.a: .* 5; seed: stored 0, given 3\)'
    with pytest.raises(IdentityError, match=differing):
        study.check_identity(other.identity_of(space=SPACE, policy=policy), create=True)
    with pytest.raises(IdentityError, match=r"space\.genes\.x: stored \[0, 1"):
        study.check_identity(SETTINGS.identity_of(space=IntegerSpace(side=5), policy=policy), create=True)
    with pytest.raises(IdentityError, match="policy: stored"):
        study.check_identity(SETTINGS.identity_of(space=SPACE, policy=RandomPolicy()), create=True)


def test_given_genomes_do_not_hide_who_proposes_after_them(storage: BaseStorage) -> None:
    def identity(policy: Any) -> dict[str, Any]:
        return SETTINGS.identity_of(space=SPACE, policy=policy)

    genetic, drawn = (Seeded(policy=p, genomes=()) for p in (GeneticPolicy(objectives=OBJECTIVES), RandomPolicy()))
    study = study_in(storage)
    study.check_identity(identity(genetic), create=True)
    study.check_identity(identity(genetic), create=False)
    for other in (drawn, genetic.policy):
        with pytest.raises(IdentityError, match='policy: stored "Seeded GeneticPolicy"'):
            study.check_identity(identity(other), create=False)
    old = {**identity(genetic), "policy": "Seeded"}  # as it was kept before
    assert different(old, identity(drawn)) == []
    assert different(old, identity(RandomPolicy())) == ['policy: stored "Seeded", given "RandomPolicy"']


# Where things lie


def test_checkpoints_are_recorded_relative_to_the_study(tmp_path: Path) -> None:
    def opened(folder: Path) -> Study:
        return Study(
            open_storage(None, folder=folder), name="s", space=SPACE, rungs=2, objectives=OBJECTIVES, folder=folder
        )

    old, new = tmp_path / "old", tmp_path / "new [1]"
    study = opened(old)
    inside, outside = old / "trials" / "x", tmp_path / "elsewhere"
    for x, place in enumerate((inside, outside, None)):
        study.add(0, Point(x, 0), generation=0)
        study.finish(claimed(study), outcome(checkpoint=place))
    inside.mkdir(parents=True)
    assert str(old) not in (old / "study.journal").read_text()
    places = [r.evaluation.checkpoint for r in study.snapshot().rungs[0] if r.evaluation]
    assert places == [inside, outside, None]
    old.rename(new)
    places = [r.evaluation.checkpoint for r in opened(new).snapshot().rungs[0] if r.evaluation]
    assert places == [new / "trials" / "x", outside, None]
    # A claim's `previous` is what the next rung continues.
    study = opened(new)
    study.add(1, Point(0, 0), generation=0, parent=0)
    previous = claimed(study).previous
    assert previous is not None
    assert previous.checkpoint == new / "trials" / "x"


def test_absolute_paths_of_earlier_studies_are_found(tmp_path: Path) -> None:
    old, new = tmp_path / "a" / "smoke", tmp_path / "b" / "smoke.old1"
    for folder in (old, new):
        (folder / "trials" / "x-r0").mkdir(parents=True)
    written = str(old / "trials" / "x-r0")
    assert found_place(written, new) == new / "trials" / "x-r0", "a copy uses its own files"
    assert found_place(written, tmp_path) == Path(written)
    assert found_place("/gone/trials/y-r0", new) == Path("/gone/trials/y-r0")
    (tmp_path / "link").symlink_to(new)
    assert stored_place(new / "trials" / "x-r0", tmp_path / "link") == "trials/x-r0"
    assert stored_place(tmp_path / "link" / "trials" / "x-r0", tmp_path / "link") == "trials/x-r0"


SECRETS = ("hunter22", "sesame@crypt:etude/99")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgres://me:{}@localhost/d", "no such kind of database .*write postgresql:// for postgres://"),
        ("postgresql+nodriver://me:{}@localhost/d", "no such kind of database"),
        ("mysql+pymysql://me:{}@localhost/d", r"driver is not installed: pip install psycopg\[binary\].*pymysql"),
        ("postgresql+psycopg://me:{}@127.0.0.1:1/d", "is the server up"),
        ("postgresql+psycopg://me:{}@nohost.invalid/d", "nohost.invalid.*: is the server up"),
        ("postgresql+psycopg://me:{}@localhost:port/d", "no URL of a database, such as .* write @ as %40"),
        ("http://me:{}@localhost/d", "no such kind of database"),
        ("postgresql+psycopg://127.0.0.1:1/d?user=me&password={}", "is the server up"),
        ("me:{}@localhost", "no URL of a database"),
        ("", "no URL of a database"),
        ("study.db", "no URL of a database"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(
    url: str, problem: str, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codenas_hf.engine.storage.time.sleep", lambda _: None)
    with pytest.raises(StorageError, match=rf"^`storage` '.*': .*({problem}|no URL of a database)") as raised:
        open_storage(url.format(secret), folder=tmp_path)
    text = str(raised.value)
    assert "\n" not in text
    assert not [part for part in (secret, *re.split("[@:/]", secret)) if len(part) > 2 and part in text]


def test_the_reason_of_a_server_is_told_not_that_of_optuna() -> None:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("SELECT 1", {}, Exception("sorry, too many clients already"))
    assert "sorry, too many clients already" in first_line(error, None)


# The schedule


def searched(
    study: Study, settings: SearchSettings, *, workers: int, order: int, space: Any = SPACE, policy: Any = None
) -> Snapshot:
    """The whole search in this process: `workers` trials run at a time and finish in a random order."""
    rng = np.random.default_rng(order)
    policy = policy or GeneticPolicy(objectives=settings.build_objectives(), parents=settings.population)
    schedule = Schedule(study, space=space, policy=policy, settings=settings, leads=lambda: True)
    running: list[Claim] = []
    evaluate = Evaluate()
    while True:
        snapshot = schedule.advance(study.snapshot())
        if schedule.done(snapshot):
            return snapshot
        queues = schedule.queues(snapshot) if order else None  # whatever the order, the search is the same
        who = {"member": 0, "worker": f"w:{workers}"}
        while len(running) < workers and (claim := study.claim(**who, queues=queues)) is not None:  # type: ignore[arg-type]
            running.append(claim)
        claim = running.pop(int(rng.integers(len(running))))
        record = claim.record
        if getattr(record.genome, "x", 0) % 7 == 5 and record.rung == 0:
            study.fail(claim, "unlucky")
        else:
            study.finish(claim, evaluate(record.genome, settings.rungs[record.rung], claim.previous))  # type: ignore[arg-type]


def without_workers(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [{**record.to_dict(), "worker": None} for record in snapshot.records]


@pytest.mark.parametrize("lag", [(2, 4), (1, 1), (3, 3)])
def test_the_search_is_the_same_for_every_number_of_workers_and_order(lag: tuple[int, ...]) -> None:
    settings = dataclasses.replace(SETTINGS, lag=lag)
    runs = [
        without_workers(searched(study_in(InMemoryStorage(), settings), settings, workers=workers, order=order))
        for workers, order in [(1, 0), (2, 1), (8, 2), (8, 3), (50, 4)]
    ]
    assert len(runs[0]) == 6 * 8 + 6 * (3 + 1)
    for run in runs[1:]:
        assert run == runs[0]


def test_the_last_generation_begins_at_the_lowest_rung() -> None:
    """Later generations read the higher rungs first; once there are none, the lowest rung is what others wait for."""
    study = study_in(InMemoryStorage())
    policy = GeneticPolicy(objectives=SETTINGS.build_objectives(), parents=8)
    schedule = Schedule(study, space=SPACE, policy=policy, settings=SETTINGS, leads=lambda: True)
    seen = set()
    while not schedule.done(snapshot := schedule.advance(study.snapshot())):
        last = len([f for f in snapshot.facts if f.startswith("proposed:")]) == SETTINGS.generations
        waiting = {record.rung for record in snapshot.records if record.state == "waiting"}
        claim = study.claim(member=0, worker="w", queues=schedule.queues(snapshot))
        assert claim is not None
        assert claim.record.rung == (min(waiting) if last else max(waiting))
        seen.add((last, len(waiting)))
        study.finish(claim, Evaluate()(claim.record.genome, SETTINGS.rungs[claim.record.rung], claim.previous))  # type: ignore[arg-type]
    assert {(False, 2), (True, 2)} <= seen, "both rungs waited, before and after"


def test_the_search_depends_on_its_seed() -> None:
    runs = [
        without_workers(searched(study_in(InMemoryStorage(), s), s, workers=2, order=0))
        for s in (SETTINGS, dataclasses.replace(SETTINGS, seed=1))
    ]
    assert runs[0] != runs[1]


class Watching:
    """A policy that remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, list[TrialRecord]]] = []

    def propose(self, records: Any, *, space: Any, n: int, rng: np.random.Generator) -> list[Any]:
        self.shown.append((n, list(records)))
        return RandomPolicy().propose(records, space=space, n=n, rng=rng)


def test_a_policy_is_shown_what_is_old_enough_and_nothing_else() -> None:
    policy = Watching()
    searched(study_in(InMemoryStorage()), SETTINGS, workers=3, order=0, policy=policy)
    assert len(policy.shown) == 6
    for generation, (n, records) in enumerate(policy.shown):
        assert n == 8
        assert {r.generation for r in records if r.rung == 0} == set(range(generation))
        for r in records:
            old = r.generation <= generation - (2, 4)[r.rung]
            assert (r.state in ("complete", "fail")) == old
            assert old or r.rung == 0
        complete = {(r.rung, r.generation) for r in records if r.state == "complete"}
        assert complete == {(r, g) for r in (0, 1) for g in range(generation - (1, 3)[r])}


def test_promotion_takes_the_best_and_one_by_lot() -> None:
    study = study_in(InMemoryStorage())
    snapshot = searched(study, SETTINGS, workers=4, order=0)
    trials = [t.user_attrs for t in study.storage.get_all_trials(study.storage.get_study_id_from_name("s/rung1"))]
    below = {r.number: r for r in snapshot.rungs[0]}
    for generation in range(6):
        chosen = [t for t in trials if t["generation"] == generation]
        assert [t.get("audit", False) for t in chosen] == [False] * 3 + [True]
        values = {
            r.number: (r.evaluation.objectives["a"], r.evaluation.objectives["b"])
            for r in below.values()
            if r.generation == generation and r.evaluation
        }
        best = [values[t["parent"]] for t in chosen[:3]]
        for point in best:  # nobody who stayed behind dominates who was promoted
            left = [v for n, v in values.items() if n not in [t["parent"] for t in chosen]]
            assert not any(v[0] <= point[0] and v[1] <= point[1] and v != point for v in left)
    assert len({t["genome_id"] for t in trials}) == len(trials)


class Dies(Exception):
    pass


class Dying(JournalStorage):
    """Dies instead of making one write too many."""

    left = 10**9

    def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
        if self.left == 0:
            raise Dies
        self.left -= 1
        super()._write_log(op_code, extra_fields)


@pytest.mark.parametrize("writes", [7, 10, 23])
def test_a_restart_between_any_two_writes_changes_nothing(writes: int, tmp_path: Path) -> None:
    """The leader dies after a number of writes that grows each time; the next takes over what is on the disk."""
    dies_between_writes(dataclasses.replace(SETTINGS, generations=4), writes, tmp_path / "j")


def dies_between_writes(settings: SearchSettings, writes: int, journal: Path) -> None:
    """A search whose leaders die one after the other ends as one that nobody disturbed."""
    expected = without_workers(searched(study_in(InMemoryStorage(), settings), settings, workers=2, order=0))
    for attempt in range(200):
        storage = Dying(GuardedJournal(journal))
        study = study_in(storage, settings)
        study.recover(lambda trial: True)
        storage.left = writes + attempt
        try:
            snapshot = searched(study, settings, workers=2, order=attempt)
            break
        except Dies:
            continue
    assert attempt > 5
    assert without_workers(snapshot) == expected


def test_a_small_space_is_exhausted_cleanly() -> None:
    space = IntegerSpace(side=4)
    settings = dataclasses.replace(SETTINGS, generations=50)
    snapshot = searched(study_in(InMemoryStorage(), space=space), settings, workers=3, order=0, space=space)
    assert len(snapshot.rungs[0]) == 16
    assert max(r.generation for r in snapshot.rungs[0]) <= 2


def test_a_policy_that_repeats_itself_ends_the_search() -> None:
    class Same:
        def propose(self, records: Any, *, space: Any, n: int, rng: Any) -> list[Any]:
            return [Point(1, 1), Point(1, 1), Point(99, 99)]

    snapshot = searched(study_in(InMemoryStorage()), SETTINGS, workers=3, order=0, policy=Same())
    assert [r.genome for r in snapshot.rungs[0]] == [Point(1, 1)]


def test_a_policy_that_is_not_pure_is_caught(tmp_path: Path) -> None:
    study = study_in(InMemoryStorage())
    study.add(0, Point(30, 30), generation=0)
    with pytest.raises(PolicyError, match="a policy must be a pure function of its arguments"):
        searched(study, SETTINGS, workers=1, order=0)


def test_raising_the_generations_goes_on_as_if_it_had_been_so_from_the_start() -> None:
    short, long = SETTINGS, dataclasses.replace(SETTINGS, generations=9)
    study = study_in(InMemoryStorage())
    searched(study, short, workers=2, order=0)
    extended = searched(study, long, workers=2, order=1)
    assert without_workers(extended) == without_workers(
        searched(study_in(InMemoryStorage()), long, workers=5, order=2)
    )


def test_three_rungs() -> None:
    rungs = [Rung(0, Budget("steps", 10), keep=4), Rung(1, Budget("steps", 30), keep=2), Rung(2, Budget("steps", 90))]
    settings = dataclasses.replace(SETTINGS, rungs=rungs)
    snapshots = [searched(study_in(InMemoryStorage(), settings), settings, workers=w, order=w) for w in (1, 5)]
    assert without_workers(snapshots[0]) == without_workers(snapshots[1])
    assert [len(r) for r in snapshots[0].rungs] == [48, 6 * 5, 6 * 3]
    assert closed_generations(snapshots[0]) == [6, 6, 6]
    assert all(r.evaluation.measurements["now"] == 60 for r in snapshots[0].rungs[2] if r.evaluation)


def test_one_rung() -> None:
    settings = dataclasses.replace(SETTINGS, rungs=single_stage())
    snapshot = searched(study_in(InMemoryStorage(), settings), settings, workers=3, order=0)
    assert [len(r) for r in snapshot.rungs] == [48]


# The result


def result_of(snapshot: Snapshot, objectives: Objectives | None = None, rungs: Any = SETTINGS.rungs) -> SearchResult:
    return SearchResult.of(snapshot, objectives=objectives or SETTINGS.build_objectives(), rungs=tuple(rungs))


def complete(number: int, a: float, b: float, *, rung: int = 0, parent: int | None = None, **more: Any) -> TrialRecord:
    evaluation = Evaluation(objectives={"a": a, "b": b}, **more)
    return TrialRecord(number, Point(number, rung), rung, "complete", evaluation, parent=parent)


FRAME = {"frame": {"ideal": {"a": 0, "b": 0}, "reference": {"a": 10, "b": 10}}}


def test_the_front_is_of_the_highest_rung_with_feasible_trials() -> None:
    low = (complete(0, 1, 1), complete(1, 0, 5))
    high = (complete(0, 4, 4, rung=1, parent=0), complete(1, 9, 1, rung=1, parent=1), complete(2, 9, 9, rung=1))
    result = result_of(Snapshot((low, high), (), FRAME))
    assert [(r.rung, r.number) for r in result.front] == [(1, 0), (1, 1)]
    assert result.winner == high[0]
    assert result.fitness(high[0]) == pytest.approx(0.6)
    assert result.hypervolume() == pytest.approx(0.36 + 0.1 * 0.3)
    bad = tuple(
        dataclasses.replace(r, evaluation=dataclasses.replace(r.evaluation, constraints={"c": 1.0})) for r in high
    )  # type: ignore[type-var]
    fallback = result_of(Snapshot((low, bad), (), FRAME))
    assert [(r.rung, r.number) for r in fallback.front] == [(0, 0), (0, 1)]


def test_nobody_wins_where_nothing_is_feasible() -> None:
    bad = complete(0, 1, 1, constraints={"c": 0.1})
    failed = TrialRecord(1, Point(1, 1), 0, "fail", failure="no good")
    result = result_of(Snapshot(((bad, failed), ()), (), FRAME))
    assert (result.front, result.winner, result.failures) == ((), None, (failed,))
    assert result.hypervolume() == 0
    assert result_of(Snapshot(((), ()), (), {})).winner is None


def test_a_confirmation_replaces_the_evaluation_and_may_change_the_front() -> None:
    low = (complete(0, 1, 1), complete(1, 2, 2), complete(2, 0, 9))
    worse = dataclasses.replace(complete(0, 3, 3, parent=0), number=0)
    failed = TrialRecord(1, low[2].genome, 0, "fail", failure="gone", parent=2)
    result = result_of(Snapshot((low, ()), (worse, failed), FRAME))
    assert [r.number for r in result.front] == [1]
    assert result.records[0].evaluation == worse.evaluation
    assert result.failures == (failed,)


def test_rank_correlation_between_rungs() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(2 * 3))
    assert np.isnan(kendall_tau([1, 1], [1, 2]))
    low = tuple(complete(i, i, 0) for i in range(8))
    high = tuple(complete(i, i + 10 * (i == 0), 0, rung=1, parent=i) for i in range(8))
    found = result_of(Snapshot((low, high), (), FRAME)).rank_correlation()
    assert found is not None
    assert found.tau == pytest.approx((28 - 14) / 28)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.tau < found.high
    assert found.pairs == 8
    assert result_of(Snapshot((low, high[:2]), (), FRAME)).rank_correlation() is None


def test_the_interval_of_tau_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 2 / math.pi * math.asin(0.7)
    covered = 0
    for _ in range(400):
        found = RankCorrelation.of(rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=20).tolist())
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 400 <= 0.99


def test_the_interval_of_tau_is_absent_for_five_and_has_width_for_a_perfect_tau() -> None:
    five = RankCorrelation.of([(i, i) for i in range(5)])
    assert five == RankCorrelation(1.0, None, None, 5)
    eight = RankCorrelation.of([(i, i) for i in range(8)])
    assert eight is not None
    assert eight.low is not None
    assert eight.low < 0.95
    assert eight.high == 1.0
    assert RankCorrelation.of([(1, 1), (1, 2), (1, 3)]) is None


# Members


def test_the_oldest_living_rank_zero_leads(tmp_path: Path) -> None:
    storage = open_storage(None, folder=tmp_path)
    study = study_in(storage)
    ranks = [1, 0, 0]
    members = [Members(storage, study.members_study, rank=r, heartbeat_s=None, lease_s=30) for r in ranks]
    for member in members:
        member.join()
    assert [m.leads() for m in members] == [False, True, False]
    assert members[0].leader_of(parent_key())
    assert not members[0].leader_of("another launch")
    members[1].leave()
    assert [members[0].leads(), members[2].leads()] == [False, True]
    members[2].leave()
    assert not members[0].leads()


def test_on_a_database_who_does_not_lead_looks_after_a_heartbeat_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 processes that each read all 64 at every turn leave a database, and two cores, no time for anything else."""
    storage = open_storage(f"sqlite:///{tmp_path}/db", folder=tmp_path)
    study = study_in(storage)
    first, second = (Members(storage, study.members_study, rank=0, heartbeat_s=7.0, lease_s=30) for _ in range(2))
    for member in (first, second):
        member.join()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert (first.leads(), second.leads()) == (True, False)
    first.leave()
    reads = []
    read = storage.get_all_trials
    monkeypatch.setattr(storage, "get_all_trials", lambda *words, **more: reads.append(words) or read(*words, **more))
    assert not any(second.leads() for _ in range(5))
    assert not reads
    now += 7.0
    assert second.leads(), "within a heartbeat it notices that nobody leads"
    assert len(reads) == 1
    assert second.leads()
    assert len(reads) == 2, "who leads asks every time"
    second.leave()


def test_a_silent_member_of_another_host_is_dead_after_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(None, folder=tmp_path)
    study = study_in(storage)
    now = [100.0]
    monkeypatch.setattr("codenas_hf.engine.members.time.monotonic", lambda: now[0])
    far = Members(storage, study.members_study, rank=0, heartbeat_s=None, lease_s=30)
    monkeypatch.setattr("codenas_hf.engine.members.host_key", lambda: "far away")
    far.join()
    monkeypatch.setattr("codenas_hf.engine.members.host_key", host_key)
    near = Members(storage, study.members_study, rank=0, heartbeat_s=None, lease_s=30)
    near.join()
    assert not near.leads()
    now[0] += 29
    assert not near.leads()
    storage.set_trial_user_attr(far._trial_id, "heartbeat", 1)
    now[0] += 29
    assert not near.leads()  # it showed a sign of life
    now[0] += 10
    near.excuse(10)  # the server was away for so long, and nobody could show one
    assert not near.leads()
    now[0] += 31
    assert near.leads()
    assert not far.leads()  # it was asleep, and enters again behind the other
    assert far.number > near.number


def test_the_trials_of_the_dead_are_theirs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(None, folder=tmp_path)
    study = study_in(storage)
    now = [100.0]
    monkeypatch.setattr("codenas_hf.engine.members.time.monotonic", lambda: now[0])
    member = Members(storage, study.members_study, rank=0, heartbeat_s=None, lease_s=30)
    member.join()
    for x in range(3):
        study.add(0, Point(x, 0), generation=0)
    claimed(study, member.number)
    claimed(study, member.number + 5)
    (third,) = storage.get_all_trials(
        storage.get_study_id_from_name("s/rung0"), states=(optuna.trial.TrialState.WAITING,)
    )
    storage.set_trial_state_values(third._trial_id, optuna.trial.TrialState.RUNNING)  # killed before it said who it is

    def states() -> Iterator[str]:
        living = member.living()
        study.recover(lambda trial: member.runner_is_dead(trial, living))
        return (r.state for r in study.snapshot().rungs[0])

    assert list(states()) == ["running", "waiting", "running"]
    now[0] += 31
    assert list(states()) == ["running", "waiting", "waiting"]


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 0}, "`population` must be at least 1, got 0"),
        ({"time_limit_s": -1}, "`time_limit_s` must be positive"),
        ({"seed": -1}, "`seed` and `audit` must be 0 or more"),
        ({"lag": (4, 2)}, "`lag` must be ascending"),
        ({"lag": (0,)}, "`lag` must be ascending values of at least 1"),
        ({"objectives": "a"}, "`objectives` must be a mapping or a sequence"),
        ({"rungs": [Rung(1, Budget("steps", 5))]}, "`rungs` must be numbered 0, 1, 2"),
        ({"population": 2}, "rung 0 must keep 1 to 2 candidates, got 3"),
        ({"rungs": [Rung(0, Budget("steps", 5), keep=1)]}, "nothing follows the last rung"),
        ({"rungs": [Rung(0, Budget("steps", 5), keep=1), Rung(1, Budget("steps", 5))]}, "must exceed 5 steps"),
        ({"ideal": {"c": 1}}, "`ideal` names c"),
        ({"ideal": {"a": 1}, "reference": {"a": 1}}, "`ideal` must lie below `reference`"),
    ],
)
def test_settings_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_presets_and_patience() -> None:
    assert [(r.index, str(r.budget), r.keep) for r in two_stage()] == [(0, "50 steps", 6), (1, "300 steps", None)]
    assert [(r.index, r.keep) for r in single_stage()] == [(0, None)]
    with pytest.raises(ValueError, match=r"`keep` \(6\) must not exceed the population \(4\)"):
        two_stage(population=4)
    with pytest.raises(ValueError, match="two values, one per rung, got 1"):
        two_stage(budgets=[Budget("steps", 5)])
    with pytest.raises(ValueError, match=r"`patience.lease_s` must exceed two heartbeats"):
        Patience(heartbeat_s=20)
    with pytest.raises(ValueError, match=r"`patience.kills` must be 0 or more"):
        Patience(kills=-1)
    assert [SETTINGS.lag_of(rung) for rung in range(4)] == [2, 4, 6, 8]


def test_the_world_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CODENAS_WORLD"):
        monkeypatch.delenv(name, raising=False)
    assert World.read() == World(0, 1, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    world = World.read()
    assert world == World(3, 4, 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert [world.workers(None, threads=1), world.workers(None, threads=3), world.workers(5, threads=1)] == [8, 2, 5]
    assert world.workers(None, threads=99) == 1
    world.check(4)
    with pytest.raises(RanksError, match="world_size asks for 2 ranks, but the launcher started 4"):
        world.check(2)
    monkeypatch.setenv("CODENAS_WORLD", "some")
    with pytest.raises(RanksError, match="CODENAS_WORLD must be a number of ranks, got 'some'"):
        world.check(None)
    monkeypatch.setenv("CODENAS_WORLD", "8")
    with pytest.raises(RanksError, match="CODENAS_WORLD asks for 8 ranks"):
        world.check(None)
