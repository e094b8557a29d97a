"""Which training settings give the best model for the clock: `python -m benchmarks.recipe`.

One shape of about two million parameters, the package's loop, one setting changed at a time against the defaults.
Every arm has the same processor time: the steps that the defaults take in about four minutes on one core, fewer
or more where a setting changes what a step costs (measured, in turn with the defaults). So a busy machine delays the
table and does not change it. Arms share batches and initial weights by seed, so differences are paired: `gain_percent`
is how much lower bits per byte are than with the defaults of the same seed.

Each run is a process of its own with one thread, `--workers` at a time; what is finished is found again. First one
seed of everything (or of what `--only` names), then `--seeds` of the defaults and of the `--confirm` best, and of all
of those together.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.pool import work_off
from benchmarks.quality import interval
from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget
from codenas_hf.folders import read_json, write_json
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.measure.score import score_passages
from codenas_hf.training import DivergenceError, TrainSettings, build_model, resolve_precision, train

SHAPE = Genome(
    vocab_size=4096, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
    intermediate_size=384,
)  # fmt: skip
DEFAULTS = "defaults"
SCORE_BYTES = 250_000
# name: settings of training, settings of the optimiser. Where a step costs something else, the cost is measured.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    DEFAULTS: ({}, {}),
    "decay_share 0.4": ({}, {"decay_share": 0.4}),
    "decay_share 0.6": ({}, {"decay_share": 0.6}),
    "decay_share 0.6, floor 0.1": ({}, {"decay_share": 0.6, "decay_floor": 0.1}),
    "decay_share 0.8, floor 0.1": ({}, {"decay_share": 0.8, "decay_floor": 0.1}),
    "decay_floor 0.05": ({}, {"decay_floor": 0.05}),
    "tokens_per_step 512": ({"tokens_per_step": 512}, {}),
    "tokens_per_step 2048": ({"tokens_per_step": 2048}, {}),
    "tokens_per_step 2048, rates x 1.4": (
        {"tokens_per_step": 2048},
        {"matrix_learning_rate": 0.014, "learning_rate": 0.028},
    ),
    "sequence_length 128": ({"sequence_length": 128}, {}),
    "sequence_length 512": ({"sequence_length": 512}, {}),
    "matrix_learning_rate 0.005": ({}, {"matrix_learning_rate": 0.005}),
    "matrix_learning_rate 0.02": ({}, {"matrix_learning_rate": 0.02}),
    "learning_rate 0.01": ({}, {"learning_rate": 0.01}),
    "learning_rate 0.04": ({}, {"learning_rate": 0.04}),
    "momentum 0.9": ({}, {"momentum": 0.9}),
    "momentum 0.97": ({}, {"momentum": 0.97}),
    "weight_decay 0": ({}, {"weight_decay": 0.0}),
    "weight_decay 0.2": ({}, {"weight_decay": 0.2}),
    "warmup_steps 100": ({}, {"warmup_steps": 100}),
    "embedding_std 0.05": ({}, {"embedding_std": 0.05}),
    "embedding_std 0.2": ({}, {"embedding_std": 0.2}),
    "readout_gain 0.1": ({}, {"readout_gain": 0.1}),
    "readout_gain 0.4": ({}, {"readout_gain": 0.4}),
}


def settings_of(name: str, *, seed: int) -> TrainSettings:
    """The settings of a variant, or of several joined by ` + `."""
    settings = TrainSettings(seed=seed)
    for part in name.split(" + "):
        train_changes, optim_changes = VARIANTS[part]
        settings = replace(settings, **train_changes, optim=replace(settings.optim, **optim_changes))
    return settings


def fresh(settings: TrainSettings) -> CodeNASForCausalLM:
    """The shape with new weights."""
    config = SHAPE.to_config(bos_token_id=0, eos_token_id=0, pad_token_id=7)
    model = build_model(CodeNASForCausalLM, config, settings=settings.optim, seed=settings.seed)
    assert isinstance(model, CodeNASForCausalLM)
    return model


def step_cost(name: str, *, data: PreparedData, repeats: int = 4, steps: int = 6) -> float:
    """Seconds of a step over those of the defaults: the fastest of some short trainings, taken in turn."""
    if not any(VARIANTS[part][0] for part in name.split(" + ")):
        return 1.0  # the same arithmetic
    fastest = {name: math.inf, DEFAULTS: math.inf}
    for _ in range(repeats):
        for each in fastest:
            settings = settings_of(each, seed=0)
            result = train(
                fresh(settings), data.tokens(SHAPE.vocab_size, "train"), Budget("steps", steps), settings=settings
            )
            fastest[each] = min(fastest[each], result.seconds_run / result.steps_run)
    return fastest[name] / fastest[DEFAULTS]


def execute(name: str, seed: int, *, data: PreparedData, steps: int, path: Path) -> None:
    """Trains and scores one run and writes its result."""
    torch.set_num_threads(1)
    settings = settings_of(name, seed=seed)
    cost = step_cost(name, data=data)
    own_steps = max(1, round(steps / cost))
    model = fresh(settings)
    bits: float | None
    try:
        result = train(model, data.tokens(SHAPE.vocab_size, "train"), Budget("steps", own_steps), settings=settings)
        passages = data.passages(SHAPE.vocab_size, "search", length=settings.sequence_length, max_bytes=SCORE_BYTES)
        bits, seconds = score_passages(model, passages).bits_per_byte, result.seconds
    except (DivergenceError, ValueError):
        bits, seconds = None, None
    outcome = {
        "variant": name,
        "seed": seed,
        "steps": own_steps,
        "step_cost": cost,
        "bits_per_byte": bits,
        "seconds": seconds,
    }
    write_json(path, outcome)


def wanted(
    done: Mapping[tuple[str, int], Any], *, names: Sequence[str], seeds: int, confirm: int
) -> list[tuple[str, int]]:
    """All runs that are known to be needed so far: the best of `names` follow from what is done."""
    runs = [(name, 0) for name in (DEFAULTS, *names)]
    if any(run not in done for run in runs):
        return runs
    base = done[DEFAULTS, 0]["bits_per_byte"]
    gains = {name: base - (done[name, 0]["bits_per_byte"] or math.inf) for name in names}
    ranked = sorted((name for name in gains if gains[name] > 0), key=lambda name: -gains[name])[:confirm]
    runs += [(name, seed) for seed in range(1, seeds) for name in (DEFAULTS, *ranked)]
    if len(ranked) > 1:
        setting = {name: {k for part in VARIANTS[name] for k in part} for name in ranked}
        together: list[str] = []
        for name in ranked:  # the best value of each setting
            if not any(setting[name] & setting[other] for other in together):
                together.append(name)
        runs += [(" + ".join(together), seed) for seed in range(seeds)]
    return runs


def rows_of(done: Mapping[tuple[str, int], Any]) -> list[dict[str, Any]]:
    """A row for each variant."""
    rows = []
    for name in dict.fromkeys(name for name, _ in done):
        runs = {seed: run for (other, seed), run in done.items() if other == name and run["bits_per_byte"]}
        if not runs:
            rows.append({"setting": name, "seeds": 0, "note": "diverged"})
            continue
        pairs = [
            1 - run["bits_per_byte"] / done[DEFAULTS, seed]["bits_per_byte"]
            for seed, run in runs.items()
            if (DEFAULTS, seed) in done
        ]
        mean, low, high = interval([100 * pair for pair in pairs])
        row = {
            "setting": name,
            "seeds": len(runs),
            "bits_per_byte": statistics.fmean(r["bits_per_byte"] for r in runs.values()),
        }
        row |= {"gain_percent": mean, "interval": None if low is None else [low, high]}
        row |= {"steps": next(iter(runs.values()))["steps"], "step_cost": next(iter(runs.values()))["step_cost"]}
        rows.append(row | {"by_seed": {str(seed): run["bits_per_byte"] for seed, run in sorted(runs.items())}})
    return sorted(rows, key=lambda row: -row.get("gain_percent", -math.inf))


def main() -> None:
    """Works through the runs, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of the defaults: four minutes on one core")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--confirm", type=int, default=4)
    others = [name for name in VARIANTS if name != DEFAULTS]
    parser.add_argument("--only", nargs="+", default=others, choices=others, metavar="SETTING", help="; ".join(others))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    note = options.folder / "data.json"
    if options.run:
        name, seed, path = json.loads(options.run)
        data = PreparedData.from_dict(read_json(note), beside=options.folder)
        execute(name, seed, data=data, steps=options.steps, path=Path(path))
        return
    data = prepare_data(
        corpus=CorpusSettings(max_bytes=options.data_bytes), tokenizer=TokenizerSettings(),
        vocab_sizes=[SHAPE.vocab_size], folder=options.folder / "data",
    )  # fmt: skip
    write_json(note, data.to_dict(beside=options.folder))
    about = protocol(
        threads=1, parameters=SHAPE.num_parameters(), steps=options.steps, scored_bytes=SCORE_BYTES,
        data=data.digest[:16], text="search text", of=f"{len(options.only)} of {len(others)} settings",
        precision=str(resolve_precision("auto", device=torch.device("cpu"))),
    )  # fmt: skip
    results = options.folder / f"{options.steps}-{data.digest[:12]}-{about['commit']}"
    results.mkdir(exist_ok=True)

    def done() -> dict[tuple[str, int], Any]:
        stored = [read_json(path) for path in sorted(results.glob("*.json"))]
        return {(run["variant"], run["seed"]): run for run in stored}

    def runs() -> dict[Path, list[str]]:
        found = {}
        for name, seed in wanted(done(), names=options.only, seeds=options.seeds, confirm=options.confirm):
            path = results / f"{name.replace(' ', '_').replace(',', '')}-seed{seed}.json"
            words = ["--folder", str(options.folder), "--steps", str(options.steps)]
            found[path] = [*words, "--run", json.dumps([name, seed, str(path)])]
        return found

    work_off(runs, module="benchmarks.recipe", workers=options.workers)
    rows = rows_of(done())
    together = [row for row in rows if " + " in row["setting"]]
    goals = []
    if together and together[0]["interval"]:
        low, high = together[0]["interval"]
        goals.append(
            target(
                "lower bits per byte with the best settings together, percent",
                together[0]["gain_percent"],
                0.0,
                better="higher",
            )
        )
        goals.append(target(f"lower end of its interval ({low:.2f} to {high:.2f})", low, 0.0, better="higher"))
    columns = ["setting", "seeds", "bits_per_byte", "gain_percent", "interval", "steps", "step_cost"]
    print(write("recipe", protocol=about, rows=rows, targets=goals, columns=columns))


if __name__ == "__main__":
    main()
