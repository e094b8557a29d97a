"""A smaller vocabulary's tokens are exact, though nothing is encoded."""

import numpy as np
import pytest

from codenas_hf.data import DataError, TokenizerSettings, Tokens, build_tokenizer, build_tokens
from codenas_hf.data.nested import TokenSplitter
from codenas_hf.data.tokenizer import load_backend


@pytest.fixture(scope="module", params=["qwen2", "indent", "line"])
def pair(request, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    settings = TokenizerSettings(pre_tokenizer=request.param)
    large = build_tokenizer(tiny_data.corpus, vocab_size=600, settings=settings, folder=folder / "large")
    small = build_tokenizer(tiny_data.corpus, vocab_size=330, settings=settings, folder=folder / "small", larger=large)
    return large, small


def test_derived_tokens_are_the_encoded_ones(tiny_data, pair, tmp_path):
    large, small = pair
    build_tokens(tiny_data.corpus, large, split="train", folder=tmp_path / "large")
    options = {"split": "train"}
    encoded = build_tokens(tiny_data.corpus, small, folder=tmp_path / "a", **options)
    derived = build_tokens(
        tiny_data.corpus, small, folder=tmp_path / "b", larger=(tmp_path / "large", large), **options
    )
    assert isinstance(derived, Tokens)
    names = ("tokens-00000.bin", "documents.npy", "tokens.json")
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]
    assert encoded.digest == derived.digest


def test_repetitive_and_strange_text(pair):
    large, small = pair
    splitter = TokenSplitter.between(large, small)
    for text in (
        "a" * 999,
        " " * 50 + "\t" * 9 + "\n" * 20,
        "selfselfself.self",
        "é🙂" * 30,
        "<|pad|>",
        "return return",
    ):
        wide, narrow = (load_backend(folder).encode(text).ids for folder in (large, small))
        assert splitter.split(np.array(wide, np.uint16)).tolist() == narrow
    assert splitter.split(np.zeros(0, np.uint16)).tolist() == []


def test_other_merges_are_refused(tiny_data, pair):
    _, small = pair
    with pytest.raises(DataError, match=r"cannot be derived .* its merges to be the other's first ones"):
        TokenSplitter.between(small, tiny_data.tokenizer(512))
