"""The search space: always valid, exactly counted, and it says why a genome is no member."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from architectures import make_genome

from codenas_hf.architecture import space as space_module
from codenas_hf.architecture.choices import not_counted
from codenas_hf.architecture.genes import Gene
from codenas_hf.architecture.genome import GENES, Genome
from codenas_hf.architecture.space import LINKABLE_GENES, SearchSpace
from codenas_hf.architecture.stock import stock_architecture
from codenas_hf.configuration_codenas import _CHOICES
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.optuna_policy import OptunaPolicy
from codenas_hf.engine.records import Evaluation, TrialRecord

# Those of squeezes hold choices of another kind, see test_squeezing.py.
SPACES = sorted((Path(__file__).parent.parent / "configs" / "spaces").glob("[!s]*.yaml"))
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


# Choices of each gene for small spaces at random; a flag or a name has all that there are.
POOL: dict[str, list[Any]] = {
    "vocab_size": [300, 301],
    "hidden_size": [16, 24],
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [1, 2, 4],
    "num_key_value_heads": [None, 1, 2],
    "head_dim": [None, 6, 7, 8],
    "intermediate_size": [8, 16],
    "intermediate_ratio": [0.5, 0.6, 1],
    "query_groups": [1, 2],
    "rope_theta": [1e3, 10_000],
    "layer_pattern": ["f", "s", "c", "sf", "cf", "ff", "fcs"],
    "sliding_window": [None, 4, 8],
    "conv_kernel_size": [3, 4],
    "final_logit_softcapping": [None, 15],
    "layer_repeats": [1, 2],
    "max_position_embeddings": [32, 64],
}
ROW_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Genome)}


def pool(name: str) -> list[Any]:
    if name in POOL:
        return POOL[name]
    if ROW_FIELDS[name] == "bool":
        return [False, True]
    return list(_CHOICES[name])


def random_space(rng: np.random.Generator) -> SearchSpace | None:
    """A small space with a handful of genes that vary, some of them per block, some linked."""
    names = [*GENES, "intermediate_ratio", "query_groups"]
    varied = set(rng.choice(names, size=rng.integers(2, 6), replace=False))
    varied |= {GENES[name].needs[0] for name in varied if name in GENES and GENES[name].needs}
    varied -= {"num_key_value_heads"} if "query_groups" in varied else set()
    varied -= {"intermediate_size"} if "intermediate_ratio" in varied else set()
    usual: dict[str, Any] = {**{k: v[:1] for k, v in NEEDED.items()}, "hidden_size": [16], "num_hidden_layers": [2]}
    if "intermediate_ratio" in varied:
        del usual["intermediate_size"]
    genes = usual | {
        name: [pool(name)[i] for i in rng.permutation(len(pool(name)))[: rng.integers(1, 4)]]
        for name in sorted(varied)
    }
    if linkable := [name for name in LINKABLE_GENES if name in varied and rng.random() < 0.4]:
        rows = list(itertools.product(*(genes.pop(name) for name in linkable)))
        chosen = rng.permutation(len(rows))[: rng.integers(1, 4)]
        genes["linked"] = [dict(zip(linkable, rows[i], strict=True)) for i in chosen]
    free = [*Genome.PER_BLOCK_GENES, "intermediate_ratio", "query_groups", "layer_pattern"]
    per_block = [name for name in free if name in genes and rng.random() < 0.4 and None not in genes[name]]
    if "layer_pattern" in per_block:
        genes["layer_pattern"] = [letter for letter in genes["layer_pattern"] if len(letter) == 1] or ["f"]
    blocks = max(genes["num_hidden_layers"])
    draws = math.prod(len(choices) ** (blocks if name in per_block else 1) for name, choices in genes.items())
    return SearchSpace(genes, per_block=per_block) if draws <= 3000 else None


def test_the_size_of_any_small_space_is_the_number_of_its_genomes() -> None:
    rng, seen, spaces = np.random.default_rng(0), set(), 0
    while spaces < 200:
        if (space := random_space(rng)) is None:
            continue
        spaces += 1
        genomes = list(space.enumerate())
        assert space.size() == len(genomes), space.to_dict()
        for genome in genomes[:: len(genomes) // 3 + 1]:
            assert space.validate(genome) is None, (space.to_dict(), genome)
            space.mutate(genome, rng)
        for name in GENES:  # which genes took two values where they act
            if len({getattr(genome, name) for genome in genomes}) > 1:
                seen.add(name)
    assert seen == GENES.keys()


def test_a_gene_that_nobody_counts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    genes = {**NEEDED, "qk_norm": [False, True]}
    for row, message in (
        (None, "`qk_norm` cannot be searched: it has no row in the table of genes, so `size\\(\\)` would be wrong"),
        (Gene(where="layout"), "its row says `layout`, and `count_genomes` does not go through it"),
        (Gene(where="network"), "exactly the genes of attention and network may differ between blocks"),
        (
            Gene(needs=("mlp_type", "gated")),
            "it needs `mlp_type`, which is no gene of the whole model that always acts",
        ),
    ):
        if row is None:
            monkeypatch.delitem(space_module.GENES, "qk_norm")
        else:
            monkeypatch.setitem(space_module.GENES, "qk_norm", row)
        with pytest.raises(ValueError, match=message):
            SearchSpace(genes)
    with pytest.raises(ValueError, match="`needs` is counted for genes of the whole model"):
        Gene(where="network", needs=("qk_norm", True))


def test_the_table_has_every_gene_and_only_deciding_genes_decide() -> None:
    assert GENES.keys() == ROW_FIELDS.keys()
    assert not [name for name in GENES if not_counted(name)]
    bases = [
        {},
        {"norm_type": "layernorm"},
        {"mlp_type": "plain"},
        {"norm_type": "layernorm", "mlp_type": "plain", "position_embedding_type": "learned"},
        {"layer_pattern": "sf", "sliding_window": 8},
    ]
    for name, gene in GENES.items():
        for base in bases if not gene.decides else []:
            names = {stock_architecture(make_genome(**base, **{name: v}).to_config())[0] for v in pool(name)}
            assert len(names) == 1, (name, base, names)


@pytest.mark.parametrize(
    "genes",
    [
        {"layer_pattern": ["f", "cf"], "num_hidden_layers": [2, 1]},
        {"layer_repeats": [1, 2], "num_hidden_layers": [2, 3]},
        {"layer_pattern": ["f", "sf"], "sliding_window": [8, None], "mlp_type": ["plain"]},
    ],
    ids=str,
)
def test_a_stock_space_checks_combinations_that_its_last_choices_cannot_make(genes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no stock architecture"):
        SearchSpace(NEEDED | genes, export="stock")


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
    (
        {"genes": {**NEEDED, "norm_type": ["rmsnorm", "layernrom"]}},
        "`norm_type` must be one of .* did you mean `layernorm`",
    ),
    ({"genes": {**NEEDED, "rope_theta": ["1e4"]}}, "`rope_theta` must be a positive number, got '1e4'"),
    ({"genes": {**NEEDED, "tie_word_embeddings": ["on"]}}, "`tie_word_embeddings` must be true or false, got 'on'"),
    ({"genes": {**NEEDED, "query_groups": [1.5]}}, "`query_groups` must be a whole number of 1 or more, got 1.5"),
    ({"genes": {**NEEDED, "hidden_act": "silu"}}, "gene `hidden_act` needs a list, got 'silu'"),
    ({"genes": {**NEEDED, "hidden_act": None}}, "gene `hidden_act` needs a list, got None"),
    ({"genes": {**NEEDED, "hidden_act": [3]}}, "`hidden_act` must be one of silu, gelu, relu2, got 3"),
    ({"genes": {**NEEDED, "hidden_act": ["silu", {"qk_norm": True}]}}, "`hidden_act` must be one of"),
    ({"genes": {**NEEDED, "block": [{"mlp_type": "gted"}]}}, "`mlp_type` must be one of"),
    (
        {"genes": {**NEEDED, "a": [{"qk_norm": True}], "b": [{"qk_norm": False}]}},
        "`qk_norm` stands in two linked genes",
    ),
    (
        {"genes": {**NEEDED, "num_key_value_heads": [None, 1]}, "per_block": ["num_key_value_heads"]},
        "`num_key_value_heads` is drawn for each block, so each choice is a value, got null",
    ),
    ({"genes": NEEDED, "per_block": "intermediate_size"}, "`per_block` needs a list, got 'intermediate_size'"),
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
    for text, message in (
        ("genes: {hidden_size: [1]}\ngenes: {}", r"space\.yaml, line 2: `genes` is given twice \(first in line 1\)"),
        ("genes: {hidden_size: [1], hidden_size: [2]}", "line 1: `hidden_size` is given twice"),
        ("genes: {hidden_size: [1]}", r"space\.yaml: a space needs `vocab_size`"),
        ("genes: {hidden_sise: [1]}", r"space\.yaml: unknown gene `hidden_sise`; did you mean `hidden_size`"),
        ("genes: {hidden_size: [0x20]}", "`hidden_size` must be a whole number of 1 or more, got '0x20'"),
        ("genes: [", "line 1, column 9: not valid YAML"),
        ("genes: {hidden_size: [1]}\nper_block:", "`per_block` needs a list, got None"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as raised:
            SearchSpace.from_yaml(path)
        assert str(raised.value).isprintable()
    genes = {name: values for name, values in NEEDED.items()} | {"rope_theta": "[1e4, 5E+5]"}
    path.write_text("genes:\n" + "".join(f"  {name}: {values}\n" for name, values in genes.items()))
    assert SearchSpace.from_yaml(path).genes["rope_theta"] == (1e4, 5e5)
    path.write_text("genes: {hidden_size: [1]}\nexports: stock\n")
    with pytest.raises(ValueError, match="unknown key `exports`; did you mean `export`"):
        SearchSpace.from_yaml(path)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_optuna_s_samplers_search_the_projects_own_spaces(path: Path, sampler: str) -> None:
    space = SearchSpace.from_yaml(path)
    objectives = Objectives(scales={"size": "log2", "depth": "linear"})
    samplers = {
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4),
        "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=6),
    }
    policy = OptunaPolicy(name=sampler, sampler=samplers[sampler], objectives=objectives)
    records: list[TrialRecord] = []
    for generation in range(4):
        rng = np.random.default_rng(generation)
        genomes = policy.propose(records, space=space, n=6, rng=rng)
        assert len(genomes) == 6
        for genome in genomes:
            assert isinstance(genome, Genome)
            assert space.validate(genome) is None
            assert space.genome_from_choices(space.choices_of(genome)) == genome
            values = {"size": float(genome.num_parameters()), "depth": -float(genome.num_hidden_layers)}
            records.append(TrialRecord(len(records), genome, 0, "complete", Evaluation(values), generation=generation))
    assert len({r.genome.genome_id for r in records}) == 24
