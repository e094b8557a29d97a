"""Tokens: exact resuming, every byte scored once, corruption found."""

import pickle
import shutil

import numpy as np
import pytest

from codenas_hf.data import DataError, Tokens, build_tokens
from codenas_hf.data.tokenizer import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, load_backend
from codenas_hf.data.tokens import fill_in_the_middle


@pytest.fixture(scope="module")
def train(tiny_data):
    return tiny_data.tokens(512, "train")


@pytest.fixture(scope="module")
def backend(tiny_data):
    return load_backend(tiny_data.tokenizer(512))


def test_documents_are_the_texts(tiny_data, train, backend):
    texts = tiny_data.corpus.split("train")["text"]
    assert train.num_documents == len(texts)
    assert [backend.decode(train.document(i).tolist()) for i in range(5)] == list(texts[:5])
    assert train.num_bytes == sum(len(text.encode()) for text in texts)
    assert train.num_tokens == sum(len(train.document(i)) for i in range(len(texts)))
    assert train.bytes_per_token == pytest.approx(train.num_bytes / train.num_tokens)
    assert train.vocab_size == 512


def test_batch_shapes_and_meaning(train):
    batch = train.batch(3, sequences=4, length=200, seed=0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: ((4, 200), np.dtype(np.int64)) for name in ("input_ids", "labels", "position_ids")
    }
    assert np.array_equal(batch["input_ids"], batch["labels"])
    assert batch["input_ids"] is not batch["labels"]
    starts = batch["input_ids"] == 0
    starts[:, 0] = True
    assert np.array_equal(batch["position_ids"] == 0, starts)
    jumps = np.diff(batch["position_ids"], axis=1)
    assert np.all((jumps == 1) | (batch["position_ids"][:, 1:] == 0))


@pytest.mark.parametrize("fim_rate", [0.0, 0.5])
def test_one_process_sees_what_two_see(train, fim_rate):
    options = {"length": 96, "seed": 7, "fim_rate": fim_rate}
    for step in (0, 5):
        whole = train.batch(step, sequences=8, **options)
        halves = [train.batch(step, sequences=4, rank=rank, world=2, **options) for rank in range(2)]
        for name in whole:
            assert np.array_equal(whole[name], np.concatenate([half[name] for half in halves]))


def test_batches_are_a_pure_function(train):
    twin = pickle.loads(pickle.dumps(train))
    late = train.batch(40, sequences=4, length=64, seed=1, fim_rate=0.3)
    for step in range(3):
        train.batch(step, sequences=4, length=64, seed=2)
    for again in (train, twin):
        batch = again.batch(40, sequences=4, length=64, seed=1, fim_rate=0.3)
        assert all(np.array_equal(batch[name], late[name]) for name in late)
    assert not np.array_equal(train.batch(40, sequences=4, length=64, seed=2)["input_ids"], late["input_ids"])


def test_an_epoch_holds_every_document_once_and_the_next_in_another_order(train):
    length = 64
    total = train.num_tokens + train.num_documents
    read = {
        train._row(step, length, 3): train.batch(step, sequences=1, length=length, seed=3)["input_ids"][0]
        for step in range(3 * (total // length))
    }
    assert sorted(read) == list(range(3 * (total // length)))
    stream = np.concatenate([read[row] for row in sorted(read)])
    epochs = []
    for epoch in range(2):
        part = stream[epoch * total : (epoch + 1) * total]
        pieces = np.split(part, np.flatnonzero(part == 0))[1:]
        epochs.append([tuple(piece[1:].tolist()) for piece in pieces])
    expected = sorted(tuple(train.document(i).tolist()) for i in range(train.num_documents))
    assert sorted(epochs[0]) == expected
    assert sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_rows_of_one_document_are_not_read_in_turn(train):
    rows = [train._row(step, 64, 3) for step in range((train.num_tokens + train.num_documents) // 64)]
    assert np.mean(np.diff(rows) == 1) < 0.1
    assert rows != [train._row(step, 64, 4) for step in range(len(rows))]


def split_marks(ids):
    ids = ids.tolist()
    return [ids.index(mark) for mark in (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)]


@pytest.mark.parametrize("suffix_first", [False, True])
def test_fill_in_the_middle_keeps_the_text(suffix_first):
    body = np.arange(100, 160)
    for seed in range(20):
        moved = fill_in_the_middle(body, rng=np.random.default_rng(seed), suffix_first=suffix_first)
        assert len(moved) == len(body)
        prefix_mark, suffix_mark, middle_mark = split_marks(moved)
        assert prefix_mark == 0
        suffix = moved[suffix_mark + 1 : middle_mark]
        if suffix_first:
            assert suffix_mark == 1
            first = moved[middle_mark + 1 :]
        else:
            first = np.concatenate([moved[1:suffix_mark], moved[middle_mark + 1 :]])
        assert np.concatenate([first, suffix]).tolist() == body[:-3].tolist()


def test_fill_in_the_middle_rate(train):
    none = train.batch(0, sequences=8, length=64, seed=0)
    every = train.batch(0, sequences=8, length=64, seed=0, fim_rate=1.0)
    assert not np.isin(none["input_ids"], [FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX]).any()
    assert np.all((every["input_ids"] == FIM_MIDDLE).sum(1) >= 1)
    assert np.array_equal(none["position_ids"], every["position_ids"])
    psm = train.batch(0, sequences=8, length=64, seed=0, fim_rate=1.0, spm_share=0.0)["input_ids"]
    spm = train.batch(0, sequences=8, length=64, seed=0, fim_rate=1.0, spm_share=1.0)["input_ids"]
    follows = [np.mean(rows[:, 1:][rows[:, :-1] == FIM_PREFIX] == FIM_SUFFIX) for rows in (psm, spm)]
    assert follows[1] == 1 > follows[0]


def test_unchanged_tokens_are_not_encoded_again(tiny_data, train, monkeypatch):
    monkeypatch.setattr("codenas_hf.data.tokens._encode_shard", lambda *arguments: pytest.fail("encoded again"))
    again = build_tokens(tiny_data.corpus, tiny_data.tokenizer(512), split="train", folder=train.folder)
    assert again.digest == train.digest


def test_a_killed_encoding_goes_on_with_the_next_shard(tiny_data, train, tmp_path, monkeypatch):
    corpus = tiny_data.corpus
    (shard,) = corpus.shards("train")
    monkeypatch.setattr(type(corpus), "shards", lambda self, name: [shard, shard])
    from codenas_hf.data import tokens as module

    original, calls = module._encode_shard, []

    def dying(corpus, path, backend, out):
        if len(calls) == 1:
            calls.append("died")
            raise KeyboardInterrupt
        calls.append(out.name)
        original(corpus, path, backend, out)

    monkeypatch.setattr(module, "_encode_shard", dying)
    options = {"split": "train", "folder": tmp_path / "t"}
    with pytest.raises(KeyboardInterrupt):
        build_tokens(corpus, tiny_data.tokenizer(512), **options)
    assert not (tmp_path / "t").exists()
    tokens = build_tokens(corpus, tiny_data.tokenizer(512), **options)
    assert calls == ["tokens-00000.bin", "died", "tokens-00001.bin"]
    assert tokens.num_tokens == 2 * train.num_tokens
    assert np.array_equal(tokens.document(train.num_documents + 1), train.document(1))


def test_damaged_shards_are_found(train, tmp_path):
    folder = shutil.copytree(train.folder, tmp_path / "t")
    shard = folder / "tokens-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    Tokens.open(folder)
    with pytest.raises(DataError, match=r"is damaged: its SHA-256 is not the manifest's; delete .* prepare the data"):
        Tokens.open(folder, verify=True)
    shard.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"is damaged: expected [\d,]+ bytes, found"):
        Tokens.open(folder)
    shard.unlink()
    with pytest.raises(DataError, match="found no file"):
        Tokens.open(folder)
    with pytest.raises(DataError, match=r"expected tokens at .* build it first"):
        Tokens.open(tmp_path)
