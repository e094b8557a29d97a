"""Does the default policy find a better front than the one before it, in the same time on the same machine?

    python -m benchmarks.defaults_front --folder runs/defaults_front        # about 25 minutes on two idle cores

`codenas search` with its defaults (`guided`, two stages) and with `search.policy=screened`, three seeds each, one
after the other on the same prepared text, each given the same time by the clock; the winner does not train on. Fronts
and winners are judged on the report text, which no search reads. A search that is finished is read, so a run that was
stopped goes on, and a row names the commit of its trainings; `--time` says how long each may take (4m by default).
Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.main_job import timed
from benchmarks.results_file import protocol, target, write
from codenas_hf.engine import Evaluation, Frame, Objectives, SearchResult
from codenas_hf.jobs.durations import Duration
from codenas_hf.jobs.study import open_study

ARMS = {"guided": (), "screened": ("search.policy=screened",)}
SEEDS = 3
OBJECTIVES = Objectives(scales={"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"})


def on_report_text(result: SearchResult) -> list[Evaluation]:
    """The front that a search named, with its bits per byte on the report text."""
    found = []
    for record in result.front:
        evaluation = record.evaluation
        assert evaluation is not None
        values = {**evaluation.objectives, "bits_per_byte": evaluation.measurements["report_bits_per_byte"]}
        found.append(Evaluation(objectives={name: float(values[name]) for name in OBJECTIVES.names}))
    return found


def covered(front: Sequence[Evaluation], other: Sequence[Evaluation]) -> float:
    """Share of a front whose members some member of the other equals or beats in every objective."""
    ours, theirs = OBJECTIVES.matrix(front), OBJECTIVES.matrix(other)
    return float(np.mean([(theirs <= point).all(axis=1).any() for point in ours]))


def rows_of(fronts: Mapping[tuple[str, int], Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """A line for each policy and seed; hypervolume between the best and the worst of all fronts together."""
    frame = Frame.derive(OBJECTIVES, [each for front in fronts.values() for each in front], ideal={}, reference={})
    rows = []
    for (policy, seed), front in fronts.items():
        rivals = [other for (name, number), other in fronts.items() if name != policy and number == seed]
        rows.append(
            {
                "policy": policy,
                "seed": seed,
                "front": len(front),
                "hypervolume": frame.hypervolume(front),
                "dominated_by_the_other": covered(front, rivals[0]) if rivals else None,
            }
        )
    return rows


def lead(rows: Sequence[Mapping[str, Any]], of: str = "hypervolume") -> tuple[float, list[float]]:
    """Mean of the new default less that of the old one, pairs by seed; 95 % interval by Student's t."""
    values = {(row["policy"], row["seed"]): row[of] for row in rows}
    pairs = [values["guided", seed] - values["screened", seed] for seed in range(SEEDS)]
    mean, half = statistics.fmean(pairs), 4.303 * statistics.stdev(pairs) / SEEDS**0.5  # t of two degrees of freedom
    return mean, [mean - half, mean + half]


def main() -> Path:
    """Searches what is missing and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/defaults_front"))
    parser.add_argument("--time", type=Duration.parse, default=Duration.parse("4m"))
    options = parser.parse_args()
    folder, words = options.folder.resolve(), (f"search.time={options.time}", "search.finish=null")
    # The text is prepared by a search that does not count, so that no arm pays for it.
    timed(folder, "text", "search.generations=1", "search.population=3", "search.keep=[1]", "search.finish=null")
    fronts: dict[tuple[str, int], list[Evaluation]] = {}
    facts: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in range(SEEDS):
        for policy, choice in ARMS.items():
            study = f"{policy}-{options.time}-{seed}"
            seconds = timed(folder, study, *words, *choice, f"search.seed={seed}")
            result, settings = open_study(folder / study)
            assert settings.search.policy == policy
            fronts[policy, seed] = on_report_text(result)
            done = sum(record.evaluation is not None for record in result.records)
            assert result.winner is not None
            assert result.winner.evaluation is not None
            found = result.winner.evaluation
            facts[policy, seed] = {
                "winner_bits_per_byte": float(found.measurements["report_bits_per_byte"]),
                "winner_bytes": int(found.objectives["artifact_bytes"]),
                "seconds": round(seconds),
                "evaluations": done,
                "commit": str(found.provenance.get("commit", ""))[:7],
            }
    rows = [{**row, **facts[row["policy"], row["seed"]]} for row in rows_of(fronts)]
    mean, interval = lead(rows)
    name = "hypervolume of the default policy's front less that of the old default's"
    goals = [target(name, mean, 0, better="higher", interval=interval)]
    mean, interval = lead(rows, "winner_bits_per_byte")
    name = "bits per byte of the default policy's winner less the old default's"
    goals.append(target(name, mean, 0, better="lower", interval=interval))
    about = protocol(time=str(options.time), seeds=SEEDS, text="report", stages="two")
    return write("defaults_front", protocol=about, rows=rows, targets=goals)


if __name__ == "__main__":
    print(main())
