"""Which kind of budget makes a rung fair: `python -m benchmarks.rungs`.

Five shapes of the space `tiny`, from small to tall to wide, each trained on and on by one thread, as the rungs of a
study do: constant rate, scored on a decayed copy. At every level each kind of budget gives the five the same amount
of something, as much as `--levels` steps are for the five on average:

    tokens    so many steps: a step has as many tokens for every shape
    bytes     so much text: fewer steps for a large vocabulary, whose tokens stand for more
    seconds   so much processor time: fewer steps for what is slow

What is to be predicted is the ranking at the end: each shape after `--final` processor seconds, on the report text,
since seconds are what a user pays. A rung is judged by Kendall's tau with it, and by what its first place costs
against the best of the five. Processor seconds of one thread, so other load delays the table and does not change it.
Runs are processes of their own, `--workers` at a time; what is finished is found again. About `--final` x 25 processor
seconds with three seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.pool import work_off
from benchmarks.quality import interval
from benchmarks.results_file import protocol, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget, RankCorrelation
from codenas_hf.folders import read_json, write_json
from codenas_hf.measure.candidate import CandidateSettings, candidate_seed, new_model, round_weights
from codenas_hf.measure.score import score_passages
from codenas_hf.training import TrainSettings, train

KINDS = ("tokens", "bytes", "seconds")
SEARCH_BYTES, REPORT_BYTES = 128_000, 500_000
Shape = tuple[int, int, int, int, str]  # vocabulary, width, layers, feed-forward width, kind
SHAPES: dict[str, Shape] = {
    "small": (1024, 64, 2, 128, "plain"),
    "tall": (1024, 96, 6, 192, "gated"),
    "large vocabulary": (4096, 64, 3, 192, "gated"),
    "middle": (2048, 128, 4, 256, "gated"),
    "wide": (4096, 160, 2, 480, "gated"),
}
Steps = dict[str, dict[str, int]]  # of each kind at each level, and `final`


def genome_of(shape: Shape) -> Genome:
    """A stock Llama, or an Arcee where the network is plain."""
    vocab_size, width, layers, inner, kind = shape
    return Genome(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=1,
        intermediate_size=inner,
        mlp_type=kind,
        hidden_act="silu" if kind == "gated" else "relu2",
    )


def fresh(genome: Genome, *, seed: int) -> Any:
    """The model of a genome as a study begins it."""
    settings = TrainSettings()
    return new_model(genome, train=settings, settings=CandidateSettings(), seed=candidate_seed(genome, seed=seed))


def step_cost(name: str, *, data: PreparedData, steps: int = 8, repeats: int = 3) -> float:
    """Processor seconds of a step, the least of some short trainings."""
    torch.set_num_threads(1)
    genome = genome_of(SHAPES[name])
    tokens, found = data.tokens(genome.vocab_size, "train"), []
    for _ in range(repeats + 1):  # the first warms up
        model = fresh(genome, seed=0)
        began = time.process_time()
        train(model, tokens, Budget("steps", steps), settings=TrainSettings())
        found.append((time.process_time() - began) / steps)
    return min(found[1:])


def ladders(costs: Mapping[str, float], *, data: PreparedData, levels: Sequence[int], final_s: float) -> Any:
    """For each shape the steps of each kind at each level, and of the end: what is the same is their product."""
    per_token = {n: data.tokens(SHAPES[n][0], "train").bytes_per_token for n in SHAPES}
    rates = {"tokens": dict.fromkeys(SHAPES, 1.0), "bytes": per_token, "seconds": dict(costs)}
    found: dict[str, Steps] = {}
    for name in SHAPES:
        found[name] = {"final": {"": max(1, round(final_s / costs[name]))}}
        for kind in KINDS:
            mean = statistics.fmean(rates[kind].values())
            found[name][kind] = {str(n): max(1, round(n * mean / rates[kind][name])) for n in levels}
    return found


def execute(name: str, seed: int, steps: Steps, *, data: PreparedData) -> dict[str, Any]:
    """One training that goes on from budget to budget, scored as shipped at each of them."""
    torch.set_num_threads(1)
    genome = genome_of(SHAPES[name])
    settings = TrainSettings(seed=seed)
    length = settings.sequence_length
    texts = {
        which: data.passages(genome.vocab_size, which, length=length, max_bytes=size)
        for which, size in (("search", SEARCH_BYTES), ("report", REPORT_BYTES))
    }
    last = steps["final"][""]
    wanted = sorted({n for kind in KINDS for n in steps[kind].values() if n < last})
    state, bits, began = None, {}, time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        for count in (*wanted, last):
            model = fresh(genome, seed=seed)
            trained = train(
                model, data.tokens(genome.vocab_size, "train"), Budget("steps", count), settings=settings,
                folder=Path(scratch) / str(count), resume_from=state, accelerator=Accelerator(cpu=True),
            )  # fmt: skip
            state = trained.checkpoint
            round_weights(model, torch.bfloat16)
            score = score_passages(model.float(), texts["report" if count == last else "search"])
            bits[str(count)] = score.bits_per_byte
    return {
        "shape": name,
        "seed": seed,
        "parameters": genome.num_parameters(),
        "steps": steps,
        "bits_per_byte": bits,
        "cpu_seconds": time.process_time() - began,
    }


def rows_of(runs: Sequence[Mapping[str, Any]], *, levels: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each kind and level: how well the order of the five is that of the end, a mean over seeds."""
    seeds = sorted({run["seed"] for run in runs})
    rows = []
    for level in levels:
        for kind in KINDS:
            taus, costs, used = [], [], []
            for seed in seeds:
                of_seed = [run for run in runs if run["seed"] == seed]
                counts = [run["steps"][kind][str(level)] for run in of_seed]
                rung = [run["bits_per_byte"].get(str(count)) for run, count in zip(of_seed, counts, strict=True)]
                end = [run["bits_per_byte"][str(run["steps"]["final"][""])] for run in of_seed]
                if None in rung:  # beyond the end of some shape
                    continue
                tau = RankCorrelation.of(list(zip(rung, end, strict=True)))
                taus += [] if tau is None else [tau.tau]
                costs.append(100 * (end[rung.index(min(rung))] / min(end) - 1))
                used = counts
            if not taus:
                continue
            mean, low, high = interval(taus)
            row = {"steps_on_average": level, "equal": kind, "fewest_steps": min(used), "most_steps": max(used)}
            row |= {"tau": mean, "interval": None if low is None else [low, high], "seeds": len(taus)}
            rows.append(row | {"first_place_costs_percent": statistics.fmean(costs)})
    return rows


def shape_rows(runs: Sequence[Mapping[str, Any]], *, costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """What each shape is and where it ends."""
    rows = []
    for name in SHAPES:
        own = [run for run in runs if run["shape"] == name]
        ends = [run["bits_per_byte"][str(run["steps"]["final"][""])] for run in own]
        row = {"shape": name, "parameters": own[0]["parameters"], "seconds_a_step": costs[name]}
        rows.append(row | {"steps": own[0]["steps"]["final"][""], "report_text": statistics.fmean(ends)})
    return rows


def main() -> None:
    """Works through the runs, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[20, 40, 60, 120, 240])
    parser.add_argument("--final", type=float, default=360.0, help="processor seconds of each shape at the end")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/rungs"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    note = options.folder / "data.json"
    if options.run:
        path, name, *more = json.loads(options.run)
        data = PreparedData.from_dict(read_json(note), beside=options.folder)
        write_json(Path(path), execute(name, *more, data=data) if more else {"seconds": step_cost(name, data=data)})
        return
    data = prepare_data(
        corpus=CorpusSettings(max_bytes=options.data_bytes), tokenizer=TokenizerSettings(),
        vocab_sizes=[shape[0] for shape in SHAPES.values()], folder=options.folder / "data",
    )  # fmt: skip
    write_json(note, data.to_dict(beside=options.folder))
    about = protocol(
        threads=1, levels=options.levels, final_cpu_seconds=options.final, seeds=options.seeds,
        search_bytes=SEARCH_BYTES, report_bytes=REPORT_BYTES, data=data.digest[:16],
        statistic="tau and cost: mean over seeds, 95 % interval of Student's t",
    )  # fmt: skip
    stem = "-".join(map(str, [*options.levels, f"{options.final:g}", data.digest[:8], about["commit"]]))
    runs: Path = options.folder / stem
    runs.mkdir(exist_ok=True)

    def place(*words: Any) -> Path:
        return runs / ("-".join(map(str, words)).replace(" ", "_") + ".json")

    def run_all(jobs: Sequence[Sequence[Any]], *, workers: int) -> None:
        words = {Path(job[0]): ["--folder", str(options.folder), "--run", json.dumps(job)] for job in jobs}
        work_off(lambda: words, module="benchmarks.rungs", workers=workers)

    # One at a time: costs are ratios between shapes, and neighbours would disturb some of them more than others.
    run_all([[str(place("cost", n)), n] for n in SHAPES], workers=1)
    costs = {name: read_json(place("cost", name))["seconds"] for name in SHAPES}
    steps = ladders(costs, data=data, levels=options.levels, final_s=options.final)
    jobs = [[str(place(n, seed)), n, seed, steps[n]] for seed in range(options.seeds) for n in SHAPES]
    run_all(jobs, workers=options.workers)
    found = [read_json(Path(job[0])) for job in jobs]
    rows = rows_of(found, levels=options.levels)
    about |= {"shapes": shape_rows(found, costs=costs)}
    print(write("rungs", protocol=about, rows=rows))


if __name__ == "__main__":
    main()
