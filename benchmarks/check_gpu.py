"""The checks of recipes/check_gpu.py: what CUDA changes, asked of the machine. The result file is `check_gpu.json`."""

from __future__ import annotations

import argparse
import collections
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from benchmarks.results_file import protocol, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.engine.records import Budget, Evaluation, Rung
from codenas_hf.engine.workers import Outcome, Pool
from codenas_hf.folders import write_json
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.hardware import VISIBLE, Hardware, device_name, visible_gpus
from codenas_hf.measure.candidate import CandidateSettings, new_model, worker_device
from codenas_hf.measure.provenance import provenance
from codenas_hf.training import OptimSettings, TrainSettings, train

GENOME = Genome(
    vocab_size=512, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=256,
)  # fmt: skip
RUNG, STEPS = Rung(0, Budget("steps", 1)), Budget("steps", 60)
PRELOAD = ("torch", "transformers", "codenas_hf.measure.candidate")
LEFT_BYTES = 64 << 20  # of memory, for a training that needs more


class NotTriedError(Exception):
    """A check that makes no sense on this machine; its text says why."""


class Tokens:
    """Sequences that a model can learn: each token follows from the one before."""

    digest, bytes_per_token = "formula", 3.0

    def batch(
        self, step: int, *, sequences: int, length: int, seed: int, rank: int = 0, world: int = 1, fim_rate: float = 0
    ) -> dict[str, np.ndarray]:
        """Processes share the rows of a step."""
        rows = [(step * world + rank) * sequences + row for row in range(sequences)]
        noise = [np.random.default_rng([seed, row]).integers(2, size=length) for row in rows]
        ids = np.stack([(7 * row + 5 * np.arange(length) + bit) % 512 for row, bit in zip(rows, noise, strict=True)])
        positions = np.broadcast_to(np.arange(length), ids.shape).copy()
        return {"input_ids": ids, "labels": ids.copy(), "position_ids": positions}


def trained(
    device: torch.device, *, precision: Any = "float32", accelerator: Accelerator | None = None, **more: Any
) -> tuple[torch.nn.Module, float]:
    """A small model after a short training, and the loss at its end."""
    optim = OptimSettings(warmup_steps=4)
    how = TrainSettings(**{"sequence_length": 64, "tokens_per_step": 1024, **more}, optim=optim, precision=precision)
    model = new_model(GENOME, settings=CandidateSettings(), seed=0, train=how, device=device)
    accelerator = accelerator or Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    result = train(model, Tokens(), STEPS, settings=how, accelerator=accelerator)
    return model, result.curve[-1]["loss"]


def answers(evaluator: Any, *, workers: int, tasks: int, device: torch.device) -> list[Outcome]:
    """What fresh worker processes say."""
    pool, found = Pool(evaluator, workers=workers, preload=PRELOAD, environment={"OMP_NUM_THREADS": "1"}), []
    left = list(range(tasks))
    try:
        while left or pool.busy:
            while left and pool.free:
                pool.start(left.pop(), GENOME, rung=RUNG, previous=None)
            found += pool.poll(1.0)
    finally:
        pool.close()
    return found


@dataclass(frozen=True)
class Products:
    """Takes a GPU and multiplies on it: which it had, how long it took, what its context cost."""

    device: Any
    size: int = 4096
    repeats: int = 200

    def __call__(self, genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        device, facts = worker_device(self.device), dict[str, Any]()
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            facts = {"free_mb": free / 1e6, "total_mb": total / 1e6, "visible": torch.cuda.device_count()}
        begin = time.perf_counter()
        x = torch.ones(self.size, self.size, device=device) / self.size
        for _ in range(self.repeats):
            x = x @ x
        total_sum = float(x.sum())  # waits
        seconds = time.perf_counter() - begin
        named = {"gpu": os.environ.get(VISIBLE, "0"), "name": device_name(device), "sum": total_sum}
        return Evaluation(objectives={"seconds": seconds}, measurements={**facts, **named})


@dataclass(frozen=True)
class TooLarge:
    """A training that memory does not suffice for; with `fits`, one for which it does."""

    device: Any
    fits: bool = False

    def __call__(self, genome: Any, rung: Rung, previous: Evaluation | None) -> Evaluation:
        device = worker_device(self.device)
        trained(device)  # what is allocated once
        if not self.fits and device.type == "cuda":
            hog = torch.empty(torch.cuda.mem_get_info()[0] - LEFT_BYTES, dtype=torch.uint8, device=device)
            assert hog.numel()
        elif not self.fits:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + LEFT_BYTES, resource.RLIM_INFINITY))
        _, loss = trained(device, tokens_per_step=1024 if self.fits else 2**20)
        return Evaluation(objectives={"loss": loss})


def devices(device: torch.device) -> str:
    """How many, and which."""
    if device.type == "cpu":
        raise NotTriedError(f"torch sees no GPU here, or --device cpu; the processor is {device_name(device)}")
    return "; ".join(f"{n}: {torch.cuda.get_device_name(i)}" for i, n in enumerate(visible_gpus()))


def context(device: torch.device) -> str:
    """Looking at GPUs starts none; a worker's context has its price."""
    if device.type == "cpu":
        raise NotTriedError("needs a GPU")
    has_context: Any = getattr(torch._C, "_cuda_hasPrimaryContext")  # noqa: B009  # in builds for CUDA only
    started = [i for i in range(torch.cuda.device_count()) if has_context(i)]
    assert not started, f"the main process has a context on {started} before it computes anything"
    (only,) = answers(Products("cuda", size=8, repeats=1), workers=1, tasks=1, device=device)
    assert only.evaluation, only.failure
    facts = only.evaluation.measurements
    return f"a worker has {facts['free_mb']:.0f} of {facts['total_mb']:.0f} MB free once its context stands"


def bf16(device: torch.device) -> str:
    """bfloat16 trains as float32 does, and computes the same within its precision."""
    full, loss = trained(device)
    _, half_loss = trained(device, precision="bfloat16")
    ids = torch.arange(64, device=device)[None] * 5 % 512
    with torch.no_grad():
        exact = full(input_ids=ids).logits
        with torch.autocast(device.type, dtype=torch.bfloat16):
            rounded = full(input_ids=ids).logits.float()
    apart = float((exact - rounded).abs().max() / exact.abs().max())
    said = f"loss {loss:.4f} and {half_loss:.4f}, logits {100 * apart:.2f} % of the largest apart"
    assert abs(half_loss - loss) <= 0.03 * loss, f"{said}; at most 3 % of the loss was expected"
    assert apart <= 0.03, f"{said}; at most 3 % was expected"
    return said


def decode(device: torch.device) -> str:
    """Our decoder says what `generate` says. (The package records no CUDA graphs.)"""
    model: Any = trained(device)[0]
    prompt, steps = [3, 8, 13, 18, 23], 48
    runtime = TorchRuntime.of(model)
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(runtime.logits(ids).argmax()))
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False}
    same = model.generate(torch.tensor([prompt], device=device), **options)[0].tolist()
    differ = next((at for at, pair in enumerate(zip(ids, same, strict=True)) if pair[0] != pair[1]), None)
    assert differ is None, f"token {differ} differs: {ids[differ or 0]}, {same[differ or 0]}"
    return f"{steps} tokens, one by one, equal those of generate"


def ddp(device: torch.device) -> str:
    """Two processes train as one does."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        raise NotTriedError("needs two GPUs")
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
        known = {"ACCELERATE_USE_CPU": "true"} if device.type == "cpu" else {}
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, **known, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run(
            [*command, __spec__.name, "--rank-of", place], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-500:]
        ranks = [load_file(Path(place) / f"{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0]), "the two differ"
    _, loss = trained(device)
    both = float(ranks[0]["loss"])
    assert math.isclose(both, loss, rel_tol=2e-3), f"loss {both:.5f} of two, {loss:.5f} of one"
    return f"loss {both:.5f} of two, {loss:.5f} of one; both have the same weights"


def one_rank(folder: Path) -> None:
    """One of the two processes."""
    accelerator = Accelerator(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true", mixed_precision="no")
    model, loss = trained(accelerator.device, accelerator=accelerator)
    weights = {name: value.detach().cpu().clone() for name, value in model.named_parameters()}
    save_file({**weights, "loss": torch.tensor(loss)}, folder / f"{accelerator.process_index}.safetensors")
    accelerator.end_training()


def own_device(device: torch.device) -> str:
    """Each worker sees one GPU, and no two the same."""
    gpus = visible_gpus() if device.type == "cuda" else ()
    if len(gpus) < 2:
        raise NotTriedError("needs two GPUs")
    found = answers(Products("cuda", repeats=2000), workers=len(gpus), tasks=len(gpus), device=device)
    seen = [o.evaluation.measurements for o in found if o.evaluation]
    assert sorted(each["gpu"] for each in seen) == sorted(gpus), [o.failure or o.evaluation for o in found]
    assert all(each["visible"] == 1 for each in seen), seen
    return "; ".join(f"{each['gpu']}: {each['name']}" for each in sorted(seen, key=lambda each: str(each["gpu"])))


def proportion(device: torch.device) -> str:
    """GPUs share a queue in proportion to their speed."""
    gpus = visible_gpus() if device.type == "cuda" else ()
    if len(gpus) < 2:
        raise NotTriedError("needs two GPUs")
    found = answers(Products("cuda", repeats=1000), workers=len(gpus), tasks=24 * len(gpus), device=device)
    assert all(o.evaluation for o in found), [o.failure for o in found if o.failure]
    times = collections.defaultdict(list)
    for each in (o.evaluation for o in found if o.evaluation):
        times[each.measurements["gpu"]].append(each.objectives["seconds"])
    speed = {gpu: len(seconds) / sum(seconds) for gpu, seconds in times.items()}
    shares = {gpu: (len(times[gpu]) / len(found), speed[gpu] / sum(speed.values())) for gpu in sorted(times)}
    said = ", ".join(f"{gpu}: {100 * had:.0f} % (speed {100 * due:.0f} %)" for gpu, (had, due) in shares.items())
    assert len(times) == len(gpus), said
    assert all(abs(had - due) <= 0.15 for had, due in shares.values()), said
    return said


def memory(device: torch.device) -> str:
    """A candidate for which memory does not suffice is a failed trial that says so; the next one is evaluated."""
    name = device.type
    (failed,) = answers(TooLarge(name), workers=1, tasks=1, device=device)
    reason = failed.failure or "it was evaluated"
    assert "ran out of memory" in reason, reason
    assert any(word in reason for word in ("GiB", "MiB", "bytes")), f"no size in: {reason}"
    (fine,) = answers(TooLarge(name, fits=True), workers=1, tasks=1, device=device)
    assert fine.evaluation, fine.failure
    return reason


def search(device: torch.device) -> str:
    """A small search, from the Python files of this machine to a winner."""
    with tempfile.TemporaryDirectory() as place:
        words = ["search", "--config", "smoke", "space=tiny", f"device={device.type}", f"folder={place}"]
        command = [sys.executable, "-m", "codenas_hf.cli.main", *words]
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stderr or done.stdout)[-500:]
        assert (Path(place) / "smoke" / "winner").is_dir(), "it has no winner"
    return f"{time.monotonic() - begin:.0f} s"


CHECKS: tuple[Callable[[torch.device], str], ...] = (
    *(devices, context, bf16, decode, ddp, own_device, proportion, memory, search),
)


def outcome(check: Callable[[torch.device], str], device: torch.device) -> tuple[str, str]:
    """What a line says of a check, and in detail."""
    try:
        return "holds", check(device)
    except NotTriedError as reason:
        return "not tried here", str(reason)
    except Exception as error:  # whatever does not work is an answer; the other checks are wanted too
        return "does not hold", f"{type(error).__name__}: {error}"


def main() -> int:
    """Runs the checks; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", default="", help="names of checks, separated by commas")
    parser.add_argument("--out", type=Path, help="a result file of its own; else benchmarks/results, with a GPU only")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of is not None:
        one_rank(options.rank_of)
        return 0
    hardware = Hardware.discover(options.device)
    device, wanted = torch.device(hardware.device), options.only.split(",")
    rows = []
    for check in CHECKS:
        if options.only and check.__name__ not in wanted:
            continue
        begin = time.monotonic()
        state, detail = outcome(check, device)
        asked = " ".join((check.__doc__ or "").split())
        row = {"check": check.__name__, "about": asked, "state": state, "detail": detail}
        rows.append({**row, "seconds": round(time.monotonic() - begin, 1)})
        print(f"{state:<15} {check.__name__:<11} {asked}\n{'':<27} {detail}", flush=True)
    failed = sum(row["state"] == "does not hold" for row in rows)
    names = [torch.cuda.get_device_name(i) for i in range(hardware.count)] if device.type == "cuda" else []
    about = protocol(**{**provenance(device), "gpus": names})
    if options.out is not None:
        write_json(options.out, {"name": "check_gpu", "protocol": about, "rows": rows, "targets": []})
    elif names and not options.only:
        write("check_gpu", protocol=about, rows=rows)
    print(f"{failed} of {len(rows)} do not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
