"""GGUF, the file that llama.cpp reads: every stock architecture that it computes as transformers does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from ..data.tokenizer import PATTERNS
from ..folders import Release, read_json, whole_file
from .formats import BLOCKS, Block, Format, find_format
from .quantize import as_stored, quantize, transposed

# llama.cpp has pre-tokenizers by name only: how `tokenizer.json` splits text, as `_splits` reads it, to that name.
_BYTES = ("ByteLevel", False, False)
PRE_TYPES: dict[tuple[tuple[Any, ...], ...], str] = {
    (("Split", PATTERNS["qwen2"]), _BYTES): "qwen2",
    (("Split", PATTERNS["qwen2"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")), _BYTES): "llama-bpe",
    (("ByteLevel", False, True),): "gpt-2",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
}


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
    """

    name: str
    activations: tuple[str, ...] = ("silu",)
    permuted: bool = False
    norm: str = "rms"
    eps: tuple[str, ...] = ("rms_norm_eps",)
    rotary: bool = True
    own_head: bool = False


# By transformers' `model_type`. llama.cpp's GELU is the tanh one: of the exact one it differs by at most 5e-4.
_GELUS = ("gelu_pytorch_tanh", "gelu_new", "gelu")
ARCHITECTURES = {
    "llama": _Architecture("llama", permuted=True),
    "qwen2": _Architecture("qwen2"),
    "qwen3": _Architecture("qwen3"),
    "arcee": _Architecture("arcee", activations=("relu2",), permuted=True),
    "stablelm": _Architecture("stablelm", norm="layer", eps=("layer_norm_eps",), own_head=True),
    "starcoder2": _Architecture("starcoder2", activations=_GELUS, norm="layer", eps=("norm_epsilon",)),
    "gpt2": _Architecture("gpt2", activations=_GELUS, norm="layer", eps=("layer_norm_epsilon",), rotary=False),
}


def write_gguf(model: PreTrainedModel, path: Path, *, tokenizer: Path, form: str = "q8_0") -> Path:
    """Writes the model and its tokenizer as one GGUF file, whole or not at all.

    Every weight in it is bit for bit what `quantize.as_stored` makes of it.

    Args:
        model: of a stock class of `ARCHITECTURES`.
        path: the file.
        tokenizer: folder of a byte-level BPE tokenizer that splits text as one of `PRE_TYPES` does.
        form: a storage format of `FORMATS`.

    Raises:
        ValueError: llama.cpp does not know the architecture (names what of it), the format cannot store a layer (names
            the layer), or llama.cpp cannot do what the tokenizer does (names it). Nothing is written then.
        ImportError: the package gguf is absent.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        why = 'GGUF files are written by the package gguf: pip install "codenas-hf[export]"'
        raise ModuleNotFoundError(why, name="gguf") from error

    storage = find_format(form)
    architecture = _architecture_of(model)
    words = AutoTokenizer.from_pretrained(tokenizer)
    state = read_json(Release(tokenizer).tokenizer)  # what lies there: loading adds a post-processor
    pre_type = _pre_type(state, tokenizer)
    tensors = _tensors(model, architecture, storage)
    with whole_file(path) as draft:
        writer = gguf.GGUFWriter(str(draft), architecture.name)
        try:
            _add_header(writer, model.config, architecture, file_type=storage.file_type)
            _add_tokenizer(writer, words, state, vocab_size=int(model.config.vocab_size), pre_type=pre_type)
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
            why = f"{path} could not be written ({error}): make room on the disk; what stood there is unchanged"
            raise OSError(why) from error
        finally:
            writer.close()
    return path


def _architecture_of(model: PreTrainedModel) -> _Architecture:
    """llama.cpp's architecture of a model.

    Raises:
        ValueError: there is none, or it computes something else.
    """
    config: Any = model.config
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


def _pre_type(state: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for how a tokenizer splits text.

    Raises:
        ValueError: it has none, or cannot do something else that the tokenizer does.
    """
    model, after = state["model"], state.get("post_processor") or {}
    against = []
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        against.append(f"its model is {model['type']}, not byte-level BPE")
    if state.get("normalizer") is not None:
        against.append(f"it changes the text first ({state['normalizer']['type']})")
    if any("SpecialToken" in piece for piece in after.get("single", [])) or "processors" in after or "cls" in after:
        against.append(f"it adds tokens to every text ({after['type']})")
    if against:
        raise ValueError(f"llama.cpp cannot read text as the tokenizer {folder} does: {'; '.join(against)}")
    splits = _splits(state.get("pre_tokenizer") or {})
    if splits not in PRE_TYPES:
        raise ValueError(
            f"the tokenizer {folder} splits text by {splits}, for which llama.cpp has no name; expected the split of "
            f"{', '.join(PRE_TYPES.values())}; train one with `tokenizer.pre_tokenizer=qwen2`"
        )
    return PRE_TYPES[splits]


def _splits(state: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
    """A pre-tokenizer's steps with what makes them differ; `trim_offsets` moves no boundary."""
    steps = state["pretokenizers"] if state.get("type") == "Sequence" else [state]
    found: list[tuple[Any, ...]] = []
    for step in steps:
        match step.get("type"):
            case "Split" if step["behavior"] == "Isolated" and not step.get("invert"):
                found.append(("Split", step["pattern"].get("Regex")))
            case "ByteLevel":
                found.append(("ByteLevel", step["add_prefix_space"], step.get("use_regex", True)))
            case "Digits":
                found.append(("Digits", step["individual_digits"]))
            case other:
                found.append((other, json.dumps(step, sort_keys=True)))
    return tuple(found)


def _add_tokenizer(writer: Any, words: Any, state: dict[str, Any], *, vocab_size: int, pre_type: str) -> None:
    import gguf

    by_id = {index: token for token, index in words.get_vocab().items()}
    added = words.added_tokens_decoder
    names, kinds = [], []
    for index in range(vocab_size):
        names.append(by_id.get(index, f"<|unused_{index}|>"))
        kind = gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED
        if index in added:
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_type)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for name in ("bos", "eos", "pad"):
        if (index := getattr(words, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    for name, token in (("pre", "<|fim_prefix|>"), ("suf", "<|fim_suffix|>"), ("mid", "<|fim_middle|>")):
        if token in words.get_vocab():
            writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", words.convert_tokens_to_ids(token))


def _tensors(
    model: PreTrainedModel, architecture: _Architecture, storage: Format
) -> list[tuple[str, Block, torch.Tensor]]:
    """Name in llama.cpp, block and float32 value of each tensor.

    Raises:
        ValueError: a tensor that llama.cpp has no place for, or that the format cannot store.
    """
    import gguf

    config: Any = model.config
    layers = int(getattr(config, "num_hidden_layers", 0) or config.n_layer)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, layers)
    across = transposed(model)
    found = []
    parameters = dict(model.named_parameters())  # a tied head once, as the embedding
    if architecture.own_head and "lm_head.weight" not in parameters:
        parameters["lm_head.weight"] = parameters["model.embed_tokens.weight"]
    for name, parameter in parameters.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ValueError(f"llama.cpp's {architecture.name} has no place for `{name}`")
        weight = parameter.detach().float().cpu()
        block = _block_of(storage, name, tuple(weight.shape))
        if name in across:
            weight = weight.T.contiguous()
        if architecture.permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            shape = weight.shape
            weight = weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).transpose(1, 2).reshape(shape)
        try:
            as_stored(weight[:1] if weight.dim() > 1 else weight, block)
        except ValueError as error:
            raise ValueError(f"`{name}` {list(weight.shape)} cannot be stored as {storage.name}: {error}") from error
        found.append((theirs, block, weight.contiguous()))
    return found


def _block_of(storage: Format, name: str, shape: tuple[int, ...]) -> Block:
    """As the format has it; but llama.cpp reads vectors and tables of positions as float32 only."""
    return BLOCKS["f32"] if len(shape) < 2 or "wpe" in name else storage.block_of(name, shape)
