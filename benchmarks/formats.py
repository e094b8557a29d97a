"""What few bits cost and bring, in every format and reader: `python -m benchmarks.formats`.

Three parts, each resumable: what is finished is found again in `--folder`.

- `decay`: one shape of two million parameters is trained; what each format then costs in bits per byte, and what it
  costs where the end of the decay computed with the format's weights (`train.quantize`), from the same state before
  the decay. Costs are against the plain training in float32 on the same report text, paired by project.
- `readers`: the first seed's model in every format and every program that reads it: bytes to ship, bits per byte and
  milliseconds a token as that program gives them, timed in turn, the lowest of the rounds. Run it on a quiet machine.
- `search`: searches of the same time and the same limit of bytes, in bfloat16 and at four bits.

Whatever is there is written to results/formats.json after each part.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.pool import work_off
from benchmarks.quality import interval
from benchmarks.recipe import SHAPE, fresh
from benchmarks.results_file import protocol, target, write
from codenas_hf.data import CorpusSettings, PreparedData, prepare_data
from codenas_hf.data.passages import Passages
from codenas_hf.data.tokenizer import TokenizerSettings
from codenas_hf.engine import Budget
from codenas_hf.folders import StudyFolder, folder_bytes, read_json, write_json
from codenas_hf.generation.llama_cpp import LlamaCppRuntime
from codenas_hf.generation.loading import CodeNASForCausalLM
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.jobs.files import score_runtime, time_runtime
from codenas_hf.measure.latency import default_protocol
from codenas_hf.measure.score import Score, paired_difference, score_passages
from codenas_hf.measure.shipped import SHIPPED, ShipSettings, as_shipped
from codenas_hf.release.export import export_stock, write_release
from codenas_hf.release.targets import TARGETS, export_model
from codenas_hf.training import TrainSettings, train

PLAIN, FULL = "plain", "f32"
FOUR_BITS = ("q4_0", "iq4_nl")
# Of the plain training: (most it may cost, most it may cost with a quantised decay), bits per byte.
COSTS = {"q8_0": (0.002, None), "q4_0": (0.03, 0.01), "iq4_nl": (0.03, 0.01)}
SIZES = {"q8_0": 0.55, "q4_0": 0.34, "iq4_nl": 0.34}


def arms(shares: list[float]) -> dict[str, tuple[str, float]]:
    """Name of a decay to its format and share; the plain one first."""
    return {PLAIN: ("bf16", 0.0)} | {f"{form} {share:g}": (form, share) for form in FOUR_BITS for share in shares}


def run_decay(arm: str, seed: int, *, shares: list[float], steps: int, data: PreparedData, folder: Path) -> None:
    """Trains one arm and scores it in full precision and in its formats."""
    torch.set_num_threads(1)
    form, share = arms(shares)[arm]
    settings = replace(TrainSettings(seed=seed), quantize=share)
    ship = ShipSettings(format=form)
    model = fresh(settings)
    home = folder / f"seed{seed}"
    result = train(
        model,
        data.tokens(SHAPE.vocab_size, "train"),
        Budget("steps", steps),
        settings=settings,
        folder=home / "training" if arm == PLAIN else None,
        resume_from=None if arm == PLAIN else home / "training" / "constant",
        stored=lambda trained: as_shipped(trained, ship),
    )
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, home / f"{arm}.safetensors")
    passages = report(data)
    plain = fresh(settings)
    plain.load_state_dict(load_file(home / f"{PLAIN}.safetensors"), strict=False)
    full = score_passages(plain, passages)
    scores = {FULL: score_passages(model, passages)}
    for each in SHIPPED if arm == PLAIN else (form,):
        with as_shipped(model, ShipSettings(format=each)):
            scores[each] = score_passages(model, passages)
    write_json(
        home / f"{arm}.json",
        {
            "arm": arm,
            "seed": seed,
            "form": form,
            "share": share,
            "steps_run": result.steps_run,
            "seconds_run": result.seconds_run,
            "scores": {name: compared(score, full) for name, score in scores.items()},
        },
    )


def compared(score: Score, full: Score) -> dict[str, Any]:
    """A score, and how much it lies above that of the plain training in full precision."""
    found = paired_difference(score, full)
    ends = {} if found is None else {"low": found.low, "high": found.high}
    return {"bits_per_byte": score.bits_per_byte, "cost": score.bits_per_byte - full.bits_per_byte, **ends}


def report(data: PreparedData) -> Passages:
    """The text that everything here is scored on."""
    return data.passages(SHAPE.vocab_size, "report", length=256, max_bytes=250_000)


def decay_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each arm and format over the seeds, and the targets."""
    done = [read_json(path) for path in sorted(folder.glob("seed*/*.json"))]
    rows, goals = [], []
    for arm in dict.fromkeys(run["arm"] for run in done):
        runs = [run for run in done if run["arm"] == arm]
        for form in runs[0]["scores"]:
            mean, low, high = interval([run["scores"][form]["cost"] for run in runs])
            bits = statistics.fmean(run["scores"][form]["bits_per_byte"] for run in runs)
            row = {"part": "decay", "arm": arm, "format": form, "seeds": len(runs), "bits_per_byte": bits}
            row |= {"cost": mean, "interval": None if low is None else [low, high]}
            rows.append(row | {"seconds": statistics.fmean(run["seconds_run"] for run in runs)})
    for form, (after, aware) in COSTS.items():
        costs = {row["arm"]: row["cost"] for row in rows if row["format"] == form}
        if PLAIN in costs:
            goals.append(target(f"{form} costs after training, bits per byte", costs[PLAIN], after, better="lower"))
        others = [cost for arm, cost in costs.items() if arm != PLAIN]
        if aware is not None and others:
            name = f"{form} costs with a quantised decay, bits per byte"
            goals.append(target(name, min(others), aware, better="lower"))
    return rows, goals


class OnnxReader(Runtime):
    """A file in ONNX Runtime, one thread; its cache goes through arrays."""

    def __init__(self, path: Path, *, context_tokens: int) -> None:
        import onnxruntime

        super().__init__("onnxruntime", context_tokens=context_tokens)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.past: dict[str, Any] = {}
        self._forget(0)

    def _run(self, ids: list[int]) -> NDArray[np.float32]:
        total = len(ids) + next(iter(self.past.values())).shape[2]
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, total), np.int64), **self.past}
        found = dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))
        self.past = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        logits: NDArray[np.float32] = found["logits"][0]
        return logits

    def all_logits(self, token_ids: Any) -> NDArray[np.float32]:
        """See `Runtime.all_logits`."""
        self._kept.clear()
        self._forget(0)
        return self._run(list(token_ids))

    def _compute(self, ids: list[int]) -> NDArray[np.float32]:
        last: NDArray[np.float32] = self._run(ids)[-1]
        return last

    def _forget(self, length: int) -> int:
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values"):
                kept = self.past.get(value.name)
                empty = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
                self.past[value.name] = empty if kept is None else kept[:, :, :length]
        return length


def readers(model: CodeNASForCausalLM, *, tokenizer: Path, work: Path) -> list[dict[str, Any]]:
    """Every form of the model and how to open it: target, format, runtime, bytes."""
    stock = export_stock(model)
    context = int(stock.config.max_position_embeddings)
    plain = write_release(model, folder=work / "bf16", tokenizer=tokenizer)
    found = [_reader("folder", "bf16", "torch", plain, lambda: _torch(plain))]
    for to, goal in TARGETS.items():
        for form in goal.forms:
            out = work / f"{to}-{form}{'' if goal.folder else '.gguf'}"
            export_model(stock, tokenizer=tokenizer, out=out, to=to, form=form)
            runtime = {"gguf": "llama.cpp", "onnx": "onnxruntime"}.get(to, "torch")
            found.append(_reader(to, form, runtime, out, partial(_opened, to, out, context=context)))
    return found


def _reader(to: str, form: str, runtime: str, path: Path, opened: Callable[[], Runtime]) -> dict[str, Any]:
    size = path.stat().st_size if path.is_file() else folder_bytes(path)
    return {"target": to, "format": form, "runtime": runtime, "bytes": size, "open": opened}


def _opened(to: str, out: Path, *, context: int) -> Runtime:
    if to == "gguf":
        return LlamaCppRuntime(out)
    return OnnxReader(next(out.rglob("*.onnx")), context_tokens=context) if to == "onnx" else _torch(out)


def _torch(folder: Path) -> Runtime:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return TorchRuntime(model)


def run_readers(*, data: PreparedData, folder: Path, rounds: int) -> None:
    """Scores and times every form of the first seed's plain model."""
    torch.set_num_threads(1)
    if not (folder / "seed0" / f"{PLAIN}.safetensors").is_file():
        raise SystemExit("the readers read what the part `decay` has trained: run that first")
    model = fresh(TrainSettings())
    model.load_state_dict(load_file(folder / "seed0" / f"{PLAIN}.safetensors"), strict=False)
    model.eval()
    with tempfile.TemporaryDirectory() as work:
        rows = readers(model, tokenizer=data.tokenizer(SHAPE.vocab_size), work=Path(work))
        runtimes = [row.pop("open")() for row in rows]
        for row, runtime in zip(rows, runtimes, strict=True):
            row["bits_per_byte"] = score_runtime(runtime, report(data), vocab_size=SHAPE.vocab_size).bits_per_byte
        for _ in range(rounds):
            for row, runtime in zip(rows, runtimes, strict=True):
                ms, _ = time_runtime(runtime, default_protocol("cpu"), vocab_size=SHAPE.vocab_size)
                row["decode_ms"] = min(ms, row.get("decode_ms", math.inf))
        for runtime in runtimes:
            runtime.close()
    base = next(row for row in rows if row["target"] == "folder")
    for row in rows:
        row["share_of_bf16"] = row["bytes"] / base["bytes"]
    write_json(folder / "readers.json", {"rows": rows, "rounds": rounds})


def reader_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the readers, and what files may have of bfloat16's bytes."""
    if not (folder / "readers.json").is_file():
        return [], []
    rows = [{"part": "readers", **row} for row in read_json(folder / "readers.json")["rows"]]
    sizes = {row["format"]: row["bytes"] for row in rows if row["target"] == "gguf"}
    goals = [
        target(f"{form} file over bf16's", sizes[form] / sizes["bf16"], most, better="lower")
        for form, most in SIZES.items()
    ]
    return rows, goals


def run_searches(options: argparse.Namespace) -> None:
    """One search after another, each on the whole machine; a finished one is not repeated."""
    for seed in range(options.seeds):
        for name, words in SEARCHES.items():
            study = f"{name}_{seed}"
            if StudyFolder(options.folder / study).winner.record.is_file():
                continue
            command = [
                sys.executable,
                "-m",
                "codenas_hf.cli.main",
                "search",
                f"study={study}",
                f"folder={options.folder}",
            ]
            command += [
                f"search.seed={seed}",
                f"train.seed={seed}",
                f"limits.bytes={options.limit}",
                "limits.decode_ms=null",
            ]
            command += [
                f"search.time={options.time}",
                f"space={options.space}",
                f"corpus.max_bytes={options.data_bytes}",
            ]
            print(" ".join(command + words), flush=True)
            subprocess.run([*command, *words], check=True)


SEARCHES = {"bf16": [], "iq4_nl": ["ship.format=iq4_nl"], "iq4_nl_aware": ["ship.format=iq4_nl", "train.quantize=0.5"]}


def search_rows(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each winner, and how much lower four bits end than bfloat16."""
    found: dict[tuple[str, int], float] = {}
    rows = []
    for name in SEARCHES:
        for seed in range(options.seeds):
            winner = StudyFolder(options.folder / f"{name}_{seed}").winner
            if winner.record.is_file():
                record = winner.read_record()
                bits = record.measured.bits_per_byte
                assert bits is not None
                found[name, seed] = bits
                row = {"part": "search", "arm": name, "seed": seed, "bits_per_byte": bits}
                row |= {"bytes": record.release.artifact_bytes, "parameters": record.release.num_parameters}
                rows.append(row)
    goals = []
    for name in list(SEARCHES)[1:]:
        gains = [
            found["bf16", s] - found[name, s] for s in range(options.seeds) if {("bf16", s), (name, s)} <= set(found)
        ]
        if len(gains) > 1:
            mean, low, high = interval(gains)
            text = f"search at {name} ends lower than bf16 at equal bytes and time, by (95 %: {low:.3f} to {high:.3f})"
            goals.append(target(text, mean, 0.0, better="higher"))
    return rows, goals


def run_decays(options: argparse.Namespace, *, folder: Path) -> None:
    """All arms of all seeds, `--workers` at a time, the plain ones first, since the others go on from them."""
    given = [word for word in sys.argv[1:] if word != "--run"]
    for plain in (True, False):
        runs = {}
        for seed in range(options.seeds):
            (folder / f"seed{seed}").mkdir(parents=True, exist_ok=True)
            for arm in arms(options.shares):
                if (arm == PLAIN) is plain:
                    runs[folder / f"seed{seed}" / f"{arm}.json"] = [*given, "--run", json.dumps([arm, seed])]
        work_off(partial(dict, runs), module="benchmarks.formats", workers=options.workers)


def main() -> None:
    """Works through the parts and writes the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["decay", "readers", "search"])
    parser.add_argument("--steps", type=int, default=15_000, help="about an hour on one core")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 1.0], help="of the decay, quantised")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    parser.add_argument("--time", default="20m", help="of each search")
    parser.add_argument("--limit", default="1MB", help="of bytes, of each search")
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/formats"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    note = options.folder / "data.json"
    if note.exists():  # what it began with: the default sources change with every installation
        data = PreparedData.from_dict(read_json(note), beside=options.folder)
    else:
        data = prepare_data(
            corpus=CorpusSettings(max_bytes=options.data_bytes), tokenizer=TokenizerSettings(),
            vocab_sizes=[SHAPE.vocab_size], folder=options.folder / "data",
        )  # fmt: skip
        write_json(note, data.to_dict(beside=options.folder))
    folder = options.folder / f"{options.steps}-{data.digest[:12]}"
    if options.run:
        arm, seed = json.loads(options.run)
        run_decay(arm, seed, shares=options.shares, steps=options.steps, data=data, folder=folder)
        return
    parts: Mapping[str, Callable[[], None]] = {
        "decay": lambda: run_decays(options, folder=folder),
        "readers": lambda: run_readers(data=data, folder=folder, rounds=options.rounds),
        "search": lambda: run_searches(options),
    }
    about = protocol(
        threads=1, parameters=SHAPE.num_parameters(), steps=options.steps, seeds=options.seeds, scored_bytes=250_000,
        data=data.digest[:16], decode=default_protocol("cpu").to_dict(),
        search=f"{options.time} and {options.limit} each, space {options.space}",
    )  # fmt: skip
    for part in options.parts:
        parts[part]()
        found = [decay_rows(folder), reader_rows(folder), search_rows(options)]
        rows, goals = [row for some, _ in found for row in some], [goal for _, some in found for goal in some]
        columns = ["part", "arm", "target", "format", "runtime", "bytes", "share_of_bf16", "seeds", "seed"]
        columns += ["bits_per_byte", "cost", "interval", "decode_ms", "parameters"]
        print(write("formats", protocol=about, rows=rows, targets=goals, columns=columns), flush=True)


if __name__ == "__main__":
    main()
