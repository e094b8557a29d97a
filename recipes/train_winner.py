"""Train a study's winner, one of its trials, or a genome file on every process of the launcher, and release it.

    accelerate launch --config_file configs/accelerate/gpu_2.yaml recipes/train_winner.py runs/two_stage
    python recipes/train_winner.py runs/two_stage:7 --budget "20000 steps"
    python recipes/train_winner.py llama_l8h512_4mb --budget "900 seconds"

The same as `codenas train`.
"""

import sys

from codenas_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
