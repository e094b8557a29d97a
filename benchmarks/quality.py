"""Bits per byte at equal bytes and equal processor time: `python -m benchmarks.quality`.

Three kinds of arms, on one machine, with one data set, each with `--seeds` seeds:
(a) `trainer`: each baseline shape with `transformers.Trainer`, AdamW, cosine over the steps, its learning rate swept
    over at least five values (wider where the best lies at the edge) with one seed, then the best and its two
    neighbours with all seeds; the best mean is used, the sweep is published;
(b) `loop`: the same shapes with the package's loop, and at fractions of the steps, for the time to (a)'s result
    (`--swept` names the baselines that get (a) and the fractions, where all of them would take too long);
(c) `ours`: genomes from a search under the same byte limit (`--ours FILE ...`) with the package's loop.

An arm's minutes become steps once, by the seconds that a step of its shape takes in its trainer, alone on one core
(measured first; nothing else may run then). So a busy machine delays the table and does not change it. Each run is a
process of its own with one thread; `--workers` run at a time. What is finished is found again, by code and data: stop
it and start it as you like. The result file is written at the end, from all runs asked for. Example:
`python -m benchmarks.quality --minutes-per-arm 10 --ours configs/genomes/searched_4mb.yaml`
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from benchmarks.pool import work_off
from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, PreparedData, Tokens, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget
from codenas_hf.engine.intervals import t_quantile
from codenas_hf.folders import read_json, write_json
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.measure.candidate import round_weights, save_artifact
from codenas_hf.measure.score import score_passages
from codenas_hf.training import TrainSettings, build_model, resolve_precision, train

GENOMES = Path(__file__).parent.parent / "configs" / "genomes"
FAMILIES = ("llama_l8h512", "gpt2_scaled", "mobilellm_scaled", "golf_baseline")
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
FRACTIONS = (0.2, 0.4)
LENGTH, SEQUENCES, SCORE_BYTES = 256, 4, 500_000
TIMED_STEPS, TIMED_REPEATS = 12, 3


@dataclass(frozen=True)
class Run:
    """One training: which arm, which genome file, under what."""

    kind: str
    genome: str
    seed: int
    minutes: float
    rate: float | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        rate = "" if self.rate is None else f"-rate{self.rate:g}"
        return f"{self.kind}-{Path(self.genome).stem}-{self.minutes:g}min{rate}-seed{self.seed}"

    @property
    def speed(self) -> str:
        """What has its own speed: a shape in a trainer."""
        return f"{'trainer' if self.kind == 'trainer' else 'loop'} {Path(self.genome).stem}"


class Rows(IterableDataset[dict[str, Any]]):
    """The same packed rows, in the same order, as the package's loop takes them."""

    def __init__(self, tokens: Tokens, seed: int) -> None:
        self.tokens, self.seed = tokens, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = 0
        while True:
            batch = self.tokens.batch(step, sequences=SEQUENCES, length=LENGTH, seed=self.seed)
            for row in range(SEQUENCES):
                yield {name: torch.from_numpy(values[row]) for name, values in batch.items()}
            step += 1


def with_trainer(model: CodeNASForCausalLM, tokens: Tokens, run: Run, *, steps: int) -> float:
    """Trains with `Trainer`; returns seconds."""
    assert run.rate is not None
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.rate, betas=(0.9, 0.95), fused=True)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 50) * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, step / steps))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    half = resolve_precision("auto", device=torch.device("cpu")) is torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=SEQUENCES, report_to=[], bf16=half,
            save_strategy="no", disable_tqdm=True, logging_steps=1000, use_cpu=True, max_grad_norm=1.0, seed=run.seed,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Rows(tokens, run.seed), optimizers=(optimizer, schedule),
        )  # fmt: skip
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def trained(run: Run, *, data: PreparedData, steps: int) -> tuple[CodeNASForCausalLM, float]:
    """A run's model after so many steps, and the seconds that they took."""
    genome = Genome.from_yaml(run.genome)
    tokens = data.tokens(genome.vocab_size, "train")
    config = genome.to_config(bos_token_id=0, eos_token_id=0, pad_token_id=7)
    if run.kind == "trainer":
        torch.manual_seed(run.seed)
        model = CodeNASForCausalLM(config)
        return model, with_trainer(model, tokens, run, steps=steps)
    settings = TrainSettings(sequence_length=LENGTH, tokens_per_step=LENGTH * SEQUENCES, seed=run.seed)
    built = build_model(CodeNASForCausalLM, config, settings=settings.optim, seed=run.seed)
    assert isinstance(built, CodeNASForCausalLM)
    return built, train(built, tokens, Budget("steps", steps), settings=settings).seconds


def seconds_a_step(run: Run, *, data: PreparedData) -> float:
    """In a process of its own, as the runs are: neither trainer may set what the other finds."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(timed_steps, run, data=data).result()


def timed_steps(run: Run, *, data: PreparedData) -> float:
    """Seconds a step: the fastest of some short trainings, their beginnings left out."""
    torch.set_num_threads(1)
    found = []
    for _ in range(TIMED_REPEATS):
        short, long = (trained(run, data=data, steps=steps)[1] for steps in (2, 2 + TIMED_STEPS))
        found.append((long - short) / TIMED_STEPS)
    return min(found)


def execute(run: Run, *, data: PreparedData, folder: Path, step_seconds: float) -> None:
    """Trains, rounds to bfloat16, weighs, scores on held-out projects; writes the run's result."""
    torch.set_num_threads(1)
    steps = max(1, round(60 * run.minutes / step_seconds))
    model, seconds = trained(run, data=data, steps=steps)
    genome = Genome.from_yaml(run.genome)
    round_weights(model, torch.bfloat16)
    with tempfile.TemporaryDirectory() as temporary:
        size = save_artifact(model, tokenizer=data.tokenizer(genome.vocab_size), folder=Path(temporary))
    windows = data.passages(genome.vocab_size, "report", length=LENGTH, max_bytes=SCORE_BYTES)
    try:
        bits: float | None = score_passages(model.float(), windows).bits_per_byte
    except ValueError:  # a rate of the sweep under which it diverged
        bits = None
    outcome = asdict(run) | {"bits_per_byte": bits, "artifact_bytes": size, "steps": steps, "train_seconds": seconds}
    write_json(folder / f"{run.name}.json", outcome)


def wanted(done: Mapping[str, Any], arguments: argparse.Namespace) -> list[Run]:
    """All runs that are known to be needed so far; a sweep's winner and its wider rates follow from what is done."""
    minutes, runs = arguments.minutes_per_arm, []
    for family in arguments.baselines:
        genome = str(GENOMES / f"{family}_{arguments.size}.yaml")
        swept = arguments.swept is None or family in arguments.swept
        if "trainer" in arguments.arms and swept:
            rates = sorted(RATES)
            for _ in range(4):
                sweep = [Run("trainer", genome, 0, minutes, rate) for rate in rates]
                runs += [run for run in sweep if run not in runs]
                results = [(done[r.name]["bits_per_byte"] or math.inf, r.rate) for r in sweep if r.name in done]
                if len(results) < len(sweep):
                    break
                best = min(results)[1]
                assert best is not None
                if best == rates[0]:
                    rates = [best / 2, *rates]
                elif best == rates[-1]:
                    rates = [*rates, best * 2]
                else:
                    place = rates.index(best)
                    near = rates[place - 1 : place + 2]
                    runs += [
                        Run("trainer", genome, seed, minutes, r) for seed in range(1, arguments.seeds) for r in near
                    ]
                    break
        if "loop" in arguments.arms:
            runs += [Run("loop", genome, seed, minutes) for seed in range(arguments.seeds + arguments.more_seeds)]
            short = [minutes * fraction for fraction in FRACTIONS if swept]
            runs += [Run("loop", genome, seed, less) for seed in range(arguments.seeds) for less in short]
    if "ours" in arguments.arms:
        seeds = range(arguments.seeds + arguments.more_seeds)
        runs += [Run("ours", str(path), seed, minutes) for path in arguments.ours for seed in seeds]
    return runs


def interval(values: list[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of a mean (Student's t); no interval for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def summarise(done: Mapping[str, Any], arguments: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Rows and targets from what is finished."""
    minutes = arguments.minutes_per_arm
    groups: dict[tuple[str, str, float, float | None], dict[int, Any]] = {}
    for outcome in done.values():
        if outcome["bits_per_byte"] is not None:
            key = (outcome["kind"], Path(outcome["genome"]).stem, outcome["minutes"], outcome["rate"])
            groups.setdefault(key, {})[outcome["seed"]] = outcome
    rows: list[dict[str, Any]] = []
    best: dict[tuple[str, str], tuple[float, tuple[str, str, float, float | None]]] = {}
    for key, outcomes in sorted(groups.items(), key=lambda item: tuple(str(part) for part in item[0])):
        mean, low, high = interval([outcome["bits_per_byte"] for outcome in outcomes.values()])
        first = next(iter(outcomes.values()))
        rows.append(
            {
                "arm": key[0], "genome": key[1], "minutes": key[2], "learning_rate": key[3], "seeds": len(outcomes),
                "bits_per_byte": mean, "interval": None if low is None else [low, high],
                "artifact_bytes": first["artifact_bytes"], "steps": first["steps"],
                "by_seed": {
                    str(seed): {"steps": o["steps"], "bits_per_byte": o["bits_per_byte"]}
                    for seed, o in sorted(outcomes.items())
                },
            }
        )  # fmt: skip
        if key[2] == minutes and len(outcomes) >= arguments.seeds:
            best[key[:2]] = min(best.get(key[:2], (math.inf, key)), (mean, key), key=lambda pair: pair[0])
    return rows, targets(groups, best, arguments)


def targets(groups: Mapping[Any, Any], best: Mapping[Any, Any], arguments: argparse.Namespace) -> list[Any]:
    """Those whose arms are finished with all seeds."""
    trainer, loop, ours = ([best[k] for k in best if k[0] == kind] for kind in ("trainer", "loop", "ours"))
    found = []

    def gain(before: Any, after: Any) -> tuple[float, float | None, float | None]:
        first, second = groups[before], groups[after]
        both = sorted(set(first) & set(second))
        return interval([1 - second[seed]["bits_per_byte"] / first[seed]["bits_per_byte"] for seed in both])

    def between(low: float | None, high: float | None) -> str:
        return "one seed" if low is None or high is None else f"95 %: {low:.3f} to {high:.3f}"

    shares = []
    for mean, key in trainer:
        for fraction in (*FRACTIONS, 1.0):
            reached = groups.get(("loop", key[1], arguments.minutes_per_arm * fraction, None), {})
            values = [outcome["bits_per_byte"] for outcome in reached.values()]
            if values and statistics.fmean(values) <= mean:
                shares.append(fraction)
                break
        else:
            shares.append(math.inf)
    if shares and loop:  # infinite where a baseline's result was not reached: a target missed, not a number left out
        found.append(
            target("share of the swept baseline's time to its result, worst", max(shares), 0.4, better="lower")
        )
    if trainer and ours:
        total, low, high = gain(min(trainer)[1], min(ours)[1])
        found.append(target(f"loop and architecture lower by ({between(low, high)})", total, 0.15, better="higher"))
    if loop and ours:
        architecture, low, high = gain(min(loop)[1], min(ours)[1])
        found.append(
            target(f"architecture alone lower by ({between(low, high)})", architecture, 0.03, better="higher")
        )
        if low is not None:
            found.append(target("architecture alone, lower end of the interval", low, 0.0, better="higher"))
    if trainer and loop:
        share, low, high = gain(min(trainer)[1], min(loop)[1])
        found.append(target(f"loop alone lower by ({between(low, high)})", share, 0.0, better="higher"))
    return found


def read_done(folder: Path) -> dict[str, Any]:
    """Finished runs by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-seed*.json"))}


def prepare(arguments: argparse.Namespace) -> PreparedData:
    """Corpus, tokenizers and tokens of all genomes in the comparison."""
    files = [GENOMES / f"{family}_{arguments.size}.yaml" for family in arguments.baselines] + list(arguments.ours)
    sizes = {Genome.from_yaml(path).vocab_size for path in files}
    return prepare_data(
        corpus=CorpusSettings(max_bytes=arguments.data_bytes),
        tokenizer=TokenizerSettings(),
        vocab_sizes=sorted(sizes),
        folder=arguments.folder / "data",
    )


def step_speeds(runs: list[Run], *, data: PreparedData, kept: Path) -> dict[str, float]:
    """Seconds a step of each shape in its trainer, measured once."""
    known: dict[str, float] = read_json(kept) if kept.exists() else {}
    for run in runs:
        if run.speed not in known:
            known[run.speed] = seconds_a_step(run, data=data)
            print(f"{run.speed}: {1000 * known[run.speed]:.0f} ms a step", flush=True)
            write_json(kept, known)
    return known


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes-per-arm", type=float, default=10.0)
    parser.add_argument("--arms", nargs="+", default=["trainer", "loop", "ours"], choices=["trainer", "loop", "ours"])
    parser.add_argument("--baselines", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--swept", nargs="*", choices=FAMILIES, help="baselines with a Trainer sweep; default: all")
    parser.add_argument("--size", default="4mb", choices=["1mb", "2mb", "4mb", "55mb"])
    parser.add_argument("--ours", nargs="*", type=Path, default=[], help="genome files from a search of that size")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--more-seeds", type=int, default=0, help="more for whole loop and ours: narrower intervals")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Works through the runs, `--workers` at a time, then writes the result file."""
    arguments = parse()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    note = arguments.folder / "data.json"
    if arguments.run:
        data = PreparedData.from_dict(read_json(note), beside=note.parent)
        asked, folder, step_seconds = json.loads(arguments.run)
        execute(Run(**asked), data=data, folder=Path(folder), step_seconds=step_seconds)
        return
    data = prepare(arguments)
    write_json(note, data.to_dict(beside=note.parent))
    facts = protocol(
        threads=1, workers=arguments.workers, minutes=arguments.minutes_per_arm, seeds=arguments.seeds,
        more_seeds=arguments.more_seeds, context=LENGTH, tokens_per_step=LENGTH * SEQUENCES, text="report text",
        scored_bytes=SCORE_BYTES, data=data.digest[:16], size=arguments.size, baselines=list(arguments.baselines),
        note="ours may come from a search on the same training and search texts, never on this report text",
    )  # fmt: skip
    results = arguments.folder / f"{data.digest[:12]}-{facts['commit']}"
    results.mkdir(exist_ok=True)
    speeds = step_speeds(wanted({}, arguments), data=data, kept=results / "step_seconds.json")

    def runs() -> dict[Path, list[str]]:
        found = {}
        for run in wanted(read_done(results), arguments):
            about = json.dumps([asdict(run), str(results), speeds[run.speed]])
            found[results / f"{run.name}.json"] = ["--folder", str(arguments.folder), "--run", about]
        return found

    failed = work_off(runs, module="benchmarks.quality", workers=arguments.workers, keep_going=True)
    done = read_done(results)
    wanted_names = {run.name for run in wanted(done, arguments)}
    rows, goals = summarise({name: value for name, value in done.items() if name in wanted_names}, arguments)
    facts |= {"step_ms": {name: round(1000 * value, 1) for name, value in speeds.items()}}
    facts |= {"failed_runs": sorted(path.stem for path in failed)}
    print(write(f"quality_{arguments.size}", protocol=facts, rows=rows, targets=goals))


if __name__ == "__main__":
    main()
