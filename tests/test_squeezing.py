"""A squeeze is a slice of a parent: exact in bytes before anything is built, and in weights however it was stored."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_parents import ENTRIES, TEXTS, small_parent, small_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from codenas_hf.compression.formats import BLOCKS
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.parent import ParentFolder, adopt
from codenas_hf.compression.prune import pruned
from codenas_hf.compression.quantize import as_stored
from codenas_hf.compression.squeeze_space import SqueezeChoices, SqueezeSpace
from codenas_hf.compression.squeezing import ParentShape, SqueezeGenome, mixed_format, pieces
from codenas_hf.compression.vocabulary import adopted, count_tokens
from codenas_hf.data.tokenizer import SPECIAL_TOKENS
from codenas_hf.folders.files import TOKENIZER
from codenas_hf.measure.squeezed import HealSettings

BLOCKS_USED = ("q8_0", "q4_1", "iq4_nl")
SIZES = (400, 700, 5000)
CHOICES = SqueezeChoices(
    vocab_sizes=SIZES, neuron_shares=(0.4, 0.7, 1.0), group_shares=(0.5, 1.0), sections=2, matrices=BLOCKS_USED
)


def prepared(folder: Path, *, kind: str = "llama", **others: Any) -> ParentFolder:
    """A small parent, adopted, measured, stored, with its vocabularies."""
    source = small_parent(folder / "source", kind=kind, **others)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    state = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
    parent = adopt(
        model, state, folder=folder / "parent", special=SPECIAL_TOKENS, start=None, facts={"name": "a", "digest": "d"}
    )
    words = Tokenizer.from_file(str(parent.folder / TOKENIZER))
    parent.keep_vocabularies(count_tokens(words, TEXTS), SIZES)
    ids = torch.randint(ENTRIES, (4, 64), generator=torch.Generator().manual_seed(0))
    parent.measure([ids])
    parent.store(matrices=BLOCKS_USED, embedding=("q8_0", "q4_0"))
    return parent


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ParentFolder:
    return prepared(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def space(parent: ParentFolder) -> SqueezeSpace:
    sizes = sorted({min(size, parent.shape.vocab_size) for size in SIZES})
    return SqueezeSpace(parent=parent.shape, choices=CHOICES, layouts=parent.layouts(sizes), digest="d")


def drawn(space: SqueezeSpace, count: int = 40) -> list[SqueezeGenome]:
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(count)]


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_an_adopted_parent_says_what_it_said(parent: ParentFolder) -> None:
    """The package's special tokens stand in front; all other entries and their logits are the parent's own."""
    source = parent.folder.parent / "source"
    theirs, ours = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(parent.folder)
    assert ours.convert_ids_to_tokens(list(range(8))) == list(SPECIAL_TOKENS)
    assert len(ours) == ENTRIES + 7  # the parent has `<|endoftext|>`
    text = TEXTS[3][:400]
    old, new = (words(text, add_special_tokens=False)["input_ids"] for words in (theirs, ours))
    assert ours.convert_ids_to_tokens(new) == theirs.convert_ids_to_tokens(old)
    columns = [ours.convert_tokens_to_ids(theirs.convert_ids_to_tokens(i)) for i in range(ENTRIES)]
    before = logits(AutoModelForCausalLM.from_pretrained(source), old)
    assert torch.allclose(logits(parent.model(None), new)[:, columns], before, atol=1e-5)


def test_bytes_that_a_parent_lacks_are_added() -> None:
    """SmolLM2 has no entry for 21 bytes; what is made of it must spell every text."""
    state = json.loads(small_tokenizer().to_str())
    letters = [
        letter for letter in ("\x00", "\x7f") for letter in small_tokenizer().pre_tokenizer.pre_tokenize_str(letter)
    ]
    for letter, _ in letters:
        del state["model"]["vocab"][letter]
    words, source = adopted(state, special=SPECIAL_TOKENS, start=None)
    assert source[-2:] == [-1, -1]
    found = Tokenizer.from_str(json.dumps(words))
    assert found.decode(found.encode("a\x00b\x7f").ids) == "a\x00b\x7f"


@pytest.mark.parametrize("size", [400, 700, ENTRIES + 7])
def test_every_vocabulary_is_exact(parent: ParentFolder, size: int) -> None:
    words = Tokenizer.from_file(str(parent.vocabulary(size) / TOKENIZER))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 3000, dtype=np.uint8).tobytes().decode("latin-1")
    for text in (*TEXTS[:3], noise, "e\u0301 日本語 \x00", ""):
        assert words.decode(words.encode(text).ids, skip_special_tokens=False) == text
    assert words.get_vocab_size() == size == len(parent.kept(size))


def test_the_genome_that_cuts_nothing_is_the_stored_parent(parent: ParentFolder) -> None:
    genome = parent.shape.everything(form="q4_1", sections=2)
    found = parent.weights(genome, stored=True)
    for name, weight in parent.weights(None, stored=False).items():
        block = BLOCKS["q8_0" if "embed" in name else "q4_1"]
        assert torch.equal(found[name], weight if weight.dim() < 2 else as_stored(weight, block)), name


def test_a_slice_of_what_was_stored_is_what_is_sliced_and_then_stored(
    parent: ParentFolder, space: SqueezeSpace
) -> None:
    """So a candidate costs no quantising, and the written file holds the weights that were scored."""
    for genome in drawn(space, 12):
        stored, full = (parent.weights(genome, stored=flag) for flag in (True, False))
        for piece in pieces(genome, parent.shape):
            weight = full[piece.name]
            assert tuple(weight.shape) == piece.shape
            wanted = weight if weight.dim() < 2 else as_stored(weight, BLOCKS[piece.block])
            assert torch.equal(stored[piece.name], wanted), (piece, genome)


def test_what_will_be_trained_begins_in_full_precision(parent: ParentFolder, space: SqueezeSpace) -> None:
    """A small step from a point of the grid would be rounded back to it; what stays is what its reader has."""
    genome = replace(drawn(space, 1)[0], embedding="q4_0")
    stored, full = (parent.weights(genome, stored=flag) for flag in (True, False))
    for moves, kinds in (("norms", set()), ("embeddings", {"embedding"})):
        found = parent.weights(genome, stored=True, full=HealSettings(moves=moves).moving)
        for name, weight in found.items():
            assert torch.equal(weight, (full if parent.shape.kind_of(name) in kinds else stored)[name]), (moves, name)
    found = parent.weights(genome, stored=True, full=HealSettings(moves="low_rank").moving)
    assert all(torch.equal(weight, full[name]) for name, weight in found.items())
    assert not torch.equal(stored["model.embed_tokens.weight"], full["model.embed_tokens.weight"])


def test_pruning_is_that_of_the_pruner(parent: ParentFolder, space: SqueezeSpace) -> None:
    """Neurons lie in another order, which changes no logit."""
    genome = next(g for g in drawn(space) if g.neurons[0] < parent.shape.neurons and g.groups[0] == 1)
    genome = replace(genome, vocab_size=parent.shape.vocab_size)
    theirs = pruned(parent.model(None), parent.importance, neurons=genome.neurons[0], groups=1)
    ids = list(range(8, 60))
    assert torch.allclose(logits(parent.model(genome, stored=False), ids), logits(theirs, ids), atol=1e-5)


@pytest.mark.parametrize("out", [(), (1, 2)])
def test_bytes_are_those_of_the_file(parent: ParentFolder, space: SqueezeSpace, tmp_path: Path, out: Any) -> None:
    for genome in drawn(space, 4):
        genome = replace(genome, without_layers=out)
        form = mixed_format(pieces(genome, parent.shape))
        model = parent.model(genome, stored=False)
        path = write_gguf(model, tmp_path / "m.gguf", tokenizer=parent.vocabulary(genome.vocab_size), form=form)
        assert path.stat().st_size == space.bytes_of(genome)
        assert model.config.num_hidden_layers == 4 - len(out)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gpt2", "arcee"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Biases move with their rows; where neurons cannot leave, vocabulary and formats vary."""
    others = {} if kind == "gpt2" else {"hidden_act": "relu2" if kind == "arcee" else "silu"}
    parent = prepared(tmp_path, kind=kind, **others)
    space = SqueezeSpace(parent=parent.shape, choices=CHOICES, layouts=parent.layouts([400, 700]), digest="d")
    assert (len(space.genes["neurons.0"]) > 1) == parent.shape.prunable == (kind != "gpt2")
    for genome in drawn(space, 3):
        model = parent.model(genome, stored=False)
        form = mixed_format(pieces(genome, parent.shape))
        path = write_gguf(model, tmp_path / "m.gguf", tokenizer=parent.vocabulary(genome.vocab_size), form=form)
        assert path.stat().st_size == space.bytes_of(genome)
        assert torch.isfinite(logits(parent.model(genome), [1, 2, 300])).all()


def test_sample_mutate_crossover_are_valid_and_keep_the_limit(space: SqueezeSpace) -> None:
    sizes = [space.bytes_of(genome) for genome in drawn(space)]
    limit = float(np.quantile(sizes, 0.3))
    within = replace(space, limits={"artifact_bytes": limit}, choices=replace(CHOICES, most_layers_out=1))
    rng = np.random.default_rng(1)
    genomes = [within.sample(rng) for _ in range(20)]
    genomes += [within.mutate(genome, rng) for genome in genomes]
    genomes += [within.crossover(*genomes[at : at + 2], rng) for at in range(20)]
    for genome in genomes:
        assert within.validate(genome) is None
        assert within.known_objectives(genome)["artifact_bytes"] == within.bytes_of(genome) <= limit
        again = within.genome_from_dict(json.loads(json.dumps(genome.to_dict())))
        assert again == genome
        assert again.genome_id == genome.genome_id
    assert len({genome.genome_id for genome in genomes}) > 20
    assert any(genome.without_layers for genome in genomes)
    json.dumps(within.to_dict())
    assert pickle.loads(pickle.dumps(within)).bytes_of(genomes[0]) == within.bytes_of(genomes[0])


def test_unequal_layers_are_a_space_of_their_own(space: SqueezeSpace) -> None:
    free = replace(space, choices=replace(CHOICES, equal_layers=False))
    genome = next(g for g in drawn(free) if not g.equal)
    assert free.validate(genome) is None
    assert "neurons and groups differ between layers" in str(space.validate(genome))


def test_what_is_no_squeeze_of_the_space_is_said(space: SqueezeSpace) -> None:
    genome = drawn(space, 1)[0]
    wrong: list[tuple[Mapping[str, Any], str]] = [
        ({"vocab_size": 401}, "vocab_size must be one of 400, 700"),
        ({"embedding": "f16"}, "embedding must be one of q8_0, q4_0, got f16"),
        ({"attention": ("q8_0",)}, "a format for each of 2 sections"),
        ({"without_layers": (2,)}, "at most 0 of 4 layers may be left out"),
    ]
    for change, reason in wrong:
        assert reason in str(space.validate(replace(genome, **change)))
    over = replace(space, limits={"artifact_bytes": 1000.0})
    assert "artifact_bytes" in str(over.validate(genome))
    with pytest.raises(ValueError, match=r"no squeeze of this parent keeps the limits: the smallest has [\d,]+ bytes"):
        over.sample(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"must be one of f32, .*, got 'q3'"):
        replace(genome, embedding="q3")
    with pytest.raises(ValueError, match="keeps at least one entry"):
        replace(genome, neurons=(0,))
    with pytest.raises(ValueError, match=r"got \['colour'\], lacks \['embedding'\]"):
        SqueezeGenome.from_dict({**{k: v for k, v in genome.to_dict().items() if k != "embedding"}, "colour": 1})
    with pytest.raises(ValueError, match=r"`sections` \(9\) must not exceed the parent's layers \(4\)"):
        replace(space, choices=replace(CHOICES, sections=9))
    with pytest.raises(ValueError, match="a share that is kept must lie above 0"):
        replace(CHOICES, neuron_shares=(0.0,))
    with pytest.raises(ValueError, match="`matrices` must name at least one choice"):
        replace(CHOICES, matrices=())


def test_a_shape_comes_back_from_json(parent: ParentFolder) -> None:
    assert ParentShape.from_dict(json.loads(json.dumps(parent.shape.to_dict()))) == parent.shape
    assert set(load_file(parent.folder / "model.safetensors")) == set(parent.shape.shapes)
