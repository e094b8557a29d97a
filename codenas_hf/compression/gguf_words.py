"""The tokenizer inside a GGUF file: byte-level BPE, as llama.cpp reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..folders import Release, read_json

# llama.cpp has pre-tokenizers by name only: how `tokenizer.json` splits text, as `_splits` reads it, to that name.
_BYTES = ("ByteLevel", False, False)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TYPES: dict[tuple[tuple[Any, ...], ...], str] = {
    (("Split", _QWEN2), _BYTES): "qwen2",
    (("Split", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), _BYTES): "llama-bpe",
    (("ByteLevel", False, True),): "gpt-2",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
}


@dataclass(frozen=True)
class Words:
    """A tokenizer as transformers loads it, its file (loading adds a post-processor), and how it splits text."""

    loaded: Any
    state: dict[str, Any]
    pre_type: str


def read_words(folder: Path) -> Words:
    """A tokenizer that llama.cpp can read.

    Raises:
        ValueError: it cannot; says what of it.
    """
    state = read_json(Release(folder).tokenizer)
    return Words(AutoTokenizer.from_pretrained(folder), state, _pre_type(state, folder))


def add_words(writer: Any, tokenizer: Words, *, vocab_size: int) -> None:
    """Adds a tokenizer to a GGUF file that is being written.

    Args:
        writer: the package's writer.
        tokenizer: from `read_words`.
        vocab_size: of the model, which may have more entries.
    """
    import gguf

    words, state = tokenizer.loaded, tokenizer.state
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
    writer.add_tokenizer_pre(tokenizer.pre_type)
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
