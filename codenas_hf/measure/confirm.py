"""The front is timed: alone, in passes over all of it, on a device that was looked at before."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from ..architecture.genome import Genome
from ..engine.records import Evaluation, Rung
from ..hardware import DeviceName
from ..modeling_codenas import CodeNASForCausalLM
from .candidate import CandidateEvaluator, unstarted_device
from .checkpoints import ARTIFACT
from .latency import default_protocol
from .provenance import provenance
from .timing import device_noise

logger = logging.getLogger(__name__)

QUIET = 1.2  # mean time of a repeated product over its shortest; beside four busy processes on two cores it is above 2
BEYOND = 1.2  # times the prediction


@dataclass(frozen=True, kw_only=True)
class LatencyConfirmer:
    """Times a member of the front alone and puts the measured latency in the place of the predicted one; picklable.

    It is called once a pass for each member, after all others were timed in that pass: a busy moment spoils one of a
    member's times only, and the lower one counts. All are kept.

    Args:
        evaluator: of the study; restores weights that are gone.
        device: of the timing; None is the evaluator's.
        passes: over the whole front.
        patience_s: how long a timing waits for a busy device to become quiet.

    Raises:
        ValueError: no pass.
    """

    evaluator: CandidateEvaluator
    device: DeviceName | None = None
    passes: int = 2
    patience_s: float = 3.0

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"`passes` must be 1 or more, got {self.passes}")

    def __call__(self, genome: Genome, rung: Rung, previous: Evaluation | None) -> Evaluation:
        """The evaluation `previous` with its decode latency measured, once more where it was before.

        Measurements: `latency` is the lower timing, `latency_passes` has all of them with the noise of the device
        before each, `latency_warning` says when even the lower one lies far beyond the prediction.

        Raises:
            ValueError: no evaluation to confirm.
        """
        if previous is None:
            raise ValueError("a confirmation needs the evaluation that it confirms, got None")
        disable_progress_bar()  # of saving and loading weights; the search has a display of its own
        started = time.perf_counter()
        previous = self.evaluator.restored(genome, rung, previous)
        assert previous.checkpoint is not None
        device = unstarted_device(self.device or self.evaluator.device)
        model = CodeNASForCausalLM.from_pretrained(previous.checkpoint / ARTIFACT)
        nn.Module.to(model, device)
        noise = _noise_when_quiet(device, patience_s=self.patience_s)
        latency = self.evaluator.timer(model, self.evaluator.settings.timing or default_protocol(device.type))
        earlier = _earlier_passes(previous)
        here = {"decode_ms": latency.decode_ms, "prefill_ms": latency.prefill_ms, "noise": round(noise, 3)}
        lowest = min(latency.decode_ms, *(float(timed["decode_ms"]) for timed in earlier), float("inf"))
        measurements = {**previous.measurements, "latency_passes": [*earlier, here]}
        if lowest == latency.decode_ms:
            measurements["latency"] = latency.to_dict()
        measurements.pop("latency_warning", None)
        predicted = measurements.get("decode_ms_predicted")
        if predicted is not None and lowest > BEYOND * predicted:
            measurements["latency_warning"] = (
                f"timed {lowest:.3g} ms a token where {predicted:.3g} were predicted: the device was busy, or the "
                "latency model does not fit this architecture"
            )
        spent = previous.seconds.get("confirm", 0.0) + time.perf_counter() - started
        return replace(
            previous,
            objectives={**previous.objectives, "decode_ms": lowest},
            measurements=measurements,
            seconds={**previous.seconds, "confirm": spent},
            provenance={**previous.provenance, "confirmed": provenance(device)},
        )


def _earlier_passes(previous: Evaluation) -> list[Mapping[str, Any]]:
    """What was timed before; studies that were confirmed in one pass kept the latency alone."""
    if "confirmed" not in previous.provenance:
        return []
    return list(previous.measurements.get("latency_passes", [{"decode_ms": previous.objectives["decode_ms"]}]))


def _noise_when_quiet(device: torch.device, *, patience_s: float) -> float:
    """Waits a while for a busy device; returns its noise as the timing begins."""
    deadline = time.monotonic() + patience_s
    while (noise := device_noise(device)) > QUIET and time.monotonic() < deadline:
        time.sleep(0.2)
    if noise > QUIET:
        logger.warning(
            "The device is busy while the front is timed: a repeated product takes %.2f times its best.", noise
        )
    return noise
