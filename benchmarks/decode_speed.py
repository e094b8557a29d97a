"""A token, a keystroke, a cold start: stock `generate` against our runtimes: `python -m benchmarks.decode_speed`.

Random llamas of three sizes, one thread, batch 1, greedy. `generate` is transformers' own; the others are what
`codenas complete` does, sampling in Python included. Within a repeat all runtimes of a size take turns, and a speed-up
is the median of the repeats' own ratios, with an interval that 95 of 100 resamples of the repeats keep to. A keystroke
is the first token of a prompt that is three tokens longer than the one before, as a share of the first token of that
one. A cold start is the whole process of `codenas`, from its start to its end. `--clock processor` counts the time of
the processor in place of the wall's, where other programs cannot be stopped; the result says which it was.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.results_file import protocol, target, write
from codenas_hf.generation.decode import DecodeSettings, complete
from codenas_hf.generation.llama_cpp import LlamaCppRuntime
from codenas_hf.generation.onnx_runtime import OnnxRuntime
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.jobs.opening import onnx_of
from codenas_hf.measure.timing import device_noise
from codenas_hf.release.targets import export_model

SIZES: dict[str, dict[str, Any]] = {
    "1M": {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352},
    "6M": {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 768},
    "30M": {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 9, "intermediate_size": 1408},
}
FORMATS = ("bf16", "q8_0", "q4_0")
ONNX_FORMATS = ("fp32", "int8", "int4")
PROMPT, NEW, PREFIX, TYPED = 64, 64, 512, 3
STARTS = {
    "complete, llama.cpp": ["complete", "{gguf}", "def f(", "--max-new-tokens", "1"],
    "--help": ["--help"],
    "show": ["show", "{folder}"],
    "status": ["status", "{runs}"],
}


@dataclass(frozen=True)
class Contender:
    """One way to complete.

    Args:
        name: runtime and format.
        time_token: milliseconds of each further token behind a prompt of its own.
        runtime: for keystrokes; None has no kept prefix.
    """

    name: str
    time_token: Callable[[list[int]], float]
    runtime: Runtime | None


class Clock:
    """Seconds on the wall, or of the processor: of this process, or of the children that have ended."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.now = time.perf_counter if kind == "wall" else time.process_time

    def children(self) -> float:
        """As `now`, for what is started."""
        if self.kind == "wall":
            return time.perf_counter()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def train_words(folder: Path) -> None:
    """A tokenizer of the package's own text, saved in `folder`."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, initial_alphabet=letters)
    own = sorted((Path(__file__).parents[1] / "codenas_hf").rglob("*.py"))
    words.train_from_iterator((path.read_text(encoding="utf-8") for path in own), trainer)
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=special[0], eos_token=special[0]).save_pretrained(folder)


def make(size: str, folder: Path) -> PreTrainedModel:
    """A random model of a size with a tokenizer, saved in `folder`."""
    shape = SIZES[size]
    if not (folder / "tokenizer.json").exists():
        train_words(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        num_attention_heads=shape["hidden_size"] // 32,
        num_key_value_heads=shape["hidden_size"] // 64,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,  # a random model must not end its text
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    found: PreTrainedModel = model.float().eval()
    return found


def stock_generate(model: Any, clock: Clock) -> Callable[[list[int]], float]:
    """Transformers' `generate`: a long text less a text of one token."""

    def seconds(ids: list[int], new: int) -> float:
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens)
        begin = clock.now()
        with torch.inference_mode():
            found: Any = model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False)
        spent = clock.now() - begin
        assert found.shape[1] == len(ids) + new
        return spent

    return lambda ids: 1e3 * (seconds(ids, NEW) - seconds(ids, 1)) / (NEW - 1)


def ours(runtime: Runtime, tokenizer: Any, clock: Clock) -> Callable[[list[int]], float]:
    """What `codenas complete` does behind a prompt that it knows."""
    first, all_of_it = (DecodeSettings(max_new_tokens=n, boundary="keep", start="never") for n in (1, NEW))

    def time_token(ids: list[int]) -> float:
        text = tokenizer.decode(ids)
        complete(runtime, tokenizer, text, settings=first)
        begin = clock.now()
        done = complete(runtime, tokenizer, text, settings=all_of_it)
        spent = clock.now() - begin
        assert len(done.token_ids) > NEW // 2, "the text ended too early to be timed"
        return 1e3 * spent / len(done.token_ids)

    return time_token


def prompt(tokenizer: Any, count: int, number: int) -> list[int]:
    """Some tokens of code, others for each number."""
    text = Path(__file__).read_text(encoding="utf-8")
    ids: list[int] = tokenizer(text)["input_ids"]
    begin = 7 * number % (len(ids) - count)
    return ids[begin : begin + count]


def keystroke(runtime: Runtime, ids: Sequence[int], clock: Clock) -> tuple[float, float]:
    """Milliseconds to the first token of a prompt that nothing is known of, and of the same with some more typed."""
    runtime.logits([ids[-1]])  # forgets
    times = []
    for known in (ids[:-TYPED], ids):
        begin = clock.now()
        runtime.logits(known).argmax()
        times.append(1e3 * (clock.now() - begin))
    return times[0], times[1]


def interval(values: Sequence[float]) -> list[float]:
    """Of the median: what 95 of 100 resamples keep to."""
    draws = np.random.default_rng(0).choice(np.array(values), size=(2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return [round(float(low), 3), round(float(high), 3)]


def files(size: str, folder: Path) -> tuple[PreTrainedModel, dict[str, Path]]:
    """The model of a size, and its file for each other runtime and format; what is there already stays."""
    model = make(size, folder)
    found = {f"llama.cpp {form}": folder / f"{form}.gguf" for form in FORMATS}
    found |= {f"onnxruntime {form}": folder / form for form in ONNX_FORMATS}
    for name, path in found.items():
        runtime, form = name.split()
        if not path.exists():
            export_model(model, tokenizer=folder, out=path, to="gguf" if runtime == "llama.cpp" else "onnx", form=form)
    return model, found


def opened(name: str, path: Path) -> Runtime:
    """A file in its runtime."""
    if name.startswith("llama.cpp"):
        return LlamaCppRuntime(path)
    graph = onnx_of(path)
    assert graph is not None
    return OnnxRuntime(graph, context_tokens=1024)


def measure(size: str, folder: Path, *, repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """The rows of one size."""
    model, found = files(size, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    straight = TorchRuntime(model)
    contenders = [
        Contender("generate", stock_generate(model, clock), None),
        Contender("torch", ours(straight, tokenizer, clock), straight),
    ]
    for name, path in found.items():
        runtime = opened(name, path)
        contenders.append(Contender(name, ours(runtime, tokenizer, clock), runtime))
    times: dict[str, list[float]] = {one.name: [] for one in contenders}
    strokes: dict[str, list[tuple[float, float]]] = {one.name: [] for one in contenders}
    for repeat in range(repeats + 2):
        for one in contenders:
            ms = one.time_token(prompt(tokenizer, PROMPT, repeat))
            typed = prompt(tokenizer, PREFIX + TYPED, repeat)
            stroke = keystroke(one.runtime, typed, clock) if one.runtime else None
            if repeat >= 2:  # warm
                times[one.name].append(ms)
                strokes[one.name] += [] if stroke is None else [stroke]
    rows = []
    for one in contenders:
        ratios = [base / own for base, own in zip(times["generate"], times[one.name], strict=True)]
        shares = [100 * second / first for first, second in strokes[one.name]]
        row = {
            "size": size,
            "runtime": one.name,
            "parameters": model.num_parameters(),
            "decode_ms": round(statistics.median(times[one.name]), 3),
            "decode_ms_interval": interval(times[one.name]),
            "times_generate": round(statistics.median(ratios), 2),
            "times_generate_interval": interval(ratios),
        }
        if shares:
            row |= {
                "first_ms": round(statistics.median(first for first, _ in strokes[one.name]), 2),
                "keystroke_ms": round(statistics.median(second for _, second in strokes[one.name]), 2),
                "keystroke_percent": round(statistics.median(shares), 2),
                "keystroke_percent_interval": interval(shares),
            }
        rows.append(row)
    return rows


def cold_starts(folder: Path, *, repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """Seconds of whole processes, taking turns."""
    places = {"gguf": folder / "q8_0.gguf", "folder": folder, "runs": folder.parent / "runs"}
    places["runs"].mkdir(exist_ok=True)
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for repeat in range(repeats + 1):
        for name, words in STARTS.items():
            command = [sys.executable, "-m", "codenas_hf.cli.main", *(word.format(**places) for word in words)]
            begin = clock.children()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            spent = clock.children() - begin
            if done.returncode not in (0, 2) or "Traceback" in done.stderr:  # 2: no studies there
                raise RuntimeError(f"codenas {' '.join(words)}: {done.stderr}")
            if repeat:  # the first fills the file cache
                times[name].append(spent)
    return [
        {"cold_start": name, "seconds": round(statistics.median(found), 3), "seconds_interval": interval(found)}
        for name, found in times.items()
    ]


def targets(rows: Sequence[dict[str, Any]], clock: str) -> list[dict[str, Any]]:
    """What was aimed at; on a clock."""
    unit = "s" if clock == "wall" else "processor s"
    speed = {(row["size"], row["runtime"]): row["times_generate"] for row in rows if "size" in row}
    seconds = {row["cold_start"]: row["seconds"] for row in rows if "cold_start" in row}
    found = []
    for size, goal in (("1M", 2.5), ("6M", 2.0), ("30M", 1.0)):
        if (size, "torch") in speed:
            found.append(target(f"{size}, torch, times generate", speed[size, "torch"], goal, better="higher"))
    for size, goal in (("1M", 7.0), ("6M", 5.0)):
        if (size, "llama.cpp q8_0") in speed:
            best = speed[size, "llama.cpp q8_0"]
            found.append(target(f"{size}, llama.cpp q8_0, times generate", best, goal, better="higher"))
    worst = max(row["keystroke_percent"] for row in rows if "keystroke_percent" in row)
    found.append(target("second keystroke, % of the first, worst runtime", worst, 15.0, better="lower"))
    if seconds:
        first = seconds["complete, llama.cpp"]
        found.append(target(f"first token from a cold start, {unit}", first, 2.0, better="lower"))
        verbs = max(seconds[name] for name in ("--help", "status", "show"))
        found.append(target(f"--help, status, show: the slowest, {unit}", verbs, 1.0, better="lower"))
    return found


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--no-starts", action="store_true", help="time no whole processes")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument(
        "--folder", type=Path, help="where models and exports stay for the next run (default: nowhere)"
    )
    parser.add_argument("--prepare", action="store_true", help="write them there, and measure nothing")
    arguments = parser.parse_args()
    if arguments.prepare:
        for size in arguments.sizes:
            files(size, arguments.folder / size)
        return
    clock = Clock(arguments.clock)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    noise = [device_noise(torch.device("cpu"))]
    with tempfile.TemporaryDirectory() as name:
        place = arguments.folder or Path(name)
        for size in arguments.sizes:
            rows += measure(size, place / size, repeats=arguments.repeats, clock=clock)
        if not arguments.no_starts:
            first = place / arguments.sizes[0]
            rows += cold_starts(first, repeats=min(5, arguments.repeats), clock=clock)
    noise.append(device_noise(torch.device("cpu")))
    facts = protocol(
        noise_before_and_after=[round(value, 2) for value in noise],  # 1 where nothing else ran
        clock=arguments.clock,
        threads=1,
        repeats=arguments.repeats,
        statistic="median; intervals by resampling the repeats, 95 %",
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        prefix_tokens=PREFIX,
        typed_tokens=TYPED,
    )
    write("decode_speed", protocol=facts, rows=rows, targets=targets(rows, arguments.clock))


if __name__ == "__main__":
    main()
