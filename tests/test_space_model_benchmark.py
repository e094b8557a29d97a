"""Models of the main job's space: they know what they were taught, and a search in them gets somewhere."""

import numpy as np
import pytest

from benchmarks.space_model import KINDS, Kind, model, noise, outcome, stored
from codenas_hf.engine.result import kendall_tau


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_orders_what_it_was_taught(kind: Kind) -> None:
    data, known = stored(), model(kind)
    rows = [(genome, row["bits"][1]) for genome, row in zip(data["genomes"], data["rows"], strict=True)]
    above = [(genome, bits) for genome, bits in rows if bits is not None]
    said = known.bits([genome for genome, _ in above], 1)
    assert kendall_tau(list(said), [bits for _, bits in above]) > 0.7
    assert 0.005 < noise() < 0.03
    assert all(known.space.validate(genome) is None for genome, _ in rows)


def test_a_search_in_a_model_gets_somewhere() -> None:
    kind: Kind = "ridge"
    found = np.array([outcome("random", kind, seed=seed, generations=4) for seed in range(2)])
    assert found.shape == (2, 3)
    assert (found[:, 1] >= found[:, 0]).all()
    assert (found[:, :2] > 0).all()
    assert (found[:, 2] > stored()["frame"]["ideal"]["bits_per_byte"]).all(), "the winner's bits per byte"
    assert outcome("random", kind, seed=0, generations=4) == list(found[0])
