"""Decoding in PyTorch: any causal language model of transformers, one sequence with its cache, or many at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from .runtimes import Runtime
from .straight import StraightDecoder, is_watched

_TRIED_TOKENS = 16
_SAME = 1e-4  # of the largest logit: sums in another order move float32 by a hundredth of that
_CACHE: WeakKeyDictionary[Any, TorchRuntime] = WeakKeyDictionary()


def context_tokens(model: torch.nn.Module) -> int | None:
    """Length of the model's context in tokens; None where its config does not bound it."""
    config = getattr(model, "config", None)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(length) if length else None


class TorchRuntime(Runtime):
    """One sequence in a model of transformers, on whatever device it is.

    Args:
        model: a causal language model in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__("torch", context_tokens=context_tokens(model))
        self.model = model
        self._cache: Any = None  # transformers' or, where the model is of a kind that it knows, a straight decoder
        self._straight: bool | None = None  # not asked yet

    @classmethod
    def of(cls, model: PreTrainedModel) -> TorchRuntime:
        """The runtime of a model, made once and kept as long as the model lives, which whoever asks must hold."""
        found = _CACHE.get(model)
        if found is None:
            proxy = cast(PreTrainedModel, weakref.proxy(model))  # a reference from here would keep it for good
            found = _CACHE[model] = cls(proxy)
        return found

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind the last of some tokens; what was kept of other weights is dropped; see `Runtime`."""
        with self._lock:
            if isinstance(self._cache, StraightDecoder) and not self._cache.is_current():
                self._kept.clear()
                self._cache = None
        return super().logits(token_ids)

    def all_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind each token in one pass, beside what is kept; see `Runtime.all_logits`."""
        tokens = torch.tensor([list(token_ids)], device=self.model.device)
        with torch.inference_mode():
            logits: torch.Tensor = cast(Any, self.model)(input_ids=tokens, use_cache=False).logits[0]
        found: NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    def _compute(self, ids: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            if self._cache is None and self._straight is not False:
                self._cache = self._made_straight()
            if isinstance(self._cache, StraightDecoder):
                straight: NDArray[np.float32] = self._cache(ids).cpu().numpy()
                return straight
        tokens = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            output = cast(Any, self.model)(
                input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = output.past_key_values
        found: NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
        return found

    def _made_straight(self) -> StraightDecoder | None:
        """A decoder for a new sequence; it is tried once against the model's own answer."""
        try:
            made = StraightDecoder(self.model)
            if self._straight is None:
                ids = list(range(min(_TRIED_TOKENS, self.model.config.vocab_size)))
                wanted = self.all_logits(ids)[-1]
                found = made(ids).cpu().numpy()
                made.length = 0
                self._straight = bool(np.abs(found - wanted).max() <= _SAME * (1 + np.abs(wanted).max()))
        except (ValueError, AttributeError, RuntimeError):  # another kind of model, or made in inference mode
            self._straight = False
        return made if self._straight else None

    def _forget(self, length: int) -> int:
        if isinstance(self._cache, StraightDecoder) and (length or not is_watched(self.model)):
            # Kept where nothing else is: its weights are copies.
            self._cache.length = length
            return length
        plain = isinstance(self._cache, DynamicCache) and all(type(x) is DynamicLayer for x in self._cache.layers)
        if not plain or not length:  # windows and convolutions keep no way back
            self._cache = None
            return 0
        self._cache.crop(length - self._cache.get_seq_length())  # negative: how many leave at the end
        return length

    def in_batches(self, count: int) -> bool:
        """Whether so many sequences are decoded faster together than one after the other.

        A rule of thumb for a step on a processor, set by hand and not measured at the crossing: alone 0.1 ms and 0.3
        for a million parameters, with transformers' `generate` 2.3 ms and 0.45, and 0.07 for each further sequence.
        """
        if count < 2:
            return False
        if self._straight is None and self._cache is None:
            with torch.inference_mode():
                self._cache = self._made_straight()
        if not self._straight:
            return True
        millions = sum(weight.numel() for weight in self.model.parameters()) / 1e6
        return count * (0.1 + 0.3 * millions) > 2.3 + (0.45 + 0.07 * count) * millions

    def generate_many(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        steps: Sequence[int],
        pad: int,
        choose: Callable[[int, NDArray[np.float32]], int | None],
        push: Callable[[list[int]], list[bool]],
    ) -> None:
        """With transformers' `generate`, shorter prompts padded on the left; see `Runtime.generate_many`."""
        width = max(map(len, prompts))
        room = None if self.context_tokens is None else self.context_tokens - width  # padding takes places too
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        config = GenerationConfig(
            max_new_tokens=max(steps) if room is None else max(1, min(max(steps), room)),
            do_sample=False,  # the choosers draw
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=pad,
            use_cache=True,
        )
        with torch.inference_mode():
            cast(Any, self.model).generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([_Choice(choose, pad)]),
                stopping_criteria=StoppingCriteriaList([_Watcher(push)]),
            )


class _Choice(LogitsProcessor):
    """Leaves one token to choose: the one that a row's own chooser takes."""

    def __init__(self, choose: Callable[[int, NDArray[np.float32]], int | None], pad: int) -> None:
        self.choose, self.pad = choose, pad

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores.float().cpu().numpy()
        chosen = [self.choose(row, logits[row]) for row in range(len(logits))]
        result = torch.full_like(scores, -torch.inf)
        result[torch.arange(len(chosen)), [self.pad if token is None else token for token in chosen]] = 0.0
        return result


class _Watcher(StoppingCriteria):
    """Ends the rows that are done."""

    def __init__(self, push: Callable[[list[int]], list[bool]]) -> None:
        self.push = push

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(self.push(input_ids[:, -1].tolist()), device=input_ids.device)
