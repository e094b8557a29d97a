"""The controller learns, the sliced model is its smaller ones, and a supernet is charged what it took."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.families import SLICE, Reinforce, everything_alone, replayed, retrained, softmax, supernet_rows
from benchmarks.replay import LONG, TableSpace, evaluate, objectives, truth
from benchmarks.supernet import Supernet, inherited_scores
from codenas_hf.engine import Evaluation, TrialRecord

TINY = TableSpace({"vocab_size": 1024, "kind": "plain", "feed_forward": 2, "num_hidden_layers": 2})


class Tokens:
    """Random batches."""

    def batch(self, number: int, *, sequences: int, length: int, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng([seed, number])
        ids = rng.integers(16, 1024, size=(1, 32))
        return {"input_ids": ids, "labels": ids, "position_ids": np.arange(32)[None]}


def records(bits: dict[Any, float]) -> list[TrialRecord]:
    """Finished trials of the genomes given."""
    return [
        TrialRecord(
            number=at, genome=genome, rung=0, state="complete",
            evaluation=Evaluation(objectives={**truth(genome), "bits_per_byte": value}),
        )
        for at, (genome, value) in enumerate(bits.items())
    ]  # fmt: skip


def test_the_controller_comes_to_prefer_what_pays_and_is_a_function_of_the_record() -> None:
    rng = np.random.default_rng(0)
    order = [SLICE.genomes[int(at)] for at in rng.permutation(32)]
    known = records({genome: float(genome.to_dict()["num_hidden_layers"] != 4) for genome in order})
    policy = Reinforce(objectives=objectives())
    layers = softmax(policy.controller(known, space=SLICE)["num_hidden_layers"])
    assert layers.argmax() == 2
    assert layers[2] > 0.3
    none = policy.controller([], space=SLICE)
    assert all((logits == 0).all() for logits in none.values())
    first, second = (policy.propose(known[:20], space=SLICE, n=4, rng=np.random.default_rng(1)) for _ in range(2))
    assert [genome.genome_id for genome in first] == [genome.genome_id for genome in second]
    assert not {genome.genome_id for genome in first} & {record.genome.genome_id for record in known[:20]}
    assert len(first) == 4


def test_a_family_is_replayed_and_every_seed_is_shown() -> None:
    row = replayed("reinforce", "slice", seeds=3)
    assert row["evaluations"] == 16
    assert len(row["each_seed"].split(", ")) == 3
    assert 0.5 < row["hypervolume"] <= 1


def test_the_largest_of_the_sliced_model_is_itself_and_a_smaller_one_learns_with_it(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    net = Supernet(TINY, seed=0)
    whole = dict(net.model.named_parameters())
    assert all(torch.equal(value, whole[name]) for name, value in net.inherited(net.largest).items())
    before = {name: value.detach().clone() for name, value in net.inherited(net.smallest).items()}
    assert {name: value.shape for name, value in before.items()} == {
        name: value.shape for name, value in net.fresh(net.smallest).named_parameters()
    }
    losses = [net.step(Tokens(), steps=8) for _ in range(3)]
    assert all(np.isfinite(losses))
    assert net.seconds > 0
    after = net.inherited(net.smallest)
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    net.train(Tokens(), steps=4, folder=tmp_path)
    again = Supernet(TINY, seed=0)
    again.train(Tokens(), steps=4, folder=tmp_path)
    assert again.step_number == 4
    assert all(torch.equal(a, b) for a, b in zip(net.model.parameters(), again.model.parameters(), strict=True))


def test_scores_are_kept_and_other_steps_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"steps": 5, "scores": {}}')
    assert inherited_scores(TINY, None, seed=0, steps=5, folder=tmp_path)["scores"] == {}  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="of 5 steps, 6 are asked for"):
        inherited_scores(TINY, None, seed=0, steps=6, folder=tmp_path)  # type: ignore[arg-type]


def test_a_supernet_is_charged_before_what_it_names_is_trained() -> None:
    scores = {genome.genome_id: truth(genome)["bits_per_byte"] for genome in SLICE.genomes}
    run = retrained(scores, space=SLICE, seed=0, begun=100.0)
    assert run.volumes[-1] > 0.9
    assert run.seconds[0] > 100
    spent = sum(evaluate(genome, LONG, seed=0)[1] for genome, _ in run.found)
    assert 100 + spent / 2 <= run.seconds[-1] <= 100 + spent
    (row,) = supernet_rows([{"scores": scores, "train_seconds": 150.0, "score_seconds": 50.0, "steps": 9}])
    assert row["tau"] > 0.9
    assert row["seconds"] == pytest.approx(run.seconds[-1])
    alone = everything_alone()
    assert (alone.trials, len(run.found) < 32) == (32, True)
    assert alone.seconds == sorted(alone.seconds)
