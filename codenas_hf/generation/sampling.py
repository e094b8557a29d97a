"""How a completion is drawn: the settings, the text of a growing sequence, and the steps on the logits.

Sampling depends only on the seed, the prompt and the number of the sample, never on what else is in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from codenas_hf.generation.token_text import HealedPrompt, TokenText

Boundary = Literal["heal", "strip", "keep"]
Start = Literal["auto", "always", "never"]
FinishReason = Literal["stop", "eos", "length", "time", "cancelled"]

FUNCTION_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\n```")
"""Where the completion of one top-level function ends; the list that code benchmarks use."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How a completion is drawn from a model.

    Args:
        max_new_tokens: upper bound on generated tokens; also bounded by the model's context.
        temperature: 0 is greedy.
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 drops none.
        repetition_penalty: divides (or multiplies, where negative) the logits of recent tokens; 1 is off.
        repetition_window: how many recent tokens the penalty looks at; 0 means all.
        stop: the completion ends before the first of these strings.
        boundary: `heal` cuts the prompt back to a token boundary and obliges the completion to spell what was cut;
            `strip` takes trailing white space off the prompt; `keep` leaves the prompt as it is.
        start: whether the prompt begins with the tokenizer's start token: `always`, `never`, or `auto`: as the
            tokenizer does it, and also where its start token is its end token, for then each training document
            followed one.
        seed: of sampling; the same seed and prompt give the same completion in any batch.
        batch_size: prompts decoded at once by `complete_many`.
        max_seconds: give up after this wall time; None waits.

    Raises:
        ValueError: a field out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    stop: tuple[str, ...] = ()
    boundary: Boundary = "heal"
    start: Start = "auto"
    seed: int = 0
    batch_size: int = 16
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "max_new_tokens": (1, math.inf),
            "temperature": (0.0, 100.0),
            "top_p": (1e-9, 1.0),
            "top_k": (0, math.inf),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (1e-3, 1e3),
            "repetition_window": (0, math.inf),
            "seed": (0, math.inf),
            "batch_size": (1, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:  # NaN fails too
                raise ValueError(f"`{name}` must be between {low:g} and {high:g}, got {value!r}")
        if self.boundary not in ("heal", "strip", "keep"):
            raise ValueError(f"`boundary` must be heal, strip or keep, got {self.boundary!r}")
        if self.start not in ("auto", "always", "never"):
            raise ValueError(f"`start` must be auto, always or never, got {self.start!r}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"`max_seconds` must be above 0, or None to wait, got {self.max_seconds!r}")
        if any(not text for text in self.stop):
            raise ValueError(f"`stop` must not hold an empty string (it would stop at once), got {self.stop!r}")


GREEDY = DecodeSettings()
"""Plain greedy decoding: the primary setting of every reported number."""

SHIPPED = DecodeSettings(temperature=0.2, top_p=0.95, repetition_penalty=1.1)
"""What the command line and the playground start with; reported beside greedy, never instead of it."""


class Row:
    """Text of one sequence while it grows."""

    def __init__(
        self, prompt: str, healed: HealedPrompt, *, dropped: int, settings: DecodeSettings, seed: int
    ) -> None:
        self.prompt, self.token_ids, self.dropped = prompt, healed.token_ids, dropped
        self.removed, self.pending = healed.removed_tokens, healed.pending
        self.stops = [text.encode() for text in settings.stop]
        self.max_new_tokens = settings.max_new_tokens
        self.seed = seed
        self.new_ids: list[int] = []
        self.text = b""
        self.num_tokens = 0
        self.finished: FinishReason | None = None

    def push(self, token_id: int, table: TokenText) -> None:
        """Takes one generated token."""
        if self.finished:
            return
        if token_id in table.special_ids:
            self.finished = "eos"
            return
        self.new_ids.append(token_id)
        added = table.bytes_of(token_id)
        if self.pending and len(added) <= len(self.pending):
            self.pending = self.pending[len(added) :]
            return
        added, self.pending = added[len(self.pending) :], b""
        searched = len(self.text)
        self.text += added
        self.num_tokens += 1
        found = [self.text.find(stop, max(0, searched - len(stop) + 1)) for stop in self.stops]
        found = [position for position in found if position >= 0]
        if found:
            self.text, self.finished = self.text[: min(found)], "stop"
        elif self.num_tokens >= self.max_new_tokens:
            self.finished = "length"

    def settled(self) -> int:
        """How many bytes of `text` can no longer become part of a stop string."""
        if self.finished or not self.stops:
            return len(self.text)
        longest = min(len(self.text), max(map(len, self.stops)) - 1)
        for size in range(longest, 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stops):
                return len(self.text) - size
        return len(self.text)


class _Spelling(LogitsProcessor):
    """Only tokens that spell what healing has cut, until it is spelt."""

    def __init__(self, rows: list[Row], table: TokenText) -> None:
        self.rows, self.table = rows, table

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for index, row in enumerate(self.rows):
            if row.pending and not row.finished:
                allowed = torch.tensor(self.table.spelling(row.pending), device=scores.device)
                allowed = allowed[allowed < scores.shape[1]]
                kept = scores[index, allowed]
                scores[index] = -math.inf
                scores[index, allowed] = kept
        return scores


class _Known(LogitsProcessor):
    """Never a token beyond the tokenizer's entries (embedding tables are often padded)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.size :] = -math.inf
        return scores


class _WindowPenalty(LogitsProcessor):
    """Repetition penalty (Keskar et al., 2019) over the last tokens only: code repeats `self` and indents by right."""

    def __init__(self, penalty: float, window: int) -> None:
        self.penalty, self.window = penalty, window

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        recent = input_ids[:, -self.window :] if self.window else input_ids
        picked = scores.gather(1, recent)
        picked = torch.where(picked < 0, picked * self.penalty, picked / self.penalty)
        return scores.scatter(1, recent, picked)


class _GumbelNoise(LogitsProcessor):
    """Turns the argmax that follows into a draw; each row has its own generator, so batches do not matter."""

    def __init__(self, rows: list[Row]) -> None:
        self.generators = [torch.Generator().manual_seed(row.seed) for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for index, generator in enumerate(self.generators):
            noise[index].exponential_(generator=generator)
        return scores.float() - noise.clamp_min_(1e-30).log_().to(scores.device)


def processors(rows: list[Row], table: TokenText, settings: DecodeSettings) -> LogitsProcessorList:
    """The steps on the logits that `settings` asks for, in order; greedy choice after them is the draw."""
    steps: list[LogitsProcessor] = [_Known(len(table))]
    if settings.repetition_penalty != 1.0:
        steps.append(_WindowPenalty(settings.repetition_penalty, settings.repetition_window))
    if any(row.pending for row in rows):
        steps.append(_Spelling(rows, table))
    if settings.temperature > 0:
        steps.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            steps.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            steps.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p > 0:
            steps.append(MinPLogitsWarper(settings.min_p))
        steps.append(_GumbelNoise(rows))
    return LogitsProcessorList(steps)
