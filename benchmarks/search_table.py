"""A table to search in: every genome of one small space, trained alone, at five budgets of one continued training.

    python -m benchmarks.search_table            # trains what is missing, then writes the table and its summary
    python -m benchmarks.search_table --latency  # times every genome in two runtimes, on this machine

A policy can then be judged on real trainings in seconds instead of hours. The space is a full factorial over
vocabulary, width, layers, feed-forward width and kind of feed-forward network. A budget means what it means for the
rungs of a study: warm-up, constant rate, decay; the next budget goes on from the state before the decay, so its price
is the constant steps between and its own decay. One genome in ten is trained with three seeds: their spread is the
noise floor of each budget.

Every run is a process of its own with one thread, and the cost is its processor seconds, so other load delays the
table and does not change it. Runs go in a fixed shuffled order, and what is finished is found again: a part of the
table is a fair sample of it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from benchmarks.pool import work_off
from benchmarks.results_file import protocol, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget
from codenas_hf.engine.intervals import paired_ratio
from codenas_hf.engine.result import RankCorrelation
from codenas_hf.folders import read_json, whole_file, write_json
from codenas_hf.generation import llama_cpp
from codenas_hf.jobs.latency import ReaderTimer
from codenas_hf.measure.candidate import CandidateSettings, candidate_seed, new_model, round_weights, save_artifact
from codenas_hf.measure.latency import default_protocol
from codenas_hf.measure.score import Score, score_passages
from codenas_hf.measure.timing import measure_latency
from codenas_hf.training import OptimSettings, TrainSettings, train

TABLE = Path(__file__).parent / "search_table_data" / "rows.jsonl"
TEXTS, LATENCY = TABLE.with_name("texts.json"), TABLE.with_name("latency.json")
BUDGETS = (20, 40, 80, 160, 360)
SEEDS = 3  # of one genome in ten; the others have seed 0
SEARCH_BYTES, REPORT_BYTES = 64_000, 128_000
PASSES = 3  # over all genomes when they are timed
CHOICES: dict[str, tuple[Any, ...]] = {
    "vocab_size": (1024, 2048, 4096),
    "hidden_size": (64, 96, 128, 160),
    "num_hidden_layers": (2, 3, 4, 6),
    "feed_forward": (2, 4),  # intermediate_size over hidden_size
    "kind": ("gated", "plain"),  # a stock Llama with SwiGLU, a stock Arcee with squared ReLU
}
HEAD_DIM = 32
# Written out, so that the table stays what it is when defaults move on.
OPTIM: dict[str, Any] = {"schedule": "stable", "decay_share": 0.2, "decay_floor": 0.0}
TRAINING: dict[str, Any] = {"sequence_length": 256, "tokens_per_step": 1024}
TRAIN = TrainSettings(optim=OptimSettings(**OPTIM), **TRAINING)
CANDIDATE = CandidateSettings(score_bytes=SEARCH_BYTES)


def genome_of(values: Mapping[str, Any]) -> Genome:
    """The genome of one combination of `CHOICES`."""
    width, gated = values["hidden_size"], values["kind"] == "gated"
    return Genome(
        vocab_size=values["vocab_size"],
        hidden_size=width,
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=width // HEAD_DIM,
        num_key_value_heads=1,
        intermediate_size=values["feed_forward"] * width,
        mlp_type="gated" if gated else "plain",
        hidden_act="silu" if gated else "relu2",
    )


def combinations() -> list[dict[str, Any]]:
    """All of the space, in a fixed shuffled order."""
    every = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    return [every[at] for at in np.random.default_rng(0).permutation(len(every))]


def wanted() -> list[tuple[dict[str, Any], int]]:
    """All runs in the order in which they are made: combination and seed."""
    runs = []
    for number, values in enumerate(combinations()):
        runs += [(values, seed) for seed in range(SEEDS if number % 10 == 0 else 1)]
    return runs


def by_project(score: Score) -> dict[str, list[float]]:
    """Bits and bytes of each project, for paired comparisons."""
    bits = np.bincount(score.project, weights=score.rows.nats / np.log(2), minlength=len(score.projects))
    counts = np.bincount(score.project, weights=score.row_bytes, minlength=len(score.projects))
    return {"bits": [round(float(x), 1) for x in bits], "bytes": [int(x) for x in counts]}


def execute(values: Mapping[str, Any], seed: int, *, data: PreparedData) -> dict[str, Any]:
    """One continued training, scored at every budget as it would be shipped (bfloat16)."""
    disable_progress_bar()  # of saving weights
    torch.set_num_threads(1)
    genome = genome_of(values)
    tokens = data.tokens(genome.vocab_size, "train")
    texts = {
        which: data.passages(genome.vocab_size, which, length=TRAIN.sequence_length, max_bytes=max_bytes)
        for which, max_bytes in (("search", SEARCH_BYTES), ("report", REPORT_BYTES))
    }
    accelerator, state, points = Accelerator(cpu=True, mixed_precision="no"), None, []
    with tempfile.TemporaryDirectory() as scratch:
        for budget in BUDGETS:
            start, wall = time.process_time(), time.perf_counter()
            weights_seed = candidate_seed(genome, seed=seed)
            model = new_model(genome, train=TRAIN, settings=CANDIDATE, seed=weights_seed)
            settings = TrainSettings(**{**vars(TRAIN), "seed": seed})
            trained = train(
                model, tokens, Budget("steps", budget), settings=settings, folder=Path(scratch) / str(budget),
                resume_from=state, accelerator=accelerator,
            )  # fmt: skip
            state = trained.checkpoint
            round_weights(model, torch.bfloat16)
            artifact = Path(scratch) / "artifact"
            size = save_artifact(model, tokenizer=data.tokenizer(genome.vocab_size), folder=artifact)
            shutil.rmtree(artifact)
            model.float()
            point: dict[str, Any] = {"steps": budget, "steps_run": trained.steps_run, "artifact_bytes": size}
            before_scoring = time.process_time()
            search = score_passages(model, texts["search"])
            point |= {"search": {"bits_per_byte": search.bits_per_byte, **by_project(search)}}
            now = time.process_time()
            # What an evaluation of a study costs: training and scoring on the search text.
            point |= {"cpu_seconds": now - start, "scoring_cpu_seconds": now - before_scoring}
            point |= {"wall_seconds": time.perf_counter() - wall, "precision": trained.precision}
            if budget == BUDGETS[-1]:
                report = score_passages(model, texts["report"])
                point |= {"report": {"bits_per_byte": report.bits_per_byte, **by_project(report)}}
                point |= {"curve": [[round(p["step"]), round(p["loss"], 4)] for p in trained.curve]}
            points.append(point)
    return {
        "genome_id": genome.genome_id,
        "genes": dict(values),
        "seed": seed,
        "num_parameters": genome.num_parameters(),
        "budgets": points,
        "projects": {which: list(text.projects) for which, text in texts.items()},
    }


def latency_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds of one further token in torch and, where its wheel is installed, in llama.cpp (q8_0)."""
    torch.set_num_threads(1)
    model = new_model(genome_of(values), train=TRAIN, settings=CANDIDATE, seed=0).eval()
    found = {"torch_ms": measure_latency(model, default_protocol("cpu")).decode_ms}
    if llama_cpp.is_installed():
        found["llama_cpp_q8_0_ms"] = ReaderTimer("q8_0")(model, default_protocol("cpu")).decode_ms
    return found


def main() -> None:
    """Works through the runs, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/search_table"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--latency", action="store_true", help="time every genome; the machine should be quiet")
    parser.add_argument("--partial", action="store_true", help="write what is there and train nothing")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    note = options.folder / "data.json"
    if options.run:
        values, seed, path = json.loads(options.run)
        data = PreparedData.from_dict(read_json(note), beside=options.folder)
        write_json(Path(path), execute(values, seed, data=data))
        return
    if options.latency:
        print(time_all(options.folder / "latency"))
        return
    data = prepare_data(
        corpus=CorpusSettings(max_bytes=options.data_bytes), tokenizer=TokenizerSettings(),
        vocab_sizes=CHOICES["vocab_size"], folder=options.folder / "data",
    )  # fmt: skip
    write_json(note, data.to_dict(beside=options.folder))
    key = [OPTIM, TRAINING, BUDGETS, SEARCH_BYTES, REPORT_BYTES, data.digest]
    runs = options.folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    runs.mkdir(exist_ok=True)
    if not options.partial:
        train_all(runs, folder=options.folder, workers=options.workers)
    print(assemble(runs, data=data))


def time_all(runs: Path) -> Path:
    """Times every genome in each pass where it was not yet, and writes the latencies beside the table, with a result.

    Of the passes the lowest time counts, as for the front of a study: a busy moment spoils one of them.
    """
    runs.mkdir(exist_ok=True)
    passes: dict[str, list[dict[str, float]]] = {}
    for number, values in itertools.product(range(PASSES), combinations()):
        genome_id = genome_of(values).genome_id
        path = runs / f"{genome_id}-{number}.json"
        if not path.exists():
            write_json(path, latency_of(values))
            print(f"pass {number + 1} of {PASSES}: {genome_id}", flush=True)
        passes.setdefault(genome_id, []).append(read_json(path))
    about = protocol(genomes=len(passes), passes=PASSES, clock="processor", decode=default_protocol("cpu").to_dict())
    lowest = {each: {name: min(row[name] for row in rows) for name in rows[0]} for each, rows in passes.items()}
    write_json(LATENCY, {"protocol": about, "genomes": lowest})
    names = list(next(iter(lowest.values())))
    found = []
    for name in names:
        own = sorted(row[name] for row in lowest.values())
        ends = RankCorrelation.of([(rows[0][name], rows[-1][name]) for rows in passes.values()])
        spread = {"least_ms": own[0], "median_ms": statistics.median(own), "most_ms": own[-1]}
        found.append({"order": name, **spread, **tau_of(ends)})
    if len(names) > 1:
        pairs = [(row[names[0]], row[names[1]]) for row in lowest.values()]
        found.append({"order": " and ".join(names), **tau_of(RankCorrelation.of(pairs))})
    return write("table_latency", protocol=about, rows=found)


def tau_of(correlation: RankCorrelation | None) -> dict[str, Any]:
    """Kendall's tau as columns: of a runtime's first pass with its last, or of two runtimes."""
    return {} if correlation is None else {"tau": correlation.tau, "interval": [correlation.low, correlation.high]}


def train_all(runs: Path, *, folder: Path, workers: int) -> None:
    """Makes every run that is not there, so many at a time."""

    def place(values: Mapping[str, Any], seed: int) -> Path:
        return runs / f"{genome_of(values).genome_id}-{seed}.json"

    def words(values: Mapping[str, Any], seed: int, path: Path) -> list[str]:
        return ["--folder", str(folder), "--run", json.dumps([values, seed, str(path)])]

    jobs = {place(*run): words(*run, place(*run)) for run in wanted()}
    work_off(lambda: jobs, module="benchmarks.search_table", workers=workers)


def assemble(runs: Path, *, data: PreparedData) -> Path:
    """Writes the table, a line a genome and seed, and the result file with the noise floor of each budget."""
    rows = [read_json(path) for path in sorted(runs.glob("*-[0-9].json"))]
    texts: dict[str, Any] = {}
    for row in rows:
        projects = row.pop("projects")
        for which in ("search", "report"):  # bytes are those of the text, the same in every row
            scores = [point[which] for point in row["budgets"] if which in point]
            texts[which] = {"projects": projects[which], "bytes": next(iter([score.pop("bytes") for score in scores]))}
    with whole_file(TABLE) as draft:
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with whole_file(TEXTS) as draft:
        draft.write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")
    return write(
        "search_table",
        protocol=protocol(
            genomes=len({row["genome_id"] for row in rows}), runs=len(rows), runs_wanted=len(wanted()), threads=1,
            train={**OPTIM, **TRAINING}, search_bytes=SEARCH_BYTES, report_bytes=REPORT_BYTES, data=data.digest[:16],
            precision=rows[0]["budgets"][0]["precision"] if rows else None,
            cpu_hours=sum(point["cpu_seconds"] for row in rows for point in row["budgets"]) / 3600,
            statistic="standard deviation between seeds of one genome, pooled; bits per byte of the search text",
        ),
        rows=summary(rows, texts["search"]["bytes"]),
    )  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]], project_bytes: Sequence[int]) -> list[dict[str, Any]]:
    """Of each budget: what it costs, how far seeds lie apart, and how well its order is that of the largest.

    `text_error` is the standard error of the paired difference between neighbours on the front of bits per byte and
    bytes, from resampling the projects of the search text; `text_error_share` is relative to the median difference.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["genome_id"], []).append(row)

    def bits(number: int, group: Sequence[Mapping[str, Any]]) -> list[float]:
        return [row["budgets"][number]["search"]["bits_per_byte"] for row in group]

    found = []
    last = [statistics.fmean(bits(-1, group)) for group in groups.values()]
    for number, budget in enumerate(BUDGETS):
        own = [statistics.fmean(bits(number, group)) for group in groups.values()]
        spread = [statistics.variance(bits(number, group)) for group in groups.values() if len(group) == SEEDS]
        tau = RankCorrelation.of(list(zip(own, last, strict=True)))
        found.append(
            {
                "steps": budget,
                "cpu_seconds": statistics.fmean(row["budgets"][number]["cpu_seconds"] for row in rows),
                "mean_bits_per_byte": statistics.fmean(own),
                "best": min(own),
                "seed_deviation": statistics.fmean(spread) ** 0.5 if spread else None,
                "genomes_with_seeds": len(spread),
                "tau_with_last": None if tau is None or number == len(BUDGETS) - 1 else tau.tau,
                **text_error([group[0]["budgets"][number] for group in groups.values()], project_bytes),
            }
        )
    return found


def text_error(points: Sequence[Mapping[str, Any]], project_bytes: Sequence[int]) -> dict[str, float]:
    """What the text resolves between neighbours on the front: a standard error, and its share of a difference."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["artifact_bytes"], point["search"]["bits_per_byte"])):
        if not front or point["search"]["bits_per_byte"] < front[-1]["search"]["bits_per_byte"]:
            front.append(point)
    errors, gaps = [], []
    for first, second in itertools.pairwise(front):
        parts = [{"bits": each["search"]["bits"], "bytes": project_bytes} for each in (second, first)]
        found = paired_ratio(*parts)
        assert found is not None
        errors.append((found.high - found.low) / 2 / 1.96)
        gaps.append(-found.value)
    error, gap = statistics.median(errors), statistics.median(gaps)
    return {"front": len(front), "text_error": error, "text_error_share": error / gap}


def load() -> list[dict[str, Any]]:
    """The rows of the committed table, each with the latencies of its genome."""
    rows = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    times = read_json(LATENCY)["genomes"]
    return [{**row, "latency": times[row["genome_id"]]} for row in rows]


if __name__ == "__main__":
    main()
