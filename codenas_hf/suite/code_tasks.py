"""A model answers tasks, the answers are run and counted; an interrupted run goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codenas_hf.generation.decode import DecodeSettings, complete_many
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.measure.metrics import pass_at_k, wilson_interval
from codenas_hf.sandbox.judge import Outcome, run_program
from codenas_hf.suite.task_files import CodeTask


@dataclass(frozen=True)
class Answer:
    """One answer to one task.

    Args:
        task_id: the task.
        sample: its number among the task's answers.
        completion: what the model wrote.
        passed: whether the checks hold.
        reason: what the sandbox says.
        judged: False where the sandbox cannot say whether they hold.
        task_key: digest of the task's text.
    """

    task_id: str
    sample: int
    completion: str
    passed: bool
    reason: str
    judged: bool = True
    task_key: str = ""


def _run(task: CodeTask, program: str, timeout_s: float) -> Outcome:
    return run_program(
        program, timeout_s=timeout_s, checks=task.checks, prelude=task.prelude, entry_point=task.entry_point
    )


def check_answer(task: CodeTask, completion: str, *, prompt: str | None = None, timeout_s: float = 3.0) -> Answer:
    """Runs one answer in the sandbox; `prompt` is what the completion really continues."""
    program = (task.prompt if prompt is None else prompt) + completion + (task.suffix or "") + "\n"
    outcome = _run(task, program, timeout_s)
    return Answer(task.task_id, 0, completion, outcome.passed, outcome.reason, outcome.judged, task_key(task))


def unsound(task: CodeTask, *, timeout_s: float = 15.0) -> str | None:
    """Why nothing can be said of answers to a task: the person's solution does not pass here. None where it does."""
    program = task.prompt + task.solution + (task.suffix or "") + "\n"
    outcome = _reference(task.checks, task.prelude, task.entry_point, program, timeout_s)
    return None if outcome.passed else f"its own reference solution does not pass here: {outcome.reason}"


@functools.lru_cache(maxsize=4096)
def _reference(checks: str, prelude: str, entry_point: str | None, program: str, timeout_s: float) -> Outcome:
    """Cached, because all gaps of one solution, and all ways of sampling, ask for the same."""
    return run_program(program, timeout_s=timeout_s, checks=checks, prelude=prelude, entry_point=entry_point)


def task_key(task: CodeTask) -> str:
    """Digest of what a task asks and how it is checked."""
    facts = asdict(task)
    del facts["stops"]  # a fact of the settings, which the file of the answers is named after
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def answer_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[CodeTask],
    *,
    settings: DecodeSettings,
    num_samples: int = 1,
    runtime: Runtime | None = None,
    folder: Path | None = None,
    on_answers: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Has a model answer tasks and checks the answers; goes on where an earlier run of the same settings ended.

    A task whose own reference solution does not pass is not asked; its answers say so, and count as not judged.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        tasks: of one set: all with a suffix, or all without.
        settings: how to decode; where `stop` is empty, answers end at the tasks' own `stops`.
        num_samples: answers per task.
        runtime: what decodes; None is torch.
        folder: keeps the answers, in one JSONL file per model and settings; None keeps none.
        on_answers: called with the numbers of answered and of all tasks.
    """
    if not settings.stop and tasks:
        settings = replace(settings, stop=tasks[0].stops)
    path = _answers_file(folder, model, settings, engine=None if runtime is None else _engine(runtime))
    kept = _read_answers(path)
    keys = {task.task_id: task_key(task) for task in tasks}

    def answers_of(task: CodeTask) -> list[Answer]:
        return [a for a in kept.get(task.task_id, ()) if a.task_key == keys[task.task_id]]

    def keep(answers: Sequence[Answer]) -> None:
        for answer in answers:
            kept.setdefault(answer.task_id, []).append(answer)
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))

    open_tasks = [task for task in tasks if len(answers_of(task)) < num_samples]
    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(unsound, open_tasks))
        for task, reason in zip(open_tasks, reasons, strict=True):
            if reason is not None:
                blank = Answer(task.task_id, 0, "", False, reason, judged=False, task_key=keys[task.task_id])
                keep([replace(blank, sample=sample) for sample in range(num_samples)])
        asked = [task for task, reason in zip(open_tasks, reasons, strict=True) if reason is None]
        for batch in _batches(asked, max(1, settings.batch_size // num_samples)):
            done = complete_many(
                model if runtime is None else runtime,
                tokenizer,
                [task.prompt for task in batch],
                settings=settings,
                suffixes=[task.suffix or "" for task in batch] if batch[0].suffix is not None else None,
                num_samples=num_samples,
            )
            jobs = [(task, item) for task, row in zip(batch, done, strict=True) for item in row]
            found = list(pool.map(lambda job: check_answer(job[0], job[1].text, prompt=job[1].prompt), jobs))
            for task in batch:
                kept.pop(task.task_id, None)  # fewer than are wanted now, and drawn again with the others
            keep([replace(answer, sample=index % num_samples) for index, answer in enumerate(found)])
            if on_answers is not None:
                on_answers(sum(len(answers_of(task)) >= num_samples for task in tasks), len(tasks))
    return [answer for task in tasks for answer in answers_of(task)[:num_samples]]


def _batches(tasks: Sequence[CodeTask], size: int) -> Iterator[Sequence[CodeTask]]:
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def fingerprint(model: PreTrainedModel) -> str:
    """Digest of a model's weights: names, shapes and the first values of each."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _answers_file(
    folder: Path | None, model: PreTrainedModel, settings: DecodeSettings, *, engine: str | None
) -> Path | None:
    """The file of these settings. How many answers there are and how many are decoded at once changes none of them."""
    if folder is None:
        return None
    facts: dict[str, Any] = {"settings": asdict(settings), "weights": fingerprint(model)}
    facts["settings"].pop("batch_size")
    if engine is not None:
        facts["engine"] = engine
    text = json.dumps(facts, sort_keys=True)
    path = folder / f"answers-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return path


def _engine(runtime: Runtime) -> str:
    """What decodes, with its file: its codes are other weights than those that were loaded."""
    file = runtime.file
    return runtime.name if file is None else f"{runtime.name} {file.name} {file.stat().st_size}"


def _read_answers(path: Path | None) -> dict[str, list[Answer]]:
    kept: dict[str, list[Answer]] = {}
    if path is None:
        return kept
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):  # a crash tore the last line
        path.write_text(text + "\n", encoding="utf-8")
    found: dict[tuple[str, str, int], Answer] = {}
    for line in text.split("\n")[1:]:
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):  # a torn line
            continue
        found[answer.task_id, answer.task_key, answer.sample] = answer
    for answer in found.values():
        kept.setdefault(answer.task_id, []).append(answer)
    return kept


@dataclass(frozen=True)
class PassRates:
    """How often answers pass, over the tasks that could be judged.

    Args:
        tasks: judged tasks.
        rates: k: pass@k, its 95 % interval's low end, its high end.
        unjudged: task and reason, of tasks with too few judged answers.
    """

    tasks: int
    rates: dict[int, tuple[float, float, float]]
    unjudged: dict[str, str]


def pass_rates(answers: Sequence[Answer], *, ks: Sequence[int] = (1,)) -> PassRates:
    """pass@k over the judged tasks, each with a Wilson interval over tasks.

    A mean of shares between 0 and 1 varies no more than a share of zeros and ones with the same mean, so the interval
    is, if anything, too wide. A task of which fewer than k answers could be judged is left out, and named.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("`answers` is empty: there is nothing to average")
    by_task: dict[str, list[bool]] = {answer.task_id: [] for answer in answers}
    reasons: dict[str, str] = {}
    for answer in answers:
        if answer.judged:
            by_task[answer.task_id].append(answer.passed)
        else:
            reasons[answer.task_id] = answer.reason
    judged = {task: row for task, row in by_task.items() if len(row) >= max(ks)}
    rates = {}
    for k in ks if judged else ():
        value = sum(pass_at_k(len(row), sum(row), k) for row in judged.values()) / len(judged)
        rates[k] = (value, *wilson_interval(value * len(judged), len(judged)))
    left_out = {task: reasons.get(task, "too few answers") for task in by_task if task not in judged}
    return PassRates(len(judged), rates, left_out)
