"""Latency in the runtime that ships: timed there, kept apart, and taken from a file of another machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_readers import LLAMA_CPP
from test_search_job import tiny_settings

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.cli.main import main
from codenas_hf.folders import write_json
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.hardware import Hardware
from codenas_hf.jobs import latency as job
from codenas_hf.jobs.latency import ReaderTimer, fit_latency, latency_identity, read_latency, study_latency
from codenas_hf.jobs.search import search
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.spaces import load_space
from codenas_hf.measure.latency import LatencyModel, device_fingerprint, space_digest
from codenas_hf.measure.shipped import ShipSettings
from codenas_hf.measure.timing import TimingProtocol
from codenas_hf.strict_yaml import SettingsError, load

GENOME = Genome(
    vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, head_dim=32
)
SHORT = TimingProtocol(prompt_tokens=4, new_tokens=3, warmup=1, repeats=2)
GENES: dict[str, list[Any]] = {
    "vocab_size": [512],
    "hidden_size": [32, 64, 96, 128],
    "num_hidden_layers": [1, 2, 3, 4],
    "head_dim": [32],
    "intermediate_ratio": [2, 3],
    "tie_word_embeddings": [True],
}


def settings_of(*given: str) -> RunSettings:
    return load(RunSettings, overrides=["space=tiny", "device=cpu", *given])


def of_space(space: SearchSpace, **facts: Any) -> LatencyModel:
    """A model of a device on which a layer takes a tenth of a millisecond."""
    fitted = LatencyModel.fit(space, time_genome=lambda genome: 0.1 * genome.num_hidden_layers, shapes=12)
    return replace(fitted, space=space_digest(space), **facts)


@LLAMA_CPP
def test_a_model_is_timed_in_the_reader_of_its_format() -> None:
    model = CodeNASForCausalLM(GENOME.to_config())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = ReaderTimer("q4_0")(model, SHORT)
    assert (found.runtime, found.format, found.protocol) == ("llama.cpp", "q4_0", SHORT)
    assert 0 < found.decode_ms <= found.decode_p95_ms
    assert 0 < found.prefill_ms <= found.prefill_p95_ms
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with pytest.raises(ValueError, match="one prompt at once, got `batch_size` 2"):
        ReaderTimer("q8_0")(model, replace(SHORT, batch_size=2))
    with pytest.raises(ValueError, match=r"cannot be stored as q8_0"):
        ReaderTimer("q8_0")(CodeNASForCausalLM(replace(GENOME, hidden_size=48).to_config()), SHORT)


def test_the_runtime_must_read_what_ships() -> None:
    with pytest.raises(
        SettingsError, match=r"`ship.runtime=llama.cpp` needs a format that ships as a GGUF file.*bf16"
    ):
        settings_of("ship.runtime=llama.cpp")
    with pytest.raises(SettingsError, match="onnxruntime"):
        settings_of("ship.runtime=onnxruntime", "ship.format=q8_0")


def test_one_is_kept_for_each_runtime_and_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, fitted = SearchSpace(GENES), []
    monkeypatch.setattr(job, "is_installed", lambda: True)
    monkeypatch.setattr(job.metadata, "version", lambda name: "1")

    def fit(space: SearchSpace, ship: ShipSettings, *, device: str) -> LatencyModel:
        fitted.append((ship.runtime, ship.format))
        form = None if ship.runtime == "torch" else ship.format
        return of_space(space, runtime=ship.runtime, format=form, fingerprint=job.fingerprint_of(ship, device))

    monkeypatch.setattr(job, "fit_latency", fit)
    kinds = [("torch", "bf16"), ("torch", "q8_0"), ("llama.cpp", "q8_0"), ("llama.cpp", "q4_0")]
    for _ in range(2):
        for number, (runtime, form) in enumerate(kinds):
            settings = settings_of(f"folder={tmp_path}", f"ship.runtime={runtime}", f"ship.format={form}")
            found = study_latency(
                settings, folder=tmp_path / str(number), space=space, hardware=Hardware.discover("cpu"), say=str
            )
            assert found.runtime == runtime
    assert fitted == [kinds[0], *kinds[2:]], "torch computes all formats alike"


def test_a_study_keeps_its_own_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one would give another ideal, and so another search."""
    space, settings = SearchSpace(GENES), settings_of(f"folder={tmp_path}")
    begun = of_space(space, fingerprint={"device": "cpu", "name": "an older processor", "torch": "1.0"})
    here = of_space(space, costs={"layer": 0.2})
    monkeypatch.setattr(job, "fit_latency", lambda *words, **options: here)

    def found(study: str) -> LatencyModel:
        hardware = Hardware.discover("cpu")
        return study_latency(settings, folder=tmp_path / study, space=space, hardware=hardware, say=str)

    for study in ("begun", "other"):
        (tmp_path / study).mkdir()
    (tmp_path / "begun" / "latency.json").write_text(json.dumps(begun.to_dict()))
    assert found("begun") == begun
    shared = tmp_path / "latency" / "tiny-cpu.json"
    write_json(shared, begun.to_dict())
    assert found("other") == here, "what all studies share is of this machine"
    # A processor's times are none of a GPU.
    gpu = replace(begun, fingerprint={**begun.fingerprint, "device": "cuda"})
    (tmp_path / "other" / "latency.json").write_text(json.dumps(gpu.to_dict()))
    assert found("other") == here
    (tmp_path / "other" / "latency.json").write_text("{")
    assert found("other") == here


def test_a_file_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("tiny")
    there = of_space(space, fingerprint={"device": "cpu", "name": "a telephone"}, runtime="llama.cpp", format="q8_0")
    monkeypatch.setattr(job, "fit_latency", lambda *words, **options: there)
    path = tmp_path / "there.json"
    assert main(["latency", "space=tiny", "ship.format=q8_0", "ship.runtime=llama.cpp", "--out", str(path)]) == 0
    ours = settings_of(f"latency.file={path}", "ship.format=q8_0", "ship.runtime=llama.cpp")
    said: list[str] = []
    found = study_latency(ours, folder=tmp_path, space=space, hardware=Hardware.discover("cpu"), say=said.append)
    assert found == there
    assert "a telephone" in said[0]
    plain = settings_of()
    assert latency_identity(plain, found) == {}
    assert set(latency_identity(ours, found)) == {"runtime", "latency_file"}
    assert latency_identity(ours, found) != latency_identity(ours, replace(found, costs={"layer": 0.2}))

    def refused(*given: str, file: Path = path, other: SearchSpace = space) -> str:
        settings = settings_of(f"latency.file={file}", *given)
        with pytest.raises(SettingsError) as error:
            read_latency(file, settings=settings, space=other)
        return str(error.value)

    assert "is of the space `tiny`, not of `tiny` as it is here" in refused(other=SearchSpace(GENES))
    assert "was timed in llama.cpp, and `ship.runtime` is torch" in refused()
    assert "was timed as q8_0, and `ship.format` is q4_0" in refused("ship.format=q4_0", "ship.runtime=llama.cpp")
    assert "cannot be read: No such file" in refused(file=tmp_path / "absent.json")
    for text in ("{", "[]", "{}", json.dumps({**there.to_dict(), "version": 9})):
        (tmp_path / "odd.json").write_text(text)
        assert "is no latency file" in refused(file=tmp_path / "odd.json")


@LLAMA_CPP
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_in_the_runtime_that_ships_and_one_for_another_machine(
    tmp_path: Path, tiny_corpus_folder: Path
) -> None:
    for name in ("here", "away"):
        (tmp_path / name).mkdir()
    both = ["ship.format=q8_0", "ship.runtime=llama.cpp", "device=cpu", "limits.decode_ms=null"]
    space = tmp_path / "space.yaml"
    space.write_text(
        "genes:\n  vocab_size: [512]\n  hidden_size: [32, 64]\n  num_hidden_layers: [1, 2, 3]\n  head_dim: [32]\n"
        "  intermediate_ratio: [2, 3]\n  query_groups: [1]\n  tie_word_embeddings: [true]\n"
    )
    here = tiny_settings(tmp_path / "here", tiny_corpus_folder, *both, f"space={space}")
    found = search(here, say=lambda line: None)
    assert found.result.winner is not None
    assert found.result.winner.evaluation is not None
    timed = found.result.winner.evaluation.measurements["latency"]
    assert (timed["runtime"], timed["format"]) == ("llama.cpp", "q8_0")
    assert found.winner is not None
    path = tmp_path / "there.json"
    there = of_space(load_space(str(space)), runtime="llama.cpp", format="q8_0", fingerprint={"name": "a telephone"})
    path.write_text(json.dumps(there.to_dict()))
    away = tiny_settings(tmp_path / "away", tiny_corpus_folder, *both, f"space={space}", f"latency.file={path}")
    result = search(away, say=lambda line: None).result
    assert result.finished
    for record in result.records:
        assert record.evaluation is not None
        assert record.evaluation.objectives["decode_ms"] == there.predict_decode_ms(record.genome)
        assert "latency" not in record.evaluation.measurements


def test_a_fit_knows_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def timed(model: Any, protocol: TimingProtocol) -> Any:
        calls.append(model.config.model_type)
        return type("Found", (), {"decode_ms": 0.1 * model.config.num_hidden_layers})

    monkeypatch.setattr(job, "timer_of", lambda ship: timed)
    space = SearchSpace(GENES)
    found = fit_latency(space, ShipSettings(format="q8_0"), device="cpu")
    assert (found.runtime, found.format, found.space) == ("torch", None, space_digest(space))
    assert found.fingerprint == device_fingerprint("cpu")
    assert len(calls) == 2 * found.shapes
