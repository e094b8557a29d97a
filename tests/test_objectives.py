"""Scales, limits and the fitness that only names a member of the front."""

import dataclasses
import math

import pytest

from codenas_hf.engine.objectives import Frame, Objectives
from codenas_hf.engine.records import Evaluation

OBJECTIVES = Objectives(
    scales={"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"},
    weights={"bits_per_byte": 0.5, "artifact_bytes": 0.3, "decode_ms": 0.2},
    limits={"artifact_bytes": 1024, "decode_ms": 8},
)


def evaluation(*values: float) -> Evaluation:
    return OBJECTIVES.checked(Evaluation(objectives=dict(zip(OBJECTIVES.names, values, strict=True))))


FREE = dataclasses.replace(OBJECTIVES, limits={})
FRAME = Frame(
    objectives=FREE,
    ideal={"bits_per_byte": 1.0, "artifact_bytes": 256, "decode_ms": 1},
    reference={"bits_per_byte": 3.0, "artifact_bytes": 1024, "decode_ms": 8},
)


def test_limits_become_constraints_of_the_raw_value() -> None:
    assert evaluation(2.0, 1000, 9).constraints == {"limit.artifact_bytes": -24, "limit.decode_ms": 1}
    assert not evaluation(2.0, 1000, 9).feasible
    assert evaluation(2.0, 1024, 8).feasible
    kept = OBJECTIVES.checked(
        Evaluation(objectives={"decode_ms": 1, "artifact_bytes": 2, "bits_per_byte": 3}, constraints={"leak": -1})
    )
    assert kept.constraints["leak"] == -1
    assert list(kept.objectives) == list(OBJECTIVES.names)


def test_violations_of_different_units_count_alike() -> None:
    rows = [evaluation(2, 1024 + 500, 8), evaluation(2, 1024, 8 + 4), evaluation(2, 10, 8), evaluation(2, 2048, 12)]
    excess = OBJECTIVES.violation(rows)
    assert excess.tolist() == pytest.approx([500 / 1024, 1.0, 0.0, 2.0])
    assert OBJECTIVES.violation([]).shape == (0,)


def test_fitness_is_one_at_the_ideal_zero_at_the_reference_and_never_clipped() -> None:
    assert FRAME.fitness(evaluation(1.0, 256, 1)) == pytest.approx(1)
    assert FRAME.fitness(evaluation(3.0, 1024, 8)) == pytest.approx(0)
    assert FRAME.fitness(evaluation(0.5, 128, 0.5)) == pytest.approx(1 + 0.5 * 0.25 + 0.3 * 0.5 + 0.2 / 3)
    assert FRAME.fitness(evaluation(5.0, 4096, 64)) == pytest.approx(1 - 0.5 * 2 - 0.3 * 2 - 0.2 * 2)


def test_halving_the_bytes_is_worth_the_same_everywhere() -> None:
    gains = [FRAME.fitness(evaluation(2, size / 2, 2)) - FRAME.fitness(evaluation(2, size, 2)) for size in (100, 900)]
    assert gains == pytest.approx([0.3 / 2, 0.3 / 2])


def test_equal_weights_by_default_and_a_constant_objective_is_harmless() -> None:
    objectives = Objectives(scales={"a": "linear", "b": "linear"})
    frame = Frame(objectives=objectives, ideal={"a": 0, "b": 5}, reference={"a": 2, "b": 5})
    assert frame.fitness(Evaluation(objectives={"a": 1, "b": 5})) == pytest.approx(0.75)


def test_inside_a_limit_an_objective_is_satisfied() -> None:
    assert FREE.deciding == pytest.approx({"bits_per_byte": 0.5, "artifact_bytes": 0.3, "decode_ms": 0.2})
    small = dataclasses.replace(OBJECTIVES, limits={"artifact_bytes": 1024})
    assert small.deciding == pytest.approx({"bits_per_byte": 5 / 7, "decode_ms": 2 / 7})
    frame = dataclasses.replace(FRAME, objectives=small)
    assert frame.fitness(evaluation(2, 1000, 2)) == frame.fitness(evaluation(2, 10, 2))
    assert OBJECTIVES.deciding == {"bits_per_byte": 1.0}
    every = dataclasses.replace(OBJECTIVES, limits={"bits_per_byte": 2, "artifact_bytes": 1024, "decode_ms": 8})
    assert every.deciding == {"bits_per_byte": 1.0}  # the first is the quality
    nothing = dataclasses.replace(small, weights={"artifact_bytes": 1})
    assert nothing.deciding == {"bits_per_byte": 1.0}


def test_hypervolume_is_in_units_of_the_box_and_skips_what_is_infeasible() -> None:
    assert FRAME.hypervolume([evaluation(2.0, 512, 1)]) == pytest.approx(0.5 * 0.5)
    assert dataclasses.replace(FRAME, objectives=OBJECTIVES).hypervolume([evaluation(1.0, 2048, 1)]) == 0
    assert FRAME.hypervolume([]) == 0


def test_a_derived_frame_takes_limits_where_they_lie_beyond_the_ideal() -> None:
    rows = [evaluation(2.0, 100, 20), evaluation(1.5, 700, 30)]
    frame = Frame.derive(OBJECTIVES, rows, ideal={"bits_per_byte": 0.9}, reference={})
    assert frame.ideal == {"bits_per_byte": 0.9, "artifact_bytes": 100, "decode_ms": 20}
    # the limit of 8 ms lies below everything that was seen, so it cannot bound the box
    assert frame.reference == {"bits_per_byte": 2.0, "artifact_bytes": 1024, "decode_ms": 30}
    given = Frame.derive(OBJECTIVES, rows, ideal={}, reference={"artifact_bytes": 5000.0})
    assert given.reference["artifact_bytes"] == 5000


def test_a_half_given_frame_is_not_turned_over() -> None:
    """Who was seen lies all beyond the one point that is given: less is better all the same."""
    rows = [evaluation(2.0, 512, 8), evaluation(3.0, 2048, 8)]
    bounds = {"bits_per_byte": 1.5, "artifact_bytes": 256.0, "decode_ms": 4.0}
    below = Frame.derive(FREE, rows, ideal={}, reference=bounds)
    assert below.ideal == pytest.approx({"bits_per_byte": 0.5, "artifact_bytes": 64, "decode_ms": 2})
    above = Frame.derive(FREE, rows, ideal={"bits_per_byte": 4.0, "artifact_bytes": 2048.0}, reference={})
    assert above.reference == pytest.approx({"bits_per_byte": 5.0, "artifact_bytes": 8192, "decode_ms": 8})
    for frame in (below, above):
        assert frame.fitness(rows[0]) > frame.fitness(rows[1])
        assert not any(frame.ideal[name] > frame.reference[name] for name in frame.ideal)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least one name"):
        Objectives(scales={})
    with pytest.raises(ValueError, match="scale of 'a' must be 'linear' or 'log2', got 'log'"):
        Objectives(scales={"a": "log"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="`limits` names c; the objectives are a"):
        Objectives(scales={"a": "linear"}, limits={"c": 1})
    with pytest.raises(ValueError, match="'a' must be finite"):
        Objectives(scales={"a": "linear"}, limits={"a": math.nan})
    with pytest.raises(ValueError, match="positive sum"):
        Objectives(scales={"a": "linear"}, weights={"a": 0})
    with pytest.raises(ValueError, match="must be positive, got 0"):
        evaluation(1.0, 0, 1)
    with pytest.raises(ValueError, match="returned the objectives a; the study minimises bits_per_byte"):
        OBJECTIVES.checked(Evaluation(objectives={"a": 1}))
