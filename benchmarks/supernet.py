"""One sliced model that holds every genome of a slice of the search table: what its weights say before any is trained.

The largest model is trained so that its leading rows, columns and layers are each smaller model (Yu et al. 2020,
arXiv:2003.11142): a step adds the gradients of the largest, the smallest and two others (the sandwich rule), under the
optimisers, rates and batches of the table. Afterwards each genome is scored with the weights that it inherits.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from benchmarks.replay import TableSpace
from benchmarks.search_table import CANDIDATE, SEARCH_BYTES, TRAIN, genome_of
from codenas_hf.data import PreparedData
from codenas_hf.folders import read_json, write_json
from codenas_hf.measure.candidate import new_model
from codenas_hf.measure.score import score_passages
from codenas_hf.training.optim import rate_factor
from codenas_hf.training.optimizers import Optimizers
from codenas_hf.training.precision import resolve_precision

LAST_NORM = "model.norm.weight"  # its gain falls as 1/width
SAVE_EVERY = 250
OTHERS = 2


class Supernet:
    """The largest model of a space, and the smaller ones in it.

    Args:
        space: its genomes, all of one vocabulary and kind.
        seed: of the weights, the batches and who is trained when.
    """

    def __init__(self, space: TableSpace, *, seed: int) -> None:
        self.space, self.seed = space, seed
        by_size = sorted(space.genomes, key=lambda genome: genome_of(genome.to_dict()).num_parameters())
        self.smallest, self.largest = by_size[0], by_size[-1]
        self.model = self.fresh(self.largest)
        self.dtype = resolve_precision(TRAIN.precision, device=torch.device("cpu"))
        self.optimizers = Optimizers(self.model, settings=TRAIN.optim, dtype=self.dtype)
        self.step_number, self.seconds = 0, 0.0
        self._shape = functools.cache(self.fresh)

    def fresh(self, genome: Any) -> Any:
        """A model of one genome with weights of its own."""
        return new_model(genome_of(genome.to_dict()), train=TRAIN, settings=CANDIDATE, seed=self.seed)

    def inherited(self, genome: Any) -> dict[str, torch.Tensor]:
        """The weights of one genome: views of the large ones, differentiable."""
        whole = dict(self.model.named_parameters())
        width = genome.to_dict()["hidden_size"]
        found = {}
        for name, parameter in self._shape(genome).named_parameters():
            found[name] = whole[name][tuple(slice(size) for size in parameter.shape)]
        found[LAST_NORM] = found[LAST_NORM] * (self.largest.to_dict()["hidden_size"] / width)
        return found

    def step(self, tokens: Any, *, steps: int) -> float:
        """One step of `steps`; the loss of the largest, nats per token."""
        begin, number = time.process_time(), self.step_number
        rng = np.random.default_rng([self.seed, number])
        batch = tokens.batch(
            number,
            sequences=TRAIN.tokens_per_step // TRAIN.sequence_length,
            length=TRAIN.sequence_length,
            seed=self.seed,
        )
        data = {name: torch.from_numpy(batch[name]) for name in ("input_ids", "labels", "position_ids")}
        drawn = [self.largest, self.smallest, *(self.space.sample(rng) for _ in range(OTHERS))]
        losses = []
        for genome in drawn:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
                output = functional_call(
                    self._shape(genome), self.inherited(genome), kwargs={"use_cache": False, **data}
                )
            (output.loss / len(drawn)).backward()
            losses.append(float(output.loss.detach()))
        parameters = list(self.model.parameters())
        if TRAIN.optim.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, TRAIN.optim.gradient_clip)
        self.optimizers.set_rate(rate_factor(number / steps, number, settings=TRAIN.optim, planned_steps=steps))
        self.optimizers.step()
        self.optimizers.zero_grad()
        self.step_number += 1
        self.seconds += time.process_time() - begin
        return losses[0]

    def train(self, tokens: Any, *, steps: int, folder: Path) -> None:
        """All steps; what was saved in the folder goes on."""
        place = folder / "state.pt"
        if place.exists():
            state = torch.load(place, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.step_number, self.seconds = state["step"], state["seconds"]
        folder.mkdir(parents=True, exist_ok=True)
        while self.step_number < steps:
            loss = self.step(tokens, steps=steps)
            if self.step_number % SAVE_EVERY == 0 or self.step_number == steps:
                state = {"model": self.model.state_dict(), "optimizers": self.optimizers.state_dict()}
                draft = place.with_suffix(".draft")
                torch.save(state | {"step": self.step_number, "seconds": self.seconds}, draft)
                draft.replace(place)
                print(
                    f"supernet {self.seed}: step {self.step_number}, {loss:.3f} nats, {self.seconds:.0f} s", flush=True
                )

    @torch.inference_mode()
    def score(self, genome: Any, passages: Any) -> tuple[float, float]:
        """Bits per byte with inherited weights, and the processor seconds of that."""
        begin = time.process_time()
        model = self._shape(genome)
        for name, value in self.inherited(genome).items():
            model.get_parameter(name).copy_(value)
        return score_passages(model, passages).bits_per_byte, time.process_time() - begin


def inherited_scores(space: TableSpace, data: PreparedData, *, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Trains a supernet and scores every genome; kept in `folder`, so that it is done once.

    Returns:
        `steps`, `train_seconds`, `score_seconds`, `data`, and `scores`, bits per byte by `genome_id`.
    """
    note = folder / "scores.json"
    if not note.exists():
        torch.set_num_threads(1)
        (vocab_size,) = space.genes["vocab_size"]
        net = Supernet(space, seed=seed)
        net.train(data.tokens(vocab_size, "train"), steps=steps, folder=folder)
        passages = data.passages(vocab_size, "search", length=TRAIN.sequence_length, max_bytes=SEARCH_BYTES)
        scores = {genome.genome_id: net.score(genome, passages) for genome in space.genomes}
        found = {
            "steps": steps,
            "train_seconds": net.seconds,
            "score_seconds": sum(seconds for _, seconds in scores.values()),
            "data": data.digest,
            "scores": {key: bits for key, (bits, _) in scores.items()},
        }
        write_json(note, found)
    stored: dict[str, Any] = read_json(note)
    if stored["steps"] != steps:
        raise SystemExit(f"{note} is of {stored['steps']} steps, {steps} are asked for: use another --folder")
    return stored
