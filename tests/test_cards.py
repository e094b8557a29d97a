"""Cards say what the record says, leave out what nobody measured, and their snippets run as pasted."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from finished_run import make_run
from huggingface_hub import DatasetCard, ModelCard, parse_eval_result_entries

from codenas_hf.data import PreparedData
from codenas_hf.release.cards import Card, bundled_folder, describe, model_card, study_card
from codenas_hf.report.architecture import architecture_table, tensors_of_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: PreparedData) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo", tiny_data)


def card_of(release: Path, run: Path | None = None, **known: object) -> Card:
    layers = architecture_table(tensors_of_folder(release), json.loads((release / "config.json").read_text()))
    return model_card(release, repo_id="alice/demo", layers=layers, run=run, **known)  # type: ignore[arg-type]


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_metadata_and_results_are_what_the_hub_reads(run: Path) -> None:
    data = ModelCard(card_of(run / "winner", run, dataset_id="alice/demo-corpus").text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert data.datasets == ["alice/demo-corpus"]
    results = {r.metric_type: r.metric_value for r in data.eval_results}
    assert results == {"bits_per_byte": 2.3456, "next_token_accuracy": 0.271}


def test_the_snippets_run_as_pasted(run: Path) -> None:
    code = snippets(card_of(run / "winner", run).text)
    assert len(code) == 2, "use, and filling a gap"
    space: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for text in code:
            exec(text.replace("alice/demo", str(run / "winner")), space)
    assert "def subtract(a, b):" in printed.getvalue()
    assert "<|fim_suffix|>" in str(space["prompt"])
    assert "trust_remote_code" not in code[0]


def test_every_number_stands_with_its_protocol(run: Path, tiny_data: PreparedData) -> None:
    text = card_of(run / "winner", run).text
    assert "| bits per byte | 2.3456 | 200 kB of held-out projects, windows of 256 tokens |" in text
    assert "| test cpu | 3.20 ms | 0.810 ms | 0.930 ms | threads 1, dtype bfloat16 |" in text
    assert "best model within 20.0 MB" in text
    assert f"data digest: `{tiny_data.digest}`" in text
    assert "tokens: 307,200" in text
    assert "seconds: 41.0 s" in text
    assert f"{(run / 'winner' / 'model.safetensors').stat().st_size / 1000:.1f} kB" in text
    assert "![Pareto front](assets/front.png)" in text
    assert re.search(r"\| train \| \d+ \|", text)


def test_what_was_not_measured_is_absent(run: Path, tmp_path: Path) -> None:
    release = tmp_path / "winner"
    release.mkdir()
    for name in ("config.json", "model.safetensors"):
        (release / name).write_bytes((run / "winner" / name).read_bytes())
    text = card_of(release).text
    for heading in ("Evaluation", "chosen from", "Training data", "Training and its cost", "Reproduce"):
        assert f"## {heading}" not in text
    for word in ("None", "nan", "Undefined", "| |", "0 parameters"):
        assert word not in text
    assert ModelCard(text).data.eval_results is None


def test_remote_code_is_asked_for_only_where_it_is_needed(run: Path, tmp_path: Path) -> None:
    release = tmp_path / "winner"
    release.mkdir()
    config = json.loads((run / "winner" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_codenas.CodeNASForCausalLM"}
    (release / "config.json").write_text(json.dumps(config))
    (release / "model.safetensors").write_bytes((run / "winner" / "model.safetensors").read_bytes())
    text = card_of(release).text
    assert "from_pretrained(name, trust_remote_code=True)" in text
    assert "read `modeling_codenas.py`" in text


def test_a_suite_adds_results_with_intervals_and_benchmark_entries(run: Path) -> None:
    path = run / "winner" / "evaluation.json"
    entry = {"name": "short/greedy/parse_rate", "value": 0.62, "low": 0.55, "high": 0.69, "count": 200}
    listed = {"name": "humaneval/greedy/pass@1", "value": 0.01}
    unlisted = {"name": "short/greedy/distinct_2", "value": 0.5}
    path.write_text(json.dumps({"protocol": {"threads": 2}, "rows": [entry, listed, unlisted]}))
    try:
        card = card_of(run / "winner", run)
    finally:
        path.unlink()
    assert "| short, greedy, parse rate | 0.6200 | 0.5500 | 0.6900 | 200 |" in card.text
    assert "Protocol: threads 2." in card.text
    assert "distinct" not in card.text
    assert card.eval_results is not None
    (found,) = parse_eval_result_entries(yaml.safe_load(card.eval_results))
    assert (found.dataset_id, found.value) == ("openai/openai_humaneval", 0.01)
    assert "alice/demo-corpus" not in card.text


def test_study_card_configures_every_table(run: Path) -> None:
    data = DatasetCard(study_card(run, repo_id="a/s", model_id="a/m", tables=["front", "trials"])).data
    assert [(c["config_name"], c.get("default")) for c in data.configs] == [("front", None), ("trials", True)]


def test_describe_is_one_line() -> None:
    assert describe({"a_b": 1200, "c": [1, True], "d": None}) == "a b 1,200, c 1, True"


def test_a_missing_folder_of_templates_says_where_it_was_looked_for() -> None:
    assert (bundled_folder("model_cards") / "model.md.jinja").is_file()
    with pytest.raises(FileNotFoundError, match="install codenas-hf again"):
        bundled_folder("no_such_folder")
