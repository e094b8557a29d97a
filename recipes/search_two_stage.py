"""The main job: search in two stages on every device that accelerate gives, and leave a winner.

    accelerate launch --config_file configs/accelerate/one.yaml recipes/search_two_stage.py
    python recipes/search_two_stage.py limits.bytes=4MB limits.decode_ms=3
    accelerate launch --config_file configs/accelerate/gpu_2.yaml recipes/search_two_stage.py --config configs/gpu.yaml

The same as `codenas search`; `--help` tells the options.
"""

import sys

from codenas_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
