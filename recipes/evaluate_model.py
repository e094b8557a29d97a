"""Measures a model, ours or any, offline: one table, and one JSON with its protocol.

python recipes/evaluate_model.py runs/my-study/winner
python recipes/evaluate_model.py some-user/some-model --suite full --folder runs/some-model-evaluation
"""

import argparse
from pathlib import Path

from codenas_hf.evaluation.suite import SUITES, evaluate_model, format_table, load_model

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, GGUF file or Hub id")
    parser.add_argument("--suite", choices=sorted(SUITES), default="quick")
    parser.add_argument("--folder", type=Path, help="where evaluation.json and the completions go")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trust-remote-code", action="store_true")
    args = parser.parse_args()
    result = evaluate_model(
        load_model(args.model, device=args.device, trust_remote_code=args.trust_remote_code),
        settings=SUITES[args.suite],
        folder=args.folder,
        on_part=lambda name, seconds: print(f"{name}: {seconds:.0f} s", flush=True),
    )
    print(format_table(result))
