"""Corpus, tokenizers and tokens without a search, and the report of what is in them.

    python recipes/prepare_corpus.py                                     # all Python of this machine
    python recipes/prepare_corpus.py --config configs/corpus/own_code.yaml
    python recipes/prepare_corpus.py corpus.max_bytes=40MB tokenizer.pre_tokenizer=line

`codenas corpus` with four vocabulary sizes and, unless `--config` says otherwise, all text that there is. A search
with the same corpus settings and folder finds what this has made.
"""

import sys
from pathlib import Path

from codenas_hf.cli.main import main

ALL = Path(__file__).parent.parent / "configs" / "corpus" / "whole_machine.yaml"
VOCABULARIES = ("2048", "4096", "8192", "16384")

if __name__ == "__main__":
    words = [word for size in VOCABULARIES for word in ("--vocab", size)]
    if "--config" not in sys.argv:
        words += ["--config", str(ALL)]
    sys.exit(main(["corpus", *words, *sys.argv[1:]]))
