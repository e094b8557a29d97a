"""One candidate from genome to evaluation, over two rungs."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codenas_hf import CodeNASForCausalLM  # with its registration
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import PreparedData
from codenas_hf.engine.records import Budget, Evaluation, Rung
from codenas_hf.folders import folder_bytes
from codenas_hf.folders.share import Share
from codenas_hf.measure.candidate import (
    CandidateEvaluator,
    CandidateSettings,
    candidate_seed,
    new_model,
)
from codenas_hf.measure.confirm import LatencyConfirmer
from codenas_hf.measure.latency import LatencyModel, default_protocol, device_fingerprint
from codenas_hf.measure.score import LeakError, score_passages
from codenas_hf.measure.timing import TimingProtocol, measure_latency
from codenas_hf.training import OptimSettings, TrainSettings

GENOME = Genome(
    vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=64,
)  # fmt: skip
RUNGS = (Rung(0, Budget("steps", 20), keep=1), Rung(1, Budget("steps", 50)))
LATENCY = LatencyModel(
    costs={"call": 1.0, "layer": 0.25}, protocol=default_protocol("cpu"), fingerprint=device_fingerprint("cpu"),
    relative_error=0.05, rank_correlation=0.9, shapes=20,
)  # fmt: skip


@pytest.fixture
def evaluator(tiny_data: PreparedData, tmp_path: Path) -> CandidateEvaluator:
    return CandidateEvaluator(
        data=tiny_data,
        train=TrainSettings(
            sequence_length=32, tokens_per_step=256, optim=OptimSettings(warmup_steps=2), precision="float32"
        ),
        settings=CandidateSettings(score_bytes=4000, timing=TimingProtocol(new_tokens=4, repeats=2, prompt_tokens=8)),
        latency=LATENCY,
        folder=tmp_path / "trials",
    )


def test_two_rungs_of_one_candidate(evaluator: CandidateEvaluator, tiny_data: PreparedData) -> None:
    evaluator = pickle.loads(pickle.dumps(evaluator))  # as a worker gets it
    first = evaluator(GENOME, RUNGS[0], None)
    second = evaluator(GENOME, RUNGS[1], first)
    assert second.objectives["bits_per_byte"] < first.objectives["bits_per_byte"]
    assert "report_bits_per_byte" not in first.measurements, "only the last rung is scored on the report text"
    assert 0 < second.measurements["report_bits_per_byte"] != second.objectives["bits_per_byte"]
    parts = second.measurements["bits_by_project"]
    assert sum(parts["bits"]) / sum(parts["bytes"]) == pytest.approx(second.objectives["bits_per_byte"], abs=1e-3)
    assert list(first.objectives) == ["bits_per_byte", "artifact_bytes", "decode_ms"]
    assert first.objectives["decode_ms"] == 1.5
    assert (first.measurements["steps"], second.measurements["steps"]) == (20, 50)
    assert second.measurements["steps_run"] == 50 - 16, "it goes on from before the decay"
    assert set(first.seconds) == {"build", "gate", "train", "save", "evaluate", "measure"}
    assert Evaluation.from_dict(first.to_dict()) == first

    assert second.checkpoint is not None
    assert (second.checkpoint / "training" / "constant").is_dir(), "the winner's last training goes on from there"
    artifact = second.checkpoint / "artifact"
    assert second.objectives["artifact_bytes"] == folder_bytes(artifact)
    assert (artifact / "model.safetensors").stat().st_size == GENOME.weights_bytes()
    assert AutoTokenizer.from_pretrained(artifact).vocab_size == 512
    # What was scored is what lies there: load it again, and the bits per byte are the same.
    model = AutoModelForCausalLM.from_pretrained(artifact)
    assert isinstance(model, CodeNASForCausalLM)
    assert model.dtype is torch.bfloat16
    passages = tiny_data.passages(512, "search", length=32, max_bytes=4000)
    again = score_passages(model.float(), passages)
    assert again.bits_per_byte == pytest.approx(second.objectives["bits_per_byte"], rel=1e-5)

    evaluator.discard(first)
    evaluator.discard(first)
    assert first.checkpoint is not None
    assert not first.checkpoint.exists()


@pytest.mark.parametrize("loss", ["gone", "cut off", "no state", "unnamed"])
def test_a_lost_checkpoint_is_no_failure(evaluator: CandidateEvaluator, loss: str) -> None:
    """A budget is the total: training from the start gives what continuing would have given."""
    first = evaluator(GENOME, RUNGS[0], None)
    continued = evaluator(GENOME, RUNGS[1], first)
    assert "restarted" not in continued.measurements
    assert first.checkpoint is not None
    state = first.checkpoint / "training" / "constant"
    match loss:
        case "gone":
            evaluator.discard(first)
        case "cut off":
            weights = (state / "optimizer.safetensors").read_bytes()
            (state / "optimizer.safetensors").write_bytes(weights[: len(weights) // 2])
        case "no state":
            (state / "training_state.json").unlink()
        case "unnamed":
            first = replace(first, checkpoint=None)
    again = evaluator(GENOME, RUNGS[1], first)
    assert again.objectives == continued.objectives
    assert again.measurements["steps"] == again.measurements["steps_run"] == 50
    assert again.measurements["restarted"]
    assert (continued.provenance["resumed"], again.provenance["resumed"]) == (True, False)


def test_a_checkpoint_is_continued_on_another_machine(evaluator: CandidateEvaluator, tmp_path: Path) -> None:
    """By the hash of its content; where it cannot be reached the trial says so, and trains from the start."""
    share = Share(str(tmp_path / "share"))
    here = replace(evaluator, share=share)
    there = replace(here, folder=tmp_path / "there" / "trials")
    first = here(GENOME, RUNGS[0], None)
    assert list(here.folder.iterdir()) == [], "nothing stays on the machine that is through with it"
    assert first.checkpoint is not None
    moved = replace(first, checkpoint=there.folder / first.checkpoint.name)  # as another machine reads the record
    continued = there(GENOME, RUNGS[1], moved)
    assert continued.provenance["resumed"] is True
    assert "restarted" not in continued.measurements
    assert list(there.folder.iterdir()) == []
    confirmed = LatencyConfirmer(evaluator=there, patience_s=0.0)(GENOME, RUNGS[1], continued)
    assert "weights_restored" not in confirmed.provenance, "its weights were fetched, not made again"
    for each in (first, continued):
        assert each.checkpoint is not None
        here.discard(replace(each, checkpoint=here.folder / each.checkpoint.name))  # as this machine reads the record
    assert list((tmp_path / "share").iterdir()) == []

    again = there(GENOME, RUNGS[1], moved)
    assert again.objectives == continued.objectives
    assert again.provenance["resumed"] is False
    assert "could not be fetched" in again.measurements["restarted"]

    (tmp_path / "file").write_text("in the way")
    away = replace(here, share=Share(str(tmp_path / "file")))
    kept = away(GENOME, RUNGS[0], None)
    assert "could not be left for the other machines" in kept.measurements["unshared"]
    assert away(GENOME, RUNGS[1], kept).provenance["resumed"] is True, "it stays where it was made"
    assert kept.checkpoint is not None
    lost = replace(kept, checkpoint=there.folder / kept.checkpoint.name)
    assert "was not left for others" in there(GENOME, RUNGS[1], lost).measurements["restarted"]


def test_the_score_does_not_depend_on_the_format_of_training(
    evaluator: CandidateEvaluator, tiny_data: PreparedData
) -> None:
    """Trained in bfloat16, scored as everybody scores what lies there: in float32."""
    half = replace(evaluator, train=replace(evaluator.train, precision="bfloat16"))
    first = half(GENOME, RUNGS[0], None)
    assert first.provenance["dtype"] == "bfloat16"
    assert first.checkpoint is not None
    model = AutoModelForCausalLM.from_pretrained(first.checkpoint / "artifact", dtype=torch.float32)
    again = score_passages(model, tiny_data.passages(512, "search", length=32, max_bytes=4000), batch_size=3)
    assert again.bits_per_byte == pytest.approx(first.objectives["bits_per_byte"], rel=1e-6)


def test_the_configuration_promises_the_context_that_was_trained(evaluator: CandidateEvaluator) -> None:
    first = evaluator(GENOME, RUNGS[0], None)
    assert first.checkpoint is not None
    config = AutoModelForCausalLM.from_pretrained(first.checkpoint / "artifact").config
    assert config.max_position_embeddings == evaluator.train.sequence_length == 32
    arguments: dict[str, Any] = {"train": evaluator.train, "seed": 0}
    more = new_model(GENOME, settings=CandidateSettings(max_position_embeddings=64), **arguments)
    assert more.config.max_position_embeddings == 64
    learned = replace(GENOME, position_embedding_type="learned", max_position_embeddings=32)
    assert new_model(learned, settings=evaluator.settings, **arguments).config.max_position_embeddings == 32
    for rows in (16, 64):
        with pytest.raises(ValueError, match=rf"learns {rows} positions, but training rows have 32 tokens"):
            new_model(replace(learned, max_position_embeddings=rows), settings=evaluator.settings, **arguments)
    with pytest.raises(ValueError, match=r"learns 32 positions, but `candidate\.window_tokens` is 33: expected"):
        new_model(learned, settings=replace(evaluator.settings, window_tokens=33), **arguments)
    assert new_model(learned, settings=replace(evaluator.settings, window_tokens=32), **arguments)
    assert new_model(GENOME, settings=replace(evaluator.settings, window_tokens=64), **arguments), "no table is left"


def test_the_same_candidate_gives_the_same_numbers(evaluator: CandidateEvaluator, tmp_path: Path) -> None:
    first = evaluator(GENOME, RUNGS[0], None)
    torch.manual_seed(123)
    other = replace(evaluator, folder=tmp_path / "elsewhere")
    assert other(GENOME, RUNGS[0], None).objectives == first.objectives
    assert candidate_seed(GENOME, seed=0) != candidate_seed(GENOME, seed=1)


def test_a_killed_evaluation_leaves_no_half_checkpoint(
    evaluator: CandidateEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codenas_hf.measure.candidate.score_passages", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluator(GENOME, RUNGS[0], None)
    assert list(evaluator.folder.iterdir()) == []
    monkeypatch.undo()
    # What a SIGKILL would have left is swept by the next attempt.
    (evaluator.folder / f".{GENOME.genome_id}-r0-dead").mkdir()
    evaluation = evaluator(GENOME, RUNGS[0], None)
    assert [path for path in evaluator.folder.iterdir()] == [evaluation.checkpoint]


def test_a_leaking_candidate_is_not_trained(evaluator: CandidateEvaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("codenas_hf.modeling_codenas", fromlist=["_MASKS"])._MASKS, "full_attention", lambda **k: None
    )
    monkeypatch.setattr("codenas_hf.modeling_codenas.CodeNASAttention.is_causal", False, raising=False)

    def build(*arguments: Any, **keywords: Any) -> object:
        model = new_model(*arguments, **keywords)
        for layer in model.model.layers:
            layer.self_attn.is_causal = False
        return model

    monkeypatch.setattr("codenas_hf.measure.candidate.new_model", build)
    with pytest.raises(LeakError, match="sees the future"):
        evaluator(GENOME, RUNGS[0], None)
    assert not evaluator.folder.exists() or not list(evaluator.folder.iterdir())


def test_the_front_is_timed_alone(evaluator: CandidateEvaluator) -> None:
    first = evaluator(GENOME, RUNGS[0], None)
    confirm = LatencyConfirmer(evaluator=evaluator, patience_s=0)
    confirmed = pickle.loads(pickle.dumps(confirm))(GENOME, RUNGS[0], first)
    assert confirmed.objectives["decode_ms"] == confirmed.measurements["latency"]["decode_ms"] != 1.5
    assert confirmed.objectives["bits_per_byte"] == first.objectives["bits_per_byte"]
    assert confirmed.measurements["latency"]["protocol"]["new_tokens"] == 4
    assert confirmed.checkpoint == first.checkpoint
    assert confirmed.measurements["latency_passes"][0]["noise"] >= 1
    with pytest.raises(ValueError, match="needs the evaluation that it confirms"):
        confirm(GENOME, RUNGS[0], None)
    with pytest.raises(ValueError, match="`passes` must be 1 or more"):
        LatencyConfirmer(evaluator=evaluator, passes=0)


def test_the_lower_of_the_passes_counts_and_all_are_kept(evaluator: CandidateEvaluator) -> None:
    times = iter((4.0, 1.6, 1.7))

    def timed(model: Any, protocol: Any) -> Any:
        return replace(measure_latency(model, protocol), decode_ms=next(times))

    confirm = LatencyConfirmer(evaluator=replace(evaluator, timer=timed), patience_s=0)
    first = confirm(GENOME, RUNGS[0], evaluator(GENOME, RUNGS[0], None))  # 1.5 ms are predicted
    assert first.measurements["latency_warning"].startswith("timed 4 ms a token where 1.5 were predicted")
    second = confirm(GENOME, RUNGS[0], first)
    third = confirm(GENOME, RUNGS[0], second)
    assert [e.objectives["decode_ms"] for e in (first, second, third)] == [4.0, 1.6, 1.6]
    assert [timed["decode_ms"] for timed in third.measurements["latency_passes"]] == [4.0, 1.6, 1.7]
    assert third.measurements["latency"]["decode_ms"] == 1.6
    assert "latency_warning" not in third.measurements
    # A study that was confirmed in one pass before.
    measurements = {k: v for k, v in second.measurements.items() if k != "latency_passes"}
    times = iter((9.0,))
    old = confirm(GENOME, RUNGS[0], replace(second, measurements=measurements))
    assert [timed["decode_ms"] for timed in old.measurements["latency_passes"]] == [1.6, 9.0]
    assert (old.objectives["decode_ms"], old.measurements["latency"]["decode_ms"]) == (1.6, 1.6)


def test_a_busy_device_is_waited_for_and_named(
    evaluator: CandidateEvaluator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = evaluator(GENOME, RUNGS[0], None)
    noises = iter((3.0, 1.05))
    monkeypatch.setattr("codenas_hf.measure.confirm.device_noise", lambda device: next(noises))
    quiet = LatencyConfirmer(evaluator=evaluator, patience_s=9)(GENOME, RUNGS[0], first)
    assert quiet.measurements["latency_passes"][0]["noise"] == 1.05
    assert not caplog.records
    monkeypatch.setattr("codenas_hf.measure.confirm.device_noise", lambda device: 3.0)
    busy = LatencyConfirmer(evaluator=evaluator, patience_s=0)(GENOME, RUNGS[0], first)
    assert busy.measurements["latency_passes"][0]["noise"] == 3.0
    assert "The device is busy while the front is timed" in caplog.text


@pytest.mark.parametrize("loss", ["gone", "cut off"])
def test_the_front_keeps_a_member_whose_weights_are_lost(evaluator: CandidateEvaluator, loss: str) -> None:
    first = evaluator(GENOME, RUNGS[1], None)
    assert first.checkpoint is not None
    weights = first.checkpoint / "artifact" / "model.safetensors"
    written = weights.read_bytes()
    if loss == "gone":
        evaluator.discard(first)
    else:
        weights.write_bytes(written[:-100])
    confirmed = LatencyConfirmer(evaluator=evaluator, patience_s=0)(GENOME, RUNGS[1], first)
    assert confirmed.objectives["bits_per_byte"] == first.objectives["bits_per_byte"]
    assert confirmed.provenance["weights_restored"]
    assert weights.read_bytes() == written, "the same training gives the same weights"
    assert "weights_restored" not in evaluator.restored(GENOME, RUNGS[1], first).provenance


def test_latency_can_be_measured_in_place(evaluator: CandidateEvaluator) -> None:
    alone = replace(evaluator, latency=None, settings=replace(evaluator.settings, measure_latency=True))
    evaluation = alone(GENOME, RUNGS[0], None)
    assert evaluation.objectives["decode_ms"] == evaluation.measurements["latency"]["decode_ms"]


def test_what_cannot_work_is_refused_at_once(evaluator: CandidateEvaluator) -> None:
    with pytest.raises(ValueError, match="`latency` is needed"):
        replace(evaluator, latency=None)
    with pytest.raises(ValueError, match="rungs need the schedule `stable`"):
        replace(evaluator, train=TrainSettings(optim=OptimSettings(schedule="cosine")))
    with pytest.raises(ValueError, match="`score_bytes` must be 1 or more"):
        CandidateSettings(score_bytes=0)
