"""Cards say what the record says, leave out what nobody measured, and their snippets run as pasted."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_run import make_run
from huggingface_hub import DatasetCard, ModelCard, parse_eval_result_entries

from codenas_hf.data import PreparedData
from codenas_hf.folders import Record, Release, StudyFolder, bundled_folder
from codenas_hf.folders.record import DataFacts, Origin, Squeezed, Start, Training, Trial
from codenas_hf.release.cards import Card, dataset_card, describe, model_card, study_card
from codenas_hf.report.architecture import architecture_table, tensors_of_folder
from codenas_hf.report.cells import format_bytes, format_seconds, format_value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished_study: StudyFolder) -> StudyFolder:
    return StudyFolder(make_run(tmp_path_factory.mktemp("runs") / "demo", finished_study))


def card_of(release: Release, study: StudyFolder | None = None, **known: Any) -> Card:
    layers = architecture_table(tensors_of_folder(release.folder), release.read_config())
    return model_card(release, repo_id="alice/demo", layers=layers, study=study, **known)


def copy_of(run: StudyFolder, folder: Path, record: Record | None = None) -> Release:
    """Weights and configuration of the winner with another record, or none."""
    release = Release(folder)
    folder.mkdir()
    for path in (run.winner.config, *run.winner.weights):
        (folder / path.name).write_bytes(path.read_bytes())
    if record is not None:
        record.write(folder)
    return release


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_metadata_and_results_are_what_the_hub_reads(run: StudyFolder) -> None:
    data = ModelCard(card_of(run.winner, run, dataset_id="alice/demo-corpus").text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert data.datasets == ["alice/demo-corpus"]
    results = {r.metric_type: r.metric_value for r in data.eval_results}
    measured = run.winner.read_record().measured
    names = ("bits_per_byte", "next_token_accuracy", "loss")
    assert results == {name: round(getattr(measured, name), 6) for name in names}


def test_the_snippets_run_as_pasted(run: StudyFolder) -> None:
    code = snippets(card_of(run.winner, run).text)
    assert len(code) == 2, "use, and filling a gap"
    space: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for text in code:
            exec(text.replace("alice/demo", str(run.winner.folder)), space)
    assert "def subtract(a, b):" in printed.getvalue()
    assert "<|fim_suffix|>" in str(space["prompt"])
    assert "trust_remote_code" not in code[0]


def test_every_number_stands_with_its_protocol(run: StudyFolder, tiny_data: PreparedData) -> None:
    text = card_of(run.winner, run).text
    record = run.winner.read_record()
    measured, latency, training = record.measured, record.measured.latency, record.training
    assert latency is not None
    scored = f"{format_bytes(measured.scored_bytes or 0)} of report text, windows of 64 tokens"
    assert f"| bits per byte | {measured.bits_per_byte:.4f} | {scored} |" in text
    times = [format_value(getattr(latency, n), "ms") for n in ("prefill_ms", "decode_ms", "decode_p95_ms")]
    assert f"| {latency.device} | {' | '.join(times)} |" in text
    assert describe(latency.protocol) in text
    assert "found by random search for the best model within 20.0 MB" in text
    assert f"data digest: `{tiny_data.digest}`" in text
    assert training.tokens == 4 * 256
    assert f"tokens: {training.tokens:,}" in text
    assert f"seconds: {format_seconds(training.seconds or 0)}" in text
    assert record.release.weights_bytes is not None
    assert record.release.artifact_bytes is not None
    weights, artifact = format_bytes(record.release.weights_bytes), format_bytes(record.release.artifact_bytes)
    assert weights != artifact
    assert f"{weights} of weights in bfloat16;\n{artifact} to ship" in text
    assert f"parameters in {artifact}**" in text
    assert "![Pareto front](assets/front.png)" in text
    assert re.search(r"\| train \| \d+ \|", text)


def test_what_was_not_measured_is_absent(run: StudyFolder, tmp_path: Path) -> None:
    text = card_of(copy_of(run, tmp_path / "winner")).text
    assert "found by" not in text
    for heading in ("Evaluation", "chosen from", "Training data", "Training and its cost", "Reproduce"):
        assert f"## {heading}" not in text
    for word in ("None", "nan", "Undefined", "| |", "0 parameters"):
        assert word not in text
    assert ModelCard(text).data.eval_results is None


def test_remote_code_is_asked_for_only_where_it_is_needed(run: StudyFolder, tmp_path: Path) -> None:
    release = copy_of(run, tmp_path / "winner")
    auto = {"AutoModelForCausalLM": "modeling_codenas.CodeNASForCausalLM"}
    release.config.write_text(json.dumps({**release.read_config(), "auto_map": auto}))
    text = card_of(release).text
    assert "from_pretrained(name, trust_remote_code=True)" in text
    assert "read `modeling_codenas.py`" in text


def test_a_suite_adds_results_with_intervals_and_benchmark_entries(run: StudyFolder) -> None:
    path = run.winner.evaluation
    entry = {"name": "short/greedy/parse_rate", "value": 0.62, "low": 0.55, "high": 0.69, "count": 200}
    listed = {"name": "humaneval/greedy/pass@1", "value": 0.01, "count": 164, "engine": "torch", "bytes": 2_000_000}
    person = {"name": "short/human/parse_rate", "value": 1.0, "count": 200}
    unlisted = {"name": "short/greedy/distinct_2", "value": 0.5}
    path.write_text(json.dumps({"protocol": {"threads": 2}, "rows": [entry, listed, person, unlisted]}))
    try:
        card = card_of(run.winner, run)
        part = [{**listed, "count": 40}, {**listed, "unjudged": {"HumanEval/0": "too slow"}}]
        path.write_text(json.dumps({"rows": part}))
        partly = card_of(run.winner, run)
    finally:
        path.unlink()
    assert "| short, greedy, parse rate | 0.6200 | 0.5500 | 0.6900 | 200 |" in card.text
    assert "| humaneval, greedy, pass@1 | 0.0100 |  |  | 164 | torch | 2.00 MB |" in card.text
    found = [(r.dataset_name, r.dataset_split, r.metric_name) for r in ModelCard(card.text).data.eval_results]
    assert [name for name in found if name[1] is None] == [("HumanEval", None, "humaneval, greedy, pass@1")]
    assert {split for _, split, _ in found} == {"report", None}
    assert not any("short" in name for _, _, name in found), "of other text than the corpus's"
    assert partly.eval_results is None, "a part of a benchmark is another one"
    assert "openai" not in partly.text
    assert "Protocol: threads 2." in card.text
    assert "distinct" not in card.text
    assert card.eval_results is not None
    (found,) = parse_eval_result_entries(yaml.safe_load(card.eval_results))
    assert (found.dataset_id, found.value) == ("openai/openai_humaneval", 0.01)
    assert "alice/demo-corpus" not in card.text


def test_a_squeezed_model_is_made_again_by_a_squeeze(run: StudyFolder, tmp_path: Path) -> None:
    genome = {"vocab_size": 400, "neurons": (64, 32), "embedding": "q8_0"}
    trial, again = Trial(rung=0, number=3), Start(folder="s", weights="w")
    cases = [("owner/parent", None, None), ("a folder", trial, None), ("owner/parent", None, again)]
    for number, (parent, found, start) in enumerate(cases):
        squeezed = Squeezed(parent=parent, genome=genome, parent_bits_per_byte=0.8)
        known: dict[str, Any] = {"training": Training(budget="9 tokens"), "provenance": {"threads": 1}}
        record = Record(squeezed=squeezed, trial=found, start=start, **known)
        release = copy_of(run, tmp_path / str(number), record)
        release.settings.write_text("study: mine\n")
        text = card_of(release).text
        made = text.partition("## Reproduce")[2]
        assert "codenas search" not in made
        assert ("codenas train" in made) == (start is not None)
        assert ("the parent has 0.8" in text) == (start is None), "on the text of before"
        if start is None:
            named, given = ("owner/parent", " --genome genome.yaml") if found is None else ("parent", "")
            assert f"codenas squeeze {named}{given} --config demo/settings.yaml" in made
        if given := made.partition("```yaml\n")[2].partition("\n```")[0]:
            assert yaml.safe_load(given) == {**genome, "neurons": [64, 32]}


def test_the_card_says_where_the_architecture_comes_from(run: StudyFolder, tmp_path: Path) -> None:
    searched = Origin(kind="study", name="demo", rung=1, number=3, policy="screened", limits={"decode_ms": 5.0})
    by_hand = Origin(kind="file", name="llama_tiny.yaml")
    texts = {}
    for name, origin in (("searched", searched), ("by hand", by_hand), ("unsaid", None)):
        record = Record(
            origin=origin, genome_id="ab", training=Training(budget="40 steps"), data=DataFacts(digest="d")
        )
        texts[name] = card_of(copy_of(run, tmp_path / name, record)).text
    assert "found by evolutionary search for the best model within 5 ms a token." in texts["searched"]
    assert "- study: `demo`, trial 3 of rung 1" in texts["searched"]
    assert "Its architecture is that of the genome file `llama_tiny.yaml`." in texts["by hand"]
    for name in ("by hand", "unsaid"):
        assert "search" not in texts[name].split("## Use")[0].replace("architecture-search", "")
        assert "codenas search" not in texts[name]


def test_a_release_says_how_it_was_made_not_another_way(run: StudyFolder, tmp_path: Path) -> None:
    """Whoever trained a genome is not told to search for it again."""
    settings = "train: {}\n"
    trained = Record(training=Training(budget="40 steps"), data=DataFacts(digest="d"))
    tuned = Record(
        training=Training(budget="9 steps"), data=DataFacts(digest="d"), start=Start(folder="a", weights="b")
    )
    commands = []
    for name, record in (("trained", trained), ("tuned", tuned)):
        release = copy_of(run, tmp_path / name, record)
        release.settings.write_text(settings)
        commands += [line for line in card_of(release).text.splitlines() if line.startswith("codenas ")]
    assert commands == [
        'codenas train demo --budget "40 steps" --config demo/settings.yaml',
        'codenas train start --fine-tune --budget "9 steps" --config demo/settings.yaml',
    ]
    assert "codenas search --config demo/settings.yaml" in card_of(run.winner).text


def test_every_text_behind_a_fine_tuned_release_shows_its_licences(run: StudyFolder, tmp_path: Path) -> None:
    def data(licence: str) -> DataFacts:
        return DataFacts(digest=licence, corpus={"licences": {licence: {"files": 1, "bytes": 10}}})

    first = Start(folder="first", weights="1" * 64, bits_per_byte=2.5, data=data("GPL-3.0"))
    second = Start(folder="second", weights="2" * 64, data=data("MIT"), start=first, tokens=1_500_000, seconds=90.0)
    third = Record(start=second, data=data("BSD-3-Clause"), training=Training(steps=3))
    text = card_of(copy_of(run, tmp_path / "third", third)).text
    for licence in ("GPL-3.0", "MIT", "BSD-3-Clause"):
        assert f"| {licence} | 1 |" in text
    assert "Fine-tuned on the text below, from the release `second`" in text
    assert "itself fine-tuned, from the release `first`" in text
    assert "- before that, as the release `second`: 1.50 M tokens in 90.0 s\n" in text
    assert "as the release `first`:" not in text
    assert "None" not in text


def test_study_card_configures_every_table(run: StudyFolder) -> None:
    data = DatasetCard(study_card(run, repo_id="a/s", model_id="a/m", tables=["front", "trials"])).data
    assert [(c["config_name"], c.get("default")) for c in data.configs] == [("front", None), ("trials", True)]


def test_a_card_promises_of_the_split_what_the_corpus_keeps() -> None:
    report = {
        "split": {"train": {"files": 3, "bytes": 9}},
        "leakage": {"window_lines": 10},
        "held_out_projects": {"search": ["a"], "report": ["b"]},
    }
    text = dataset_card(report, digest="0", repo_id="me/x")
    assert "No project is in two of them." in text
    assert "shares 10 lines in a row" in text
    dealt = {
        **report,
        "held_out_projects": {"search": ["a"], "report": ["a"]},
        "leakage": {"window_lines": 0},
        "not_promised": ["one project: search and report text are files of it"],
    }
    text = dataset_card(dealt, digest="0", repo_id="me/x")
    assert "No project is in two" not in text
    assert "lines in a row" not in text
    assert "Not promised: one project" in text


def test_describe_is_one_line() -> None:
    assert describe({"a_b": 1200, "c": [1, True], "d": None}) == "a b 1,200, c 1, True"


def test_a_missing_folder_of_templates_says_where_it_was_looked_for() -> None:
    assert (bundled_folder("model_cards") / "model.md.jinja").is_file()
    with pytest.raises(FileNotFoundError, match="install codenas-hf again"):
        bundled_folder("no_such_folder")
