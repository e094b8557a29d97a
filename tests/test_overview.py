"""The tables of the documentation come from the corpus."""

from codenas_hf.data import overview
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
