"""Search and report text as passages: the same bytes for every vocabulary, of many projects."""

import itertools
import random

import numpy as np
import pytest
from conftest import python_module

from codenas_hf.data import CorpusSettings, DataError, TokenizerSettings, build_corpus, prepare_data
from codenas_hf.data.passages import boundaries, build_passages, choose_passages
from codenas_hf.data.tokenizer import build_tokenizer, load_backend


def corpus_of(folder, *, projects, modules=6, seed=0, target="out", **settings):
    rng = random.Random(7)
    source = folder / f"src{projects}"
    for project in range(projects):
        for module in range(modules):
            path = source / f"p{project}" / f"m{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(python_module(rng).replace("total", "größe") if module % 2 else python_module(rng))
    wanted = CorpusSettings(sources=(str(source),), benchmarks=(), near_threshold=None, seed=seed, **settings)
    return build_corpus(wanted, folder=folder / target, workers=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpus_of(tmp_path_factory.mktemp("forty"), projects=44)


@pytest.fixture(scope="module")
def tokenizers(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    kinds = [(270, "qwen2"), (620, "qwen2"), (500, "indent"), (600, "line")]
    return [
        build_tokenizer(
            corpus, vocab_size=size, settings=TokenizerSettings(pre_tokenizer=kind), folder=folder / f"{size}"
        )
        for size, kind in kinds
    ]


def spelt(backend, passages):
    """The bytes that each row's targets spell."""
    alphabet = {token: number for token, number in backend.get_vocab().items()}
    names = {number: token for token, number in alphabet.items()}
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte = {character: number for number, character in bytes_to_unicode().items()}
    return [b"".join(bytes(byte[c] for c in names[t]) for t in row[row != -100].tolist()) for row in passages.targets]


@pytest.mark.parametrize("length", [48, 200, 1024])
@pytest.mark.parametrize("which", ["search", "report"])
def test_the_same_bytes_for_every_vocabulary(corpus, tokenizers, tmp_path, length, which):
    chosen = choose_passages(corpus, which, max_bytes=20_000)
    texts = [passage.text for passage in chosen]
    assert 15_000 < sum(map(len, texts)) <= 20_000
    for number, tokenizer in enumerate(tokenizers):
        cache = tmp_path / str(number)
        passages = build_passages(corpus, tokenizer, which, length=length, max_bytes=20_000, cache=cache)
        rows = spelt(load_backend(tokenizer), passages)
        assert [len(row) for row in rows] == passages.num_bytes.tolist()
        joined = [
            b"".join(r for r, p in zip(rows, passages.passage, strict=True) if p == n) for n in range(len(texts))
        ]
        assert joined == texts
        names = [
            passages.projects[number] for number in passages.project[np.unique(passages.passage, return_index=True)[1]]
        ]
        assert names == [passage.project for passage in chosen]
        assert passages.by == "project"
        assert passages.input_ids.shape == passages.targets.shape == passages.position_ids.shape
        assert passages.input_ids.shape[1] <= length
        # A target is the next input, wherever a next one is.
        inside = (passages.targets[:, :-1] != -100) & (passages.targets[:, 1:] != -100)
        assert np.array_equal(passages.input_ids[:, 1:][inside], passages.targets[:, :-1][inside])
        assert np.all(passages.position_ids == np.arange(passages.input_ids.shape[1]))


def test_context_is_what_precedes(corpus, tokenizers, tmp_path):
    whole = {text.encode() for text in corpus.split("search")["text"]}
    chosen = choose_passages(corpus, "search", max_bytes=20_000)
    for passage in chosen:
        (document,) = [text for text in whole if passage.context + passage.text in text]
        assert document.startswith(passage.context) == passage.from_start
        assert len(passage.context) <= 1000
        place = document.index(passage.context + passage.text)
        assert place == 0 or document[place - 1 : place] == b"\n"
        assert not passage.context or passage.context.endswith(b"\n")
    assert any(passage.from_start and passage.context for passage in chosen)
    assert any(not passage.from_start for passage in chosen)
    backend = load_backend(tokenizers[1])
    passages = build_passages(corpus, tokenizers[1], "search", length=2000, max_bytes=20_000, cache=tmp_path)
    chosen = choose_passages(corpus, "search", max_bytes=20_000, context_bytes=8000)
    for number, passage in enumerate(chosen):
        ids = passages.input_ids[number]
        seen = ids[: int(np.argmax(passages.targets[number] != -100)) + 1]
        text = backend.decode(seen.tolist(), skip_special_tokens=False)
        start = "<|endoftext|>" if passage.from_start else ""
        assert text == start + passage.context.decode()


def test_passages_are_short_and_spread_over_the_projects(corpus):
    for which in ("search", "report"):
        chosen = choose_passages(corpus, which, max_bytes=30_000)
        held_out = {name.casefold() for name in corpus.report["held_out_projects"][which]}
        assert len(held_out) >= 10
        assert {passage.project for passage in chosen} == held_out
        shares = {name: sum(len(p.text) for p in chosen if p.project == name) for name in held_out}
        assert max(shares.values()) <= 0.2 * sum(shares.values())
        assert len({(p.document, p.text) for p in chosen}) == len(chosen)
        sizes = [len(passage.text) for passage in chosen]
        assert 550 < np.median(sizes) < 1000
        few = choose_passages(corpus, which, max_bytes=10_000)
        assert few == chosen[: len(few)]


def test_a_document_is_cut_at_lines_that_are_not_blank():
    raw = ("x = 1\n" + "    # ü\n\n\n\n    y = 2\n" * 100).encode()
    bounds = boundaries(raw)
    assert bounds[0] == 0
    assert bounds[-1] == len(raw)
    for start in bounds[1:-1]:
        assert raw[start - 1 : start] == b"\n"
        assert raw[start:].split(b"\n")[0].strip()
    assert all(b - a >= 300 for a, b in itertools.pairwise(bounds))
    assert boundaries(b"x") == [0, 1]


def test_no_ten_lines_of_report_text_in_the_other_two(corpus):
    def runs(text):
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        return {tuple(lines[place : place + 10]) for place in range(len(lines) - 9)}

    texts = {name: set().union(*map(runs, corpus.split(name)["text"])) for name in ("train", "search", "report")}
    assert all(texts.values())
    assert not texts["report"] & (texts["train"] | texts["search"])
    assert not texts["search"] & texts["train"]
    projects = {name: set(corpus.split(name)["project"]) for name in texts}
    assert not projects["report"] & (projects["train"] | projects["search"])
    assert not projects["search"] & projects["train"]
    assert corpus.report["not_promised"] == []


def test_the_choice_follows_the_corpus_and_its_seed(tmp_path):
    first = corpus_of(tmp_path, projects=12, target="a")
    again = corpus_of(tmp_path, projects=12, target="b")
    other = corpus_of(tmp_path, projects=12, target="c", seed=1)
    one, two, three = (choose_passages(c, "search", max_bytes=5_000) for c in (first, again, other))
    assert one == two
    assert one != three


@pytest.mark.parametrize(
    ("projects", "said"), [(1, "one project: "), (2, "two projects: "), (3, "few projects (1 in")]
)
def test_small_corpora_work_and_say_what_they_cannot_promise(tmp_path, projects, said):
    corpus = corpus_of(tmp_path, projects=projects, modules=24, held_out_fraction=0.2)
    assert corpus.report["not_promised"][0].startswith(said)
    tokenizer = build_tokenizer(corpus, vocab_size=300, settings=TokenizerSettings(), folder=tmp_path / "t")
    for which in ("search", "report"):
        passages = build_passages(corpus, tokenizer, which, length=256, max_bytes=10**6, cache=tmp_path)
        assert passages.by == "document"  # one project in each: intervals come from documents
        assert len(passages.projects) > 1
        # Everything is scored once where there is room for all of it.
        assert passages.num_bytes.sum() == corpus.report["split"][which]["bytes"]
    (tmp_path / f"src{projects}" / "p0" / "m0.py").unlink()


def test_prepared_data_caches_them_with_the_tokens(tiny_data, monkeypatch):
    first = tiny_data.passages(512, "report", length=64)
    assert first.num_bytes.sum() == tiny_data.corpus.report["split"]["report"]["bytes"]
    monkeypatch.setattr("codenas_hf.data.passages.choose_passages", lambda *a, **k: pytest.fail("chosen again"))
    again = tiny_data.passages(512, "report", length=64)
    for name, value in vars(first).items():
        assert np.array_equal(getattr(again, name), value)


def test_a_damaged_cache_is_made_again(tiny_data, tmp_path):
    def build():
        return build_passages(
            tiny_data.corpus, tiny_data.tokenizer(512), "search", length=64, max_bytes=3000, cache=tmp_path
        )

    first = build()
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"PK\x03\x04 torn")
    assert np.array_equal(first.input_ids, build().input_ids)


def test_what_is_not_scored(tiny_data):
    with pytest.raises(DataError, match="passages are of search or report text, got 'train'"):
        tiny_data.passages(512, "train", length=64)
    with pytest.raises(DataError, match="at least 2 tokens, got 1"):
        tiny_data.passages(512, "search", length=1)
    with pytest.raises(DataError, match="must be at least 1, got 0"):
        tiny_data.passages(512, "search", length=64, max_bytes=0)
    with pytest.raises(DataError, match="no tokenizer with 999 entries"):
        tiny_data.passages(999, "search", length=64)


def test_an_old_corpus_is_refused_in_one_line(tmp_path):
    from codenas_hf.data import Corpus
    from codenas_hf.folders import write_json

    write_json(tmp_path / "corpus.json", {"digest": "x", "report": {"split": {"train": {}, "validation": {}}}})
    with pytest.raises(
        DataError, match=r"split by an earlier version into train and validation; expected train, search"
    ):
        Corpus.open(tmp_path)


def test_every_vocabulary_of_a_job_scores_the_same_bytes(tiny_corpus_folder, tmp_path):
    data = prepare_data(
        corpus=CorpusSettings(sources=(str(tiny_corpus_folder),), benchmarks=(), near_threshold=None),
        tokenizer=TokenizerSettings(),
        vocab_sizes=(300, 512),
        folder=tmp_path,
    )
    small, large = (data.passages(size, "search", length=128, max_bytes=5000) for size in (300, 512))
    assert small.num_bytes.sum() == large.num_bytes.sum() <= 5000
    assert np.bincount(small.passage, small.num_bytes).tolist() == np.bincount(large.passage, large.num_bytes).tolist()
