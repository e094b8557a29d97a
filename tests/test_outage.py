"""The database goes away at each single question that a search asks it; the search goes on to the same record."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from integer_space import Evaluate, IntegerSpace

from codenas_hf.engine import Patience, RandomPolicy, SearchResult, SearchSettings, driver, run_search, two_stage
from codenas_hf.engine.records import Evaluation
from codenas_hf.engine.storage import ServerGoneError, open_storage
from codenas_hf.engine.workers import Outcome

SETTINGS = SearchSettings(
    objectives=("a", "b"),
    population=3,
    generations=2,
    rungs=two_stage(population=3, keep=1),
    workers_per_rank=2,
    storage="postgresql+psycopg://nobody@nowhere/nothing",
    patience=Patience(heartbeat_s=10, lease_s=25),
)


class Away:
    """A storage that is away for a few questions.

    Args:
        storage: what it stands before.
        first: the number of the first question that it does not answer.
        questions: how many it does not answer.
        heard: the first of them is done all the same; only its answer is lost.
    """

    def __init__(self, storage: Any, *, first: int, questions: int, heard: bool) -> None:
        self._storage, self._away, self._heard = storage, range(first, first + questions), heard
        self.asked: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        answer = getattr(self._storage, name)

        def ask(*words: Any, **more: Any) -> Any:
            number = len(self.asked)
            self.asked.append((name, words[1] if name == "set_trial_user_attr" else None))
            if number not in self._away:
                return answer(*words, **more)
            if number == self._away.start and self._heard:
                answer(*words, **more)
            raise ServerGoneError("the server is away")

        return ask


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


class Inline:
    """Evaluates at once, in this process; an outcome is told at the next poll."""

    clock: Clock
    made: Counter[tuple[str, int, Any]]

    def __init__(self, evaluator: Any, *, workers: int, **_: Any) -> None:
        self._evaluator, self._workers, self._jobs, self._polls = evaluator, workers, [], 0

    @property
    def free(self) -> int:
        return self._workers - len(self._jobs)

    @property
    def busy(self) -> tuple[Any, ...]:
        return tuple(task for task, _ in self._jobs)

    def start(self, task: Any, genome: Any, *, rung: Any, previous: Any) -> None:
        self.made[type(self._evaluator).__name__, rung.index, genome] += 1
        self._jobs.append((task, self._evaluator(genome, rung, previous)))

    def poll(self, timeout: float) -> list[Outcome]:
        self._polls += 1
        assert self._polls < 2000, "the search polls for ever"
        self.clock.sleep(timeout)
        return [Outcome(*self._jobs.pop(0), None)] if self._jobs else []

    def close(self) -> tuple[Any, ...]:
        return self.busy


class Again:
    """Confirms what was measured."""

    def __call__(self, genome: Any, rung: Any, previous: Evaluation | None) -> Evaluation:
        assert previous is not None
        return previous


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a whole search whose storage is away for some questions; returns its result, questions and evaluations."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CODENAS_WORLD"):
        monkeypatch.delenv(name, raising=False)
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(driver, "Pool", Inline)
    Inline.clock = clock

    def run(first: int, *, questions: int = 1, heard: bool = False) -> tuple[SearchResult, Any, Any]:
        Inline.made = Counter()
        study = open_storage(None, folder=tmp_path / f"{first}")  # a file stands for the database
        storage = Away(study, first=first, questions=questions, heard=heard)
        monkeypatch.setattr(driver, "open_storage", lambda *_, **__: storage)
        policy = RandomPolicy()
        result = run_search(
            IntegerSpace(), Evaluate(), folder=tmp_path, settings=SETTINGS, policy=policy, confirm=Again()
        )
        return result, storage.asked, Inline.made

    return run


def told(result: SearchResult) -> list[dict[str, Any]]:
    return [{**record.to_dict(), "worker": None} for record in (*result.records, *result.confirmed)]


def check(away: Any, *, thorough: bool, heard: bool) -> None:
    expected, questions, made = away(-1)
    assert {
        *(("set_trial_user_attr", "claim"), ("set_trial_user_attr", "evaluation"), ("get_all_trials", None)),
        *(("set_trial_state_values", None), ("get_trial", None), ("create_new_trial", None)),
        *(("set_study_user_attr", None), ("get_study_user_attrs", None)),
    } <= set(questions)
    assert len(expected.records) == 2 * 3 + 2 * 2
    assert expected.confirmed
    told_here = [n for n, (_, key) in enumerate(questions) if key in ("claim", "evaluation")]
    some = {*told_here, *(n + 1 for n in told_here), *range(0, len(questions), 16)}
    for first in range(len(questions)) if thorough else sorted(some):
        where = f"away at question {first}, {questions[first]}"
        try:
            result, asked, again = away(first, questions=1 + first % 3, heard=heard)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        assert len(asked) > first, where
        assert told(result) == told(expected), where
        assert result.finished, where
        assert again == made, f"{where}: something was evaluated twice"


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "unanswered"])
def test_a_search_survives_an_outage_at_a_claim_or_an_outcome(away: Any, heard: bool) -> None:
    check(away, thorough=False, heard=heard)


@pytest.mark.slow
@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "unanswered"])
def test_a_search_survives_an_outage_at_every_question(away: Any, heard: bool) -> None:
    check(away, thorough=True, heard=heard)
