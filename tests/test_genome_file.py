"""Genomes from files, and the architectures of an earlier project."""

import json
from pathlib import Path
from typing import Any

import pytest

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.genome_file import genome_from_architecture, read_genome

OLD: dict[str, Any] = {
    "arch_type": "transformer",
    "num_layers": 4,
    "hidden_dim": 128,
    "num_heads": 4,
    "ffn_multiplier": 2.5,
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "position_encoding": "rope",
    "vocab_size": 2048,
    "attention_dropout": 0.1,
}


def test_an_old_architecture_becomes_the_same_model() -> None:
    genome = genome_from_architecture(OLD)
    assert genome == Genome(
        vocab_size=2048, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=320
    )
    other = genome_from_architecture(
        OLD | {"activation": "gelu", "position_encoding": "absolute", "max_seq_length": 512}
    )
    assert (other.mlp_type, other.hidden_act, other.position_embedding_type) == ("plain", "gelu", "learned")
    assert other.max_position_embeddings == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch_type": "mamba"}, "`arch_type` is 'mamba', which does not exist here"),
        ({"normalization": "groupnorm"}, "`normalization` is 'groupnorm'"),
        ({"activation": "tanh"}, "`activation` is 'tanh'"),
        ({"position_encoding": "xpos"}, "`position_encoding` is 'xpos'"),
        ({"quantization": "int4"}, "`quantization` is 'int4'"),
        ({"pruning_ratio": 0.4}, "`pruning_ratio` is 0.4, expected 0"),
        ({"depth": 3}, "unknown field `depth`"),
        ({"num_heads": 3}, "num_attention_heads"),
        ({"hidden_dim": "128"}, "`hidden_dim` must be a positive number, got '128'"),
        ({"ffn_multiplier": None}, "`ffn_multiplier` must be a positive number, got None"),
        ({"activation": ["gelu"]}, r"`activation` is \['gelu'\]"),
    ],
)
def test_what_does_not_exist_here(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        genome_from_architecture(OLD | change)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"architecture": OLD}))
    genome = read_genome(path)
    assert genome.hidden_size == 128
    path.write_text(json.dumps(genome.to_dict()))
    assert read_genome(path) == genome
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "expected an object of genes, got list"),
        ('{"architecture": 3}', r"old\.json: `architecture` must hold an object, got 3"),
        ('{"vocab_size": 1, "vocab_size": 2}', r"old\.json: 'vocab_size' is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"hidden_dim": 1}', "needs `num_layers`"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_genome(path)
    for name in ("absent.json", "absent.yaml"):
        with pytest.raises(FileNotFoundError, match=r"no genome file .*absent"):
            read_genome(tmp_path / name)
