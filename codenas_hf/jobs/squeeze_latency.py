"""Decode latency of squeezes of one parent, predicted from what a token reads: fitted to a few timed slices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compression.formats import BLOCKS
from ..compression.gguf import write_gguf
from ..compression.parent import ParentFolder
from ..compression.squeeze_space import SqueezeChoices
from ..compression.squeezing import ParentShape, SqueezeGenome, mixed_format, pieces
from ..folders import read_json
from ..generation.llama_cpp import LlamaCppRuntime, is_installed
from ..measure.latency import default_protocol, device_fingerprint, non_negative_least_squares
from ..measure.timing import TimingProtocol, measure_latency
from .files import time_runtime


@dataclass(frozen=True, kw_only=True)
class SqueezeLatency:
    """Milliseconds a token: a share for each call and layer, and for the bytes read in each format.

    Args:
        shape: of the parent.
        costs: milliseconds of a call, of a layer, or of a million bytes.
        runtime: llama.cpp, or torch, which computes all formats in float32.
        protocol: under which slices were timed.
        fingerprint: of the device and the runtime's version.
        relative_error: mean error over the time, on the timed slices themselves.
        slices: how many were timed.
    """

    shape: ParentShape
    costs: Mapping[str, float]
    runtime: str
    protocol: TimingProtocol
    fingerprint: Mapping[str, str]
    relative_error: float
    slices: int

    def __call__(self, genome: SqueezeGenome) -> float:
        """Milliseconds of one decoded token."""
        counts = _counts(genome, self.shape, runtime=self.runtime)
        return float(sum(self.costs.get(name, 0.0) * count for name, count in counts.items()))

    @classmethod
    def fit(
        cls,
        parent: ParentFolder,
        choices: SqueezeChoices,
        *,
        sizes: list[int],
        device: str = "cpu",
        time_slice: Callable[[SqueezeGenome], float] | None = None,
    ) -> SqueezeLatency:
        """Times slices of one and of three layers in every format; each twice, far apart, and the lower time counts.

        Args:
            parent: prepared.
            choices: name the formats.
            sizes: of its vocabularies.
            device: `cpu` or `cuda`, for torch.
            time_slice: milliseconds a token of a genome, in place of a measurement.
        """
        runtime = _runtime_on(device)
        protocol = replace(default_protocol(device), warmup=1, repeats=2)
        shape, few = parent.shape, min(3, parent.shape.layers)
        genomes = []
        for form in choices.matrices:
            for left in (1, few):
                whole = shape.everything(form=form, sections=choices.sections)
                out = tuple(range(left, shape.layers))
                genomes.append(replace(whole, vocab_size=sizes[0], embedding=choices.embedding[0], without_layers=out))
        for form in choices.embedding:
            genomes += [replace(genomes[0], vocab_size=size, embedding=form) for size in (sizes[0], sizes[-1])]
        genomes = list({genome.genome_id: genome for genome in genomes}.values())
        timed = time_slice or (lambda genome: _time(parent, genome, runtime=runtime, protocol=protocol, device=device))
        times = np.array([min(pair) for pair in zip(*[[timed(g) for g in genomes] for _ in range(2)], strict=True)])
        rows = [_counts(genome, shape, runtime=runtime) for genome in genomes]
        names = sorted({name for row in rows for name in row})
        features = np.array([[row.get(name, 0.0) for name in names] for row in rows])
        found = non_negative_least_squares(features / times[:, None], np.ones(len(times)))
        error = float((np.abs(features @ found - times) / times).mean())
        return cls(
            shape=shape,
            costs={name: float(cost) for name, cost in zip(names, found, strict=True) if cost > 0},
            runtime=runtime,
            protocol=protocol,
            fingerprint=_fingerprint(runtime, device),
            relative_error=error,
            slices=len(genomes),
        )

    def is_of(self, device: str) -> bool:
        """Whether slices would be timed on this device, in the runtime and version that they were timed in."""
        runtime = _runtime_on(device)
        return self.runtime == runtime and dict(self.fingerprint) == _fingerprint(runtime, device)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the parent's shape."""
        return {
            "squeeze": True,
            "costs_ms": dict(self.costs),
            "runtime": self.runtime,
            "protocol": self.protocol.to_dict(),
            "fingerprint": dict(self.fingerprint),
            "relative_error": self.relative_error,
            "slices": self.slices,
        }

    @classmethod
    def load(cls, path: Path, *, shape: ParentShape) -> SqueezeLatency | None:
        """What was kept, of whatever device (see `is_of`); None where it is damaged or absent."""
        try:
            data = read_json(path)
            return cls(
                shape=shape,
                costs=data["costs_ms"],
                runtime=data["runtime"],
                protocol=TimingProtocol(**data["protocol"]),
                fingerprint=data["fingerprint"],
                relative_error=data["relative_error"],
                slices=data["slices"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _runtime_on(device: str) -> str:
    """What squeezes are timed in: the reader of what ships, where it is here."""
    return "llama.cpp" if is_installed() and device == "cpu" else "torch"


def _fingerprint(runtime: str, device: str) -> dict[str, str]:
    packages = {"xllamacpp": metadata.version("xllamacpp")} if runtime == "llama.cpp" else None
    return device_fingerprint(device, packages=packages)


def _counts(genome: SqueezeGenome, shape: ParentShape, *, runtime: str) -> dict[str, float]:
    """What decoding one token takes; a tied table is read once, as the head, an untied one not at all."""
    found = {"call": 1.0, "layer": float(shape.layers - len(genome.without_layers))}
    tables = sum(piece.rows == "entries" and len(piece.shape) == 2 for piece in pieces(genome, shape))
    for piece in pieces(genome, shape):
        if len(piece.shape) != 2 or (tables > 1 and "embed" in piece.name):
            continue
        block = "f32" if runtime == "torch" else piece.block
        name = f"head {block}" if piece.rows == "entries" else block
        found[name] = found.get(name, 0.0) + BLOCKS[block].num_bytes(*piece.shape) / 1e6
    return found


def _time(
    parent: ParentFolder, genome: SqueezeGenome, *, runtime: str, protocol: TimingProtocol, device: str
) -> float:
    model = parent.model(genome)
    if runtime == "torch":
        return measure_latency(torch.nn.Module.to(model, device), protocol).decode_ms
    with tempfile.TemporaryDirectory() as folder:
        form = mixed_format(pieces(genome, parent.shape))
        path = write_gguf(
            model, Path(folder) / "slice.gguf", tokenizer=parent.vocabulary(genome.vocab_size), form=form
        )
        opened = LlamaCppRuntime(path, context_tokens=256, threads=protocol.threads)
        try:
            return time_runtime(opened, protocol, vocab_size=genome.vocab_size)[0]
        finally:
            opened.close()
