"""The search space: always valid, exactly counted, and it says why a genome is no member."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import make_genome

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.architecture.stock import stock_architecture

SPACES = sorted((Path(__file__).parent.parent / "configs" / "spaces").glob("*.yaml"))
NEEDED: dict[str, Any] = {
    "vocab_size": [300],
    "hidden_size": [32, 48],
    "num_hidden_layers": [2, 3],
    "num_attention_heads": [2, 4],
    "intermediate_size": [64],
}
BLOCK = [{"mlp_type": "gated", "hidden_act": "silu"}, {"mlp_type": "plain", "hidden_act": "relu2"}]

# Small spaces that each bring one way in which choices and genomes are not one to one.
SMALL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plain": (NEEDED, []),
    "heads from head_dim": (
        {
            **{k: v for k, v in NEEDED.items() if k != "num_attention_heads"},
            "head_dim": [8, 16],
            "query_groups": [1, 2],
        },
        [],
    ),
    "ratios that meet": ({**NEEDED, "intermediate_size": [64, 65, 66]}, []),
    "odd head_dim": (
        {**NEEDED, "head_dim": [7, 8], "position_embedding_type": ["rope", "none"], "rope_theta": [1e4, 1e5]},
        [],
    ),
    "learned": (
        {**NEEDED, "position_embedding_type": ["rope", "learned"], "max_position_embeddings": [32, 64]},
        [],
    ),
    "kv heads that do not divide": ({**NEEDED, "num_key_value_heads": [1, 2, 4]}, []),
    "patterns that are one": (
        {
            **NEEDED,
            "layer_pattern": ["f", "ff", "sf", "sfs", "c", "cf"],
            "sliding_window": [None, 4, 8],
            "conv_kernel_size": [3, 4],
        },
        [],
    ),
    "repeats": (
        {**NEEDED, "num_hidden_layers": [2, 3, 4], "layer_repeats": [1, 2], "layer_pattern": ["f", "cf"]},
        [],
    ),
    "linked": ({**NEEDED, "block": BLOCK, "norm_type": ["rmsnorm", "layernorm"]}, []),
    "flags": (
        {**NEEDED, "qk_norm": [True, False], "final_logit_softcapping": [None, 15], "residual_scalars": [True, False]},
        [],
    ),
    "per block": (
        {**NEEDED, "intermediate_size": [32, 64], "num_key_value_heads": [1, 2], "layer_pattern": ["f", "cf"]},
        ["intermediate_size", "num_attention_heads"],
    ),
    "per block, overlapping": (
        {**NEEDED, "hidden_size": [32], "num_key_value_heads": [1, 2, 4], "head_dim": [8, 16]},
        ["num_attention_heads", "num_key_value_heads"],
    ),
    "per block ratio of heads": (
        {**NEEDED, "hidden_size": [32], "query_groups": [1, 2, 4], "hidden_act": ["silu", "gelu"]},
        ["query_groups", "hidden_act"],
    ),
    "per block pattern": (
        {**NEEDED, "hidden_size": [32], "layer_pattern": ["f", "s", "c"], "sliding_window": [4, 8]},
        ["layer_pattern", "num_attention_heads"],
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_size_is_the_number_of_distinct_genomes(name: str) -> None:
    genes, per_block = SMALL[name]
    space = SearchSpace(genes, per_block=per_block)
    genomes = list(space.enumerate())
    assert len({genome.genome_id for genome in genomes}) == len(genomes)
    assert space.size() == len(genomes) > 1
    assert all(space.validate(genome) is None for genome in genomes)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_sample_mutate_and_crossover_are_always_members(path: Path) -> None:
    space, rng = SearchSpace.from_yaml(path), np.random.default_rng(0)
    for _ in range(40):
        one, other = space.sample(rng), space.sample(rng)
        for genome in (one, mutant := space.mutate(one, rng), space.crossover(one, other, rng)):
            assert space.validate(genome) is None
            assert space.genome_from_dict(genome.to_dict()) == genome
        assert mutant != one


@pytest.mark.parametrize("name", SMALL)
def test_small_spaces_vary_too(name: str) -> None:
    genes, per_block = SMALL[name]
    space, rng = SearchSpace(genes, per_block=per_block), np.random.default_rng(0)
    for _ in range(30):
        one, other = space.sample(rng), space.sample(rng)
        assert (mutant := space.mutate(one, rng)) != one
        assert space.validate(mutant) is None
        assert space.validate(space.crossover(one, other, rng)) is None


def test_the_same_generator_gives_the_same_genomes() -> None:
    space = SearchSpace.from_yaml(SPACES[-1])
    draws = [[space.sample(rng) for _ in range(5)] for rng in (np.random.default_rng(3), np.random.default_rng(3))]
    assert draws[0] == draws[1]


def test_every_member_can_be_reached_by_mutation() -> None:
    genes, per_block = SMALL["repeats"]
    space, rng = SearchSpace(genes, per_block=per_block), np.random.default_rng(0)
    genome, seen = space.sample(rng), set()
    for _ in range(1500):
        genome = space.mutate(genome, rng)
        seen.add(genome.genome_id)
    assert len(seen) == space.size()


def test_sizes_of_the_shipped_spaces() -> None:
    sizes = {path.stem: SearchSpace.from_yaml(path).size() for path in SPACES}
    assert sizes["large"] >= 35_000_000
    assert sizes["large_free"] > sizes["large"] > sizes["medium"] > sizes["tiny"]
    assert sizes["tiny"] == sum(1 for _ in SearchSpace.from_yaml(SPACES[-1]).enumerate())


@pytest.mark.parametrize("path", [p for p in SPACES if p.stem != "large_free"], ids=lambda path: path.stem)
def test_default_spaces_are_stock(path: Path) -> None:
    space, rng = SearchSpace.from_yaml(path), np.random.default_rng(1)
    assert space.export == "stock"
    for _ in range(20):
        name, reasons = stock_architecture(space.sample(rng).to_config())
        assert name is not None, reasons


def test_limits_screen_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codenas_hf.architecture.space._DRAWS", 200)
    space, rng = SearchSpace(SMALL["plain"][0]), np.random.default_rng(0)
    sizes = sorted(genome.weights_bytes() for genome in space.enumerate())
    limit = sizes[len(sizes) // 2]
    limited = space.with_limits(max_weights_bytes=limit, min_parameters=1)
    assert all(limited.sample(rng).weights_bytes() <= limit for _ in range(20))
    assert limited.size() == sum(size <= limit for size in sizes) < space.size()
    big = next(g for g in space.enumerate() if g.weights_bytes() > limit)
    assert space.validate(big) is None
    assert f"the limit `max_weights_bytes` is {limit:,}" in (limited.validate(big) or "")
    picky = space.with_limits(extra=lambda genome: None if genome.hidden_size == 32 else "too wide for me")
    assert picky.sample(rng).hidden_size == 32
    assert picky.validate(big) == (None if big.hidden_size == 32 else "too wide for me")
    assert limited.to_dict()["limits"] == {"max_weights_bytes": limit, "min_parameters": 1}
    with pytest.raises(ValueError, match=r"no valid genome in .* draws; .*`weights_bytes` is"):
        space.with_limits(max_weights_bytes=10).sample(rng)


def test_a_space_of_one_mutates_to_itself() -> None:
    space = SearchSpace({name: choices[:1] for name, choices in NEEDED.items()})
    genome = space.sample(np.random.default_rng(0))
    assert space.size() == 1
    assert space.mutate(genome, np.random.default_rng(0)) == genome


def test_says_why_a_genome_is_no_member() -> None:
    space = SearchSpace({**NEEDED, "block": BLOCK, "query_groups": [1, 2]})
    member = space.sample(np.random.default_rng(0))
    changed = {"vocab_size": 301, "hidden_act": "gelu", "num_key_value_heads": 1, "norm_type": "layernorm"}
    messages = {
        "vocab_size": "`vocab_size` is 301, which none of the choices",
        "hidden_act": "no choice of `block` sets",
        "norm_type": "the space cannot make {'norm_type': 'layernorm'}",
    }
    for name, message in messages.items():
        other = Genome.from_dict(member.to_dict() | {name: changed[name]})
        assert message in (space.validate(other) or "")
    with pytest.raises(ValueError, match="which none of the choices of `vocab_size` gives"):
        space.mutate(make_genome(vocab_size=77), np.random.default_rng(0))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"genes": {**NEEDED, "hiddn_size": [1]}}, "unknown gene `hiddn_size`; did you mean `hidden_size`"),
    ({"genes": {**NEEDED, "hidden_act": []}}, "gene `hidden_act` has no choices"),
    ({"genes": {**NEEDED, "hidden_size": [32, 32]}}, "gene `hidden_size` has a choice twice"),
    ({"genes": {k: v for k, v in NEEDED.items() if k != "vocab_size"}}, "a space needs `vocab_size`"),
    ({"genes": {**NEEDED, "intermediate_ratio": [2]}}, "`intermediate_ratio` and `intermediate_size` say the same"),
    ({"genes": {**NEEDED, "block": [{"qk_norm": True}, {"mlp_type": "plain"}]}}, "must set the same genes"),
    ({"genes": {**NEEDED, "block": [{"hidden_size": 3}]}}, "`block` sets `hidden_size`; it may set"),
    ({"genes": {**NEEDED, "qk_norm": [{"qk_norm": True}]}}, "a linked gene needs a name of its own"),
    ({"genes": {**NEEDED, "block": BLOCK, "hidden_act": ["silu"]}}, "`hidden_act` stands alone and in a linked gene"),
    ({"genes": NEEDED, "per_block": ["hidden_size"]}, "`per_block` names `hidden_size`, allowed are"),
    (
        {"genes": {**NEEDED, "layer_pattern": ["sf"]}, "per_block": ["layer_pattern"]},
        "drawn per block takes single letters",
    ),
    ({"genes": NEEDED, "export": "onnx"}, "`export` must be stock or any, got 'onnx'"),
    (
        {"genes": {**NEEDED, "residual_scalars": [False, True]}, "export": "stock"},
        "'residual_scalars': True.* is no stock architecture: no stock architecture here has `residual_scalars`",
    ),
    ({"genes": NEEDED, "per_block": ["intermediate_size"], "export": "stock"}, "exclude each other"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[-40:])
def test_refuses_with_a_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace(**arguments)


def test_a_file_that_is_no_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("hidden_size: [1]\n")
    with pytest.raises(ValueError, match="must hold `genes`"):
        SearchSpace.from_yaml(path)
    path.write_text("genes: {hidden_size: [1]}\nexports: stock\n")
    with pytest.raises(ValueError, match="unknown key `exports`; did you mean `export`"):
        SearchSpace.from_yaml(path)
