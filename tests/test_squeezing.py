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
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from codenas_hf.compression import parent as parent_module
from codenas_hf.compression.formats import BLOCKS
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.parent import ParentFolder, adopt
from codenas_hf.compression.prune import pruned
from codenas_hf.compression.quantize import as_stored
from codenas_hf.compression.squeeze_space import SqueezeChoices, SqueezeSpace, neuron_counts
from codenas_hf.compression.squeezing import ParentShape, SqueezeGenome, format_of, mixed_format, pieces
from codenas_hf.compression.vocabulary import adopted, count_tokens
from codenas_hf.data.tokenizer import SPECIAL_TOKENS
from codenas_hf.folders.files import TOKENIZER
from codenas_hf.measure.squeezed import HealSettings

BLOCKS_USED = ("q8_0", "q4_1", "iq4_nl")
SIZES = (400, 700, 5000)
WATCHED = torch.randint(ENTRIES, (4, 64), generator=torch.Generator().manual_seed(0))
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
    parent.measure([WATCHED])
    told = store(parent)
    assert told == [("matrices", at + 1, len(told)) for at in range(len(told))]
    assert len(told) >= sum(len(size) == 2 for size in parent.shape.shapes.values())
    return parent


def store(parent: ParentFolder) -> list[tuple[str, float, float]]:
    counts = neuron_counts(parent.shape, CHOICES)
    told: list[tuple[str, float, float]] = []
    parent.store(
        matrices=BLOCKS_USED,
        embedding=("q8_0", "q4_0"),
        neurons=counts,
        on_progress=lambda *event: told.append(event),
    )
    return told


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


def test_what_a_parent_has_in_a_format_stays_as_it_is(tmp_path: Path) -> None:
    """SmolLM2 comes in Q4_1: a squeeze that cuts nothing and stores it in Q4_1 has those very weights."""
    source = small_parent(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    genome = SqueezeGenome(
        vocab_size=ENTRIES + 7,
        neurons=(96,),
        groups=(2,),
        embedding="q4_0",
        attention=("q4_1",),
        feed_forward=("q4_1",),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.copy_(as_stored(weight, BLOCKS["q4_1"]))
    state = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
    parent = adopt(model, state, folder=tmp_path / "parent", special=SPECIAL_TOKENS, start=None, facts={"digest": "d"})
    parent.keep_vocabularies(count_tokens(Tokenizer.from_file(str(parent.folder / TOKENIZER)), TEXTS), SIZES)
    parent.measure([WATCHED])
    store(parent)
    found, before = parent.weights(genome, stored=True), parent.weights(None, stored=False)
    for name, weight in before.items():
        if "embed" not in name:
            assert torch.allclose(found[name], weight, rtol=1e-3, atol=0), name
    # In fewer bits the inputs count, those of the tied head too.
    assert not torch.equal(
        found["model.embed_tokens.weight"], as_stored(before["model.embed_tokens.weight"], BLOCKS["q4_0"])
    )


def test_a_slice_is_stored_once_and_what_is_written_is_what_was_scored(
    parent: ParentFolder, space: SqueezeSpace
) -> None:
    """A candidate costs no rounding; the file is written from its weights, and storing these again changes nothing."""
    whole = parent.shape.vocab_size
    for genome in drawn(space, 12):
        stored, full = (parent.weights(genome, stored=flag) for flag in (True, False))
        same = parent.weights(replace(genome, vocab_size=whole), stored=True)
        for piece in pieces(genome, parent.shape):
            weight, block = stored[piece.name], BLOCKS[piece.block]
            assert tuple(weight.shape) == tuple(full[piece.name].shape) == piece.shape
            if weight.dim() == 2:
                assert torch.allclose(as_stored(weight, block), weight, rtol=1e-3, atol=0), (piece, genome)
                assert (weight - full[piece.name]).norm() < 0.2 * full[piece.name].norm()
            else:
                assert torch.equal(weight, full[piece.name])
            rows = torch.from_numpy(parent.kept(genome.vocab_size)) if piece.rows == "entries" else slice(None)
            assert torch.equal(weight, same[piece.name][rows])


def test_neurons_that_stay_make_up_for_those_that_leave(parent: ParentFolder, space: SqueezeSpace) -> None:
    genome = replace(drawn(space, 1)[0], vocab_size=parent.shape.vocab_size, neurons=(64,), groups=(2,))
    plain = pruned(parent.model(None), parent.importance, neurons=64)
    own = parent.model(genome, stored=False)
    ids = WATCHED[0].tolist()
    wanted = logits(parent.model(None), ids)
    assert (logits(own, ids) - wanted).norm() < 0.9 * (logits(plain, ids) - wanted).norm()
    # Neurons lie in the same order in all three matrices.
    layer = parent.model(None).model.layers[1]
    kept = [
        int((layer.mlp.up_proj.weight == row).all(dim=1).nonzero()) for row in own.model.layers[1].mlp.up_proj.weight
    ]
    assert torch.equal(own.model.layers[1].mlp.gate_proj.weight, layer.mlp.gate_proj.weight[kept])
    near = nn.functional.cosine_similarity(
        own.model.layers[1].mlp.down_proj.weight, layer.mlp.down_proj.weight[:, kept], dim=0
    )
    assert near.min() > 0.5


def test_what_was_stored_is_not_rounded_again(parent: ParentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    once = parent_module.rounded
    monkeypatch.setattr(
        parent_module,
        "rounded",
        lambda w, block, moments: made.append((block.name, w.shape[1])) or once(w, block, moments),
    )
    monkeypatch.setattr(parent_module, "measure_importance", lambda *args: pytest.fail("it was watched before"))
    parent.measure([WATCHED])
    store(parent)
    assert made == []
    gone = parent.folder / "codes-iq4_nl-neurons-64.safetensors"
    before = load_file(gone)
    gone.unlink()
    store(parent)
    assert made == [("iq4_nl", 64)] * 4
    after = load_file(gone)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


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


def test_groups_of_heads_leave_as_in_the_pruner(parent: ParentFolder, space: SqueezeSpace) -> None:
    genome = replace(drawn(space, 1)[0], vocab_size=parent.shape.vocab_size, neurons=(96,), groups=(1,))
    theirs = pruned(parent.model(None), parent.importance, groups=1)
    ids = list(range(8, 60))
    assert torch.allclose(logits(parent.model(genome, stored=False), ids), logits(theirs, ids), atol=1e-5)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("out", [(), (1, 2)])
def test_bytes_are_those_of_the_file(parent: ParentFolder, space: SqueezeSpace, tmp_path: Path, out: Any) -> None:
    for genome in drawn(space, 4):
        genome = replace(genome, without_layers=out)
        form = mixed_format(pieces(genome, parent.shape))
        model = parent.model(genome, stored=False)
        path = write_gguf(model, tmp_path / "m.gguf", tokenizer=parent.vocabulary(genome.vocab_size), form=form)
        assert path.stat().st_size == space.bytes_of(genome)
        assert model.config.num_hidden_layers == 4 - len(out)
        assert format_of(genome, model.config, shapes_of(model)) == form


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
        assert format_of(genome, model.config, shapes_of(model)) == form
        assert torch.isfinite(logits(parent.model(genome), [1, 2, 300])).all()


def test_a_width_of_no_whole_blocks_is_refused_by_name_and_stored_as_numbers(tmp_path: Path) -> None:
    source = small_parent(tmp_path / "source", hidden_size=48)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    state = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
    parent = adopt(model, state, folder=tmp_path / "parent", special=SPECIAL_TOKENS, start=None, facts={"digest": "d"})
    first = r"`model\.layers\.0\.self_attn\.q_proj\.weight` \[128, 48\] of the parent cannot be stored as q4_1"
    with pytest.raises(ValueError, match=rf"{first}, .* blocks of 32 weights: .* with `matrices` of bf16 and f16"):
        parent.store(matrices=("f16", "q4_1"), embedding=("f16",))
    with pytest.raises(ValueError, match=r"`model\.embed_tokens\.weight` \[907, 48\] .* as q8_0, .* `embedding` of"):
        parent.store(matrices=("f16",), embedding=("f16", "q8_0"))
    assert not list(parent.folder.glob("codes-*"))
    parent.store(matrices=("f16",), embedding=("bf16",))
    parent.keep_vocabularies(np.zeros(0, np.int64), [907])
    genome = replace(parent.shape.everything(form="f16", sections=2), embedding="bf16")
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


def test_what_a_model_of_quality_learns_from_tells_formats_and_places(space: SqueezeSpace) -> None:
    found = {genome.genome_id: genome.features() for genome in drawn(space)}
    assert len({tuple(row) for row in found.values()}) == 1
    assert all(isinstance(value, int | float) for row in found.values() for value in row.values())
    assert len({tuple(row.values()) for row in found.values()}) == len(found)
    early = replace(drawn(space, 1)[0], attention=("q8_0", "iq4_nl")).features()
    late = replace(drawn(space, 1)[0], attention=("iq4_nl", "q8_0")).features()
    assert early["attention.q8_0"] == late["attention.q8_0"] == 0.5
    assert early["attention.q8_0.later"] < 0 < late["attention.q8_0.later"]


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
