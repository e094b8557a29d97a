"""Prints the targets that are not met; exit code 1 when there are any: `python -m benchmarks.check`."""

from __future__ import annotations

import sys

from benchmarks.results_file import RESULTS, read
from benchmarks.table import cell, goal


def main() -> int:
    """Reads every result file."""
    missed = 0
    for path in sorted(RESULTS.glob("*.json")):
        for target in read(path)["targets"]:
            if not target["met"]:
                missed += 1
                print(f"{path.stem}: {target['name']} is {cell(target['value'])}, target {goal(target)}")
    print(f"{missed} targets not met" if missed else "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
