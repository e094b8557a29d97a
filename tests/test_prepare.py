"""Everything a job reads, built once."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from codenas_hf.data import (
    CorpusSettings,
    DataError,
    PreparedData,
    TokenizerSettings,
    prepare_data,
    prepare_for_tokenizer,
)
from codenas_hf.jobs.text import progress_lines


def settings(folder):
    return {
        "corpus": CorpusSettings(sources=(str(folder),), benchmarks=(), held_out_fraction=0.2, near_threshold=None),
        "tokenizer": TokenizerSettings(),
    }


def test_prepared_data_is_found_again_and_can_be_pickled(tiny_corpus_folder, tiny_data):
    again = prepare_data(**settings(tiny_corpus_folder), vocab_sizes=(512,), folder=tiny_data.folder)
    assert again == tiny_data
    assert pickle.loads(pickle.dumps(again)) == again
    assert again.vocab_sizes == (512,)
    assert again.corpus.digest == tiny_data.corpus.digest


def test_places_are_kept_relative_to_the_study(tiny_data, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(tiny_data.folder, runs / "data")
    corpus = runs / "data" / tiny_data.corpus_folder.relative_to(tiny_data.folder)
    data = dataclasses.replace(tiny_data, folder=runs / "data", corpus_folder=corpus)
    (runs / "study").mkdir()
    kept = data.to_dict(beside=runs / "study")
    assert PreparedData.from_dict(json.loads(json.dumps(kept)), beside=runs / "study") == data
    (runs / "study").rename(tmp_path / "alone")  # away from its data
    assert PreparedData.from_dict(kept, beside=tmp_path / "alone") == data
    runs.rename(tmp_path / "moved")  # the data moved as well
    (tmp_path / "alone").rename(tmp_path / "moved" / "study.old1")
    found = PreparedData.from_dict(kept, beside=tmp_path / "moved" / "study.old1")
    assert found.corpus_folder.is_relative_to(tmp_path / "moved")
    assert found.corpus.digest == tiny_data.corpus.digest
    earlier = {**kept, "folder": str(runs / "data"), "corpus_folder": str(data.corpus_folder)}  # absolute, and gone
    del earlier["beside"]
    found = PreparedData.from_dict(earlier, beside=tmp_path / "moved" / "s")
    assert found.corpus_folder.is_relative_to(tmp_path / "moved")


def test_several_vocabularies(tiny_corpus_folder, tiny_data, tmp_path):
    data = prepare_data(**settings(tiny_corpus_folder), vocab_sizes=(300, 512, 300), folder=tmp_path)
    assert data.vocab_sizes == (300, 512)
    assert [data.tokens(size, "search").vocab_size for size in (300, 512)] == [300, 512]
    assert data.tokens(300, "train").num_bytes == data.tokens(512, "train").num_bytes
    assert data.tokens(300, "train").num_tokens > data.tokens(512, "train").num_tokens
    assert data.digest != tiny_data.digest


def test_what_was_not_prepared(tiny_data):
    with pytest.raises(DataError, match=r"no tokenizer with 999 entries is prepared: expected one of \(512,\)"):
        tiny_data.tokenizer(999)
    with pytest.raises(DataError, match="no tokens of `test` with 512 entries"):
        tiny_data.tokens(512, "test")


def test_no_vocabulary(tiny_corpus_folder, tmp_path):
    with pytest.raises(DataError, match="`vocab_sizes` must name at least one"):
        prepare_data(**settings(tiny_corpus_folder), vocab_sizes=(), folder=tmp_path)


def test_a_tokenizer_that_is_there_already(tiny_corpus_folder, tiny_data, tmp_path):
    corpus = settings(tiny_corpus_folder)["corpus"]
    data = prepare_for_tokenizer(tiny_data.tokenizer(512), corpus=corpus, folder=tmp_path)
    assert data.tokens(512, "train").num_tokens == tiny_data.tokens(512, "train").num_tokens
    assert data.tokenizer(512) == tiny_data.tokenizer(512)
    assert prepare_for_tokenizer(tiny_data.tokenizer(512), corpus=corpus, folder=tmp_path) == data


def test_a_stranger_s_tokenizer_is_refused(tiny_corpus_folder, tmp_path):
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="is none that this package trains"):
        prepare_for_tokenizer(tmp_path, corpus=settings(tiny_corpus_folder)["corpus"], folder=tmp_path / "data")


def test_a_preparation_says_how_far_it_is(tiny_corpus_folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    prepare_data(
        **settings(tiny_corpus_folder),
        vocab_sizes=(512, 300),
        folder=tmp_path,
        on_progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert list(dict.fromkeys(what for what, _, _ in told)) == ["corpus", "vocabularies"]
    assert [row for row in told if row[0] == "vocabularies"] == [("vocabularies", n, 2) for n in range(3)]
    corpus = [done / total for what, done, total in told if what == "corpus"]
    assert corpus[0] == 0
    assert corpus == sorted(corpus)
    assert corpus[-1] > 0.5


def test_the_seconds_left_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr("codenas_hf.jobs.text.time.monotonic", lambda: next(clock))
    said: list[str] = []
    on_progress = progress_lines(said.append)
    for event in (("corpus", 0, 100), ("corpus", 10, 100), ("corpus", 50, 100), ("x", 0, 4), ("x", 1, 4)):
        on_progress(*event)
    assert said == ["data      50% of the corpus, about 10 s left", "data      25% of the x, about 24 s left"]
