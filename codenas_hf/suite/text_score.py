"""Bits per byte of plain texts, for any model with its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codenas_hf.generation.decode import context_tokens
from codenas_hf.measure.metrics import bits_per_byte

_WINDOW = 2048  # of models whose config does not bound the context


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts texts.

    Args:
        nats: summed cross-entropy of every token of the texts.
        num_bytes: UTF-8 bytes of the texts.
        num_tokens: tokens that were scored.
    """

    nats: float
    num_bytes: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Comparable across tokenizers."""
        return bits_per_byte(self.nats, self.num_bytes)


@torch.inference_mode()
def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = 8,
) -> TextScore:
    """Scores texts, each from its start token on, in windows that do not overlap.

    A window after the first sees one token of the one before; this is what lm-evaluation-harness does for
    `loglikelihood_rolling`, so both give the same number.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        texts: what is scored.
        prompts: what stands before each text and is seen but not scored.
        batch_size: windows in one forward pass.

    Raises:
        ValueError: no text, or as many prompts as texts were not given.
    """
    if not any(texts):
        raise ValueError("`texts` holds no text: give at least one character")
    if prompts is not None and len(prompts) != len(texts):
        raise ValueError(f"`prompts` must be one per text ({len(texts)}), got {len(prompts)}")
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    length = min(context_tokens(model) or _WINDOW, _WINDOW)
    windows: list[tuple[list[int], list[int]]] = []
    for index, text in enumerate(texts):
        before = _ids(tokenizer, prompts[index]) if prompts is not None else []
        scored = _ids(tokenizer, text)
        ids = ([bos] if bos is not None else []) + before + scored
        targets = [-100] * (len(ids) - len(scored)) + scored
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + length], targets[start + 1 : start + length + 1]
            windows.append((window[0][: len(window[1])], window[1]))
    windows = [window for window in windows if any(target != -100 for target in window[1])]
    windows.sort(key=lambda window: -len(window[0]))
    nats, tokens = 0.0, 0
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        width = len(batch[0][0])
        # Padded on the right, where causal attention does not look.
        inputs = torch.tensor([row[0] + [0] * (width - len(row[0])) for row in batch], device=model.device)
        wanted = torch.tensor([row[1] + [-100] * (width - len(row[1])) for row in batch], device=model.device)
        logits = cast(Any, model)(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()
        nats += float(cross_entropy(logits, wanted.flatten(), ignore_index=-100, reduction="sum").double())
        tokens += int((wanted != -100).sum())
    return TextScore(nats=nats, num_bytes=sum(len(text.encode()) for text in texts), num_tokens=tokens)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
