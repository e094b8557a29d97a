"""A pretrained parent, prepared once: what its parts do, its weights as every format stores them, its vocabularies.

A squeeze is then a slice: rows of stored matrices are rows of the matrix stored, whole blocks of columns likewise.
The feed-forward output is repaired for each number of neurons that stay, and stored once for each of them. Whatever a
squeeze holds was rounded once, from the parent's own weights or from those that were repaired.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from ..folders import read_json, whole_file, whole_folder, write_json
from ..folders.files import PARENT, TOKENIZER, WEIGHTS
from .formats import BLOCKS, Block
from .gguf import Layout, file_layout
from .prune import Importance, check_prunable, measure_importance
from .quantize import Codes, as_stored, transposed
from .repair import products, repaired, rounded, second_moments
from .squeezing import Kind, ParentShape, Piece, SqueezeGenome, check_storable, mixed_format, pieces
from .vocabulary import adopted, kept_entries, save_tokenizer, trimmed_tokenizer

_IMPORTANCE, _KEPT, _MOMENTS = "importance.npz", "kept.npy", "moments.safetensors"
_Found = tuple[str, torch.Tensor, torch.Tensor | None]  # name, matrix, moments of its inputs


def adopt(
    model: PreTrainedModel,
    state: Mapping[str, Any],
    *,
    folder: Path,
    special: Sequence[str],
    start: str | None,
    facts: Mapping[str, Any],
    chat_template: str | None = None,
) -> ParentFolder:
    """Writes a parent with this package's special tokens in front: whole, or not at all.

    Args:
        model: float32; it is changed.
        state: what its `tokenizer.json` holds.
        folder: where to.
        special: as in `vocabulary.adopted`; entries that the parent lacks get the mean of all rows.
        start: as in `vocabulary.adopted`.
        facts: kept beside it: name, licence and such.
        chat_template: of the tokenizer.

    Raises:
        codenas_hf.compression.vocabulary.VocabularyError: no byte-level BPE.
    """
    words, source = adopted(state, special=special, start=start)
    _take_rows(model, source)
    try:
        check_prunable(model)
        prunable = True
    except ValueError:
        prunable = False
    across = transposed(model)
    tensors = {
        name: (parameter.detach().T if name in across else parameter.detach()).float().contiguous()
        for name, parameter in model.named_parameters()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shape = ParentShape.of(model.config, shapes, prunable=prunable)
    with whole_folder(folder) as draft:
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        model.config.save_pretrained(draft)
        save_tokenizer(words, draft, special=special, chat_template=chat_template)
        known = {"shape": shape.to_dict(), "turned": sorted(across), "special": list(special)}
        write_json(draft / PARENT, {**facts, **known})
    return ParentFolder(folder)


@dataclass(frozen=True)
class ParentFolder:
    """A prepared parent on disk; cheap to pickle, its weights are read where they lie."""

    folder: Path

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Name, licence, digest and shape."""
        return read_json(self.folder / PARENT)

    @functools.cached_property
    def shape(self) -> ParentShape:
        """What the space knows of it."""
        return ParentShape.from_dict(self.facts["shape"])

    @functools.cached_property
    def config(self) -> Any:
        """Its configuration."""
        return AutoConfig.from_pretrained(self.folder)

    def vocabulary(self, size: int) -> Path:
        """Folder of the tokenizer that has `size` entries."""
        return self.folder / "vocabularies" / str(size)

    def keep_vocabularies(self, counts: NDArray[np.int64], sizes: Iterable[int]) -> list[int]:
        """Writes the tokenizers that keep the most frequent entries; sizes beyond the parent's count as all.

        Raises:
            codenas_hf.compression.vocabulary.VocabularyError: too little text to choose by, or a size out of range.
        """
        state = read_json(self.folder / TOKENIZER)
        everything = self.shape.vocab_size
        found = sorted({min(size, everything) for size in sizes})
        for size in found:
            folder = self.vocabulary(size)
            if (folder / _KEPT).is_file():
                continue
            kept = list(range(everything)) if size == everything else kept_entries(state, counts, keep=size)
            words = trimmed_tokenizer(state, kept)
            template = read_json(self.folder / "tokenizer_config.json").get("chat_template")
            with whole_folder(folder) as draft:
                save_tokenizer(words, draft, special=self.facts["special"], chat_template=template)
                np.save(draft / _KEPT, np.array(kept, np.int64))
        return found

    def measure(self, batches: Iterable[torch.Tensor]) -> None:
        """Finds what neurons, heads and layers do on some text, and what matrices take in there, and keeps it."""
        if (self.folder / _MOMENTS).is_file():
            return
        model = self.model(None)
        with second_moments(model, products(model)) as moments:
            if self.shape.prunable:
                found = measure_importance(model, batches)
                with whole_file(self.folder / _IMPORTANCE) as draft, draft.open("wb") as file:
                    np.savez(file, **vars(found))
            else:
                with torch.no_grad():
                    for ids in batches:
                        model(input_ids=ids, use_cache=False)
        with whole_file(self.folder / _MOMENTS) as draft:  # last: it says that all is there
            save_file(moments.sums, draft, metadata={"same": json.dumps(moments.same)})

    @functools.cached_property
    def importance(self) -> Importance:
        """What its parts do.

        Raises:
            FileNotFoundError: it was not measured.
        """
        with np.load(self.folder / _IMPORTANCE, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return Importance(arrays["neurons"], arrays["groups"], arrays["layers"], int(arrays["num_tokens"]))

    def store(
        self,
        *,
        matrices: Iterable[str],
        embedding: Iterable[str],
        neurons: Iterable[int] = (),
        on_progress: Callable[[str, float, float], None] = lambda what, done, total: None,
    ) -> None:
        """Quantises matrices and tables in each of these formats, and keeps the codes.

        Args:
            matrices: formats of all matrices of layers.
            embedding: formats of the tables.
            neurons: how many neurons of a layer may stay; for each the feed-forward output is repaired.
            on_progress: told `"matrices"`, how many of them are stored, and how many there will be.

        Raises:
            ValueError: as `check_storable`, or a weight that is too large.
        """
        matrices, embedding, shape = list(matrices), list(embedding), self.shape
        check_storable(shape, matrices=matrices, embedding=embedding)
        names = [name for name, size in shape.shapes.items() if len(size) == 2]
        losing, fewer = list(filter(self._loses_neurons, names)), sorted(set(neurons) - {shape.neurons})
        done, total = itertools.count(1), len(names) + len(fewer) * len(losing)

        def counted(found: Iterable[_Found]) -> Iterator[_Found]:
            for each in found:
                yield each
                on_progress("matrices", next(done), total)

        for kind, blocks in (("matrices", matrices), ("embedding", embedding)):
            mine = [name for name in names if (shape.layer_of(name) is None) == (kind == "embedding")]
            self._store(kind, blocks, counted((n, self._tensor(WEIGHTS, n), self._moments(n)) for n in mine))
        for count in fewer:
            self._store(_neurons(count), matrices, counted((name, *self._repaired(name, count)) for name in losing))

    def _store(self, kind: str, blocks: Iterable[str], found: Iterable[_Found]) -> None:
        """Keeps what is found in those formats that have not been kept."""
        wanted = {name for name in blocks if BLOCKS[name].points is not None}
        wanted -= {name for name in wanted if (self.folder / _codes_file(name, kind)).is_file()}
        tensors: dict[str, dict[str, torch.Tensor]] = {block: {} for block in sorted(wanted)}
        for name, weight, moments in found if wanted else ():
            for block, kept in tensors.items():
                codes = rounded(weight, BLOCKS[block], moments)
                kept |= {name: codes.codes, f"{name}|scales": codes.scales}
                if codes.offsets is not None:
                    kept[f"{name}|offsets"] = codes.offsets
        for block, kept in tensors.items():
            with whole_file(self.folder / _codes_file(block, kind)) as draft:
                save_file(kept, draft)

    def layouts(self, sizes: Iterable[int]) -> dict[int, Layout]:
        """What the files of each vocabulary have in common.

        Raises:
            ValueError, ImportError: as `gguf.write_gguf`.
        """
        found = {}
        for size in sizes:
            config = copy.deepcopy(self.config)
            config.vocab_size = size
            found[size] = file_layout(config, tokenizer=self.vocabulary(size), form=mixed_format([]))
        return found

    def model(
        self, genome: SqueezeGenome | None, *, stored: bool = True, full: Collection[Kind] = ()
    ) -> PreTrainedModel:
        """A squeezed model with equal layers, in float32; without a genome the parent itself.

        Args:
            genome: what is kept.
            stored: with the weights as its reader has them; else in full precision.
            full: kinds of matrices that keep full precision all the same.
        """
        config = self.config if genome is None else self.shape.squeezed_config(self.config, genome)
        config.dtype = torch.float32
        with no_init_weights():  # all weights are about to be replaced
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fill(model, self.weights(genome, stored=stored, full=full), turned=self.facts["turned"])
        ready: PreTrainedModel = model.eval()
        return ready

    def weights(
        self, genome: SqueezeGenome | None, *, stored: bool, full: Collection[Kind] = ()
    ) -> dict[str, torch.Tensor]:
        """The float32 tensors of a squeezed model by name, matrices as `[outputs, inputs]`; see `model`."""
        if genome is None:
            return {name: self._tensor(WEIGHTS, name) for name in self.shape.shapes}
        found = {}
        for piece in pieces(genome, self.shape):
            coded = stored and self.shape.kind_of(piece.source) not in full
            found[piece.name] = self._weight(piece, genome, stored=coded)
        return found

    def kept(self, size: int) -> NDArray[np.int64]:
        """The parent's entries in a vocabulary of this size."""
        found: NDArray[np.int64] = np.load(self.vocabulary(size) / _KEPT, allow_pickle=False)
        return found

    def _weight(self, piece: Piece, genome: SqueezeGenome, *, stored: bool) -> torch.Tensor:
        whole = self.shape.shapes[piece.source]
        rows = self._places(piece.rows, piece, genome, count=piece.shape[0], of=whole[0])
        columns = None
        if len(whole) == 2:
            columns = self._places(piece.columns, piece, genome, count=piece.shape[1], of=whole[1])
        block = BLOCKS[piece.block]
        coded = stored and block.points is not None and len(whole) == 2
        if columns is not None and piece.columns == "neurons":
            if coded:
                return self._codes(piece.source, block, kind=_neurons(len(columns)))
            weight, _ = self._repaired(piece.source, len(columns))
            return as_stored(weight, block) if stored else weight
        if coded and columns is None:
            return self._codes(piece.source, block, rows=rows)
        if coded and columns is not None and bool((columns.view(-1, block.size)[:, 0] % block.size == 0).all()):
            first = columns.view(-1, block.size)[:, 0]
            if torch.equal(first[:, None] + torch.arange(block.size), columns.view(-1, block.size)):
                return self._codes(piece.source, block, rows=rows, blocks=(first // block.size).tolist())
        weight = self._tensor(WEIGHTS, piece.source)
        weight = weight if rows is None else weight[rows]
        weight = weight if columns is None else weight[:, columns]
        weight = weight.contiguous()
        return as_stored(weight, block) if stored and len(whole) == 2 else weight

    def _places(
        self, side: str | None, piece: Piece, genome: SqueezeGenome, *, count: int, of: int
    ) -> torch.Tensor | None:
        """What stays of one side of a matrix, in the new order; None where all stays in its own."""
        if side is None or count == of:
            return None
        if side == "entries":
            return torch.from_numpy(self.kept(genome.vocab_size))
        assert piece.layer is not None
        if side == "neurons":
            return self._order(piece.layer)[:count]
        width = self.shape.head_dim * (self.shape.queries if side == "queries" else 1)
        best = np.argsort(-self.importance.groups[piece.layer], kind="stable")[: count // width]
        return (torch.from_numpy(np.sort(best))[:, None] * width + torch.arange(width)).flatten()

    def _order(self, layer: int | None) -> torch.Tensor:
        """The neurons of a layer, the most important first."""
        return torch.from_numpy(np.argsort(-self.importance.neurons[layer], kind="stable"))

    def _loses_neurons(self, name: str) -> bool:
        """It is a matrix whose columns leave with neurons."""
        return self.shape.prunable and name.endswith(".down_proj.weight")

    def _moments(self, name: str) -> torch.Tensor | None:
        """Of the inputs of a matrix; None for a table that nothing is multiplied with."""
        opened = self._opened(_MOMENTS)
        name = json.loads(opened.metadata()["same"]).get(name, name)
        return self._tensor(_MOMENTS, name) if name in opened.keys() else None

    def _repaired(self, name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A feed-forward output that makes up for all but so many neurons, and the moments of these."""
        kept, moments = self._order(self.shape.layer_of(name))[:count], self._moments(name)
        assert moments is not None
        return repaired(self._tensor(WEIGHTS, name), moments, kept), moments[kept][:, kept]

    def _codes(
        self,
        name: str,
        block: Block,
        *,
        kind: str | None = None,
        rows: torch.Tensor | None = None,
        blocks: Sequence[int] | None = None,
    ) -> torch.Tensor:
        kind = kind or ("embedding" if self.shape.layer_of(name) is None else "matrices")
        file = _codes_file(block.name, kind)

        def cut(tensor: torch.Tensor, size: int) -> torch.Tensor:
            tensor = tensor if rows is None else tensor[rows]
            if blocks is None:
                return tensor
            return tensor.view(tensor.shape[0], -1, size)[:, list(blocks)].reshape(tensor.shape[0], -1)

        offsets = cut(self._tensor(file, f"{name}|offsets"), 1) if block.offset else None
        scales = cut(self._tensor(file, f"{name}|scales"), 1)
        return Codes(block, scales, cut(self._tensor(file, name), block.size), offsets).decoded()

    def _tensor(self, file: str, name: str) -> torch.Tensor:
        opened = self._opened(file)
        found: torch.Tensor = opened.get_tensor(name)
        return found

    def _opened(self, file: str) -> Any:
        if (self.folder, file) not in _OPEN:
            _OPEN[self.folder, file] = safe_open(self.folder / file, framework="pt")
        return _OPEN[self.folder, file]


def _neurons(count: int) -> str:
    return f"neurons-{count}"


def _codes_file(block: str, kind: str) -> str:
    return f"codes-{block}-{kind}.safetensors"


_OPEN: dict[tuple[Path, str], Any] = {}  # mapped files of this process


@torch.no_grad()
def fill(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], *, turned: Sequence[str] = ()) -> None:
    """Copies weights into a model.

    Raises:
        ValueError: names or shapes that do not fit.
    """
    model.tie_weights()
    own = dict(model.named_parameters())
    if own.keys() != weights.keys():
        raise ValueError(f"the weights do not fit the model: {sorted(own.keys() ^ weights.keys())[:4]}")
    for name, parameter in own.items():
        parameter.copy_(weights[name].T if name in turned else weights[name])


def _take_rows(model: PreTrainedModel, source: Sequence[int]) -> None:
    """Gives embedding and head the rows of these entries; -1 stands for the mean of all."""
    rows = torch.tensor(source)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = tables[1] is not None and tables[1].weight is tables[0].weight
    with torch.no_grad():
        for table in tables[: 1 if tied else 2]:
            weight = table.weight[rows.clamp(min=0)].clone()
            weight[rows < 0] = table.weight.mean(dim=0)
            table.weight = nn.Parameter(weight)
            for name in ("num_embeddings", "out_features"):
                if hasattr(table, name):
                    setattr(table, name, len(source))
        if tied:
            tables[1].weight = tables[0].weight
            tables[1].out_features = len(source)
    model.config.vocab_size = len(source)
    for name in ("bos_token_id", "eos_token_id"):
        setattr(model.config, name, 0)
    model.config.pad_token_id = None
