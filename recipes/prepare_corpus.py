"""Corpus, tokenizers and tokens without a search, and the report of what is in them.

    python recipes/prepare_corpus.py                                     # all Python of this machine
    python recipes/prepare_corpus.py --config configs/corpus/own_code.yaml
    python recipes/prepare_corpus.py corpus.max_bytes=40MB tokenizer.pre_tokenizer=line

A search with the same corpus settings and folder finds what this has made.
"""

import argparse
from pathlib import Path

from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.text import overview, prepare

VOCABULARIES = (2048, 4096, 8192, 16384)
ALL = Path(__file__).parent.parent / "configs" / "corpus" / "whole_machine.yaml"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ALL)
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    options = parser.parse_args()
    settings = RunSettings.of(*options.overrides, config=[options.config])
    print(overview(prepare(settings, vocab_sizes=VOCABULARIES)))
