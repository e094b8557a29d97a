"""Measure a model, ours or any, offline: one table, and one JSON with its protocol.

    python recipes/evaluate_model.py runs/two_stage/winner
    python recipes/evaluate_model.py HuggingFaceTB/SmolLM2-135M --suite full --folder runs/smollm2-evaluation

The same as `codenas evaluate`.
"""

import sys

from codenas_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
