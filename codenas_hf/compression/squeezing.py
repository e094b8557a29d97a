"""What is cut from a pretrained parent, and in how many bits the rest is stored: a genome and its tensors."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .formats import BLOCKS, MixedFormat, is_embedding

Kind = Literal["embedding", "attention", "feed_forward"]
_LAYERS = ("num_hidden_layers", "n_layer")  # how a configuration may name their number
FILE_TYPE = 1024  # llama.cpp's "guessed": the tensors say themselves how they are stored

# Which side of a matrix shrinks with which part, by the last word of its owner.
_NEURON_ROWS = frozenset({"gate_proj", "up_proj"})
_QUERY_ROWS, _KEY_ROWS = frozenset({"q_proj"}), frozenset({"k_proj", "v_proj"})
_NEURON_COLUMNS, _QUERY_COLUMNS = frozenset({"down_proj"}), frozenset({"o_proj"})


@dataclass(frozen=True, kw_only=True)
class SqueezeGenome:
    """What is kept of a parent, and how it is stored. A section is an equal share of the depth.

    Args:
        vocab_size: entries of the vocabulary.
        neurons: feed-forward neurons of a layer; one value for all layers, or one for each section.
        groups: key-value heads of a layer, each with its queries; likewise.
        embedding: block of embedding and head, a name in `BLOCKS`.
        attention: block of attention matrices, one for each section.
        feed_forward: block of feed-forward matrices, one for each section.
        without_layers: layers that are left out, ascending.

    Raises:
        ValueError: nothing is kept, or no such block.
    """

    vocab_size: int
    neurons: tuple[int, ...]
    groups: tuple[int, ...]
    embedding: str
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    without_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("neurons", "groups"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values[:1] if len(set(values)) == 1 else values)
        object.__setattr__(self, "without_layers", tuple(sorted(set(self.without_layers))))
        if min((self.vocab_size, *self.neurons, *self.groups)) < 1:
            raise ValueError(f"a squeeze keeps at least one entry, neuron and group, got {self.to_dict()}")
        for block in (self.embedding, *self.attention, *self.feed_forward):
            if block not in BLOCKS:
                raise ValueError(f"a storage format of a tensor must be one of {', '.join(BLOCKS)}, got {block!r}")

    @property
    def genome_id(self) -> str:
        """Canonical hash."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def equal(self) -> bool:
        """All layers have the same shapes, so that a stock architecture holds them."""
        return len(self.neurons) == len(self.groups) == 1

    def to_dict(self) -> dict[str, Any]:
        """JSON form: a value for each section stands under the section's number."""
        found = dataclasses.asdict(self)
        for name in ("neurons", "groups", "attention", "feed_forward"):
            found[name] = {str(at): value for at, value in enumerate(found[name])}
        return found | {"without_layers": list(self.without_layers)}

    def features(self) -> dict[str, Any]:
        """What bits per byte are predicted from: sizes, and of each format how much of the depth has it, and where.

        A few candidates teach a model these; of a gene for each section and format they would teach it nothing.
        """
        found: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "neurons": sum(self.neurons) / len(self.neurons),
            "groups": sum(self.groups) / len(self.groups),
            "layers_out": len(self.without_layers),
        }
        tables = {"embedding": (self.embedding,), "attention": self.attention, "feed_forward": self.feed_forward}
        for kind, blocks in tables.items():
            for name in BLOCKS:
                places = [(at + 0.5) / len(blocks) - 0.5 for at, block in enumerate(blocks) if block == name]
                found[f"{kind}.{name}"] = len(places) / len(blocks)
                found[f"{kind}.{name}.later"] = sum(places) / len(blocks)
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SqueezeGenome:
        """Inverse of `to_dict`.

        Raises:
            ValueError: genes that there are not, or that are missing; names them.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        missing = sorted(names - data.keys() - {"without_layers"})
        if missing or data.keys() - names:
            strange, wanted = sorted(data.keys() - names), ", ".join(sorted(names))
            raise ValueError(f"a squeeze genome has the genes {wanted}; got {strange}, lacks {missing}")
        given = dict(data)
        for name in ("neurons", "groups", "attention", "feed_forward"):
            values = given[name]
            if isinstance(values, Mapping):
                given[name] = tuple(values[key] for key in sorted(values, key=int))
            else:
                given[name] = tuple(values) if isinstance(values, list | tuple) else (values,)
        given["without_layers"] = tuple(given.get("without_layers") or ())
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class ParentShape:
    """What the space knows of a parent.

    Args:
        model_type: of its configuration.
        layers: of the parent.
        neurons: feed-forward neurons of a layer.
        groups: key-value heads of a layer.
        queries: query heads of each of them.
        head_dim: width of a head.
        vocab_size: entries, those that are added for this package included.
        shapes: of its parameters, tied ones once, by name; matrices as `[outputs, inputs]`.
        base: name of the list of layers, such as `model.layers`.
        prunable: whether neurons and heads can leave; else only the vocabulary and the formats vary.
    """

    model_type: str
    layers: int
    neurons: int
    groups: int
    queries: int
    head_dim: int
    vocab_size: int
    shapes: Mapping[str, tuple[int, ...]]
    base: str
    prunable: bool

    @classmethod
    def of(cls, config: Any, shapes: Mapping[str, tuple[int, ...]], *, prunable: bool) -> ParentShape:
        """The shape of a model by its configuration, whatever that calls its sizes, and its parameters."""

        def first(names: tuple[str, ...], otherwise: int = 0) -> int:
            return int(next((value for name in names if (value := getattr(config, name, None))), otherwise))

        heads, layers = first(("num_attention_heads", "n_head")), first(_LAYERS)
        width = first(("hidden_size", "n_embd"))
        groups = first(("num_key_value_heads",), heads)
        numbered = next(name for name in shapes if any(part.isdigit() for part in name.split(".")))
        base = numbered.split(".")
        at = next(i for i, part in enumerate(base) if part.isdigit())
        return cls(
            model_type=config.model_type,
            layers=layers,
            neurons=first(("intermediate_size", "n_inner"), 4 * width),
            groups=groups,
            queries=heads // groups,
            head_dim=first(("head_dim",), width // heads),
            vocab_size=int(config.vocab_size),
            shapes=shapes,
            base=".".join(base[:at]),
            prunable=prunable,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self) | {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParentShape:
        """Inverse of `to_dict`."""
        return cls(**{**data, "shapes": {name: tuple(shape) for name, shape in data["shapes"].items()}})

    def everything(self, *, form: str, sections: int) -> SqueezeGenome:
        """The genome that cuts nothing, all matrices in one format, the embedding in q8_0 where that is in codes."""
        return SqueezeGenome(
            vocab_size=self.vocab_size,
            neurons=(self.neurons,),
            groups=(self.groups,),
            embedding="q8_0" if BLOCKS[form].points else form,
            attention=(form,) * sections,
            feed_forward=(form,) * sections,
        )

    def squeezed_config(self, config: Any, genome: SqueezeGenome) -> Any:
        """The configuration of a squeezed model whose layers are equal, from the parent's, which stays as it is."""
        config = copy.deepcopy(config)
        config.vocab_size = genome.vocab_size
        stay = [at for at in range(self.layers) if at not in genome.without_layers]
        if self.prunable:
            config.intermediate_size, config.num_key_value_heads = genome.neurons[0], genome.groups[0]
            config.num_attention_heads = genome.groups[0] * self.queries
            config.head_dim = self.head_dim
        name = next(name for name in _LAYERS if getattr(config, name, None))
        setattr(config, name, len(stay))
        for name in ("layer_types", "no_rope_layers"):
            if getattr(config, name, None):
                setattr(config, name, [getattr(config, name)[at] for at in stay])
        return config

    def layer_of(self, name: str) -> int | None:
        """The layer that a parameter belongs to."""
        return int(name[len(self.base) + 1 :].split(".")[0]) if name.startswith(f"{self.base}.") else None

    def kind_of(self, name: str) -> Kind:
        """What a matrix is for."""
        if self.layer_of(name) is None:
            return "embedding"
        return "attention" if "attn" in name else "feed_forward"


@dataclass(frozen=True)
class Piece:
    """One tensor of a squeezed model.

    Args:
        name: in the squeezed model.
        source: in the parent.
        shape: `[rows, columns]`, or one number.
        block: a name in `BLOCKS`.
        layer: of the parent; None outside the layers.
        rows: what its rows shrink with: `entries`, `neurons`, `queries`, `keys`, or nothing.
        columns: what its columns shrink with: `neurons` or `queries`, or nothing.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    block: str
    layer: int | None
    rows: str | None
    columns: str | None


def section_of(layer: int, *, layers: int, sections: int) -> int:
    """The section of the depth that a layer of the parent lies in."""
    return layer * sections // layers


def pieces(genome: SqueezeGenome, parent: ParentShape) -> list[Piece]:
    """The tensors of a squeezed model, in the parent's order."""
    sections = len(genome.attention)
    stay = [at for at in range(parent.layers) if at not in genome.without_layers]
    number = {old: new for new, old in enumerate(stay)}
    found = []
    for source, shape in parent.shapes.items():
        layer = parent.layer_of(source)
        owner = source.split(".")[-2]
        rows = columns = None
        name, block = source, "f32"
        if layer is None:
            rows = "entries" if is_embedding(source) and shape[0] == parent.vocab_size else None
            if len(shape) == 2:
                block = genome.embedding if rows else "f32"
        elif layer not in number:
            continue
        else:
            name = source.replace(f"{parent.base}.{layer}.", f"{parent.base}.{number[layer]}.", 1)
            at = section_of(layer, layers=parent.layers, sections=sections)
            if len(shape) == 2:
                block = genome.attention[at] if parent.kind_of(source) == "attention" else genome.feed_forward[at]
            if parent.prunable:
                sides = ((_NEURON_ROWS, "neurons"), (_QUERY_ROWS, "queries"), (_KEY_ROWS, "keys"))
                rows = next((side for owners, side in sides if owner in owners), None)
                inputs = ((_NEURON_COLUMNS, "neurons"), (_QUERY_COLUMNS, "queries"))
                columns = next((side for owners, side in inputs if owner in owners and len(shape) == 2), None)
        sizes = kept(genome, parent, layer)
        result = (sizes[rows] if rows else shape[0], *shape[1:])
        if columns:
            result = (result[0], sizes[columns])
        found.append(Piece(name, source, result, block, layer, rows, columns))
    return found


def check_storable(parent: ParentShape, *, matrices: Iterable[str], embedding: Iterable[str]) -> None:
    """Refuses a parent that a format of the space cannot store.

    Args:
        parent: its shape.
        matrices: formats of all matrices of layers.
        embedding: formats of the tables.

    Raises:
        ValueError: names the first matrix, its shape and what to do.
    """
    for gene, blocks in (("matrices", matrices), ("embedding", embedding)):
        for block in blocks:
            genome = dataclasses.replace(parent.everything(form=block, sections=1), embedding=block)
            for piece in pieces(genome, parent):
                mine = len(piece.shape) == 2 and (piece.layer is None) == (gene == "embedding")
                size = BLOCKS[piece.block].size
                if mine and piece.shape[1] % size:
                    raise ValueError(
                        f"`{piece.source}` {list(piece.shape)} of the parent cannot be stored as {block}, whose rows "
                        f"are blocks of {size} weights: give a copy of the space with `{gene}` of bf16 and f16 alone, "
                        "or take another parent"
                    )


def kept(genome: SqueezeGenome, parent: ParentShape, layer: int | None) -> dict[str, int]:
    """How many rows or columns of each kind stay in a layer."""
    at = 0 if layer is None else section_of(layer, layers=parent.layers, sections=len(genome.attention))
    groups = genome.groups[at if len(genome.groups) > 1 else 0]
    return {
        "entries": genome.vocab_size,
        "neurons": genome.neurons[at if len(genome.neurons) > 1 else 0],
        "keys": groups * parent.head_dim,
        "queries": groups * parent.queries * parent.head_dim,
    }


def format_of(genome: SqueezeGenome, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MixedFormat:
    """The storage format of a squeezed model, from its own configuration and parameters: its parent is not needed."""
    own = ParentShape.of(config, shapes, prunable=False)
    layers = own.layers + len(genome.without_layers)
    stay = [at for at in range(layers) if at not in genome.without_layers]
    before = {}
    for name, shape in shapes.items():
        layer = own.layer_of(name)
        there = name if layer is None else name.replace(f"{own.base}.{layer}.", f"{own.base}.{stay[layer]}.", 1)
        before[there] = shape
    return mixed_format(pieces(genome, dataclasses.replace(own, layers=layers, shapes=before)))


def mixed_format(found: list[Piece]) -> MixedFormat:
    """The storage format of a squeezed model."""
    return MixedFormat(
        name="squeezed",
        matrix=BLOCKS["q8_0"],
        embedding=BLOCKS["q8_0"],
        readers=("llama.cpp",),
        file_type=FILE_TYPE,
        blocks={piece.name: BLOCKS[piece.block] for piece in found if len(piece.shape) == 2},
    )
