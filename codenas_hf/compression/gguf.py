"""GGUF, the file that llama.cpp reads, for models that are a stock Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..architecture.stock import find_row
from ..modeling_codenas import CodeNASForCausalLM

# llama.cpp knows pre-tokenizers by name only; this is the one that it calls qwen2, and what our tokenizers use.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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


def write_gguf(model: CodeNASForCausalLM, path: Path, *, tokenizer: Path, dtype: str = "float16") -> Path:
    """Writes the model and its tokenizer as one GGUF file of the architecture `llama`.

    Args:
        path: the file; its folder must exist.
        tokenizer: folder of a byte-level BPE tokenizer with the qwen2 pre-tokenizer.
        dtype: float32 or float16 for the matrices; norms stay float32.

    Raises:
        ValueError: the model is no stock Llama (names the genes), or llama.cpp has no name for the pre-tokenizer.
    """
    import gguf

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
    state = json.loads(words.backend_tokenizer.to_str())
    _check_tokenizer(state, tokenizer)

    writer = gguf.GGUFWriter(str(path), "llama")
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
    writer.add_file_type(_FILE_TYPES[dtype])
    _add_tokenizer(writer, words, state, config.vocab_size)
    weights = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    for name, weight in _tensors(weights, config).items():
        half = dtype == "float16" and weight.dim() > 1
        writer.add_tensor(name, (weight.half() if half else weight).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _check_tokenizer(state: dict[str, Any], folder: Path) -> None:
    patterns = [
        step["pattern"].get("Regex")
        for step in (state.get("pre_tokenizer") or {}).get("pretokenizers", [])
        if step["type"] == "Split"
    ]
    if state["model"]["type"] != "BPE" or patterns != [QWEN2_PATTERN]:
        raise ValueError(
            f"the tokenizer {folder} splits text by {patterns}, for which llama.cpp has no name; "
            f"expected byte-level BPE with the qwen2 pattern"
        )


def _add_tokenizer(writer: Any, words: Any, state: dict[str, Any], vocab_size: int) -> None:
    import gguf

    by_id = {index: token for token, index in words.get_vocab().items()}
    special = set(words.added_tokens_decoder)
    names, kinds = [], []
    for index in range(vocab_size):
        names.append(by_id.get(index, f"<|unused_{index}|>"))
        kind = gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED
        kinds.append(gguf.TokenType.CONTROL if index in special else kind)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
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
