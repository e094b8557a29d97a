"""The fitted latency model."""

import json
from pathlib import Path

import numpy as np
import pytest

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.measure.latency import (
    LatencyModel,
    default_protocol,
    device_fingerprint,
    non_negative_least_squares,
    operation_counts,
)
from codenas_hf.measure.timing import TimingProtocol

SPACE = SearchSpace(
    {
        "vocab_size": [256, 1024],
        "hidden_size": [32, 64, 128],
        "num_hidden_layers": [1, 2, 4, 6],
        "head_dim": [16],
        "query_groups": [1, 2],
        "intermediate_ratio": [1.5, 4],
        "tie_word_embeddings": [True],
    }
)

HERE = device_fingerprint("cpu")


def cost(genome: Genome) -> float:
    """A device on which everything is linear."""
    counts = operation_counts(genome, context=80)
    return 0.3 + 0.2 * counts["layer"] + 3.0 * (counts["ffn"] + counts["attention"]) + 1.5 * counts["readout"]


def test_least_squares_without_negative_coefficients() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.random((30, 4))
    assert non_negative_least_squares(matrix, matrix @ [1.0, 0.0, 2.0, 0.5]) == pytest.approx([1, 0, 2, 0.5], abs=1e-5)
    solution = non_negative_least_squares(matrix, matrix @ [1.0, -1.0, 2.0, 0.5])
    assert solution.min() >= 0
    assert solution[1] == 0


def test_a_linear_device_is_predicted_exactly() -> None:
    model = LatencyModel.fit(SPACE, time_genome=cost, shapes=24)
    assert model.relative_error < 0.02
    assert model.rank_correlation > 0.99
    rng = np.random.default_rng(9)
    for _ in range(10):
        genome = SPACE.sample(rng)
        assert model.predict_decode_ms(genome) == pytest.approx(cost(genome), rel=0.05)


def test_the_reported_error_shows_a_device_that_is_not_linear() -> None:
    rng = np.random.default_rng(1)
    model = LatencyModel.fit(SPACE, time_genome=lambda genome: float(cost(genome) * rng.uniform(0.4, 2.5)), shapes=24)
    assert model.relative_error > 0.05


def test_a_busy_moment_does_not_spoil_the_fit() -> None:
    calls = []

    def timed(genome: Genome) -> float:
        calls.append(genome)
        return cost(genome) * (4 if len(calls) in (3, 5, 30) else 1)

    assert LatencyModel.fit(SPACE, time_genome=timed, shapes=24).relative_error < 0.02


def test_counts_follow_the_genome() -> None:
    same = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    two = operation_counts(Genome(num_hidden_layers=2, **same), context=50)  # type: ignore[arg-type]
    four = operation_counts(Genome(num_hidden_layers=4, **same), context=50)  # type: ignore[arg-type]
    repeated = operation_counts(Genome(num_hidden_layers=4, layer_repeats=2, **same), context=50)  # type: ignore[arg-type]
    assert four["ffn"] == pytest.approx(2 * two["ffn"])
    assert four["ffn"] == pytest.approx(4 * 3 * 32 * 64 / 1e6)
    assert four["cache"] == pytest.approx(4 * 2 * 50 * 32 / 1e6)
    assert repeated == pytest.approx(four), "a block that is applied twice costs time twice"


def test_it_is_found_again_on_this_device_only(tmp_path: Path) -> None:
    model = LatencyModel.fit(SPACE, time_genome=cost, shapes=12)
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(model.to_dict()))
    assert LatencyModel.load(path, fingerprint=HERE) == model
    data = model.to_dict()
    data["fingerprint"]["name"] = "another processor"
    path.write_text(json.dumps(data))
    assert LatencyModel.load(path, fingerprint=HERE) is None
    path.write_text("{")
    assert LatencyModel.load(path, fingerprint=HERE) is None
    assert LatencyModel.load(tmp_path / "absent.json", fingerprint=HERE) is None


def test_bad_times_are_refused() -> None:
    genomes = [SPACE.sample(np.random.default_rng(i)) for i in range(12)]
    facts = {"protocol": default_protocol("cpu"), "fingerprint": device_fingerprint("cpu")}
    with pytest.raises(ValueError, match="at least 10 timed genomes, got 3"):
        LatencyModel.from_times(genomes[:3], [1.0] * 3, **facts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="times must be positive"):
        LatencyModel.from_times(genomes, [0.0] * 12, **facts)  # type: ignore[arg-type]


def test_a_real_fit_predicts_something_positive() -> None:
    protocol = TimingProtocol(prompt_tokens=4, new_tokens=2, cache="dynamic")
    model = LatencyModel.fit(SPACE, shapes=10, protocol=protocol)
    assert model.shapes == 10
    assert model.predict_decode_ms(SPACE.sample(np.random.default_rng(0))) > 0
