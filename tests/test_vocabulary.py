"""A trimmed tokenizer spells every text exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from codenas_hf.compression.vocabulary import (
    VocabularyError,
    count_tokens,
    kept_entries,
    trimmed_tokenizer,
)

TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py"))[:12]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<|end|>", "<|fim|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(TEXTS, trainer)
    end = words.token_to_id("<|end|>")
    words.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", end)])
    words.add_special_tokens(["<|late|>"])  # an added token behind the others
    return words


def trimmed(tokenizer: Tokenizer, keep: int) -> tuple[Tokenizer, list[int]]:
    state = json.loads(tokenizer.to_str())
    kept = kept_entries(state, count_tokens(tokenizer, TEXTS), keep=keep)
    return Tokenizer.from_str(json.dumps(trimmed_tokenizer(state, kept))), kept


@pytest.mark.parametrize("keep", [259, 300, 700, 1201])
def test_every_text_is_spelt_exactly_with_kept_entries_only(tokenizer: Tokenizer, keep: int) -> None:
    smaller, kept = trimmed(tokenizer, keep)
    assert smaller.get_vocab_size() == len(kept) == keep
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 4000, dtype=np.uint8).tobytes().decode("latin-1")
    for text in (*TEXTS[:4], noise, "日本語 \u2028 \x00 🐍", ""):
        ids = smaller.encode(text, add_special_tokens=False).ids
        assert smaller.decode(ids, skip_special_tokens=False) == text
        old = [kept[i] for i in ids]
        assert tokenizer.decode(old, skip_special_tokens=False) == text


def test_all_entries_give_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    smaller, kept = trimmed(tokenizer, tokenizer.get_vocab_size())
    assert kept == list(range(tokenizer.get_vocab_size()))
    assert smaller.encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0]).ids


def test_frequent_entries_stay_and_text_grows_little(tokenizer: Tokenizer) -> None:
    half, _ = trimmed(tokenizer, 700)
    text = "\n".join(TEXTS)
    before, after = (len(t.encode(text, add_special_tokens=False).ids) for t in (tokenizer, half))
    assert before < after < 1.25 * before


def test_special_tokens_are_renumbered_everywhere(tokenizer: Tokenizer) -> None:
    smaller, _ = trimmed(tokenizer, 400)
    assert smaller.encode("x").ids[-1] == smaller.token_to_id("<|end|>")
    assert smaller.encode("<|late|>", add_special_tokens=False).ids == [smaller.token_to_id("<|late|>")]


def state_of(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())


def test_what_cannot_be_trimmed_is_refused(tokenizer: Tokenizer) -> None:
    counts = count_tokens(tokenizer, TEXTS)
    with pytest.raises(
        VocabularyError, match=r"between 259 \(bytes and special tokens\) and 1201 \(all entries\), got 9"
    ):
        kept_entries(state_of(tokenizer), counts, keep=9)
    with pytest.raises(VocabularyError, match=r"the corpus has 0 tokens, too few to choose 400 entries"):
        kept_entries(state_of(tokenizer), counts * 0, keep=400)
    words = Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    with pytest.raises(VocabularyError, match="the tokenizer is a WordPiece"):
        kept_entries(state_of(words), counts, keep=400)
    characters = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(VocabularyError, match="BPE over characters"):
        kept_entries(state_of(characters), counts, keep=400)
    state = state_of(tokenizer)
    del state["model"]["vocab"]["!"]
    with pytest.raises(VocabularyError, match="lacks 1 of the 256 bytes"):
        kept_entries(state, counts, keep=400)
