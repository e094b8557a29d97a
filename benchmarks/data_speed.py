"""From Python files to packed tokens, against the plain `datasets.map` pipeline: `python -m benchmarks.data_speed`.

Both start at the same files and end at packed token ids on disk, with the same tokenizer; each run is a process of its
own. Measured: bytes of text per second, peak memory, how peak memory grows when the corpus grows tenfold, and two
ceilings (encoding what is in memory already, keeping nothing): of `tokenizers`, and of the package's bulk encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import protocol, target, write
from codenas_hf.data import (
    CorpusSettings,
    FilterSettings,
    TokenizerSettings,
    build_corpus,
    build_tokenizer,
    build_tokens,
)
from codenas_hf.data.encode import BulkEncoder
from codenas_hf.data.filters import examine
from codenas_hf.data.licences import PERMISSIVE
from codenas_hf.data.sources import list_source
from codenas_hf.data.split import SPLITS
from codenas_hf.data.tokenizer import load_backend

BLOCK = 256
PLAIN = FilterSettings(
    must_parse=False, drop_generated=False, drop_vendored=False, drop_test_data=False, mask_secrets=False,
    mask_emails=False, min_letters=0.0, max_line_chars=10**9, max_mean_line_chars=10**9, min_bytes=1,
)  # fmt: skip


def settings(source: Path, *, filters: bool) -> CorpusSettings:
    """The default corpus of these files, or one that takes every file as it is, as the peer does."""
    if filters:
        return CorpusSettings(sources=(str(source),), max_bytes=None)
    return CorpusSettings(
        sources=(str(source),), max_bytes=None, near_threshold=None, window_lines=0, benchmarks=(), filters=PLAIN
    )


def texts(source: Path) -> Iterator[str]:
    """Every file's text."""
    for path in sorted(source.rglob("*.py")):
        yield path.read_text(encoding="utf-8")


def run_ours(source: Path, work: Path, tokenizer: Path, *, filters: bool) -> dict[str, Any]:
    """The package's way."""
    corpus = build_corpus(settings(source, filters=filters), folder=work / "corpus")
    started = time.perf_counter()
    made = [build_tokens(corpus, tokenizer, split=split, folder=work / split) for split in SPLITS]
    return {
        "tokens": sum(part.num_tokens for part in made),
        "text_bytes": sum(part.num_bytes for part in made),
        "tokens_seconds": time.perf_counter() - started,
    }


def run_peer(source: Path, work: Path, tokenizer: Path) -> dict[str, Any]:
    """`from_generator`, `map` to tokenize, `map` to pack into blocks, `save_to_disk`, as in the examples of HF."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tok = AutoTokenizer.from_pretrained(tokenizer)
    end = tok.eos_token_id

    def generate() -> Iterator[dict[str, str]]:
        for text in texts(source):
            yield {"text": text}

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        options = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
        return {"input_ids": tok(batch["text"], **options)["input_ids"]}

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined: list[int] = []
        for ids in batch["input_ids"]:
            joined += [*ids, end]
        count = len(joined) // BLOCK * BLOCK
        return {"input_ids": [joined[start : start + BLOCK] for start in range(0, count, BLOCK)]}

    raw = datasets.Dataset.from_generator(generate, cache_dir=str(work / "cache"))
    ids = raw.map(tokenize, batched=True, remove_columns=raw.column_names)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"), length=BLOCK)})
    packed = ids.map(pack, batched=True, remove_columns=ids.column_names, features=features)
    packed.save_to_disk(str(work / "packed"))
    return {"tokens": len(packed) * BLOCK}


def run_ceiling(source: Path, tokenizer: Path, *, bulk: bool) -> dict[str, Any]:
    """Encoding alone, of texts that are in memory."""
    backend = load_backend(tokenizer)
    encoder = BulkEncoder(backend)
    held = list(texts(source))
    started = time.perf_counter()
    count = 0
    for start in range(0, len(held), 100):
        some = held[start : start + 100]
        count += sum(map(len, encoder.encode(some) if bulk else backend.encode_batch_fast(some)))
    return {"tokens": count, "seconds": time.perf_counter() - started}


def child(name: str, source: Path, work: Path, tokenizer: Path) -> None:
    """One measured run; prints one line of JSON."""
    started = time.perf_counter()
    if name.startswith("encoding alone"):
        result = run_ceiling(source, tokenizer, bulk=name.endswith("codenas_hf"))
    elif name == "datasets.map":
        result = run_peer(source, work, tokenizer)
    else:
        result = run_ours(source, work, tokenizer, filters=name.endswith("all filters"))
    result.setdefault("seconds", time.perf_counter() - started)
    own, workers = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({**result, "peak_bytes": own * 1024, "largest_worker_bytes": workers * 1024}))


def measure(name: str, source: Path, tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """Runs one way in a process of its own, in an empty work folder."""
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    command = [sys.executable, "-m", "benchmarks.data_speed", "--child", name, str(source), str(work), str(tokenizer)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_DATASETS_CACHE": str(work / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def copy_files(folder: Path, size: int) -> int:
    """Copies about `size` bytes of readable installed files into 20 projects; returns the bytes."""
    taken = 0
    plain = {"settings": PLAIN, "licences": PERMISSIVE}
    files = list_source("installed")
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    for number, file in enumerate(files):
        raw = file.read()
        if not 1000 < len(raw) < 200_000 or examine(raw, name=file.name, **plain).text is None:  # type: ignore[arg-type]
            continue
        path = folder / f"project_{number % 20:02d}" / f"file_{number:06d}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        taken += len(raw)
        if taken >= size:
            break
    return taken


def main() -> None:
    """Measures and writes benchmarks/results/data_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, *paths = options.child
        child(name, *map(Path, paths))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source, small = scratch / "source", scratch / "small"
        size = copy_files(source, int(options.megabytes * 1e6))
        small_size = copy_files(small, size // 10)
        corpus = build_corpus(settings(small, filters=False), folder=scratch / "sample")
        tokenizer = build_tokenizer(
            corpus, vocab_size=options.vocabulary, settings=TokenizerSettings(), folder=scratch / "tokenizer"
        )
        alone = ("encoding alone, tokenizers", "encoding alone, codenas_hf")
        ways = ("codenas_hf", "datasets.map", "codenas_hf, all filters", *alone)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way in ways:
                runs[way].append(measure(way, source, tokenizer, scratch))
        few = {way: measure(way, small, tokenizer, scratch) for way in ("codenas_hf", "datasets.map")}
    rows = []
    for way in ways:
        seconds = statistics.median(run["seconds"] for run in runs[way])
        peak = statistics.median(run["peak_bytes"] for run in runs[way])
        row = {"way": way, "mb_per_second": size / 1e6 / seconds, "seconds": seconds, "peak_mb": peak / 1e6}
        row["tokens"] = runs[way][0]["tokens"]
        if way in few:
            row["peak_mb_at_a_tenth"] = few[way]["peak_bytes"] / 1e6
        if "text_bytes" in runs[way][0]:
            row["seconds_in_tokens"] = statistics.median(run["tokens_seconds"] for run in runs[way])
        rows.append(row)
    speed = {row["way"]: row["mb_per_second"] for row in rows}
    growth = statistics.median(run["peak_bytes"] for run in runs["codenas_hf"]) / few["codenas_hf"]["peak_bytes"]
    write(
        "data_speed",
        protocol=protocol(bytes=size, tenth_bytes=small_size, repeats=options.repeats, vocabulary=options.vocabulary),
        rows=rows,
        targets=[
            target("speed over datasets.map", speed["codenas_hf"] / speed["datasets.map"], 1.7, better="higher"),
            target("peak memory at ten times the text, over that at one", growth, 1.2, better="lower"),
        ],
    )


if __name__ == "__main__":
    main()
