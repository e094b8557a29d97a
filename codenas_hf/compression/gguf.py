"""GGUF, the file that llama.cpp reads: every stock architecture that it computes as transformers does."""

from __future__ import annotations

import errno
import functools
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..folders import whole_file
from .formats import BLOCKS, Block, Format, find_format, is_positions
from .gguf_words import add_words, read_words
from .quantize import as_stored, quantize, transposed

_ALIGNED = 32  # bytes: where a GGUF file begins its tensors, and each of them


@dataclass(frozen=True)
class _Architecture:
    """How llama.cpp names and computes an architecture of transformers.

    Args:
        name: in llama.cpp.
        activations: of the feed-forward network that it computes.
        permuted: query and key rows lie in the order of its rotary pairs.
        norm: which of its keys holds the norms' epsilon.
        eps: names that the configuration has for it.
        rotary: positions are rotary.
        own_head: it reads the head as a tensor of its own; a tied table is then stored twice.
        biases: it reads those of `attention_bias` and `mlp_bias`.
    """

    name: str
    activations: tuple[str, ...] = ("silu",)
    permuted: bool = False
    norm: str = "rms"
    eps: tuple[str, ...] = ("rms_norm_eps",)
    rotary: bool = True
    own_head: bool = False
    biases: bool = False


# By transformers' `model_type`. llama.cpp's GELU is the tanh one: of the exact one it differs by at most 5e-4.
_GELUS = ("gelu_pytorch_tanh", "gelu_new", "gelu")
ARCHITECTURES = {
    "llama": _Architecture("llama", permuted=True, biases=True),
    "qwen2": _Architecture("qwen2"),
    "qwen3": _Architecture("qwen3"),
    "arcee": _Architecture("arcee", activations=("relu2",), permuted=True),
    "stablelm": _Architecture("stablelm", norm="layer", eps=("layer_norm_eps",), own_head=True),
    "starcoder2": _Architecture("starcoder2", activations=_GELUS, norm="layer", eps=("norm_epsilon",)),
    "gpt2": _Architecture("gpt2", activations=_GELUS, norm="layer", eps=("layer_norm_epsilon",), rotary=False),
}


def write_gguf(model: PreTrainedModel, path: Path, *, tokenizer: Path, form: str | Format = "q8_0") -> Path:
    """Writes the model and its tokenizer as one GGUF file, whole or not at all.

    Every weight in it is bit for bit what `quantize.as_stored` makes of it.

    Args:
        model: of a stock class of `ARCHITECTURES`.
        path: the file.
        tokenizer: folder of a byte-level BPE tokenizer that splits text as one of `gguf_words.PRE_TYPES` does.
        form: a storage format, or the name of one in `FORMATS`.

    Raises:
        ValueError: llama.cpp does not know the architecture (names what of it), the format cannot store a layer (names
            the layer), or llama.cpp cannot do what the tokenizer does (names it). Nothing is written then.
        ImportError: the package gguf is absent.
    """
    gguf = _package()
    storage = find_format(form) if isinstance(form, str) else form
    architecture = _architecture_of(model.config)
    words = read_words(tokenizer)
    tensors = _tensors(model, architecture, storage)
    with whole_file(path) as draft:
        writer = gguf.GGUFWriter(str(draft), architecture.name)
        try:
            _add_header(writer, model.config, architecture, file_type=storage.file_type)
            add_words(writer, words, vocab_size=int(model.config.vocab_size))
            for name, block, weight in tensors:
                if block.points is None:
                    kind = {"f32": torch.float32, "f16": torch.float16}.get(block.name)
                    if kind is not None:
                        writer.add_tensor(name, weight.to(kind).numpy())
                        continue
                    bits = weight.to(torch.bfloat16).view(torch.int16).numpy().view("uint8")
                    writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
                else:
                    kind = getattr(gguf.GGMLQuantizationType, block.name.upper())
                    writer.add_tensor(name, quantize(weight, block).packed(), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            mend = "make room on the disk" if full else "name a file that may be written"
            why = f"{path} could not be written ({error.strerror or error}): {mend}; what stood there is unchanged"
            raise OSError(why) from error
        finally:
            writer.close()
    return path


@dataclass(frozen=True)
class Layout:
    """What GGUF files of one architecture, tokenizer and format have in common, and so how long each will be.

    Args:
        architecture: in llama.cpp.
        storage: the format.
        head_bytes: of everything before the list of tensors.
    """

    architecture: _Architecture
    storage: Format
    head_bytes: int

    def file_bytes(self, shapes: Mapping[str, tuple[int, ...]], *, layers: int) -> int:
        """Bytes of the file with these tensors, by their names in transformers; equal to those of the written file.

        Args:
            shapes: of the stock class's parameters; a tied head does not stand among them.
            layers: of the model.
        """
        names = _names(self.architecture.name, layers)
        shapes = dict(shapes)
        if self.architecture.own_head and "lm_head.weight" not in shapes:
            shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        listed = stored = 0
        for name, shape in shapes.items():
            bits = _block_of(self.storage, name, shape).bits
            listed += 24 + len(_place(names, name, self.architecture)) + 8 * len(shape)
            stored += _aligned(round(math.prod(shape) * bits / 8))
        return _aligned(self.head_bytes + listed) + stored


def check_architecture(config: Any) -> None:
    """Refuses a model that llama.cpp does not compute as transformers does, by its configuration.

    Raises:
        ValueError, ImportError: as `write_gguf`.
    """
    _package()
    _architecture_of(config)


def file_layout(config: Any, *, tokenizer: Path, form: str | Format) -> Layout:
    """The layout of the files of models like one, from its configuration alone.

    Args:
        config: of a stock class; its numbers do not matter.
        tokenizer: folder of the tokenizer.
        form: a storage format, or the name of one in `FORMATS`.

    Raises:
        ValueError, ImportError: as `write_gguf`.
    """
    gguf = _package()
    storage = find_format(form) if isinstance(form, str) else form
    architecture = _architecture_of(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.gguf"
        writer = gguf.GGUFWriter(str(path), architecture.name)
        _add_header(writer, config, architecture, file_type=storage.file_type)
        add_words(writer, read_words(tokenizer), vocab_size=int(config.vocab_size))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return Layout(architecture, storage, path.stat().st_size)


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        why = 'GGUF files are written by the package gguf: pip install "codenas-hf[export]"'
        raise ModuleNotFoundError(why, name="gguf") from error
    return gguf


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _architecture_of(config: Any) -> _Architecture:
    """llama.cpp's architecture of a model by its configuration.

    Raises:
        ValueError: there is none, or it computes something else.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise ValueError(
            f"llama.cpp has no architecture for a {config.model_type} here; there are {', '.join(ARCHITECTURES)}"
        )
    activation = getattr(config, "hidden_act", None) or config.activation_function
    if activation not in found.activations:
        raise ValueError(
            f"llama.cpp's {found.name} has the activation {' or '.join(found.activations)}, got {activation}"
        )
    windows = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if windows is not None:
        raise ValueError(f"llama.cpp's {found.name} has no sliding window, got `sliding_window` {windows}")
    biased = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if biased and not found.biases:
        raise ValueError(f"llama.cpp's {found.name} has no biases, got `{biased[0]}`; take a model without them")
    scaling = config.rope_parameters.get("rope_type", "default") if found.rotary else "default"
    if scaling != "default":
        raise ValueError(
            f"a GGUF file of {found.name} is written here with plain rotary positions: expected the `rope_type` "
            f"default, got {scaling}; take a model whose positions are not scaled"
        )
    return found


def _add_header(writer: Any, config: Any, architecture: _Architecture, *, file_type: int) -> None:
    """Sizes and constants, whatever the configuration calls them."""

    def first(*names: str) -> Any:
        return next(value for name in names if (value := getattr(config, name, None)) is not None)

    heads = first("num_attention_heads", "n_head")
    width = first("hidden_size", "n_embd")
    size = getattr(config, "head_dim", None) or width // heads
    writer.add_context_length(first("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(width)
    writer.add_block_count(first("num_hidden_layers", "n_layer"))
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or config.n_inner or 4 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    (writer.add_layer_norm_rms_eps if architecture.norm == "rms" else writer.add_layer_norm_eps)(
        first(*architecture.eps)
    )
    if architecture.rotary:
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    if getattr(config, "use_parallel_residual", None) is not None:
        writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)


def _tensors(
    model: PreTrainedModel, architecture: _Architecture, storage: Format
) -> list[tuple[str, Block, torch.Tensor]]:
    """Name in llama.cpp, block and float32 value of each tensor.

    Raises:
        ValueError: a tensor that llama.cpp has no place for, or that the format cannot store.
    """
    config: Any = model.config
    names = _names(architecture.name, int(getattr(config, "num_hidden_layers", 0) or config.n_layer))
    across = transposed(model)
    found = []
    parameters = dict(model.named_parameters())  # a tied head once, as the embedding
    if architecture.own_head and "lm_head.weight" not in parameters:
        parameters["lm_head.weight"] = parameters["model.embed_tokens.weight"]
    for name, parameter in parameters.items():
        theirs = _place(names, name, architecture)
        weight = parameter.detach().float().cpu()
        block = _block_of(storage, name, tuple(weight.shape))
        if name in across:
            weight = weight.T.contiguous()
        if architecture.permuted and name.split(".")[-2] in ("q_proj", "k_proj"):  # a bias as its matrix
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        try:
            as_stored(weight[:1] if weight.dim() > 1 else weight, block)
        except ValueError as error:
            raise ValueError(f"`{name}` {list(weight.shape)} cannot be stored as {storage.name}: {error}") from error
        found.append((theirs, block, weight.contiguous()))
    return found


@functools.cache
def _names(architecture: str, layers: int) -> Any:
    """llama.cpp's names of the tensors of an architecture."""
    gguf = _package()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, layers)


def _place(names: Any, name: str, architecture: _Architecture) -> str:
    """llama.cpp's name of one tensor.

    Raises:
        ValueError: it has no place for it.
    """
    theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if theirs is None:
        raise ValueError(f"llama.cpp's {architecture.name} has no place for `{name}`")
    return str(theirs)


def _block_of(storage: Format, name: str, shape: tuple[int, ...]) -> Block:
    """As the format has it; but llama.cpp reads vectors and tables of positions as float32 only."""
    return BLOCKS["f32"] if len(shape) < 2 or is_positions(name) else storage.block_of(name, shape)
