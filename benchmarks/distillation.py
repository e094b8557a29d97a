"""Does a teacher pay for a model trained from nothing? `python -m benchmarks.distillation`.

A student of about a million parameters is trained on plain text for the whole time, or for what a larger teacher with
the same tokenizer leaves of it: both learn from the same text, and the teacher's own training counts. A third arm has
a finished teacher for nothing. Minutes become steps once, by the processor seconds that a step of each kind takes on
one core (the fastest of some short trainings, in turn), so a busy machine delays the table and does not change it.
Arms share initial weights and batches by seed. Nothing is read twice within the time: one epoch. Intervals of a
difference are of the mean over seeds (Student's t); each seed's own, from resampling projects, stands beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.pool import work_off
from benchmarks.quality import interval
from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget
from codenas_hf.engine.intervals import paired_ratio
from codenas_hf.folders import read_json, whole_file, write_json
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.measure.score import score_passages
from codenas_hf.training import TrainSettings, build_model, train
from codenas_hf.training.distil import DistilSettings, taught

STUDENT = Genome(
    vocab_size=4096, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=320,
)  # fmt: skip
TEACHER = Genome(
    vocab_size=4096, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=640,
)  # fmt: skip
ALONE, TAUGHT, GIVEN = "alone", "teacher within the time", "teacher for nothing"
TEACHING = "teacher"  # itself
SHOWN = (
    "arm",
    "seed",
    "parameters",
    "steps",
    "tokens",
    "epochs",
    "bits_per_byte",
    "interval",
    "less",
    "less_interval",
)
TIMED_STEPS, TIMED_REPEATS = 6, 3


@dataclass(frozen=True)
class Run:
    """One training."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its result file."""
        return f"{self.arm.replace(' ', '_')}-{self.seed}"


def settings_of(seed: int) -> TrainSettings:
    """Those of the package."""
    return TrainSettings(seed=seed)


def fresh(genome: Genome, seed: int) -> CodeNASForCausalLM:
    """A model with new weights."""
    config = genome.to_config(bos_token_id=0, eos_token_id=0, pad_token_id=7)
    model = build_model(CodeNASForCausalLM, config, settings=settings_of(seed).optim, seed=seed)
    assert isinstance(model, CodeNASForCausalLM)
    return model


def trained(
    genome: Genome, *, data: PreparedData, steps: int, seed: int, teacher: CodeNASForCausalLM | None, weight: float
) -> tuple[CodeNASForCausalLM, float]:
    """A model after so many steps, towards a teacher where there is one, and the processor seconds that they took."""
    model = fresh(genome, seed)
    with ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(taught(model, teacher, settings=DistilSettings(weight=weight)))
        started = time.process_time()
        train(model, data.tokens(genome.vocab_size, "train"), Budget("steps", steps), settings=settings_of(seed))
    return model, time.process_time() - started


def step_seconds(data: PreparedData) -> dict[str, float]:
    """Processor seconds of a step of the student, of the teacher, and of a student with a teacher."""
    torch.set_num_threads(1)
    teacher = fresh(TEACHER, 0).eval()
    kinds = {ALONE: (STUDENT, None), TEACHING: (TEACHER, None), TAUGHT: (STUDENT, teacher)}
    fastest = dict.fromkeys(kinds, math.inf)
    for _ in range(TIMED_REPEATS):
        for kind, (genome, told_by) in kinds.items():
            short, long = (
                trained(genome, data=data, steps=steps, seed=0, teacher=told_by, weight=0.5)[1]
                for steps in (2, 2 + TIMED_STEPS)
            )
            fastest[kind] = min(fastest[kind], (long - short) / TIMED_STEPS)
    return fastest


def steps_of(arm: str, options: argparse.Namespace, seconds: Mapping[str, float]) -> int:
    """What an arm's share of the time is in steps."""
    share: float = {TEACHING: options.share, TAUGHT: 1 - options.share}.get(arm, 1.0)
    minutes: float = options.minutes * share
    return max(1, round(60 * minutes / seconds[TAUGHT if arm == GIVEN else arm]))


def execute(options: argparse.Namespace, run: Run, *, data: PreparedData) -> None:
    """Trains and scores one run, and writes its result."""
    torch.set_num_threads(1)
    steps = steps_of(run.arm, options, read_json(options.folder / "step_seconds.json"))
    genome = TEACHER if run.arm == TEACHING else STUDENT
    weights = options.folder / "weights" / f"{Run(TEACHING, run.seed).name}.safetensors"
    teacher = None
    if run.arm in (TAUGHT, GIVEN):
        teacher = fresh(TEACHER, run.seed)
        teacher.load_state_dict(load_file(weights), strict=False)  # a tied head is there once
        teacher.eval()
    model, seconds = trained(genome, data=data, steps=steps, seed=run.seed, teacher=teacher, weight=options.weight)
    if run.arm == TEACHING:
        weights.parent.mkdir(exist_ok=True)
        with whole_file(weights) as draft:
            save_file({name: parameter.detach().clone() for name, parameter in model.named_parameters()}, draft)
    score = score_passages(model, data.passages(4096, "report", length=256, max_bytes=options.report_bytes))
    tokens = steps * settings_of(run.seed).tokens_per_step
    facts = {
        "arm": run.arm,
        "seed": run.seed,
        "parameters": genome.num_parameters(),
        "steps": steps,
        "tokens": tokens,
        "epochs": tokens / data.tokens(4096, "train").num_tokens,
        "core_seconds": seconds,
        "bits_per_byte": score.bits_per_byte,
        "interval": [score.low, score.high],
        "scored_bytes": score.num_bytes,
        "by_project": score.bits_by_project,
    }
    write_json(options.folder / "rows" / f"{run.name}.json", facts)


def rows_of(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table: each taught student beside its difference to the one alone of its seed."""
    rows = []
    for score in done.values():
        row, alone = dict(score), done.get(Run(ALONE, score["seed"]).name)
        if score["arm"] in (TAUGHT, GIVEN) and alone is not None:
            found = paired_ratio(score["by_project"], alone["by_project"])
            assert found is not None
            row |= {"less": found.value, "less_interval": [found.low, found.high]}
        rows.append(row)
    order = (TEACHING, ALONE, TAUGHT, GIVEN)
    return sorted(rows, key=lambda row: (order.index(row["arm"]), row["seed"]))


def targets_of(done: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The sign of the difference that a teacher makes: below zero it pays."""
    goals = []
    for arm in (TAUGHT, GIVEN):
        values = [row["less"] for row in rows_of(done) if row["arm"] == arm and "less" in row]
        if len(values) > 1:
            mean, low, high = interval(values)
            assert low is not None
            assert high is not None
            sign = "pays" if high < 0 else "costs" if low > 0 else "no difference to be seen"
            said = f"{arm}: {sign}; bits per byte less those of the student alone, mean of {len(values)} seeds"
            goals.append(target(said, mean, 0.0, better="lower", interval=[low, high]))
    return goals


def main() -> None:
    """Works off what is missing, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--minutes", type=float, default=3.0, help="of one core, for each arm")
    parser.add_argument("--share", type=float, default=0.5, help="of the time that the teacher's own training has")
    parser.add_argument("--weight", type=float, default=0.5, help="of the teacher's word")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=[TEACHING, ALONE, TAUGHT, GIVEN])
    parser.add_argument("--report-bytes", type=int, default=500_000)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--workers", type=int, default=1, help="rows at a time")
    parser.add_argument("--note", help="what else the protocol should say, such as other jobs on the same cores")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = prepare_data(
        corpus=CorpusSettings(max_bytes=options.data_bytes),
        tokenizer=TokenizerSettings(),
        vocab_sizes=[4096],
        folder=options.folder / "data",
    )
    runs = [Run(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    if options.run:
        execute(options, next(run for run in runs if run.name == options.run), data=data)
        return
    (options.folder / "rows").mkdir(parents=True, exist_ok=True)
    kept = options.folder / "step_seconds.json"
    if not kept.is_file():
        write_json(kept, step_seconds(data))
    rows = options.folder / "rows"

    def missing() -> dict[Path, list[str]]:
        taught_by = {run: rows / f"{Run(TEACHING, run.seed).name}.json" for run in runs if run.arm in (TAUGHT, GIVEN)}
        ready = [run for run in runs if run not in taught_by or taught_by[run].is_file()]
        return {rows / f"{run.name}.json": [*sys.argv[1:], "--run", run.name] for run in ready}

    work_off(missing, module="benchmarks.distillation", workers=options.workers)
    done = {path.stem: read_json(path) for path in sorted(rows.glob("*.json"))}
    first = next(iter(done.values()))
    about = protocol(
        threads=1,
        minutes=options.minutes,
        teacher_share=options.share,
        teacher_weight=options.weight,
        step_ms={kind: round(1000 * value, 1) for kind, value in read_json(kept).items()},
        scored_bytes=first["scored_bytes"],
        projects=len(first["by_project"]["bytes"]),
        **({"note": options.note} if options.note else {}),
    )
    print(write("distillation", protocol=about, rows=rows_of(done), targets=targets_of(done), columns=SHOWN))


if __name__ == "__main__":
    main()
