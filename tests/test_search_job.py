"""The main job, whole: from files to a winner; killed anywhere, it goes on and loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.data import DataError, PreparedData
from codenas_hf.engine import IdentityError, SingleJobError
from codenas_hf.engine.journal import JobLock
from codenas_hf.folders import StudyFolder, read_json
from codenas_hf.hardware import Hardware, alone
from codenas_hf.jobs.cost import cost_lines
from codenas_hf.jobs.policies import POLICIES
from codenas_hf.jobs.search import _policy, aside, engine_settings, search
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.study import corners, open_study, screened, study_precision
from codenas_hf.jobs.text import load_space
from codenas_hf.measure.latency import LatencyModel
from codenas_hf.strict_yaml import SettingsError, load

ROOT = Path(__file__).parent.parent
SPACE = """
export: stock
genes:
  vocab_size: [512]
  hidden_size: [32, 48, 64]
  num_hidden_layers: [1, 2, 3]
  head_dim: [16]
  intermediate_ratio: [1, 2]
  tie_word_embeddings: [true, false]
"""


def words(folder: Path, corpus: Path, *more: str) -> list[str]:
    """Settings of a search that takes seconds."""
    space = folder / "space.yaml"
    space.write_text(SPACE)
    return [
        f"space={space}",
        f"folder={folder / 'runs'}",
        f"corpus={{sources: [{corpus}], benchmarks: [], held_out_fraction: 0.2, near_threshold: null}}",
        "search.population=4",
        "search.generations=2",
        "search.budgets=[3 steps, 9 steps]",
        "search.keep=[1]",
        "train.sequence_length=64",
        "train.tokens_per_step=256",
        "train.precision=float32",
        "candidate.score_bytes=4000",
        "final_score_bytes=8000",
        *more,
    ]


def records(study: Path) -> list[dict[str, Any]]:
    """What a study found, without what differs between two runs of the same search: times and places."""
    result, _ = open_study(study)
    return [
        {
            "genome": r.genome.genome_id,
            "rung": r.rung,
            "number": r.number,
            "parent": r.parent,
            "state": r.state,
            "bits_per_byte": r.evaluation and r.evaluation.objectives["bits_per_byte"],
            "artifact_bytes": r.evaluation and r.evaluation.objectives["artifact_bytes"],
        }
        for r in result.records
    ]


def start(settings: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """The recipe in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "recipes" / "search_two_stage.py"), *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(settings: list[str], **environment: str) -> str:
    """Runs the recipe to its end; its output."""
    process = start(settings, **environment)
    output = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, output
    return output


def contents(study: Path) -> dict[Path, bytes]:
    """All files of a study, without locks, which name whoever held them last."""
    return {path: path.read_bytes() for path in study.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture(scope="module")
def straight(tiny_corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted study, and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    output = finish(words(folder, tiny_corpus_folder))
    return folder / "runs" / "two_stage", output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_files_to_a_winner(straight: tuple[Path, str], tiny_corpus_folder: Path) -> None:
    study, output = straight
    for line in (
        "device    ",
        "search    2 generations of 4",
        "cost      about",
        "bigger    ",
        "winner    ",
        "extend",
    ):
        assert line in output
    assert {"index.html", "front.csv", "front.md", "front.png", "hypervolume.csv"} <= {
        p.name for p in (study / "report").iterdir()
    }
    model = AutoModelForCausalLM.from_pretrained(study / "winner")
    assert model.config.model_type in ("llama", "qwen3", "arcee")
    record = StudyFolder(study).winner.read_record()
    assert record.measured.bits_per_byte is not None
    assert record.origin is not None
    assert record.origin.kind == "study"
    result, _ = open_study(study)
    assert result.finished
    assert result.objectives.names[0] == "bits_per_byte"  # the order survives the storage
    assert result.winner is not None
    assert record.genome_id == result.winner.genome.genome_id
    for trial in result.records:
        assert trial.evaluation is not None
        assert {"build", "gate", "train", "save", "evaluate"} <= set(trial.evaluation.seconds)

    # The same command on the finished study only prints it; another seed is another study.
    started = time.perf_counter()
    folder = study.parent.parent
    again = finish(words(folder, tiny_corpus_folder))
    assert "extend    search.generations=4" in again
    assert time.perf_counter() - started < 120
    before = contents(study)
    process = start(words(folder, tiny_corpus_folder, "search.seed=1"))
    assert "seed" in process.communicate(timeout=200)[0].decode()
    assert process.returncode == 2
    after = contents(study)
    assert after == before, "a refused command changes nothing"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_anywhere_it_goes_on(straight: tuple[Path, str], tiny_corpus_folder: Path, tmp_path: Path) -> None:
    study, _ = straight
    settings = words(tmp_path, tiny_corpus_folder)
    # The latency model is measured, so the two searches must share one to be the same search.
    (tmp_path / "runs" / "two_stage").mkdir(parents=True)
    (tmp_path / "runs" / "two_stage" / "latency.json").write_text((study / "latency.json").read_text())
    rng, kills = random.Random(0), 0
    while kills < 8:
        process = start(settings)
        try:
            process.wait(timeout=6 + 14 * rng.random())
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            winner = tmp_path / "runs" / "two_stage" / "winner"
            if winner.exists():  # never half written
                AutoModelForCausalLM.from_pretrained(winner)
    finish(settings)
    assert records(tmp_path / "runs" / "two_stage") == records(study)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_find_the_same(straight: tuple[Path, str], tiny_corpus_folder: Path, tmp_path: Path) -> None:
    study, _ = straight
    (tmp_path / "runs" / "two_stage").mkdir(parents=True)
    (tmp_path / "runs" / "two_stage" / "latency.json").write_text((study / "latency.json").read_text())
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu_2.yaml")]
    recipe = str(ROOT / "recipes" / "search_two_stage.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CODENAS_WORLD": "2"}
    done = subprocess.run(
        [*launch, recipe, *words(tmp_path, tiny_corpus_folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert records(tmp_path / "runs" / "two_stage") == records(study)
    result, _ = open_study(tmp_path / "runs" / "two_stage")
    assert result.finished


def latency_model(space: SearchSpace) -> LatencyModel:
    """A fitted model whose times are made up from the genomes."""
    return LatencyModel.fit(space, time_genome=lambda g: 0.1 * g.num_hidden_layers + 1e-6 * g.num_parameters())


def tiny_settings(tmp_path: Path, corpus: Path, *more: str) -> RunSettings:
    return load(RunSettings, overrides=words(tmp_path, corpus, *more))


def test_limits_screen_and_become_the_reference(
    tmp_path: Path, tiny_corpus_folder: Path, tiny_data: PreparedData
) -> None:
    settings = tiny_settings(tmp_path, tiny_corpus_folder, "limits.bytes=200kB", "limits.decode_ms=0.25")
    space = load_space(settings.space)
    latency = latency_model(space)
    within = screened(space, settings, data=tiny_data, latency=latency)
    rng = np.random.default_rng(1)
    for genome in (within.sample(rng) for _ in range(30)):
        assert genome.weights_bytes() < 200_000
        assert latency.predict_decode_ms(genome) <= 0.25
        known = within.known_objectives(genome)
        assert genome.weights_bytes() < known["artifact_bytes"] <= 200_000
        assert known["decode_ms"] == latency.predict_decode_ms(genome)
    assert space.known_objectives(genome) == {}
    points = corners(within, settings, data=tiny_data, latency=latency)
    engine = engine_settings(settings, hardware=Hardware("cpu", "x", 2), corners=points, identity={"a": 1})
    assert engine.limits == {"artifact_bytes": 200_000.0, "decode_ms": 0.25}
    assert engine.reference["artifact_bytes"] == 200_000.0
    assert all(engine.ideal[name] < engine.reference[name] for name in engine.reference)
    impossible = tiny_settings(tmp_path, tiny_corpus_folder, "limits.bytes=1kB")
    with pytest.raises(SettingsError, match=r"no architecture of the space .* keeps the limits"):
        screened(space, impossible, data=tiny_data, latency=latency)


def test_the_number_format_is_decided_once_for_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever comes first; every later process takes it, whatever its machine would choose."""
    settings = load(RunSettings, overrides=[f"folder={tmp_path}"])
    hardware = Hardware("cpu", "x", 2)
    answers = iter([torch.bfloat16, torch.float32])
    monkeypatch.setattr("codenas_hf.training.precision._fastest", lambda device: next(answers))
    for _ in range(2):
        decided = study_precision(settings, folder=tmp_path / "study", hardware=hardware)
        assert decided.train.precision == "bfloat16"
    assert study_precision(settings, folder=tmp_path / "other", hardware=hardware).train.precision == "float32"


def test_learned_positions_beyond_the_training_rows_are_left_out(
    tmp_path: Path, tiny_corpus_folder: Path, tiny_data: PreparedData
) -> None:
    settings = tiny_settings(tmp_path, tiny_corpus_folder)
    space = load_space(settings.space)
    both = SearchSpace({**space.genes, "position_embedding_type": ["rope", "learned"]})
    within = screened(both, settings, data=tiny_data, latency=latency_model(space))
    rng = np.random.default_rng(0)
    assert {within.sample(rng).position_embedding_type for _ in range(30)} == {"rope"}


def test_seeds_come_first_and_must_belong(tmp_path: Path, tiny_corpus_folder: Path) -> None:
    space = load_space(tiny_settings(tmp_path, tiny_corpus_folder).space)
    rng = np.random.default_rng(0)
    seed = space.sample(rng)
    path = tmp_path / "seed.json"
    path.write_text(json.dumps(seed.to_dict()))
    for name in POLICIES:
        settings = tiny_settings(tmp_path, tiny_corpus_folder, f"search.seeds=[{path}]", f"search.policy={name}")
        assert _policy(settings, space, reference={}).propose([], space=space, n=3, rng=rng)[0] == seed
    stranger = Genome(vocab_size=512, hidden_size=96, num_hidden_layers=1, num_attention_heads=6, intermediate_size=96)
    path = tmp_path / "stranger.json"
    path.write_text(json.dumps(stranger.to_dict()))
    settings = tiny_settings(tmp_path, tiny_corpus_folder, f"search.seeds=[{path}]")
    with pytest.raises(SettingsError, match="is not in the space"):
        _policy(settings, space, reference={})


def test_the_cost_is_said_before(tmp_path: Path, tiny_corpus_folder: Path, tiny_data: PreparedData) -> None:
    settings = tiny_settings(tmp_path, tiny_corpus_folder)
    space = load_space(settings.space)
    threads = torch.get_num_threads()
    lines = cost_lines(settings, space=space, data=tiny_data, hardware=Hardware("cpu", "x", 2))
    assert torch.get_num_threads() == threads
    assert f"{space.size():,} architectures" in lines[0]
    assert "2 generations of 4, 2 at a time; 4 x 3 steps, then 2 x 9 steps" in lines[1]
    assert "about 0 minutes" in lines[2]
    assert "search.generations=4, search.budgets='[12 steps, 36 steps]'" in lines[3]


def test_the_launcher_is_hidden_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with alone():
        assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    assert os.environ["RANK"] == "0"
    assert os.environ["WORLD_SIZE"] == "2"


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no study in .*expected the file settings.yaml"):
        open_study(tmp_path)


def test_a_fresh_start_that_does_not_come_to_start_puts_the_study_back(
    tmp_path: Path, tiny_corpus_folder: Path
) -> None:
    study = tmp_path / "runs" / "two_stage"
    study.mkdir(parents=True)
    (study / "study.journal").write_text("dear")
    said: list[str] = []
    impossible = tiny_settings(tmp_path, tiny_corpus_folder, "corpus.sources=[/nosuch]")
    with pytest.raises(DataError, match="/nosuch"):
        search(impossible, fresh=True, say=said.append)
    assert (study / "study.journal").read_text() == "dear"
    assert {path.name for path in study.parent.iterdir() if path.name.startswith("two_stage")} == {"two_stage"}
    assert "again" in said[-1]


def test_a_fresh_start_leaves_a_running_job_its_folder(tmp_path: Path) -> None:
    study, said = tmp_path / "study", list[str]()
    study.mkdir()
    (study / "study.journal").write_text("dear")
    running, new = JobLock(study / "study.lock"), JobLock(study / "study.lock")
    running.acquire()
    with pytest.raises(SingleJobError, match="another job"), aside(study, say=said.append):
        pytest.fail("it was put aside")
    assert (study / "study.journal").read_text() == "dear"
    assert said == []
    running.release()
    with aside(study, say=said.append):
        study.mkdir()
        new.acquire()
        new.release()
    assert (tmp_path / "study.old1" / "study.journal").read_text() == "dear"


def test_a_refused_command_decides_nothing(
    tmp_path: Path, tiny_corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        assert read_json(study / ".next.precision.json")["asked"] == "float32", "for the other ranks"
        raise IdentityError("another search")

    study = tmp_path / "runs" / "two_stage"
    settings = tiny_settings(tmp_path, tiny_corpus_folder, "device=cpu")
    model = latency_model(load_space(settings.space))
    monkeypatch.setattr("codenas_hf.jobs.search.study_latency", lambda *words, **options: model)
    monkeypatch.setattr("codenas_hf.jobs.search.run_search", refused)
    with pytest.raises(IdentityError, match="another search"):
        search(settings, say=lambda line: None)
    assert [path.name for path in study.rglob("*") if path.suffix != ".lock"] == []


def test_a_gpu_that_is_not_there(tmp_path: Path, tiny_corpus_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="`device` is cuda, but torch sees no GPU"):
        search(tiny_settings(tmp_path, tiny_corpus_folder, "device=cuda"))
