"""What holds on this machine's GPUs, line by line; a result file to keep or to send.

    python recipes/check_gpu.py                    # all GPUs that there are
    python recipes/check_gpu.py --device cpu       # the same code on the processor, where that makes sense
    python recipes/check_gpu.py --only bf16,decode --out check.json

Each line says `holds`, `does not hold`, or `not tried here` and why. The two GPUs may be unequal.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the checks lie beside the measurements

from benchmarks.check_gpu import main

if __name__ == "__main__":
    sys.exit(main())
