"""The main job from nothing to a winner, by the clock: `python -m benchmarks.main_job`.

Runs `recipes/search_two_stage.py` under `accelerate launch` in an empty folder with the defaults, then reads its
record: the front, the share of the workers' time that went into training, and the wall clock. `--speedup` adds a short
search with one worker and with two, on the same data. Pictures of the front and of the winner go to docs/images.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import protocol, target, write
from codenas_hf.engine import SearchResult
from codenas_hf.jobs.study import open_study

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PICTURES = ("front.png", "architecture.png")


def run(folder: Path, *words: str) -> float:
    """Seconds of the main job with its data and studies in `folder`."""
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "one.yaml")]
    command = [*launch, str(ROOT / "recipes" / "search_two_stage.py")]
    started = time.perf_counter()
    subprocess.run([*command, f"folder={folder}", *words], check=True)
    return time.perf_counter() - started


def front_rows(result: SearchResult) -> list[dict[str, Any]]:
    """The front, best fitness first; the first row is the winner."""
    rows = []
    for record in result.front:
        evaluation = record.evaluation
        assert evaluation is not None
        genome = record.genome.to_dict()
        rows.append(
            {
                "genome": record.genome.genome_id,
                "layers": genome["num_hidden_layers"],
                "width": genome["hidden_size"],
                "vocabulary": genome["vocab_size"],
                "parameters": evaluation.measurements["num_parameters"],
                "bits_per_byte": evaluation.objectives["bits_per_byte"],
                "artifact_bytes": int(evaluation.objectives["artifact_bytes"]),
                "decode_ms": evaluation.objectives["decode_ms"],
                "fitness": result.fitness(record),
            }
        )
    return rows


def outside_training(result: SearchResult) -> float:
    """Share of the candidates' time that was not training, all trials together."""
    spent = [r.evaluation.seconds for r in result.records if r.evaluation is not None]
    parts = [{k: v for k, v in seconds.items() if k != "confirm"} for seconds in spent]
    total = sum(sum(seconds.values()) for seconds in parts)
    return 1 - sum(seconds["train"] for seconds in parts) / total


def per_hour(folder: Path, *, workers: int) -> float:
    """Evaluations an hour of a search in one stage with so many workers, from the first begun to the last ended."""
    study = f"workers_{workers}"
    words = (f"study={study}", "search.generations=1", "search.population=32", "search.budgets=[40 steps]")
    seconds = run(folder, *words, "search.keep=[]", f"search.workers_per_rank={workers}")
    result, _ = open_study(folder / study)
    ended, busy = [], []
    for record in result.records:
        assert record.evaluation is not None
        assert record.evaluation.checkpoint is not None
        ended.append(record.evaluation.checkpoint.stat().st_mtime)
        busy.append(sum(record.evaluation.seconds.values()))
    print(f"{workers} workers: {len(ended)} evaluations, {sum(busy):.0f} s of work in {seconds:.0f} s")
    begun = min(end - spent for end, spent in zip(ended, busy, strict=True))
    return 3600 * len(ended) / (max(ended) - begun)


def main() -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    parser.add_argument("--speedup", action="store_true", help="also compare one worker with two")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        seconds = run(folder)
        result, settings = open_study(folder / "two_stage")
        share = outside_training(result)
        correlation = result.rank_correlation()
        facts: dict[str, Any] = {
            "wall_seconds": round(seconds),
            "evaluations": sum(r.evaluation is not None for r in result.records),
            "failures": len(result.failures),
            "outside_training": round(share, 4),
            "rank_correlation_of_the_rungs": None if correlation is None else round(correlation.tau, 3),
            "search": f"{settings.search.generations} generations of {settings.search.population}, budgets "
            + " and ".join(str(budget) for budget in settings.search.budgets),
            "seed": settings.search.seed,
            "scored_bytes": settings.candidate.score_bytes,
            "decode": "1 thread, batch 1, timed alone",
        }
        targets = [
            target("minutes from nothing to the winner", seconds / 60, 10, better="lower"),
            target("share of a candidate's time outside training", share, 0.10, better="lower"),
        ]
        if options.speedup:
            one, two = (per_hour(folder, workers=n) for n in (1, 2))
            facts |= {"evaluations_per_hour": {"1 worker": one, "2 workers": two}}
            targets.append(target("evaluations an hour, 2 workers over 1", two / one, 1.85, better="higher"))
        IMAGES.mkdir(parents=True, exist_ok=True)
        for picture in PICTURES:
            shutil.copyfile(folder / "two_stage" / "report" / picture, IMAGES / picture)
        write("main_job", protocol=protocol(**facts), rows=front_rows(result), targets=targets)


if __name__ == "__main__":
    main()
