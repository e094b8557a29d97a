"""GGUF, the file that llama.cpp reads, for models that are a stock Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from ..architecture.stock import find_row
from ..data.tokenizer import PATTERNS
from ..folders import read_json, whole_file

# llama.cpp has pre-tokenizers by name only: how `tokenizer.json` splits text, as `_splits` reads it, to that name.
_BYTES = ("ByteLevel", False, False)
PRE_TYPES: dict[tuple[tuple[Any, ...], ...], str] = {
    (("Split", PATTERNS["qwen2"]), _BYTES): "qwen2",
    (("Split", PATTERNS["qwen2"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")), _BYTES): "llama-bpe",
    (("ByteLevel", False, True),): "gpt-2",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
}
_FILE_TYPES = {"float32": 0, "float16": 1}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(model: PreTrainedModel, path: Path, *, tokenizer: Path, dtype: str = "float16") -> Path:
    """Writes the model and its tokenizer as one GGUF file of the architecture `llama`, whole or not at all.

    Args:
        model: a `CodeNASForCausalLM`.
        path: the file.
        tokenizer: folder of a byte-level BPE tokenizer that splits text as one of `PRE_TYPES` does.
        dtype: float32 or float16 for the matrices; norms stay float32.

    Raises:
        ValueError: the model is no stock Llama (names the genes), or llama.cpp cannot do what the tokenizer does
            (names it). Nothing is written then.
        ImportError: the package gguf is absent.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError('GGUF files are written by the package gguf: pip install "codenas-hf[export]"') from error

    if dtype not in _FILE_TYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(_FILE_TYPES)}, got {dtype!r}")
    config: Any = model.config
    row, reasons = find_row(config)
    if row is None or row.model_type != "llama":
        why = "; ".join(reasons) or f"it equals {row.model_type if row else None}"
        raise ValueError(f"only a stock llama is written as GGUF: {why}")
    if config.hidden_act != "silu":
        raise ValueError(f"llama.cpp's llama has `hidden_act` silu, got {config.hidden_act}")
    words = AutoTokenizer.from_pretrained(tokenizer)
    state = read_json(tokenizer / "tokenizer.json")  # what lies there: loading adds a post-processor
    pre_type = _pre_type(state, tokenizer)
    with whole_file(path) as draft:
        writer = gguf.GGUFWriter(str(draft), "llama")
        try:
            _add_header(writer, config, file_type=_FILE_TYPES[dtype])
            _add_tokenizer(writer, words, state, vocab_size=config.vocab_size, pre_type=pre_type)
            weights = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
            for name, weight in _tensors(weights, config).items():
                half = dtype == "float16" and weight.dim() > 1
                writer.add_tensor(name, (weight.half() if half else weight).numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except OSError as error:
            why = f"{path} could not be written ({error}): make room on the disk; what stood there is unchanged"
            raise OSError(why) from error
        finally:
            writer.close()
    return path


def _add_header(writer: Any, config: Any, *, file_type: int) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
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


def _tensors(weights: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Weights under llama.cpp's names; query and key rows in its order of rotary pairs."""
    found = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        found["output.weight"] = weights["lm_head.weight"]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for block in range(config.num_hidden_layers):
        for theirs, ours in _BLOCK.items():
            weight = weights[f"model.layers.{block}.{ours}.weight"]
            if theirs in heads:
                shape = weight.shape
                weight = weight.reshape(heads[theirs], 2, shape[0] // heads[theirs] // 2, shape[1])
                weight = weight.transpose(1, 2).reshape(shape).contiguous()
            found[f"blk.{block}.{theirs}.weight"] = weight
    return found
