"""How a completion is drawn: the settings, the text of a growing sequence, and the choice of each next token.

Written once, in numpy, above whatever computes the logits: the same logits give the same token in every runtime.
Sampling depends only on the seed, the prompt and the number of the sample, never on what else is in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codenas_hf.generation.token_text import HealedPrompt, TokenText

Boundary = Literal["heal", "strip", "keep"]
Start = Literal["auto", "always", "never"]
FinishReason = Literal["stop", "eos", "length", "time"]

_FEW = 512  # entries that are sorted first

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


class Chooser:
    """Chooses the next token of one row from the model's logits, by the settings.

    In order: entries beyond the tokenizer's leave (embedding tables are often padded); the repetition penalty of
    Keskar et al. 2019 over the last tokens only (code repeats `self` and indents by right); while healing, only tokens
    that spell what was cut; then the greedy choice, or a draw by temperature, top-k, top-p and min-p.
    """

    def __init__(self, row: Row, table: TokenText, settings: DecodeSettings) -> None:
        self.row, self.table, self.settings = row, table, settings
        self.rng = np.random.default_rng(row.seed)

    def __call__(self, logits: NDArray[Any]) -> int:
        """The next token, from logits `[vocabulary]`, which are left as they are."""
        settings, row = self.settings, self.row
        scores = np.array(logits[: len(self.table)], dtype=np.float32)
        if settings.repetition_penalty != 1.0:
            window = settings.repetition_window
            seen = row.token_ids + row.new_ids
            recent = np.unique(seen[-window:] if window else seen)
            picked = scores[recent]
            scores[recent] = np.where(
                picked < 0, picked * settings.repetition_penalty, picked / settings.repetition_penalty
            )
        if row.pending:
            allowed = [index for index in self.table.spelling(row.pending) if index < len(scores)]
            kept = scores[allowed]
            scores[:] = -np.inf
            scores[allowed] = kept
        if settings.temperature <= 0:
            return int(scores.argmax())
        return self._draw(scores)

    def _draw(self, scores: NDArray[np.float32]) -> int:
        settings = self.settings
        weights = np.exp((scores.astype(np.float64) - scores.max()) / settings.temperature)
        # Sorting a large vocabulary takes longer than a small model's step; a few entries nearly always have the mass.
        order = _likeliest(scores, settings.top_k or (_FEW if settings.top_p < 1 else len(scores)))
        whole = weights[order].sum() if settings.top_k else weights.sum()
        shares = np.cumsum(weights[order] / whole)
        if not settings.top_k and shares[-1] < settings.top_p:
            order = _likeliest(scores, len(scores))
            shares = np.cumsum(weights[order] / whole)
        count = len(order)
        if settings.top_p < 1:  # the smallest set that has this much
            count = int(np.searchsorted(shares, settings.top_p)) + 1
        if settings.min_p > 0:
            count = min(count, int((weights[order] >= settings.min_p * weights[order[0]]).sum()))
        total = shares[: max(1, count)]
        return int(order[int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))])


def _likeliest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The entries with the `count` largest scores, largest first; of equal ones the first."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    near = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return near[np.argsort(-scores[near], kind="stable")][:count]
