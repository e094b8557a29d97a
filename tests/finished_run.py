"""A finished run for the tests of sharing: a small real search, its winner released, and a report without drawings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from codenas_hf.architecture.space import SearchSpace
from codenas_hf.data import PreparedData
from codenas_hf.engine import RandomPolicy, SearchSettings, run_search
from codenas_hf.folders import StudyFolder, write_json
from codenas_hf.jobs.release import release_trial
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.study import open_study
from codenas_hf.measure.candidate import CandidateEvaluator
from codenas_hf.measure.latency import LatencyModel
from codenas_hf.report.study_view import StudyView
from codenas_hf.report.tables import correlation_table, front_table, seconds_table, trials_table
from codenas_hf.strict_yaml import dump, load

SPACE = """
export: stock
genes:
  vocab_size: [512]
  hidden_size: [32, 48, 64]
  num_hidden_layers: [1, 2]
  head_dim: [16]
  intermediate_ratio: [1, 2]
"""
WORDS = (
    *("search.population=2", "search.generations=1", "search.budgets=[2 steps, 4 steps]", "search.policy=random"),
    *("search.keep=[1]", "search.workers_per_rank=1", "limits.bytes=20MB", "train.fim_rate=0.5", "device=cpu"),
    *("train.sequence_length=64", "train.tokens_per_step=256", "train.log_every=1", "train.precision=float32"),
    *("candidate.score_bytes=4000", "final_score_bytes=8000"),
)


def search_once(folder: Path, data: PreparedData) -> StudyFolder:
    """A study of three evaluations with its winner released; some seconds."""
    space = folder / "space.yaml"
    space.write_text(SPACE)
    settings = load(RunSettings, overrides=[*WORDS, f"space={space}", f"folder={folder}", "study=demo"])
    study = StudyFolder(folder / "demo")
    study.folder.mkdir()
    searched = SearchSpace.from_yaml(space)
    result = run_search(
        searched,
        CandidateEvaluator(
            data=data,
            train=settings.train,
            settings=settings.candidate,
            latency=LatencyModel.fit(searched, time_genome=lambda g: 0.1 * g.num_hidden_layers),
            folder=study.trials,
            device="cpu",
        ),
        folder=study.folder,
        settings=SearchSettings(
            objectives={"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"},
            population=2,
            generations=1,
            rungs=settings.search.rungs,
            ideal={"bits_per_byte": 1.0, "artifact_bytes": 1e5, "decode_ms": 0.1},
            reference={"bits_per_byte": 4.0, "artifact_bytes": 1e6, "decode_ms": 1.0},
            name="demo",
            workers_per_rank=1,
        ),
        policy=RandomPolicy(),
        preload=("torch", "transformers", "codenas_hf.measure.candidate"),
    )
    assert result.winner is not None
    study.settings.write_text(dump(settings), encoding="utf-8")
    write_json(study.data, {"data": data.to_dict(beside=study.folder)})
    release_trial(result.winner, study=study.folder, settings=settings, data=data)
    write_tables(study)
    return study


def make_run(folder: Path, study: StudyFolder, *, seed: int = 0) -> Path:
    """A copy of the study for a test that changes it, with a password in its settings; its weights differ by seed."""
    shutil.copytree(study.folder, folder, ignore=shutil.ignore_patterns(study.trials.name))
    run = StudyFolder(folder)
    if seed:
        (path,) = run.winner.weights
        rng = torch.Generator().manual_seed(seed)
        weights = {name: w + torch.randn(w.shape, generator=rng).to(w.dtype) for name, w in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    settings = load(RunSettings, study.settings, overrides=["search.storage=postgresql://me:hunter2@db/x"])
    for path in (run.settings, run.winner.settings):
        path.write_text(dump(settings), encoding="utf-8")
    (run.winner.folder / "optimizer.pt").write_bytes(b"never")
    return folder


def schema_1(study: StudyFolder) -> dict[str, object]:
    """The winner's record as the first schema had it: written out by hand, with the numbers of the real one."""
    record = study.winner.read_record()
    result, _ = open_study(study.folder)
    winner = result.winner
    assert winner is not None
    assert winner.evaluation is not None
    assert record.measured.latency is not None
    measured = json.loads(json.dumps(dataclasses.asdict(record.measured)))
    release = json.loads(json.dumps(dataclasses.asdict(record.release)))
    del release["artifact_bytes"]
    release["parameters"] = measured["parameters"] = release.pop("num_parameters")
    return {
        "genome": record.genome,
        "genome_id": record.genome_id,
        "trial": {"genome_id": record.genome_id, "rung": winner.rung, "number": winner.number},
        "study": "demo",
        "evaluation": winner.evaluation.to_dict(),
        "measured": measured,
        "seconds": record.seconds,
        "data": dataclasses.asdict(record.data),
        "provenance": record.provenance,
        "release": release,
    }


def write_tables(study: StudyFolder) -> None:
    """A report without its drawings, which take longer than everything else here."""
    study.report.mkdir()
    result, _ = open_study(study.folder)
    view = StudyView(name=study.name, result=result)
    for table in (front_table(view), trials_table(view), correlation_table(view), seconds_table(view)):
        (study.report / f"{table.name}.csv").write_text(table.to_csv(), encoding="utf-8")
        (study.report / f"{table.name}.md").write_text(table.to_markdown(), encoding="utf-8")
    (study.report / "front.png").write_bytes(b"a picture")
    (study.report / "index.html").write_text("<!doctype html>", encoding="utf-8")
