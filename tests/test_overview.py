"""The tables of the documentation come from the corpus."""

import re

from test_corpus import build, plant, projects

from codenas_hf.data import overview, parts
from codenas_hf.data.overview import corpus_overview


def test_every_count_of_the_report_is_shown(tiny_data):
    text = overview(tiny_data)
    corpus = tiny_data.corpus
    for split in ("train", "search", "report"):
        count = corpus.report["split"][split]
        assert f"| {split} | {count['files']:,} | {count['bytes'] / 1e6:.2f} | {count['projects']} |" in text
        assert f"{tiny_data.tokens(512, split).num_tokens:,}" in text
    assert corpus.digest[:12] in text
    for heading in ("Sources", "Dropped before and while reading", "Split by project", "Vocabularies"):
        assert f"**{heading}**\n\n" in text
    assert text.startswith(corpus_overview(corpus))


def test_every_table_is_rectangular(tiny_data):
    for block in overview(tiny_data).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.strip().splitlines()}) == 1


def test_every_listed_file_stands_in_a_row(tmp_path, monkeypatch):
    """Also those that a limit left unread: the outcomes add up to what was listed."""
    monkeypatch.setattr(parts.split_into_parts, "__defaults__", (8_000,))
    plant(tmp_path / "src", projects(count=12, each=6))
    corpus = build(tmp_path / "src", tmp_path / "out", max_bytes=60_000)
    table = corpus_overview(corpus).split("**Kept, and dropped by comparing files**")[1]
    names = ("passed all filters", "read, beyond max_bytes", "not read: max_bytes was reached")
    counts = [int(re.search(rf"\| {name} \| (\d+) \|", table)[1]) for name in names]
    assert sum(counts) == 72 == corpus.report["sources"][str(tmp_path / "src")]["files"]
    assert counts[2] > 20
    whole = build(tmp_path / "src", tmp_path / "whole")
    assert "not read: max_bytes" not in corpus_overview(whole)
