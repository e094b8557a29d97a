"""Prints the targets that are not met; exit code 1 when there are any: `python -m benchmarks.check`."""

from __future__ import annotations

import sys

from benchmarks.results_file import RESULTS, read
from benchmarks.table import cell


def main() -> int:
    """Reads every result file."""
    missed = 0
    for path in sorted(RESULTS.glob("*.json")):
        for goal in read(path)["targets"]:
            if not goal["met"]:
                missed += 1
                sign = ">=" if goal["better"] == "higher" else "<="
                print(f"{path.stem}: {goal['name']} is {cell(goal['value'])}, target {sign} {cell(goal['target'])}")
    print(f"{missed} targets not met" if missed else "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
