"""What a vocabulary and its pre-tokenizer buy: `python -m benchmarks.vocabularies`.

For each: bytes per token on held-out projects, and bits per byte of one small Llama that has read the same bytes of
the same text with each. A larger vocabulary makes a larger model, which the table shows. Resumable, row by row.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, protocol, read, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, TokenizerSettings, prepare_data
from codenas_hf.engine import Budget
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.measure.score import score_passages
from codenas_hf.training import TrainSettings, build_model, train

PRE_TOKENIZERS = ("qwen2", "indent", "line")
SIZES = (2048, 4096, 8192, 16384)
GENOME = Path(__file__).parent.parent / "configs" / "genomes" / "llama_tiny.yaml"


def main() -> None:
    """Measures and writes benchmarks/results/vocabularies.json, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-bytes", type=float, default=4e6, help="bytes of text that each model reads")
    parser.add_argument("--score-bytes", type=int, default=300_000, help="bytes of held-out text that are scored")
    parser.add_argument("--corpus-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/data"))
    options = parser.parse_args()
    settings = TrainSettings()
    asked = {"train_bytes": options.train_bytes, "score_bytes": options.score_bytes, "seed": settings.seed}
    path = RESULTS / "vocabularies.json"
    rows: list[dict[str, Any]] = []
    corpus = CorpusSettings(max_bytes=options.corpus_bytes)
    for pre_tokenizer in PRE_TOKENIZERS:
        data = prepare_data(
            corpus=corpus,
            tokenizer=TokenizerSettings(pre_tokenizer=pre_tokenizer),  # type: ignore[arg-type]
            vocab_sizes=SIZES,
            folder=options.folder.resolve(),
        )
        asked["corpus"] = data.corpus.digest
        if not rows and path.exists():
            old = read(path)
            if all(old["protocol"].get(name) == value for name, value in asked.items()):
                rows = old["rows"]
        for size in SIZES:
            if any(row["pre_tokenizer"] == pre_tokenizer and row["vocabulary"] == size for row in rows):
                continue
            rows.append(measure(data, pre_tokenizer, size, settings, options))
            write("vocabularies", protocol=protocol(genome=GENOME.stem, **asked), rows=rows)


def measure(data: Any, pre_tokenizer: str, size: int, settings: TrainSettings, options: Any) -> dict[str, Any]:
    """One row."""
    genome = dataclasses.replace(Genome.from_yaml(GENOME), vocab_size=size)
    config = genome.to_config(
        bos_token_id=0, eos_token_id=0, pad_token_id=7, max_position_embeddings=settings.sequence_length
    )
    model = build_model(CodeNASForCausalLM, config, settings=settings.optim, seed=settings.seed)
    started = time.perf_counter()
    train(model, data.tokens(size, "train"), Budget("bytes", options.train_bytes), settings=settings)
    seconds = time.perf_counter() - started
    passages = data.passages(size, "report", length=settings.sequence_length, max_bytes=options.score_bytes)
    return {
        "pre_tokenizer": pre_tokenizer,
        "vocabulary": size,
        "bytes_per_token": data.tokens(size, "report").bytes_per_token,
        "bits_per_byte": score_passages(model, passages).bits_per_byte,
        "parameters": genome.num_parameters(),
        "train_seconds": seconds,
    }


if __name__ == "__main__":
    main()
