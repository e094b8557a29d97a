"""Does a search of 5,000 evaluations stay as light as it began?

The engine as `codenas search` uses it: its default policy on the space `medium`, the default population, rungs and
lag, a journal, two workers, a fresh process for each candidate. Only the evaluation is replaced: it sleeps for 0.05 s
and answers from a formula, with a record of the size that a real candidate leaves.

    python -m benchmarks.soak [--smoke]
"""

import argparse
import functools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.engine import Evaluation, Policy, Rung, SearchResult, SearchSettings, TrialRecord, run_search
from codenas_hf.engine.objectives import Objectives
from codenas_hf.engine.storage import JOURNAL_FILE
from codenas_hf.folders import StudyFolder
from codenas_hf.jobs.policies import POLICIES
from codenas_hf.jobs.search import SCALES
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.spaces import load_space
from codenas_hf.measure.provenance import versions

SPACE, SECONDS, WORKERS, EVALUATIONS = "medium", 0.05, 2, 5_000
PROJECTS = 17  # of the search text of a default study
IDEAL = {"bits_per_byte": 1.0, "artifact_bytes": 2e6, "decode_ms": 0.5}
REFERENCE = {"bits_per_byte": 3.0, "artifact_bytes": 1e8, "decode_ms": 10.0}


@functools.lru_cache(maxsize=4096)  # as a study keeps them
def known_objectives(genome: Genome) -> dict[str, float]:
    """What is certain before training."""
    size = genome.weights_bytes()
    return {"artifact_bytes": float(size), "decode_ms": 0.2 * genome.num_hidden_layers + size / 2e7}


@dataclass(frozen=True)
class Formula:
    """Takes its time, and answers as a candidate would: more parameters are better, and depth has a best value."""

    seconds: float = SECONDS

    def __call__(self, genome: Genome, rung: Rung, previous: Evaluation | None) -> Evaluation:
        begin = time.perf_counter()
        time.sleep(self.seconds)
        rng = np.random.default_rng([int(genome.genome_id[:8], 16), rung.index])
        millions = genome.num_parameters() / 1e6
        bits = 2.4 - 0.12 * math.log2(millions) + 0.01 * abs(genome.num_hidden_layers - 7) - 0.3 * rung.index
        bits += float(rng.normal(0, 0.02))
        facts = {name: float(rng.random()) for name in ("bits_per_byte_low", "bits_per_byte_high", "loss", "copied")}
        points = [{"step": 10 * n, "tokens": 10240 * n, "seconds": rng.random(), "loss": 7.0 / n} for n in range(1, 7)]
        drawn = rng.random((2, PROJECTS)).round(4)
        return Evaluation(
            objectives={"bits_per_byte": bits, **known_objectives(genome)},
            measurements={
                **facts,
                "bits_by_project": {"bits": drawn[0].tolist(), "bytes": drawn[1].tolist()},
                "num_parameters": genome.num_parameters(),
                "weights_bytes": genome.weights_bytes(),
                "curve": points,
            },
            seconds={"train": time.perf_counter() - begin, "build": 0.0, "gate": 0.0, "save": 0.0, "evaluate": 0.0},
            provenance={"versions": versions(), "seed": int(rng.integers(2**62)), "data": f"{rng.random():064.50f}"},
        )


@dataclass(frozen=True)
class Watched:
    """A policy that notes, each time it is asked, how far the search is, how long it took, and what there is then."""

    policy: Policy
    folder: Path
    notes: list[dict[str, float]] = field(default_factory=list)

    def propose(self, records: Sequence[TrialRecord], *, space: Any, n: int, rng: np.random.Generator) -> list[Any]:
        """As the policy."""
        begin = time.thread_time()
        found = self.policy.propose(records, space=space, n=n, rng=rng)
        self.notes.append(
            {
                "evaluations": sum(record.state == "complete" for record in records),
                "proposal_ms": 1000 * (time.thread_time() - begin),
                "at_s": time.perf_counter(),
                **weighed(self.folder),
            }
        )
        return found


def weighed(folder: Path) -> dict[str, float]:
    """Memory of this process and size of the journal, megabytes of 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "journal_mb": (folder / JOURNAL_FILE).stat().st_size / 1e6,
    }


def settings_of(evaluations: int) -> SearchSettings:
    """The default ladder, for so many evaluations at least."""
    ladder = RunSettings().search
    each = ladder.population + sum(ladder.keep) + ladder.audit * len(ladder.keep)
    return SearchSettings(
        objectives=SCALES,
        population=ladder.population,
        generations=math.ceil(evaluations / each),
        rungs=ladder.rungs,
        lag=ladder.lag,
        audit=ladder.audit,
        ideal=IDEAL,
        reference=REFERENCE,
        workers_per_rank=WORKERS,
    )


def soak(folder: Path, *, evaluations: int, seconds: float = SECONDS) -> tuple[SearchResult, list[dict[str, float]]]:
    """One search; its result, and a note for every generation."""
    space = load_space(SPACE).with_limits(known=known_objectives)
    settings = settings_of(evaluations)
    policy = POLICIES[RunSettings().search.policy](Objectives(scales=SCALES), REFERENCE, settings.population)
    watched = Watched(policy, folder)
    result = run_search(
        space,
        Formula(seconds),
        folder=folder,
        settings=settings,
        policy=watched,
        preload=() if __name__ == "__main__" else (__name__,),  # a main program is imported once anyway
    )
    watched.notes.append({"evaluations": len(result.records), "at_s": time.perf_counter(), **weighed(folder)})
    return result, watched.notes


def rows_of(notes: Sequence[Mapping[str, float]], *, parts: int = 10) -> list[dict[str, Any]]:
    """A row for each tenth of the search: its median proposal, and what there was at its end."""
    last, rows = notes[-1]["evaluations"], []
    begin, before = notes[0]["at_s"], notes[0]["evaluations"]
    for part in range(parts):
        inside = [note for note in notes if part * last / parts <= note["evaluations"] <= (part + 1) * last / parts]
        times = [note["proposal_ms"] for note in inside if "proposal_ms" in note]
        end = inside[-1]
        count = end["evaluations"] - before
        rows.append(
            {
                "evaluations": int(end["evaluations"]),
                "proposal_ms": statistics.median(times),
                "ms_per_evaluation": 1000 * (end["at_s"] - begin) / count,
                "memory_mb": end["memory_mb"],
                "journal_mb": end["journal_mb"],
            }
        )
        begin, before = end["at_s"], end["evaluations"]
    return rows


def opened(folder: Path) -> dict[str, float]:
    """Seconds that reading the study takes, the least of three: its record alone, and all of `codenas status`."""
    StudyFolder(folder).settings.write_text(f"study: {folder.name}\n", encoding="utf-8")
    record, command = [], []
    for _ in range(3):
        begin = time.perf_counter()
        SearchResult.open(folder)
        record.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        words = [sys.executable, "-m", "codenas_hf.cli.main"]
        subprocess.run([*words, "status", str(folder.parent)], check=True, stdout=subprocess.DEVNULL)
        command.append(time.perf_counter() - begin)
    return {"open_s": min(record), "status_s": min(command)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="400 evaluations without pause, nothing is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "soak"
        evaluations, seconds = (400, 0.0) if arguments.smoke else (EVALUATIONS, SECONDS)
        result, notes = soak(folder, evaluations=evaluations, seconds=seconds)
        assert result.finished
        assert not result.failures
        reading = opened(folder)
        journal = (folder / JOURNAL_FILE).stat().st_size
    rows = rows_of(notes)
    for row in rows:
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
    # What is loaded and allocated once is there after the first generations.
    early = next(note for note in notes if note["evaluations"] >= len(result.records) / 50)
    growth = notes[-1]["memory_mb"] - early["memory_mb"]
    times = [note["proposal_ms"] for note in notes if "proposal_ms" in note]
    print(f"grown by {growth:.1f} MB; {reading}; {journal / len(result.records):.0f} bytes an evaluation")
    if arguments.smoke:
        return
    status_s = reading["status_s"]
    later = rows[-1]["proposal_ms"] / rows[1]["proposal_ms"]
    write(
        "soak",
        protocol=protocol(
            workers=WORKERS,
            evaluation_s=SECONDS,
            space=SPACE,
            policy=RunSettings().search.policy,
            evaluations=len(result.records),
            journal_bytes=journal,
            journal_bytes_per_evaluation=round(journal / len(result.records)),
            slowest_proposal_ms=round(max(times), 1),
            open_s=round(reading["open_s"], 3),
            note="memory: resident, main process, at the end of each tenth; proposal: its median, processor time",
        ),
        rows=rows,
        targets=[
            target("megabytes by which the main process grows after the first 2 %", growth, 50, better="lower"),
            target("median proposal of the last tenth over that of the second", later, 2, better="lower"),
            target("seconds of `codenas status` on it, start of the program included", status_s, 2, better="lower"),
        ],
    )


if __name__ == "__main__":
    main()
