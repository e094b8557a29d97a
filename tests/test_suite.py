"""The suite on tiny models: what is measured, what is said to be absent; a looping model, human code; lm-eval."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluation_models import TEXT, tiny_model, tiny_tokenizer

from codenas_hf.folders import Record
from codenas_hf.folders.record import Training
from codenas_hf.generation.decode import DecodeSettings
from codenas_hf.generation.llama_cpp import is_installed
from codenas_hf.generation.loading import load_model
from codenas_hf.jobs.models import evaluate
from codenas_hf.release.targets import export_model
from codenas_hf.sandbox.judge import SandboxUnavailable
from codenas_hf.suite import parts as suite
from codenas_hf.suite.completion_report import completion_rows, human_rows
from codenas_hf.suite.evaluation import SuiteSettings, evaluate_model, format_table
from codenas_hf.suite.next_line import next_line_prompts, read_projects
from codenas_hf.suite.prompts import load_prompts
from codenas_hf.suite.task_files import TaskFileError
from codenas_hf.suite.text_score import score_texts

SMALL = SuiteSettings(
    prompts=4,
    new_tokens=8,
    samples=2,
    humaneval=2,
    humaneval_samples=2,
    infilling=2,
    task_tokens=8,
    latency=False,
    file_tasks=2,
    next_lines=4,
)
MBPP_ROWS = [
    {"task_id": number, "text": "One.", "test_list": ["assert f() == 1"], "code": f"def f():\n    return {value}\n"}
    for number, value in ((13, 1), (14, 2))
]
TASKS = Path(suite.__file__).parent / "lm_eval_tasks"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model(tokenizer, context=256).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_uniform_model_needs_log2_of_its_vocabulary(tokenizer):
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    texts = [TEXT, TEXT * 10, "x"]  # the second is longer than the context
    score = score_texts(model, tokenizer, texts)
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert score.num_tokens == tokens
    assert score.num_bytes == sum(len(text) for text in texts)
    assert score.bits_per_byte == pytest.approx(tokens * math.log2(len(tokenizer)) / score.num_bytes)


def test_prompts_are_seen_but_not_scored(tokenizer):
    model = tiny_model(tokenizer)
    whole = score_texts(model, tokenizer, ["def f" + "(x):"])
    first = score_texts(model, tokenizer, ["def f"])
    rest = score_texts(model, tokenizer, ["(x):"], prompts=["def f"])
    assert rest.nats == pytest.approx(whole.nats - first.nats, rel=1e-4)
    with pytest.raises(ValueError, match="one per text"):
        score_texts(model, tokenizer, ["a"], prompts=[])
    with pytest.raises(ValueError, match="no text"):
        score_texts(model, tokenizer, [""])


def test_a_looping_model_collapses_always(tokenizer):
    model = tiny_model(tokenizer)
    loop = tokenizer("x")["input_ids"][0]
    model.get_output_embeddings().weight.data.zero_()
    forward = model.forward

    def looping(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits[..., loop] = 50.0
        return output

    model.forward = looping
    rows = {
        row.name: row
        for row in completion_rows(
            model,
            tokenizer,
            load_prompts("few_shot", count=5),
            name="few_shot",
            settings=DecodeSettings(max_new_tokens=24, boundary="keep"),
        )
    }
    assert rows["few_shot/collapse_rate"].value == 1
    assert rows["few_shot/loop_rate"].value == 1
    assert rows["few_shot/prompt_collapse_share"].value == 1
    assert rows["few_shot/effective_answers"].value == pytest.approx(1)
    assert rows["few_shot/legacy_collapse_rate"].value == 1


@pytest.mark.parametrize("kind", ["few_shot", "mid_file"])
@pytest.mark.parametrize("max_tokens", [64, 128])
def test_human_code_is_below_two_percent(tokenizer, kind, max_tokens):
    """With tokens hardly longer than bytes; `test_prompts` has both sets, over words."""
    found = human_rows(tokenizer, load_prompts(kind), name="human", max_tokens=max_tokens)
    rows = {row.name: row for row in found}
    assert rows["human/empty_rate"].value == 0
    assert rows["human/legacy_collapse_rate"].value < 0.02
    if (kind, max_tokens) == ("few_shot", 128):  # shorter texts of so few bytes are too often of one kind
        assert rows["human/collapse_rate"].value < 0.02


def test_everything_of_a_folder_is_measured(folder, tmp_path, monkeypatch):
    tasks = suite.load_humaneval()[:6]
    monkeypatch.setattr(suite, "load_humaneval", lambda: tasks)
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP_ROWS))
    for project in ("one", "two", "three", "four"):
        (tmp_path / "held_out" / project).mkdir(parents=True)
        (tmp_path / "held_out" / project / "a.py").write_text(TEXT * 5 + f"# {project}\n")
    settings = replace(SMALL, task_files=(tmp_path / "mbpp.jsonl",), held_out=tmp_path / "held_out")
    result = evaluate_model(load_model(folder), settings=settings, folder=tmp_path)
    names = {row["name"] for row in result["rows"]}
    for name in (
        "parameters",
        "artifact_bytes",
        "mid_file/bits_per_byte",
        "mid_file/copied_bits_per_byte",
        "held_out/new_bits_per_byte",
        "humaneval/solution_bits_per_byte",
        "short/greedy/collapse_rate",
        "few_shot/shipped/sample_similarity",
        "mid_file/human/collapse_rate",
        "mid_file/greedy/line_exact_match",
        "humaneval/greedy/pass@1",
        "humaneval/t0.2/pass@1",
        "humaneval/t0.8/pass@2",
        "infilling/pass@1",
        "infilling/exact_match",
        "MBPP/greedy/pass@1",
        "held_out/bits_per_byte",
        "next_line/line_exact_match",
        "next_line/line_edit_similarity",
    ):
        assert name in names, name
    assert len(names) == len(result["rows"])
    rows = {row["name"]: row for row in result["rows"]}
    size = rows["artifact_bytes"]["value"]
    assert all(row["engine"] == "torch" and row["bytes"] == size for row in result["rows"])
    assert list(rows["MBPP/greedy/pass@1"]["unjudged"]) == ["MBPP/14"]
    assert rows["MBPP/greedy/pass@1"]["count"] == 1
    assert rows["humaneval/t0.8/pass@2"]["low"] <= rows["humaneval/t0.8/pass@2"]["value"]
    assert "low" in rows["held_out/bits_per_byte"]
    assert "decode_ms" in result["absent"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(result))
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 3 * 4 * 3
    table = format_table(result)
    assert re.search(r"MBPP/greedy/pass@1 +not judged  MBPP/14: its own reference", table)
    assert re.search(r"humaneval/greedy/pass@1 +0 +\[0\.000, 0\.\d+\] +2\n", table)
    assert "decode_ms" in table
    assert {"device", "versions", "threads", "settings"} <= result["protocol"].keys()


def test_what_cannot_be_measured_is_absent(tmp_path, monkeypatch):
    plain = tiny_tokenizer(special=["<|endoftext|>", "<|pad|>"])
    loaded = suite.LoadedModel("plain", tiny_model(plain), plain, None)

    def refuse():
        raise SandboxUnavailable("nothing here would hold it")

    tasks = suite.load_humaneval()[:3]
    monkeypatch.setattr(suite, "load_humaneval", lambda: tasks)
    monkeypatch.setattr(suite, "capabilities", refuse)
    monkeypatch.setattr(suite, "load_hub_tasks", lambda name: (_ for _ in ()).throw(OSError("no network")))
    settings = SuiteSettings(prompts=1, new_tokens=8, humaneval=1, task_tokens=2, latency=False, extra=("mbpp",))
    result = evaluate_model(loaded, settings=settings)
    assert {"artifact_bytes", "humaneval", "infilling", "mbpp", "decode_ms"} <= result["absent"].keys()
    assert "pass@1" not in json.dumps(result["rows"])


def test_gaps_are_not_asked_of_a_model_that_never_saw_one(tokenizer, tmp_path, monkeypatch):
    """Its tokenizer has the tokens, as all of ours have; a number for noise would be read as one of the model."""
    loaded = suite.LoadedModel(str(tmp_path), tiny_model(tokenizer), tokenizer, None)
    asked = []
    monkeypatch.setattr(suite.Parts, "_answer", lambda _, name, *__, **___: asked.append(name) or [])
    for rate, absent in ((0.0, "the model was trained without gaps (train.fim_rate=0)"), (0.5, None)):
        Record(training=Training(fim_rate=rate)).write(tmp_path)
        run = suite.Parts(loaded, SMALL, None)
        run.infilling()
        assert run.absent.get("infilling") == absent
    assert asked == ["infilling"]


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="neither a model's folder nor one GGUF file"):
        load_model(tmp_path / "notes.txt")


def test_held_out_projects(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_projects(tmp_path / "none")
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(FileNotFoundError, match="no sub-folder with Python files"):
        read_projects(tmp_path)
    for project in ("one", "two"):
        (tmp_path / project / "deep").mkdir(parents=True)
        for number in range(3):
            lines = [f"value_{number}_{line} = {line}" for line in range(30)]
            (tmp_path / project / "deep" / f"{number}.py").write_text("\r\n".join(["# one", "", *lines]) + "\n")
    projects = read_projects(tmp_path)
    assert {name: len(texts) for name, texts in projects.items()} == {"one": 3, "two": 3}
    assert {name: len(texts) for name, texts in read_projects(tmp_path, limit=10).items()} == {"one": 1, "two": 1}
    prompts = next_line_prompts(projects, 11)
    assert len(prompts) == 11
    assert len({prompt.prompt_id for prompt in prompts}) == 11
    assert [prompt.source for prompt in prompts] == ["one"] * 6 + ["two"] * 5
    for prompt in prompts:
        assert re.fullmatch(r"\nvalue_\d_\d+ = \d+", prompt.reference)
        assert any(prompt.text + prompt.reference in text.replace("\r\n", "\n") for text in projects["one"])
        assert "\r" not in prompt.text
    assert next_line_prompts(projects, 0) == []
    (tmp_path / "one" / "bad.py").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.py is not UTF-8"):
        read_projects(tmp_path)


def test_files_are_read_before_anything_is_measured(folder, tmp_path):
    settings = SuiteSettings(task_files=(tmp_path / "none.jsonl",))
    with pytest.raises(TaskFileError, match="cannot be read as a file of tasks"):
        evaluate_model(load_model(folder), settings=settings, on_part=lambda *_: pytest.fail("measured"))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="`new_tokens` must be 8 or more"):
        SuiteSettings(new_tokens=1)
    with pytest.raises(ValueError, match="`humaneval` must be 0 or more, or null, got -1"):
        SuiteSettings(humaneval=-1)


def test_the_recipe(monkeypatch, capsys):
    recipe = Path(__file__).parent.parent / "recipes" / "evaluate_model.py"
    assert len(recipe.read_text().splitlines()) <= 40
    monkeypatch.setattr(sys, "argv", ["evaluate_model.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(recipe), run_name="__main__")
    assert "--suite" in capsys.readouterr().out


@pytest.mark.slow
def test_lm_evaluation_harness_agrees(folder, tokenizer, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_model(folder)
    peer = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        device="cpu",
        dtype="float32",
        max_length=256,
        batch_size=8,
    )
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    names = ["codenas_bits_per_byte", "codenas_next_line"]
    results = lm_eval.simple_evaluate(peer, tasks=names, task_manager=manager, bootstrap_iters=0, limit=30)["results"]
    cuts = load_prompts("mid_file")[:30]
    ours = score_texts(loaded.model, loaded.tokenizer, [cut.text + cut.reference for cut in cuts]).bits_per_byte
    theirs = results["codenas_bits_per_byte"]["bits_per_byte,none"]
    assert ours == pytest.approx(theirs, rel=0.005)
    assert "exact_match,first_line" in results["codenas_next_line"]


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "graphics card"])
def test_a_device_that_is_not_here_is_one_line(device):
    with pytest.raises(ValueError, match="`device` must be cpu, or cuda where there is a GPU, got"):
        load_model("nothing", device=device)


@pytest.mark.skipif(not is_installed(), reason="needs xllamacpp: pip install 'codenas-hf[fast]'")
def test_a_gguf_file_is_measured_in_its_reader(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "load_humaneval", lambda: [])
    path = tmp_path / "model.gguf"
    loaded = load_model(folder)
    try:
        export_model(loaded.model, tokenizer=folder, out=path, to="gguf", form="f32")
    except ValueError as error:
        pytest.skip(f"no file for llama.cpp: {error}")
    settings = {"quick": replace(SMALL, humaneval=0, infilling=0, latency=True)}
    monkeypatch.setattr("codenas_hf.jobs.models.SUITES", settings)
    there = evaluate(path, folder=tmp_path, device="cpu")
    here = evaluate(path, folder=tmp_path, device="cpu", runtime="torch")
    assert {row["engine"] for row in there["rows"]} == {"llama.cpp"}
    assert {row["engine"] for row in here["rows"]} == {"torch"}
    found, wanted = ({row["name"]: row["value"] for row in result["rows"]} for result in (there, here))
    assert set(found) == set(wanted)
    assert found["decode_ms"] > 0
    assert found["mid_file/bits_per_byte"] == pytest.approx(wanted["mid_file/bits_per_byte"], rel=1e-3)
    assert found["few_shot/greedy/collapse_rate"] == pytest.approx(wanted["few_shot/greedy/collapse_rate"], abs=0.21)
    # Of a release with a file beside its weights, what is measured is the file.
    release = shutil.copytree(folder, tmp_path / "release")
    coded = release / "model-q8_0.gguf"
    export_model(loaded.model, tokenizer=folder, out=coded, to="gguf", form="q8_0")
    rows = evaluate(release, folder=None, device="cpu", runtime="llama.cpp")["rows"]
    assert {row["bytes"] for row in rows} == {coded.stat().st_size}
    assert next(row["value"] for row in rows if row["name"] == "artifact_bytes") == coded.stat().st_size


def test_a_graph_alone_is_refused_in_a_line(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    with pytest.raises(ValueError, match="for ONNX Runtime alone: evaluate the model that it was exported from"):
        evaluate(tmp_path)
