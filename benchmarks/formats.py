"""What few bits cost and bring, in every format and reader: `python -m benchmarks.formats`.

Parts, each resumable: what is finished is found again in `--folder`.

- `decay`: one shape is trained (`--study`: the winner of that study, on its text, from the state that the study left
  before the decay; else the shape of two million parameters of `benchmarks.recipe`). What each format then costs in
  bits per byte, with embedding and head in 8 bits and in 4, and what it costs where the end of the decay computed
  with the format's weights (`train.quantize`), from the same state before the decay. Costs are against the plain
  training in float32 on the same report text, paired by project.
- `readers`: the first seed's plain model in every format and every program that reads it: bytes to ship, and bits per
  byte as that program gives them.
- `timing`: milliseconds a token of each of these, in turn, the lowest of the rounds, one thread. Run it on a quiet
  machine.

Whatever is there is written to results/formats.json after each part.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
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
from benchmarks.recipe import SHAPE
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
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.study import study_data
from codenas_hf.jobs.text import load_space
from codenas_hf.jobs.train import find_genome, study_settings, winner_state
from codenas_hf.measure.candidate import new_model
from codenas_hf.measure.latency import default_protocol
from codenas_hf.measure.score import Score, paired_difference, score_passages
from codenas_hf.measure.shipped import BLOCKS, FORMATS, Format, stored_bytes, stored_weights
from codenas_hf.release.export import export_stock, write_release
from codenas_hf.release.targets import TARGETS, export_model
from codenas_hf.training import train

PLAIN, FULL = "plain", "f32"
EIGHT, FOUR_BITS = "q8_0", ("iq4_nl", "q4_0")
# Of the plain training: (most it may cost, most it may cost with a quantised decay), bits per byte.
COSTS = {"q8_0": (0.002, None), "q4_0": (0.03, 0.01), "iq4_nl": (0.03, 0.01)}
SIZES = {"q8_0": 0.55, "q4_0": 0.34, "iq4_nl": 0.34}
SCORED = 250_000


class Setup:
    """What is trained and on which text; every process reads the same from the words of the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        if options.study is None:
            self.settings, self.genome, self.data = RunSettings.of(), SHAPE, _own_data(options)
        else:
            self.settings, self.genome = study_settings(options.study), find_genome(str(options.study))[0]
            sizes = load_space(self.settings.space).vocab_sizes
            self.data = study_data(self.settings, folder=options.study, vocab_sizes=sizes, say=print)
        self.folder = options.folder / f"{options.steps}-{self.data.digest[:12]}-{self.genome.genome_id}"

    def seeded(self, seed: int) -> RunSettings:
        """The settings of one run."""
        return replace(self.settings, train=replace(self.settings.train, seed=seed))

    def fresh(self, seed: int) -> CodeNASForCausalLM:
        """The shape with new weights."""
        train_settings = self.seeded(seed).train
        return new_model(self.genome, train=train_settings, settings=self.settings.candidate, seed=seed)

    def trained(self, seed: int) -> CodeNASForCausalLM:
        """The plain model of a seed.

        Raises:
            SystemExit: the part `decay` has not trained it.
        """
        weights = self.folder / f"seed{seed}" / f"{PLAIN}.safetensors"
        if not weights.is_file():
            raise SystemExit("this part reads what the part `decay` has trained: run that first")
        model = self.fresh(seed)
        model.load_state_dict(load_file(weights), strict=False)
        model.eval()
        return model

    def begin(self, seed: int) -> Path | None:
        """The state that the study left of this training, if it did."""
        study = self.options.study
        return study and winner_state(StudyFolder(study), self.genome, settings=self.seeded(seed), data=self.data)

    def report(self, max_bytes: int = SCORED) -> Passages:
        """The text that everything here is scored on."""
        length = self.settings.train.sequence_length
        return self.data.passages(self.genome.vocab_size, "report", length=length, max_bytes=max_bytes)


def _own_data(options: argparse.Namespace) -> PreparedData:
    """Text without a study: what it began with, since the default sources change with every installation."""
    note = options.folder / "data.json"
    if note.exists():
        return PreparedData.from_dict(read_json(note), beside=options.folder)
    data = prepare_data(
        corpus=CorpusSettings(max_bytes=options.data_bytes), tokenizer=TokenizerSettings(),
        vocab_sizes=[SHAPE.vocab_size], folder=options.folder / "data",
    )  # fmt: skip
    write_json(note, data.to_dict(beside=options.folder))
    return data


def with_embedding(name: str, block: str) -> Format:
    """A format with embedding and head in another block."""
    return replace(FORMATS[name], embedding=BLOCKS[block])


def variants() -> list[tuple[str, str]]:
    """Every format of codes, and the block of embedding and head."""
    return [(EIGHT, EIGHT), *((form, block) for form in FOUR_BITS for block in (EIGHT, form))]


def arms(shares: list[float]) -> dict[str, tuple[str, str, float]]:
    """Name of a decay to its format, its block of the embedding and its share; the plain one first."""
    found = {PLAIN: ("bf16", "bf16", 0.0)}
    for form, block in variants()[1:]:
        found |= {f"{form} {block} {share:g}": (form, block, share) for share in shares}
    return found


def run_decay(arm: str, seed: int, *, setup: Setup) -> None:
    """Trains one arm and scores it in full precision and in its formats."""
    torch.set_num_threads(1)
    form, block, share = arms(setup.options.shares)[arm]
    stored = with_embedding(form, block)
    model, home = setup.fresh(seed), setup.folder / f"seed{seed}"
    result = train(
        model,
        setup.data.tokens(setup.genome.vocab_size, "train"),
        Budget("steps", setup.options.steps),
        settings=replace(setup.seeded(seed).train, quantize=share),
        folder=home / "training" if arm == PLAIN else None,
        resume_from=setup.begin(seed) if arm == PLAIN else home / "training" / "constant",
        stored=lambda trained: stored_weights(trained, stored),
    )
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, home / f"{arm}.safetensors")
    passages = setup.report()
    full = score_passages(setup.trained(seed), passages)
    scores = [{"format": FULL, "embedding": FULL, **compared(score_passages(model, passages), full)}]
    for name, own in [("bf16", "bf16"), *variants()] if arm == PLAIN else [(form, block)]:
        with stored_weights(model, with_embedding(name, own)):
            score = score_passages(model, passages)
        size = stored_bytes(setup.genome.parameter_shapes(), with_embedding(name, own))
        scores.append({"format": name, "embedding": own, "bytes": size, **compared(score, full)})
    seconds = {"steps_run": result.steps_run, "seconds_run": result.seconds_run, "tokens": result.tokens}
    write_json(home / f"{arm}.json", {"arm": arm, "seed": seed, **seconds, "scores": scores})


def compared(score: Score, full: Score) -> dict[str, Any]:
    """A score, and how much it lies above that of the plain training in full precision."""
    found = paired_difference(score, full)
    ends = None if found is None else [found.low, found.high]
    return {"bits_per_byte": score.bits_per_byte, "cost": score.bits_per_byte - full.bits_per_byte, "by_project": ends}


def decay_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each arm and format over the seeds, and the targets, which are of the formats as they ship."""
    done = [read_json(path) for path in sorted(folder.glob("seed*/*.json"))]
    rows, goals = [], []
    for arm in sorted({run["arm"] for run in done}, key=lambda arm: arm != PLAIN):
        runs = [run for run in done if run["arm"] == arm]
        for at, first in enumerate(runs[0]["scores"]):
            scores = [run["scores"][at] for run in runs]
            mean, low, high = interval([score["cost"] for score in scores])
            row = {"part": "decay", "arm": arm, "format": first["format"], "embedding": first["embedding"]}
            row |= {"bytes": first.get("bytes"), "seeds": len(runs), "cost": mean}
            row |= {"bits_per_byte": statistics.fmean(score["bits_per_byte"] for score in scores)}
            row |= {"interval": first["by_project"] if low is None else [low, high]}
            rows.append(row | {key: statistics.fmean(run[key] for run in runs) for key in ("seconds_run", "tokens")})
    plain = {row["format"]: row["bytes"] for row in rows if row["arm"] == PLAIN and row["embedding"] == "bf16"}
    for row in rows:
        row["share_of_bf16"] = row["bytes"] and row["bytes"] / plain["bf16"]
    for form, (after, aware) in COSTS.items():
        ships = [row for row in rows if row["format"] == form and row["embedding"] == FORMATS[form].embedding.name]
        for row in ships[:1]:
            goals.append(target(f"{form} costs after training, bits per byte", row["cost"], after, better="lower"))
        if aware is not None and len(ships) > 1:
            name = f"{form} costs with a quantised decay, bits per byte"
            goals.append(target(name, min(row["cost"] for row in ships[1:]), aware, better="lower"))
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


def readers(setup: Setup, *, work: Path) -> list[dict[str, Any]]:
    """Writes every form of the plain model: target, format, runtime, bytes, where it lies."""
    model, tokenizer = setup.trained(0), setup.data.tokenizer(setup.genome.vocab_size)
    stock = export_stock(model)
    found = [_form("folder", "bf16", "torch", write_release(model, folder=work / "bf16", tokenizer=tokenizer))]
    for to, goal in TARGETS.items():
        for form in goal.forms:
            out = work / f"{to}-{form}{'' if goal.folder else '.gguf'}"
            export_model(stock, tokenizer=tokenizer, out=out, to=to, form=form)
            found.append(_form(to, form, {"gguf": "llama.cpp", "onnx": "onnxruntime"}.get(to, "torch"), out))
    for row in found:
        row["share_of_bf16"] = row["bytes"] / found[0]["bytes"]
    return found


def _form(to: str, form: str, runtime: str, path: Path) -> dict[str, Any]:
    size = path.stat().st_size if path.is_file() else folder_bytes(path)
    return {"target": to, "format": form, "runtime": runtime, "bytes": size, "path": path.name}


def opened(row: Mapping[str, Any], *, work: Path) -> Runtime:
    """A form in its reader, one thread."""
    path = work / row["path"]
    if row["runtime"] == "llama.cpp":
        return LlamaCppRuntime(path)
    if row["runtime"] == "onnxruntime":
        context = int(read_json(path / "config.json")["max_position_embeddings"])
        return OnnxReader(next(path.rglob("*.onnx")), context_tokens=context)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return TorchRuntime(model)


def run_readers(setup: Setup) -> None:
    """Scores every form of the first seed's plain model in its reader."""
    torch.set_num_threads(1)
    work = setup.folder / "files"
    rows, passages = readers(setup, work=work), setup.report(setup.options.reader_bytes)
    for row in rows:
        runtime = opened(row, work=work)
        row["bits_per_byte"] = score_runtime(runtime, passages, vocab_size=setup.genome.vocab_size).bits_per_byte
        runtime.close()
        print(row, flush=True)
    base = next(row for row in rows if row["target"] == "gguf" and row["format"] == "f32")
    for row in rows:
        row["cost"] = row["bits_per_byte"] - base["bits_per_byte"]
    write_json(setup.folder / "readers.json", {"rows": rows})


def run_timing(setup: Setup) -> None:
    """Times every form of the part `readers` in turn."""
    torch.set_num_threads(1)
    rows = read_json(setup.folder / "readers.json")["rows"]
    work = setup.folder / "files"
    runtimes = [opened(row, work=work) for row in rows]
    lowest = [math.inf] * len(rows)
    for _ in range(setup.options.rounds):
        for at, runtime in enumerate(runtimes):
            ms, _ = time_runtime(runtime, default_protocol("cpu"), vocab_size=setup.genome.vocab_size)
            lowest[at] = min(ms, lowest[at])
    write_json(setup.folder / "timing.json", {row["path"]: ms for row, ms in zip(rows, lowest, strict=True)})


def reader_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the readers, and what files may have of bfloat16's bytes."""
    if not (folder / "readers.json").is_file():
        return [], []
    times = read_json(folder / "timing.json") if (folder / "timing.json").is_file() else {}
    found = read_json(folder / "readers.json")["rows"]
    rows = [{"part": "readers", "decode_ms": times.get(row.pop("path")), **row} for row in found]
    sizes = {row["format"]: row["bytes"] for row in rows if row["target"] == "gguf"}
    goals = [
        target(f"{form} file over bf16's", sizes[form] / sizes["bf16"], most, better="lower")
        for form, most in SIZES.items()
    ]
    return rows, goals


def run_decays(setup: Setup) -> None:
    """All arms of all seeds, `--workers` at a time, the plain ones first, since the others go on from them."""
    options = setup.options
    for plain in (True, False):
        runs = {}
        for seed in range(options.seeds):
            (setup.folder / f"seed{seed}").mkdir(parents=True, exist_ok=True)
            for arm in arms(options.shares):
                if (arm == PLAIN) is plain:
                    runs[setup.folder / f"seed{seed}" / f"{arm}.json"] = [
                        *sys.argv[1:],
                        "--run",
                        json.dumps([arm, seed]),
                    ]
        work_off(partial(dict, runs), module="benchmarks.formats", workers=options.workers)


def add_words(parser: argparse.ArgumentParser) -> None:
    """What names a training and where it lies."""
    parser.add_argument("--study", type=Path, help="train this study's winner on, on its text")
    parser.add_argument("--steps", type=int, default=15_000, help="in all; about an hour on one core")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-bytes", type=int, default=40_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/formats"))
    parser.add_argument("--run", help=argparse.SUPPRESS)


def main() -> None:
    """Works through the parts and writes the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["decay", "readers", "timing"], help="or `write`")
    add_words(parser)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 1.0], help="of the decay, quantised")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reader-bytes", type=int, default=SCORED, help="that readers are scored on")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(options)
    if options.run:
        arm, seed = json.loads(options.run)
        run_decay(arm, seed, setup=setup)
        return
    parts: Mapping[str, Callable[[Setup], None]] = {"decay": run_decays, "readers": run_readers, "timing": run_timing}
    for part in options.parts:
        if part != "write":
            parts[part](setup)
        found = [decay_rows(setup.folder), reader_rows(setup.folder)]
        rows, goals = [row for some, _ in found for row in some], [goal for _, some in found for goal in some]
        about = protocol(
            threads=1, genome=setup.genome.to_dict(), parameters=setup.genome.num_parameters(), steps=options.steps,
            tokens_per_step=setup.settings.train.tokens_per_step, seeds=options.seeds, scored_bytes=SCORED,
            reader_bytes=options.reader_bytes, data=setup.data.digest[:16], rounds=options.rounds,
            decode=default_protocol("cpu").to_dict(),
            interval="of the cost: 95 % over seeds, or over the projects of the text where there is one seed",
            begin="the state of a study's winner before its decay" if setup.begin(0) else "new weights",
        )  # fmt: skip
        columns = ["part", "arm", "target", "format", "embedding", "runtime", "bytes", "share_of_bf16", "seeds"]
        columns += ["bits_per_byte", "cost", "interval", "decode_ms"]
        print(write("formats", protocol=about, rows=rows, targets=goals, columns=columns), flush=True)


if __name__ == "__main__":
    main()
