"""Byte-level BPE tokenizers with document and fill-in-the-middle tokens, cached by content."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..folders import write_json
from ..folders.files import TOKENIZER, TOKENIZER_MANIFEST
from ..folders.ranges import check_range
from .corpus import Corpus
from .storage import DataError, building, content_key, locked, stored_key

PreTokenizer = Literal["qwen2", "indent", "line"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|file_sep|>",
    "<|repo_name|>",
    "<|pad|>",
)
END_OF_TEXT, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, FIM_PAD, FILE_SEPARATOR, REPOSITORY_NAME, PAD = range(8)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
LARGEST_VOCABULARY = 65_536

_VERSION = 1
_BATCH_CHARS = 1_000_000

# The first is Qwen2's, letter for letter, so that llama.cpp knows it by name. The other two isolate a newline with the
# indentation that follows, so that a prompt cut at the end of a line is cut between tokens.
PATTERNS: dict[PreTokenizer, str] = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "indent": r"\n[ \t]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+",
    "line": r"\n[ \t]*|[^\n]+",
}


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How tokenizers are trained.

    Args:
        pre_tokenizer: where merges must stop: `qwen2` at words (llama.cpp knows it by name), `indent` also around
            newline and indentation, `line` only there, so that tokens may hold several words of a line.
        train_bytes: how much of the training split the merges are learned from, at most.
        max_token_chars: longest token of the `line` pre-tokenizer.

    Raises:
        ValueError: an unknown pre-tokenizer or a number that is not positive.
    """

    pre_tokenizer: PreTokenizer = "qwen2"
    train_bytes: int = 20_000_000
    max_token_chars: int = 24

    def __post_init__(self) -> None:
        if self.pre_tokenizer not in get_args(PreTokenizer):
            known = ", ".join(get_args(PreTokenizer))
            raise ValueError(f"`pre_tokenizer` must be one of {known}, got {self.pre_tokenizer!r}")
        check_range(self, "train_bytes", "max_token_chars", least=1)


def build_tokenizer(
    corpus: Corpus, *, vocab_size: int, settings: TokenizerSettings, folder: Path, larger: Path | None = None
) -> Path:
    """Trains a tokenizer, or finds it when `folder` holds the one of this corpus and these settings.

    Args:
        corpus: merges are learned from its training split.
        vocab_size: exact number of entries, special tokens included.
        settings: how.
        folder: where it goes; `AutoTokenizer.from_pretrained` loads it without custom code.
        larger: folder of a larger tokenizer of the same corpus and settings. BPE learns merges in order, so its first
            merges are this tokenizer's: nothing needs to be trained again.

    Returns:
        `folder`.

    Raises:
        DataError: the size is out of range, or the text is too short for it.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise DataError(
            f"`vocab_size` must lie between {SMALLEST_VOCABULARY} (special tokens and all bytes) and "
            f"{LARGEST_VOCABULARY} (tokens are stored as uint16), got {vocab_size}"
        )
    key = tokenizer_key(corpus, vocab_size=vocab_size, settings=settings)
    with locked(folder):
        if stored_key(folder, TOKENIZER_MANIFEST) == key:
            return folder
        if larger is None:
            tokenizer = _train(corpus, vocab_size, settings)
        else:
            tokenizer = _first_merges(Tokenizer.from_file(str(larger / TOKENIZER)), vocab_size)
        if tokenizer.get_vocab_size() != vocab_size:
            raise DataError(
                f"the corpus is too small for a vocabulary of {vocab_size}: its text gives "
                f"{tokenizer.get_vocab_size()} entries; add sources or ask for a smaller `vocab_size`"
            )
        with building(folder) as work:
            _save(tokenizer, work)
            write_json(
                work / TOKENIZER_MANIFEST, {"key": key, "vocab_size": vocab_size, **dataclasses.asdict(settings)}
            )
    return folder


def tokenizer_key(corpus: Corpus, *, vocab_size: int, settings: TokenizerSettings) -> str:
    """What tells this tokenizer from every other: text, size, settings."""
    return content_key([_VERSION, corpus.digest, vocab_size, dataclasses.asdict(settings)])


def _pre_tokenizer(settings: TokenizerSettings) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[settings.pre_tokenizer]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _train(corpus: Corpus, vocab_size: int, settings: TokenizerSettings) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(settings)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=settings.max_token_chars if settings.pre_tokenizer == "line" else None,
    )
    tokenizer.train_from_iterator(_sample(corpus, settings.train_bytes), trainer)
    return tokenizer


def _sample(corpus: Corpus, limit: int) -> Iterator[list[str]]:
    """The first `limit` bytes of the training split, whose order by hash is a random one, in small batches."""
    taken = 0
    chunk: list[str] = []
    chars = 0
    for batch in corpus.batches("train", "text"):
        for text in batch["text"]:
            if taken >= limit:
                break
            chunk.append(text)
            taken += len(text.encode())
            chars += len(text)
            if chars >= _BATCH_CHARS:
                yield chunk
                chunk, chars = [], 0
        if taken >= limit:
            break
    if chunk:
        yield chunk


def _first_merges(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    value = json.loads(tokenizer.to_str())
    vocabulary = {token: number for token, number in value["model"]["vocab"].items() if number < vocab_size}
    value["model"]["vocab"] = vocabulary
    value["model"]["merges"] = [pair for pair in value["model"]["merges"] if "".join(pair) in vocabulary]
    return Tokenizer.from_str(json.dumps(value))


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    names = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "file_sep", "repo_name")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[END_OF_TEXT],
        eos_token=SPECIAL_TOKENS[END_OF_TEXT],
        pad_token=SPECIAL_TOKENS[PAD],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={f"{name}_token": f"<|{name}|>" for name in names},
    )
    fast.save_pretrained(str(folder))
    # The name that transformers 4 knows too; version 5 reads it as its own class.
    path = folder / "tokenizer_config.json"
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    value["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, value)


def load_backend(folder: Path) -> Tokenizer:
    """The Rust tokenizer of a folder, set to read special-token literals in source files as plain text.

    Raises:
        DataError: the folder holds no tokenizer.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise DataError(f"expected a tokenizer at {folder}, found no {TOKENIZER}; build it first")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer
