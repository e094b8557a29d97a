"""Whether a search at few bits finds a better model of the same bytes: `python -m benchmarks.formats_search`.

Searches of the same time and the same limit of bytes, in bfloat16 and at four bits, with and without a decay that
computes with the format's weights. Each has the whole machine; a finished one is found again in `--folder`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.quality import interval
from benchmarks.results_file import protocol, target, write
from codenas_hf.folders import StudyFolder

SEARCHES = {"bf16": [], "iq4_nl": ["ship.format=iq4_nl"], "iq4_nl_aware": ["ship.format=iq4_nl", "train.quantize=0.5"]}


def run_searches(options: argparse.Namespace) -> None:
    """One search after another; a finished one is not repeated."""
    for seed in range(options.seeds):
        for name, words in SEARCHES.items():
            study = f"{name}_{seed}"
            if StudyFolder(options.folder / study).winner.record.is_file():
                continue
            command = [sys.executable, "-m", "codenas_hf.cli.main", "search", f"study={study}"]
            command += [f"folder={options.folder}", f"search.seed={seed}", f"train.seed={seed}"]
            command += [f"limits.bytes={options.limit}", "limits.decode_ms=null", f"search.time={options.time}"]
            command += [f"space={options.space}", f"corpus.max_bytes={options.data_bytes}", *words]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)


def search_rows(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each winner, and how much lower four bits end than bfloat16."""
    found: dict[tuple[str, int], float] = {}
    rows = []
    for name in SEARCHES:
        for seed in range(options.seeds):
            winner = StudyFolder(options.folder / f"{name}_{seed}").winner
            if winner.record.is_file():
                record = winner.read_record()
                bits = record.measured.bits_per_byte
                assert bits is not None
                found[name, seed] = bits
                row = {"arm": name, "seed": seed, "bits_per_byte": bits, "bytes": record.release.artifact_bytes}
                rows.append(row | {"parameters": record.release.num_parameters})
    goals = []
    for name in list(SEARCHES)[1:]:
        both = [seed for seed in range(options.seeds) if {("bf16", seed), (name, seed)} <= set(found)]
        if len(both) > 1:
            mean, low, high = interval([found["bf16", seed] - found[name, seed] for seed in both])
            text = f"search at {name} ends lower than bf16 at equal bytes and time, by (95 %: {low:.3f} to {high:.3f})"
            goals.append(target(text, mean, 0.0, better="higher"))
    return rows, goals


def main() -> None:
    """Searches, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", default="20m", help="of each search")
    parser.add_argument("--limit", default="1MB", help="of bytes, of each search")
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/formats_search"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    run_searches(options)
    rows, goals = search_rows(options)
    about = protocol(time=options.time, limit=options.limit, space=options.space, seeds=options.seeds)
    columns = ["arm", "seed", "bits_per_byte", "bytes", "parameters"]
    print(write("formats_search", protocol=about, rows=rows, targets=goals, columns=columns), flush=True)


if __name__ == "__main__":
    main()
