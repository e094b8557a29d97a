"""The search with one rung: every candidate gets the whole budget.

    accelerate launch --config_file configs/accelerate/one.yaml recipes/search_single_stage.py

The same as `codenas search --config configs/single_stage.yaml`.
"""

import sys
from pathlib import Path

from codenas_hf.cli.main import main

SETTINGS = Path(__file__).parent.parent / "configs" / "single_stage.yaml"

if __name__ == "__main__":
    sys.exit(main(["search", "--config", str(SETTINGS), *sys.argv[1:]]))
