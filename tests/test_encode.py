"""Bulk encoding gives what the tokenizer gives, or leaves it to the tokenizer."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

import codenas_hf
from codenas_hf.data import CorpusSettings, TokenizerSettings, build_corpus, build_tokenizer
from codenas_hf.data.encode import BulkEncoder, _is_settled
from codenas_hf.data.tokenizer import load_backend

# Every class that the expressions tell apart, control characters included, and what contractions are made of.
ASCII = st.text(st.sampled_from("abSsTtLlVvEe _09'\"().:#\n\r\t\v\f\x00\x1c\x1f\x7f"), max_size=60)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """This package's own code."""
    source = Path(codenas_hf.__file__).parent
    return build_corpus(
        CorpusSettings(sources=(str(source),), benchmarks=(), near_threshold=None, held_out_fraction=0.2),
        folder=tmp_path_factory.mktemp("encode") / "corpus",
    )


@pytest.fixture(scope="module", params=["qwen2", "indent", "line"])
def backend(request, corpus, tmp_path_factory):
    settings = TokenizerSettings(pre_tokenizer=request.param)
    folder = tmp_path_factory.mktemp("encode") / request.param
    return load_backend(build_tokenizer(corpus, vocab_size=3000, settings=settings, folder=folder))


@pytest.fixture(scope="module")
def encoder(backend):
    return BulkEncoder(backend)


def plainly(backend, texts):
    return [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]


def as_lists(found):
    assert all(ids.dtype == np.uint16 for ids in found)
    return [ids.tolist() for ids in found]


def test_real_code_is_encoded_the_same(corpus, backend, encoder):
    assert encoder.fast is not None
    texts = [
        *corpus.split("train")["text"],
        "",
        "<|endoftext|> <|pad|>",
        "é = 'ſ'\r\n\u3000x\u0085",
        "a'S 'LL'd",
    ]
    assert as_lists(encoder.encode(texts)) == plainly(backend, texts)
    assert encoder.encode([]) == []


def test_every_pair_of_ascii_characters(backend, encoder):
    characters = [chr(number) for number in range(128)]
    texts = ["".join(f"{a}{b}{a} {b}\n{a}" for b in characters) for a in characters]
    assert as_lists(encoder.encode(texts)) == plainly(backend, texts)


def test_every_character_that_counts_as_settled(backend, encoder):
    characters = [chr(number) for number in range(128, 0x30000) if not 0xD800 <= number < 0xE000]
    settled = [character for character in characters if _is_settled(character)]
    assert len(settled) > 80_000
    assert not any(map(_is_settled, "\u017f\u00a0\u0085\u180e\u3000\ua7f7"))
    texts = ["".join(f"'{c}a{c}{c}1 {c}\n{c} .{c}" for c in settled[i : i + 500]) for i in range(0, len(settled), 500)]
    assert as_lists(encoder.encode(texts)) == plainly(backend, texts)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(ASCII, max_size=4))
def test_any_ascii_text(backend, encoder, texts):
    assert as_lists(encoder.encode(texts)) == plainly(backend, texts)


def changed(backend, change):
    value = json.loads(backend.to_str())
    change(value)
    return Tokenizer.from_str(json.dumps(value))


def test_what_is_not_shown_to_be_the_same_stays_with_the_tokenizer(backend):
    """Merges out of order, an entry that no merges reach, another model option, another pre-tokenizer."""

    def out_of_order(value):
        random.Random(0).shuffle(value["model"]["merges"])

    def unreachable(value):
        value["model"]["vocab"]["unreachable"] = len(value["model"]["vocab"])

    def option(value):
        value["model"]["ignore_merges"] = True

    for change in (out_of_order, unreachable, option):
        other = changed(backend, change)
        encoder = BulkEncoder(other)
        assert encoder.fast is None
        texts = ["def unreachable(self):\n    return None\n"]
        assert as_lists(encoder.encode(texts)) == plainly(other, texts)
    other = changed(backend, lambda value: None)
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert BulkEncoder(other).fast is None
