"""Leak gate, bits per byte, bytes on disk, latency."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_fakes import VOCAB, tiny_model, weights

from codenas_hf.architecture.genome import Genome
from codenas_hf.folders import folder_bytes
from codenas_hf.measure.score import LeakError, leak_gate, score_passages
from codenas_hf.measure.timing import TimingProtocol, measure_latency, runtime_latency
from codenas_hf.modeling_codenas import CodeNASForCausalLM


def test_the_gate_lets_a_causal_model_pass_and_leaves_it_as_it_was() -> None:
    model = tiny_model()
    before = weights(model)
    leak_gate(model, vocab_size=VOCAB)
    assert torch.equal(before, weights(model))
    assert model.training


def test_the_gate_stops_a_model_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a fresh one, whose attention layers still write zeros and so hide what they see."""
    model = tiny_model()
    assert not model.model.layers[0].self_attn.o_proj.weight.any()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", lambda *a, **k: None)
    with pytest.raises(LeakError, match="moved the logits at position"):
        leak_gate(model, vocab_size=VOCAB)
    assert not model.model.layers[0].self_attn.o_proj.weight.any()


def test_the_gate_refuses_what_it_cannot_judge() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(LeakError, match="not finite"):
        leak_gate(model, vocab_size=VOCAB)


def test_every_kind_of_layer_passes_the_gate() -> None:
    genome = Genome(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        layer_pattern="fsc", sliding_window=8, residual_scalars=True, position_embedding_type="alibi",
    )  # fmt: skip
    leak_gate(CodeNASForCausalLM(genome.to_config()), vocab_size=64)


@pytest.mark.parametrize("positions", [2, 3, 32])
def test_few_learned_positions_are_enough_for_the_gate_and_the_timing(positions: int) -> None:
    genome = Genome(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        position_embedding_type="learned", max_position_embeddings=positions,
    )  # fmt: skip
    model = CodeNASForCausalLM(genome.to_config())
    leak_gate(model, vocab_size=64)
    protocol = measure_latency(model, TimingProtocol(warmup=1, repeats=1)).protocol
    assert protocol.prompt_tokens + protocol.new_tokens == positions


class Peeks(nn.Module):
    """Learns four positions, and looks one ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.wpe = nn.Embedding(4, 1)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.wpe(torch.arange(input_ids.shape[1]))
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids.roll(-1, dims=1), VOCAB))


def test_the_gate_stops_a_model_of_few_positions() -> None:
    with pytest.raises(LeakError, match=r"changing tokens from position \d on moved the logits at position \d"):
        leak_gate(Peeks(), vocab_size=VOCAB)


@dataclass(frozen=True)
class FakePassages:
    input_ids: Any
    targets: Any
    position_ids: Any
    num_bytes: Any
    project: Any
    projects: tuple[str, ...] = ("a",)


def passages(count: int = 5, length: int = 12, num_bytes: int = 100) -> FakePassages:
    rng = np.random.default_rng(0)
    ids = rng.integers(VOCAB, size=(count, length))
    targets = rng.integers(VOCAB, size=(count, length))
    targets[:, 0] = -100
    project = np.zeros(count, np.int64)
    return FakePassages(
        ids, targets, np.tile(np.arange(length), (count, 1)), np.full(count, num_bytes // count), project
    )


class Uniform(nn.Module):
    """Predicts every token alike."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.value.expand(*input_ids.shape, VOCAB))


def test_a_uniform_model_scores_the_logarithm_of_the_vocabulary() -> None:
    text = passages()
    score = score_passages(Uniform(), text, batch_size=2)
    assert score.num_tokens == 5 * 11
    assert score.bits_per_byte == pytest.approx(55 * math.log2(VOCAB) / 100)
    assert score.loss == pytest.approx(math.log(VOCAB))
    assert score.nats == pytest.approx(55 * math.log(VOCAB))


def test_the_score_does_not_depend_on_the_batch_size_and_ignores_dropout() -> None:
    model = tiny_model(layers=1)
    text = passages()
    one, all_of_them = (score_passages(model, text, batch_size=n) for n in (1, 5))
    assert one.nats == pytest.approx(all_of_them.nats, rel=1e-5)
    assert one.next_token_accuracy == all_of_them.next_token_accuracy
    assert model.training


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        score_passages(Uniform(), passages(num_bytes=0))
    with pytest.raises(ValueError, match="the model has diverged"):
        score_passages(Uniform(math.nan), passages())


def test_bytes_are_those_that_must_be_shipped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        folder_bytes(tmp_path)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    plain = folder_bytes(tmp_path)
    assert plain == sum(path.stat().st_size for path in tmp_path.iterdir())
    for name in (
        "README.md",
        "modeling_codenas.py",
        "record.json",
        "settings.yaml",
        "evaluation.json",
        "completions.jsonl",
    ):
        (tmp_path / name).write_text("text for people")
    assert folder_bytes(tmp_path) == plain
    (tmp_path / "adapter.bin").write_bytes(b"12345")
    assert folder_bytes(tmp_path) == plain + 5


class Sleeper(nn.Module):
    """Takes a known time for the prompt and for each token, on a clock of its own: the machine may be busy."""

    def __init__(self, prefill_s: float, decode_s: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vocab_size=VOCAB)
        self.prefill_s, self.decode_s, self.calls, self.now = prefill_s, decode_s, 0, 0.0

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        self.calls += 1
        assert (past_key_values is None) == (input_ids.shape[1] > 1)
        self.now += self.prefill_s if past_key_values is None else self.decode_s
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, VOCAB), past_key_values="cache")


def test_latency_of_a_model_that_takes_a_known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    protocol = TimingProtocol(prompt_tokens=8, new_tokens=5, warmup=1, repeats=3, cache="dynamic")
    model = Sleeper(0.05, 0.02)
    with monkeypatch.context() as patched:
        patched.setattr("codenas_hf.measure.timing.time", SimpleNamespace(thread_time=lambda: model.now))
        latency = measure_latency(model, protocol)
    assert latency.prefill_ms == pytest.approx(50)
    assert latency.decode_ms == pytest.approx(20)
    assert latency.decode_p95_ms >= latency.decode_ms
    assert model.calls == 4 * 6
    assert torch.get_num_threads() == threads
    assert latency.to_dict()["protocol"]["repeats"] == 3
    assert "peak_memory_bytes" not in latency.to_dict() or latency.to_dict()["peak_memory_bytes"] > 1e6


def test_latency_of_a_real_model_with_both_kinds_of_cache() -> None:
    model = tiny_model()
    for cache in ("dynamic", "static", "auto"):
        protocol = TimingProtocol(prompt_tokens=8, new_tokens=3, warmup=1, repeats=1, cache=cache)  # type: ignore[arg-type]
        latency = measure_latency(model, protocol)
        assert latency.decode_ms > 0
        assert latency.cache in ("dynamic", "static") if cache == "auto" else latency.cache == cache


class Counter:
    """A runtime that notes how many tokens it was asked about."""

    name = "counter"

    def __init__(self, context_tokens: int | None) -> None:
        self.context_tokens = context_tokens
        self.asked: list[int] = []

    def logits(self, token_ids: Sequence[int]) -> Any:
        self.asked.append(len(token_ids))
        return np.eye(VOCAB, dtype=np.float32)[len(token_ids) % VOCAB]


@pytest.mark.parametrize(
    ("new", "context", "asked"),
    [
        (1, None, [1, 8, 9]),
        (3, None, [1, 8, 9, 10, 11]),
        (20, None, [1, *range(8, 29)]),
        (3, 11, [1, 8, 9, 10, 11]),
        (3, 10, [1, 7, 8, 9, 10]),
        (5, 4, [1, 2, 3, 4]),
    ],
)
def test_a_runtime_decodes_as_many_tokens_as_the_protocol_says(new: int, context: int | None, asked: Any) -> None:
    """Behind the prompt, whose time has the first token in it: as torch does."""
    protocol = TimingProtocol(prompt_tokens=8, new_tokens=new, warmup=1, repeats=2)
    runtime = Counter(context)
    found = runtime_latency(runtime, protocol, vocab_size=VOCAB)
    assert runtime.asked == 3 * asked
    assert found.decode_ms >= 0
    assert found.protocol.new_tokens == len(asked) - 2
    assert found.protocol.prompt_tokens == asked[1]


def test_a_protocol_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="`repeats` must be 1 or more, got 0"):
        TimingProtocol(repeats=0)
