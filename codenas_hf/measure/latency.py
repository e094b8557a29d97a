"""Decode latency predicted from a genome: a sum of per-operation costs, fitted to timed architectures.

One token through a small model costs a fixed amount for each operation that is launched and for each weight that is
read. Both are linear in the genome's counts, and no cost is negative, so a handful of timed shapes is enough.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..architecture.genome import Genome
from ..hardware import device_name
from ..modeling_codenas import CodeNASForCausalLM
from .timing import Timer, TimingProtocol, measure_latency

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
_VERSION = 1
_FOLDS = 5


class SamplesGenomes(Protocol):
    """What the fit asks of a search space."""

    def sample(self, rng: np.random.Generator) -> Genome:
        """A valid genome."""
        ...


def operation_counts(genome: Genome, *, context: int) -> dict[str, float]:
    """What decoding one token takes: operations launched, and elements read, in millions.

    Args:
        genome: the architecture.
        context: tokens in the cache.
    """
    counts = dict.fromkeys(
        ("call", "layer", "conv_layer", "gated", "head_norm", "rope", "layernorm", "attention", "conv", "ffn"), 0.0
    )
    counts |= {"readout": genome.vocab_size * genome.hidden_size / 1e6, "cache": 0.0, "call": 1.0}
    repeats = genome.layer_repeats
    kinds = {"mlp": "ffn", "self_attn": "attention", "conv": "conv"}
    for name, shape in genome.parameter_shapes().items():
        part = name.split(".")[3] if name.startswith("model.layers.") else ""
        if part in kinds:
            counts[kinds[part]] += repeats * math.prod(shape) / 1e6
    for block, letter in enumerate(genome.block_letters):
        counts["layer"] += repeats
        counts["gated"] += repeats * (genome.at("mlp_type", block) == "gated")
        counts["layernorm"] += repeats * (genome.norm_type == "layernorm")
        if letter == "c":
            counts["conv_layer"] += repeats
            continue
        counts["head_norm"] += repeats * genome.qk_norm
        counts["rope"] += repeats * (genome.position_embedding_type == "rope")
        seen = min(context, genome.sliding_window or context) if letter == "s" else context
        heads = genome.at("num_key_value_heads", block) * genome.at("head_dim", block)
        counts["cache"] += repeats * 2 * seen * heads / 1e6
    counts["residual"] = genome.hidden_size * genome.num_hidden_layers / 1e6
    return counts


def non_negative_least_squares(matrix: Floats, target: Floats, *, sweeps: int = 2000) -> Floats:
    """The x >= 0 that minimises |matrix x - target|, by coordinate descent on the normal equations.

    Args:
        matrix: [rows, columns].
        target: [rows].
        sweeps: passes over all coordinates.
    """
    scale = np.linalg.norm(matrix, axis=0)
    used = scale > 0
    scaled = matrix[:, used] / scale[used]
    gram, right = scaled.T @ scaled, scaled.T @ target
    x = np.zeros(len(right))
    for _ in range(sweeps):
        before = x.copy()
        for column in range(len(x)):
            x[column] = max(0.0, x[column] + right[column] - float(gram[column] @ x))
        if np.abs(x - before).max() <= 1e-10 * max(1e-30, np.abs(x).max()):
            break
    result = np.zeros(matrix.shape[1])
    result[used] = x / scale[used]
    return result


def _ranks(values: Floats) -> Floats:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)


def _fit(features: Floats, times: Floats) -> Floats:
    """Weighted so that the relative error counts: 1 ms off is nothing at 100 ms and all at 1 ms."""
    return non_negative_least_squares(features / times[:, None], np.ones(len(times)))


def device_fingerprint(device: str, *, packages: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a latency depends on besides the model.

    Args:
        device: `cpu` or `cuda`.
        packages: of the runtime, with their versions; None for torch.
    """
    return {
        "device": device,
        "name": device_name(device),
        **(packages or {"torch": torch.__version__}),
        "machine": platform.machine(),
    }


def space_digest(space: Any) -> str:
    """Digest of a search space without its limits: costs that were fitted on one say nothing of another."""
    facts = {name: value for name, value in space.to_dict().items() if name != "limits"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Milliseconds per decoded token as a function of the genome.

    Args:
        costs: milliseconds of one operation, or of a million elements.
        protocol: under which the shapes were timed.
        fingerprint: of the device.
        relative_error: mean absolute error over the time, cross-validated.
        rank_correlation: Spearman's, between predicted and timed, cross-validated.
        shapes: number of timed architectures.
        runtime: in which they were timed.
        format: in which their weights were stored; None for numbers of the protocol's dtype.
        space: digest of the space that they were drawn from; models of before did not keep it.
    """

    costs: Mapping[str, float]
    protocol: TimingProtocol
    fingerprint: Mapping[str, str]
    relative_error: float
    rank_correlation: float
    shapes: int
    runtime: str = "torch"
    format: str | None = None
    space: str | None = None

    def predict_decode_ms(self, genome: Genome) -> float:
        """Milliseconds of one decoded token, in the middle of the protocol's completion."""
        context = self.protocol.prompt_tokens + self.protocol.new_tokens // 2
        counts = operation_counts(genome, context=context)
        return float(sum(cost * counts[name] for name, cost in self.costs.items()))

    @classmethod
    def from_times(
        cls,
        genomes: Sequence[Genome],
        times: Sequence[float],
        *,
        protocol: TimingProtocol,
        fingerprint: Mapping[str, str],
    ) -> LatencyModel:
        """Fits measured decode times, and cross-validates the fit.

        Args:
            genomes: at least ten architectures.
            times: milliseconds per token of each.
            protocol, fingerprint: how and where they were measured.

        Raises:
            ValueError: too few genomes, or a time that is not positive.
        """
        if len(genomes) < 2 * _FOLDS:
            raise ValueError(f"a latency model needs at least {2 * _FOLDS} timed genomes, got {len(genomes)}")
        y = np.array(times, dtype=np.float64)
        if not (np.isfinite(y) & (y > 0)).all():
            raise ValueError(f"times must be positive and finite, got {min(times)} to {max(times)}")
        context = protocol.prompt_tokens + protocol.new_tokens // 2
        rows = [operation_counts(genome, context=context) for genome in genomes]
        names = list(rows[0])
        features = np.array([[row[name] for name in names] for row in rows])
        predicted = np.empty_like(y)
        for fold in range(_FOLDS):
            out = np.arange(len(y)) % _FOLDS == fold
            predicted[out] = features[out] @ _fit(features[~out], y[~out])
        correlation = float(np.corrcoef(_ranks(predicted), _ranks(y))[0, 1])
        return cls(
            costs={name: float(cost) for name, cost in zip(names, _fit(features, y), strict=True) if cost > 0},
            protocol=protocol,
            fingerprint=dict(fingerprint),
            relative_error=float((np.abs(predicted - y) / y).mean()),
            rank_correlation=correlation,
            shapes=len(y),
        )

    @classmethod
    def fit(
        cls,
        space: SamplesGenomes,
        *,
        device: str = "cpu",
        protocol: TimingProtocol | None = None,
        shapes: int = 28,
        seed: int = 0,
        timer: Timer = measure_latency,
        time_genome: Callable[[Genome], float] | None = None,
    ) -> LatencyModel:
        """Times architectures drawn from a space, with weights as they come, and fits the model.

        Each shape is timed in two rounds far apart, and the lower time counts: a busy moment spoils one of them only.

        Args:
            space: to draw from; with its limits, the shapes that matter.
            device: `cpu` or `cuda`.
            protocol: how to time; the default suits the device.
            shapes: how many architectures.
            seed: of the draw.
            timer: how a model is timed; the default does it in torch.
            time_genome: milliseconds per token of a genome, in place of a measurement.
        """
        protocol = protocol or default_protocol(device)
        rng = np.random.default_rng(seed)
        genomes = list({g.genome_id: g for g in (space.sample(rng) for _ in range(3 * shapes))}.values())[:shapes]
        if time_genome is None:
            short = replace(protocol, warmup=1, repeats=2, new_tokens=min(16, protocol.new_tokens))

            def timed(genome: Genome) -> float:
                model = CodeNASForCausalLM(genome.to_config())
                return timer(nn.Module.to(model, device), short).decode_ms

            time_genome = timed
        rounds = [[time_genome(genome) for genome in genomes] for _ in range(2)]
        times = [min(pair) for pair in zip(*rounds, strict=True)]
        model = cls.from_times(genomes, times, protocol=protocol, fingerprint=device_fingerprint(device))
        logger.info(
            "Latency model from %d shapes: mean relative error %.1f %%, rank correlation %.3f (cross-validated)",
            model.shapes,
            100 * model.relative_error,
            model.rank_correlation,
        )
        return model

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "version": _VERSION,
            "costs_ms": dict(self.costs),
            "protocol": self.protocol.to_dict(),
            "fingerprint": dict(self.fingerprint),
            "relative_error": self.relative_error,
            "rank_correlation": self.rank_correlation,
            "shapes": self.shapes,
            "runtime": self.runtime,
            "format": self.format,
            "space": self.space,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyModel:
        """What `to_dict` made; models of before were all of torch.

        Raises:
            ValueError: of another version.
            KeyError, TypeError: something is missing or of another kind.
        """
        if data["version"] != _VERSION:
            raise ValueError(f"a latency model of version {data['version']}, expected {_VERSION}")
        return cls(
            costs=data["costs_ms"],
            protocol=TimingProtocol(**data["protocol"]),
            fingerprint=data["fingerprint"],
            relative_error=data["relative_error"],
            rank_correlation=data["rank_correlation"],
            shapes=data["shapes"],
            runtime=data.get("runtime", "torch"),
            format=data.get("format"),
            space=data.get("space"),
        )

    @classmethod
    def load(cls, path: Path, *, fingerprint: Mapping[str, str]) -> LatencyModel | None:
        """Reads a model; None where it is damaged, or was fitted on another device or with another runtime."""
        try:
            found = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if dict(found.fingerprint) == dict(fingerprint) else None


def default_protocol(device: str) -> TimingProtocol:
    """Batch 1 with one thread in float32 on a CPU; bfloat16 on a GPU."""
    return TimingProtocol(dtype="bfloat16") if device == "cuda" else TimingProtocol(cache="dynamic")
