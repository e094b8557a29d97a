"""The checkpoints of candidates: whether they can be used, and how they get from one machine to another."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..engine.records import Evaluation
from ..folders import Release
from ..folders.files import WEIGHTS
from ..folders.share import Share, ShareError
from ..training.checkpoint import CONSTANT, damage

logger = logging.getLogger(__name__)

TRAINING, ARTIFACT = "training", "artifact"
_SHA256 = "checkpoint_sha256"  # in the provenance


def training_state(previous: Evaluation | None, *, share: Share | None = None) -> tuple[Path | None, str | None]:
    """The training state that `previous` left, and why it cannot be continued; neither at rung 0."""
    if previous is None:
        return None, None
    if previous.checkpoint is None:
        return None, "the evaluation of the rung below has no checkpoint"
    missing = brought(previous, share=share)
    state = previous.checkpoint / TRAINING / CONSTANT
    problem = missing or damage(state)
    return (None, problem) if problem else (state, None)


def artifact_damage(folder: Path) -> str | None:
    """Why a scored model cannot be loaded; None when it can."""
    try:
        Release(folder).read_config()
        with safe_open(folder / WEIGHTS, framework="pt"):  # the header says how long the file must be
            return None
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)


def left(evaluation: Evaluation, *, share: Share | None) -> Evaluation:
    """The evaluation with its checkpoint where every machine finds it; nothing of it stays here.

    Where it cannot be left, it stays here, `unshared` in the measurements says why, and a promotion that lands on
    another machine trains from the start: an outcome is never lost for that.
    """
    if share is None or evaluation.checkpoint is None:
        return evaluation
    try:
        digest = share.put(evaluation.checkpoint)
    except ShareError as error:
        logger.warning("A checkpoint stays on this machine: %s", error)
        return replace(evaluation, measurements={**evaluation.measurements, "unshared": str(error)})
    shutil.rmtree(evaluation.checkpoint, ignore_errors=True)
    return replace(evaluation, provenance={**evaluation.provenance, _SHA256: digest})


def brought(evaluation: Evaluation, *, share: Share | None) -> str | None:
    """Fetches the checkpoint of an evaluation where it is not here.

    Returns:
        Why it could not be fetched; None when all is well.

    Without a share nothing is fetched: what is missing here, whoever loads it finds out.
    """
    digest = evaluation.provenance.get(_SHA256)
    if evaluation.checkpoint is None or share is None or evaluation.checkpoint.exists():
        return None
    if digest is None:
        return f"{evaluation.checkpoint} is not on this machine, and was not left for others"
    try:
        share.fetch(digest, evaluation.checkpoint)
    except ShareError as error:
        return str(error)
    return None


def removed(evaluation: Evaluation, *, share: Share | None, everywhere: bool) -> None:
    """Removes a checkpoint from this machine where the share has it or `everywhere`, and then from the share too."""
    digest = evaluation.provenance.get(_SHA256)
    if evaluation.checkpoint is not None and (everywhere or (share is not None and digest is not None)):
        shutil.rmtree(evaluation.checkpoint, ignore_errors=True)
    if everywhere and share is not None and digest is not None:
        share.discard(digest)
