"""The main job from nothing to a report, by the clock, on two cores: `python -m benchmarks.main_job`.

Runs `recipes/search_two_stage.py` under `accelerate launch` in an empty folder with the defaults, then reads what it
left: the front on both texts, whether the search text flattered the winner, the share of the time that scoring took,
and the released winner, which trained on after the search: on the report text, against the first version's winner
(its shape and its 240 steps, trained now on the same text), on few-shot prompts, and on 20 headers of functions.
Pictures of the front and of the winner go to docs/images.

    python -m benchmarks.main_job --speedup           # also compares one worker with two, on the same data
    python -m benchmarks.main_job --time 10m 30m 2h   # instead: searches by the clock, planned and taken

Nothing else may run meanwhile. `--folder` keeps what was made; a job that is finished there is read, not repeated.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, protocol, read, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.engine import SearchResult
from codenas_hf.folders import Release, StudyFolder, read_json, write_json
from codenas_hf.generation.decode import SHIPPED, complete_many
from codenas_hf.generation.loading import load_model
from codenas_hf.jobs.durations import Duration
from codenas_hf.jobs.plan import Plan, read_plan
from codenas_hf.jobs.study import open_study
from codenas_hf.jobs.train import train
from codenas_hf.report.study_view import StudyView
from codenas_hf.report.texts import Flattery
from codenas_hf.suite.completion_report import completion_rows
from codenas_hf.suite.prompts import load_prompts

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PICTURES = ("front.png", "architecture.png")
HEADERS, NEW_TOKENS = 20, 96
# The shape that won when nobody named a budget: 201,024 parameters.
FIRST_WINNER = Genome(
    vocab_size=1024, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=32, intermediate_size=176, mlp_type="plain", hidden_act="relu2", tie_word_embeddings=False,
)  # fmt: skip
FIRST_BUDGET = "240 steps"


def run(folder: Path, *words: str) -> float:
    """Seconds of the main job with its data and studies in `folder`."""
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "one.yaml")]
    command = [*launch, str(ROOT / "recipes" / "search_two_stage.py")]
    started = time.perf_counter()
    subprocess.run([*command, f"folder={folder}", *words], check=True)
    return time.perf_counter() - started


def timed(folder: Path, study: str, *words: str) -> float:
    """Seconds of a main job, which are kept beside it: finished, it is read and not repeated."""
    note = folder / study / "benchmark.json"
    if not note.exists():
        seconds = run(folder, f"study={study}", *words)
        write_json(note, {"seconds": seconds})
    return float(read_json(note)["seconds"])


def front_rows(view: StudyView) -> list[dict[str, Any]]:
    """The front, best fitness first, as the search left it."""
    rows = []
    for record in view.result.front:
        evaluation = record.evaluation
        assert evaluation is not None
        genome = record.genome.to_dict()
        rows.append(
            {
                "model": "winner of the search" if view.is_winner(record) else "front",
                "genome": record.genome.genome_id,
                "layers": genome["num_hidden_layers"],
                "width": genome["hidden_size"],
                "vocabulary": genome["vocab_size"],
                "parameters": evaluation.measurements["num_parameters"],
                "report_text": evaluation.measurements["report_bits_per_byte"],
                "search_text": evaluation.objectives["bits_per_byte"],
                "artifact_bytes": int(evaluation.objectives["artifact_bytes"]),
                "decode_ms": evaluation.objectives["decode_ms"],
            }
        )
    return rows


def released_row(name: str, folder: Path) -> dict[str, Any]:
    """What a release was measured to be, on the report text."""
    record = Release(folder).read_record()
    measured, genome = record.measured, record.genome or {}
    interval = [measured.bits_per_byte_low, measured.bits_per_byte_high]
    return {
        "model": name,
        "genome": record.genome_id,
        "layers": genome.get("num_hidden_layers"),
        "width": genome.get("hidden_size"),
        "vocabulary": genome.get("vocab_size"),
        "parameters": record.release.num_parameters,
        "report_text": measured.bits_per_byte,
        "interval": None if None in interval else interval,
        "artifact_bytes": record.release.artifact_bytes,
        "decode_ms": None if measured.latency is None else measured.latency.decode_ms,
        "steps": record.training.steps,
    }


def scoring_share(result: SearchResult) -> float:
    """Share of the time of rung 0's candidates that scoring takes."""
    spent = [r.evaluation.seconds for r in result.records if r.evaluation is not None and r.rung == 0]
    total = sum(sum(x for part, x in seconds.items() if part != "confirm") for seconds in spent)
    return sum(seconds["evaluate"] for seconds in spent) / total


def body_parses(header: str, text: str) -> bool:
    """Whether a completion gives the function a body of two lines or more that parses.

    What follows the body is not looked at, and up to three last lines, cut by the length limit, may be left out.
    """
    lines: list[str] = []
    for line in text.removeprefix("\n").splitlines():
        if line.strip() and not line.startswith((" ", "\t")):
            break
        lines.append(line)
    for stop in range(len(lines), max(0, len(lines) - 4), -1):
        try:
            (function,) = ast.parse(header + "\n" + "\n".join(lines[:stop]) + "\n").body
        except (SyntaxError, ValueError):
            continue
        return isinstance(function, ast.FunctionDef) and sum(bool(line.strip()) for line in lines[:stop]) >= 2
    return False


def headers() -> list[str]:
    """Headers of functions out of the set of short prompts, evenly spread over it."""
    found = [p.text for p in load_prompts("short") if p.text.startswith("def ") and "self" not in p.text]
    return [found[index * len(found) // HEADERS] for index in range(HEADERS)]


def written_by(folder: Path) -> dict[str, Any]:
    """What a model writes, with the decoding that users start with."""
    loaded = load_model(folder, device="cpu")
    settings = replace(SHIPPED, max_new_tokens=NEW_TOKENS)
    rows = completion_rows(
        loaded.model, loaded.tokenizer, load_prompts("few_shot", count=40), name="few_shot", settings=settings
    )
    done = complete_many(loaded.model, loaded.tokenizer, headers(), settings=settings)
    texts = [row[0].text for row in done]
    return {
        "few_shot_collapse": next(row.value for row in rows if row.name == "few_shot/collapse_rate"),
        "headers_that_parse": sum(map(body_parses, headers(), texts)) / HEADERS,
        "example": textwrap.shorten(headers()[0] + " / ".join(texts[0].splitlines()), 160),
    }


def per_hour(folder: Path, *, workers: int) -> float:
    """Evaluations an hour of a search in one stage with so many workers, from the first begun to the last ended."""
    study = f"workers_{workers}"
    words = (f"study={study}", "search.generations=1", "search.population=32", "search.budgets=[60 steps]")
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


def main_job(folder: Path, *, speedup: bool) -> Path:
    """The main job with the defaults, read and judged."""
    seconds = timed(folder, "two_stage")
    study = StudyFolder(folder / "two_stage")
    result, settings = open_study(study.folder)
    view = StudyView(name="two_stage", result=result)
    flattery, correlation = Flattery.of(view), result.rank_correlation()
    first = folder / "first_version"
    if not Release(first).record.is_file():
        train(FIRST_WINNER, FIRST_BUDGET, settings=settings, out=first)
    rows = [
        released_row("released: the winner, trained on", study.winner.folder),
        *front_rows(view),
        released_row("the first version's winner", first),
    ]
    written = written_by(study.winner.folder)
    share, ladder = scoring_share(result), settings.search
    facts: dict[str, Any] = {
        "wall_seconds": round(seconds),
        "evaluations": sum(r.evaluation is not None for r in result.records),
        "failures": len(result.failures),
        "rank_correlation_of_the_rungs": None if correlation is None else round(correlation.tau, 3),
        "search": f"{ladder.generations} generations of {ladder.population}, budgets "
        + " and ".join(str(budget) for budget in ladder.budgets),
        "limits": f"{settings.limits.bytes} bytes, {settings.limits.decode_ms} ms",
        "format": settings.ship.format,
        "seed": ladder.seed,
        "search_bytes": settings.candidate.score_bytes,
        "report_bytes": f"{settings.candidate.report_bytes} of the front, {settings.final_score_bytes} of releases",
        "decode": "1 thread, batch 1, timed alone",
        "few_shot": f"40 prompts, {NEW_TOKENS} tokens, the shipped decoding",
        **written,
    }
    lost = rows[0]["report_text"] / rows[-1]["report_text"]
    targets = [
        target("minutes from nothing to the report", seconds / 60, 12, better="lower"),
        target("report text: bits per byte over those of the first version's winner", lost, 0.72, better="lower"),
        target("few-shot collapse", written["few_shot_collapse"], 0.25, better="lower"),
        target("headers of functions with a body that parses", written["headers_that_parse"], 0.6, better="higher"),
        target("share of scoring in rung 0", share, 0.20, better="lower"),
    ]
    if flattery is not None:
        excess = abs(flattery.excess)
        targets.append(target("the winner's gap between the texts against the mean one", excess, 0.01, better="lower"))
        if flattery.tau is not None:
            targets.append(target("rank correlation of the texts, front", flattery.tau.tau, 0.9, better="higher"))
    if speedup:
        one, two = (per_hour(folder, workers=n) for n in (1, 2))
        facts |= {"evaluations_per_hour": {"1 worker": one, "2 workers": two}}
        targets.append(target("evaluations an hour, 2 workers over 1", two / one, 1.85, better="higher"))
    IMAGES.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        shutil.copyfile(study.report / picture, IMAGES / picture)
    return write("main_job", protocol=protocol(**facts), rows=rows, targets=targets)


def by_the_clock(
    folder: Path, times: Sequence[Duration], *, words: Sequence[str] = (), note: str | None = None
) -> Path:
    """Searches that were given a time: what was planned, what it took, what came of it."""
    path = RESULTS / "search_time.json"
    rows = {row["asked"]: row for row in (read(path)["rows"] if path.exists() else ())}
    for asked in times:
        study = f"time_{asked}"
        # Each from nothing, as a person has it: the text too.
        taken = timed(folder / study, study, f"search.time={asked}", *words)
        plan = read_plan(folder / study / study)
        assert plan is not None
        rows[str(asked)] = clock_row(asked, plan, taken=taken, study=StudyFolder(folder / study / study))
    ordered = sorted(rows.values(), key=lambda row: float(row["asked_seconds"]))
    targets = [
        target(f"search.time={row['asked']}: difference of time taken", abs(row["off"]), 0.1, better="lower")
        for row in ordered
    ]
    columns = [name for name in ordered[0] if name != "asked_seconds"]
    about = protocol(workers=2, **({"note": note} if note else {}))
    return write("search_time", protocol=about, rows=ordered, targets=targets, columns=columns)


def clock_row(asked: Duration, plan: Plan, *, taken: float, study: StudyFolder) -> dict[str, Any]:
    """One search by the clock."""
    released = released_row("", study.winner.folder)
    return {
        "asked": str(asked),
        "asked_seconds": asked.seconds,
        "taken_seconds": round(taken),
        "off": taken / asked.seconds - 1,
        "generations": plan.generations,
        "population": plan.population,
        "steps": list(plan.steps),
        "planned_search_seconds": round(plan.search_s),
        "planned_finish_seconds": round(plan.finish_s),
        "parameters": released["parameters"],
        "report_text": released["report_text"],
    }


def main() -> None:
    """Measures and writes the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    parser.add_argument("--speedup", action="store_true", help="also compare one worker with two")
    parser.add_argument("--time", nargs="+", type=Duration.parse, help="search by the clock, such as 10m 30m 2h")
    parser.add_argument("--note", help="what the protocol of `--time` should say besides, such as other jobs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        if options.time:
            print(by_the_clock(folder, options.time, note=options.note))
        else:
            print(main_job(folder, speedup=options.speedup))


if __name__ == "__main__":
    main()
