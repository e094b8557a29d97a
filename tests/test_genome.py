"""The genome: identity by meaning, exact sizes without building, errors that name the gene."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import BASE, GENES, make_genome, make_model

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.modeling_codenas import CodeNASForCausalLM
from codenas_hf.strict_yaml import SettingsError

CONFIGS = Path(__file__).parent.parent / "configs"

# Pairs of spellings that mean the same model.
EQUAL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_key_value_heads": None}, {"num_key_value_heads": 4}),
    ({}, {"head_dim": 16}),
    ({}, {"sliding_window": 8}),
    ({}, {"conv_kernel_size": 5}),
    ({}, {"max_position_embeddings": 77}),
    ({"position_embedding_type": "none"}, {"position_embedding_type": "none", "rope_theta": 5.0}),
    ({}, {"intermediate_size": (96, 96, 96, 96)}),
    ({}, {"intermediate_size": [96, 96, 96, 96]}),
    ({}, {"layer_pattern": "ffff"}),
    ({"layer_pattern": "cf"}, {"layer_pattern": "cfcf"}),
    ({"layer_pattern": "cfff"}, {"layer_pattern": "cfffc"}),
    ({}, {"rope_theta": 10_000}),
    ({}, {"hidden_size": np.int64(64)}),
    (
        {"layer_pattern": "cfff", "head_dim": (16, 32, 32, 16)},
        {"layer_pattern": "cfff", "head_dim": (8, 32, 32, 16)},
    ),
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=str)
def test_equal_meaning_gives_an_equal_identity(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = make_genome(**one), make_genome(**other)
    assert first == second
    assert first.genome_id == second.genome_id
    assert first.to_dict() == second.to_dict()


def test_different_meaning_gives_a_different_identity() -> None:
    genomes = [make_genome(**genes) for genes in GENES.values()]
    assert len({genome.genome_id for genome in genomes}) == len(genomes)


def test_the_identity_is_the_same_in_another_process() -> None:
    genome = make_genome(**GENES["per layer"])
    code = """
import json, sys
from codenas_hf.architecture.genome import Genome
print(Genome.from_dict(json.load(sys.stdin)).genome_id)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(genome.to_dict()), capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == genome.genome_id


def test_a_pinned_identity_does_not_change() -> None:
    # A changed hash would orphan every recorded study.
    assert Genome.from_yaml(CONFIGS / "genomes" / "llama_tiny.yaml").genome_id == "3f4667ee5f2afddf"


@pytest.mark.parametrize("name", GENES)
def test_round_trip(name: str) -> None:
    genome = make_genome(**GENES[name])
    assert Genome.from_dict(json.loads(json.dumps(genome.to_dict()))) == genome


@pytest.mark.parametrize("name", GENES)
def test_bytes_are_those_of_the_saved_file(name: str, tmp_path: Path) -> None:
    genome = make_genome(**GENES[name])
    model = make_model(genome)
    assert genome.num_parameters() == model.num_parameters()
    for dtype in ("float32", "bfloat16"):
        model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").stat().st_size == genome.weights_bytes(dtype)


def test_the_parameter_count_of_300_random_genomes_is_exact() -> None:
    rng = np.random.default_rng(0)
    spaces = [SearchSpace.from_yaml(path) for path in sorted((CONFIGS / "spaces").glob("[!s]*.yaml"))]
    for i in range(300):
        genome = spaces[i % len(spaces)].sample(rng)
        with torch.device("meta"):
            model = CodeNASForCausalLM(genome.to_config())
        built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert genome.parameter_shapes() == built, genome
        assert genome.num_parameters() == model.num_parameters(), genome


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_attention_heads": 3}, "`head_dim` is needed"),
    ({"num_key_value_heads": 3}, r"`num_attention_heads` \(4\) must be a multiple"),
    ({"num_attention_heads": 0}, "`num_attention_heads` must be a whole number of 1 or more, got 0"),
    ({"head_dim": 7}, "rope needs an even `head_dim`, got 7"),
    ({"layer_repeats": 3}, r"`num_hidden_layers` \(4\) must be a multiple of `layer_repeats` \(3\)"),
    ({"layer_pattern": "fx"}, "`layer_pattern` must be letters of f, s, c"),
    ({"layer_pattern": "c"}, "needs an attention layer among 4 blocks"),
    ({"layer_pattern": "sf"}, "`sliding_window` is needed"),
    ({"intermediate_size": (1, 2)}, "`intermediate_size` must have one value for each of 4 blocks"),
    ({"hidden_size": (64, 64, 64, 64)}, "`hidden_size`"),
    ({"norm_type": ("rmsnorm",) * 4}, "`norm_type` has one value for the whole model"),
    ({"rope_theta": 0.0}, "`rope_theta` must be a positive number"),
    ({"final_logit_softcapping": -3}, "`final_logit_softcapping` must be a positive number or None"),
    ({"hidden_act": "tanh"}, "`hidden_act` must be one of"),
]


@pytest.mark.parametrize(("genes", "message"), REFUSED, ids=str)
def test_refuses_with_a_clear_error(genes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_genome(**genes)


def test_unknown_and_missing_genes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown gene `hiden_size`; did you mean `hidden_size`"):
        Genome.from_dict(BASE | {"hiden_size": 3})
    with pytest.raises(ValueError, match="a genome needs `vocab_size`"):
        Genome.from_dict({name: value for name, value in BASE.items() if name != "vocab_size"})


def test_a_file_without_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "genome.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping of genes, got list"):
        Genome.from_yaml(path)


def test_a_file_is_read_strictly(tmp_path: Path) -> None:
    path, text = tmp_path / "genome.yaml", "".join(f"{name}: {value}\n" for name, value in BASE.items())
    path.write_text(text + "rope_theta: 1e5\n")
    assert Genome.from_yaml(path) == make_genome(rope_theta=100_000.0)
    for more, message in (
        ("vocab_size: 301\n", r"genome\.yaml, line 7: `vocab_size` is given twice \(first in line 1\)"),
        ("rope_teta: 1e5\n", r"genome\.yaml: unknown gene `rope_teta`; did you mean `rope_theta`"),
        ("qk_norm: yes\n", r"genome\.yaml: `qk_norm` must be true or false, got 'yes'"),
        ("hidden_act: 3\n", "`hidden_act` must be one of silu, gelu, relu2, got 3"),
        ("norm_type: 2026-11-25\n", "`norm_type` must be one of rmsnorm, layernorm, got '2026-11-25'"),
        ("rope_theta: .nan\n", "`rope_theta` must be a positive number, got nan"),
        ("head_dim: [16, null, 16, 16]\n", "`head_dim` must have a number for each block"),
    ):
        path.write_text(text + more)
        with pytest.raises(SettingsError, match=message) as raised:
            Genome.from_yaml(path)
        assert str(raised.value).isprintable()
    with pytest.raises(SettingsError, match=r"no genes file .*absent"):
        Genome.from_yaml(tmp_path / "absent.yaml")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, float16, got 'int8'"):
        make_genome().weights_bytes("int8")


def test_learned_positions_fix_the_context() -> None:
    genome = make_genome(position_embedding_type="learned", max_position_embeddings=64)
    assert genome.to_config().max_position_embeddings == 64
    with pytest.raises(ValueError, match="`max_position_embeddings` is a gene where positions are learned"):
        genome.to_config(max_position_embeddings=128)
    assert make_genome().to_config(max_position_embeddings=128).max_position_embeddings == 128


def test_the_hand_made_genome_has_about_a_million_parameters() -> None:
    genome = Genome.from_yaml(CONFIGS / "genomes" / "llama_tiny.yaml")
    assert 0.9e6 < genome.num_parameters() < 1.1e6
