"""Completion of code: one function for the command line, the playground and the evaluation suite.

`transformers.generate` runs underneath. Added here: prompts that end on token boundaries, stop strings, streaming,
fill in the middle, and sampling whose result depends only on the seed and the prompt, never on what else is in the
batch.
"""

from __future__ import annotations

import codecs
import math
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from codenas_hf.generation.sampling import (
    FUNCTION_STOPS,
    GREEDY,
    SHIPPED,
    DecodeSettings,
    FinishReason,
    Row,
    processors,
)
from codenas_hf.generation.token_text import HealedPrompt, TokenText, as_trained

__all__ = [
    "FUNCTION_STOPS",
    "GREEDY",
    "SHIPPED",
    "Completion",
    "DecodeSettings",
    "complete",
    "complete_many",
    "context_tokens",
    "start_tokens",
    "stream",
    "supports_infilling",
]

_FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)


@dataclass(frozen=True)
class Completion:
    """One completion.

    Args:
        prompt: what `text` continues: the prompt with `\\n` line ends and no byte order mark, as training text is, and
            without trailing white space where it was stripped.
        text: the completion, up to and without the stop string.
        token_ids: the generated tokens, with those that spell what healing had cut.
        finish_reason: `stop` (stop string), `eos` (any special token), `length`, `time` or `cancelled`.
        num_tokens: generated tokens that added text.
        prompt_tokens: tokens that the model was given.
        dropped_tokens: tokens of the prompt that did not fit into the model's context and were left out.
        seconds: wall time of the whole batch.
        first_token_seconds: wall time until the first new token of the batch.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_tokens: int
    prompt_tokens: int
    dropped_tokens: int
    seconds: float
    first_token_seconds: float


class _Watcher(StoppingCriteria):
    """Feeds new tokens to the rows and ends those that are done."""

    def __init__(
        self,
        rows: list[Row],
        table: TokenText,
        *,
        settings: DecodeSettings,
        cancelled: Event,
        on_step: Callable[[], None] | None,
    ) -> None:
        self.rows, self.table, self.cancelled, self.on_step = rows, table, cancelled, on_step
        self.start = time.perf_counter()
        self.first_token_seconds = 0.0
        self.deadline = math.inf if settings.max_seconds is None else self.start + settings.max_seconds

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, token_id in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token_id, self.table)
        now = time.perf_counter()
        self.first_token_seconds = self.first_token_seconds or now - self.start
        late: FinishReason | None = "cancelled" if self.cancelled.is_set() else "time" if now > self.deadline else None
        for row in self.rows:
            row.finished = row.finished or late
        if self.on_step is not None:
            self.on_step()
        return torch.tensor([row.finished is not None for row in self.rows], device=input_ids.device)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of text; what looks like a special token in it stays text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def start_tokens(tokenizer: PreTrainedTokenizerBase, *, settings: DecodeSettings = GREEDY) -> list[int]:
    """What stands before a text: see `DecodeSettings.start`."""
    bos = tokenizer.bos_token_id
    own = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    packed = bos is not None and bos == tokenizer.eos_token_id
    wanted = settings.start == "always" or (settings.start == "auto" and (own or packed))
    return [bos] if wanted and bos is not None else []


def _fim_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    vocabulary = tokenizer.get_vocab()
    for names in _FIM_TOKENS:
        if all(name in vocabulary for name in names):
            prefix, suffix, middle = (vocabulary[name] for name in names)
            return prefix, suffix, middle
    raise ValueError(
        "`suffix` needs a model trained to fill in the middle, but this tokenizer has no "
        f"{' '.join(_FIM_TOKENS[0])} tokens: leave `suffix` out, or choose such a model"
    )


def supports_infilling(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has the tokens that fill-in-the-middle needs."""
    try:
        _fim_ids(tokenizer)
    except ValueError:
        return False
    return True


def context_tokens(model: torch.nn.Module) -> int | None:
    """Length of the model's context in tokens; None where its config does not bound it."""
    config = getattr(model, "config", None)
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(length) if length else None


def _prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    suffix: str | None,
    sample: int,
    settings: DecodeSettings,
) -> Row:
    """Tokens of one prompt, healed, cut to the context."""
    table = TokenText.of(tokenizer)
    prompt, suffix = as_trained(prompt), None if suffix is None else as_trained(suffix)
    text = prompt.rstrip() if settings.boundary == "strip" and suffix is None else prompt
    limit = context_tokens(model)
    room = math.inf if limit is None else limit - min(settings.max_new_tokens, max(1, limit // 2))
    opening = start_tokens(tokenizer, settings=settings)
    if suffix is None:
        token_ids = _encode(tokenizer, text)
        healed = HealedPrompt(token_ids, b"", 0)
        if settings.boundary == "heal":
            healed = table.heal(text, token_ids)
        if not healed.token_ids and not opening:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is None:
                raise ValueError("`prompt` is empty and the tokenizer has no start token: give at least one character")
            opening = [start]
        dropped = max(0, len(opening) + len(healed.token_ids) - int(min(room, 1 << 40)))
        kept = healed.token_ids[max(0, dropped - len(opening)) :] if dropped else opening + healed.token_ids
        healed = replace(healed, token_ids=kept)
    else:
        open_id, suffix_id, middle_id = _fim_ids(tokenizer)
        before, after = _encode(tokenizer, text), _encode(tokenizer, suffix)
        dropped = int(max(0, len(opening) + len(before) + len(after) + 3 - room))
        from_after = min(len(after), max(0, dropped - len(before) // 2))  # what is near the gap stays
        kept_after = after[: len(after) - from_after]
        kept_before = before[dropped - from_after :]
        healed = HealedPrompt([*opening, open_id, *kept_before, suffix_id, *kept_after, middle_id], b"", 0)
    key = [settings.seed, sample, zlib.crc32(prompt.encode(errors="surrogatepass")), len(prompt)]
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return Row(text, healed, dropped=dropped, settings=settings, seed=seed)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    *,
    settings: DecodeSettings,
    cancelled: Event | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Completion]:
    """Runs one batch to its end."""
    table = TokenText.of(tokenizer)
    width = max(len(row.token_ids) for row in rows)
    pad = next((index for index in (tokenizer.pad_token_id, tokenizer.eos_token_id) if index is not None), 0)
    input_ids = torch.tensor([[pad] * (width - len(row.token_ids)) + row.token_ids for row in rows])
    mask = torch.tensor([[0] * (width - len(row.token_ids)) + [1] * len(row.token_ids) for row in rows])
    # Healing may need a few more steps than it took away, where the model spells in smaller tokens.
    steps = settings.max_new_tokens + max(row.removed + 4 * bool(row.pending) for row in rows)
    limit = context_tokens(model)
    if limit is not None:
        steps = max(1, min(steps, limit - width))
    watcher = _Watcher(rows, table, settings=settings, cancelled=cancelled or Event(), on_step=on_step)
    config = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,  # the processors above draw
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad,
        eos_token_id=sorted(table.special_ids) or None,
        use_cache=True,
    )
    with torch.inference_mode():
        cast(Any, model).generate(
            input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=processors(rows, table, settings),
            stopping_criteria=StoppingCriteriaList([watcher]),
        )
    seconds = time.perf_counter() - watcher.start
    return [
        Completion(
            prompt=row.prompt,
            text=_decode_text(row),
            token_ids=tuple(row.new_ids),
            finish_reason=row.finished or "length",
            num_tokens=row.num_tokens,
            prompt_tokens=len(row.token_ids),
            dropped_tokens=row.dropped,
            seconds=seconds,
            first_token_seconds=watcher.first_token_seconds,
        )
        for row in rows
    ]


def _decode_text(row: Row) -> str:
    """Text of a row, without the half character that a sequence cut short may leave at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(row.text, final=row.finished in ("stop", "eos"))


def complete_many(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    settings: DecodeSettings = GREEDY,
    suffixes: Sequence[str] | None = None,
    num_samples: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Completes many prompts in batches of similar length.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: the texts to continue.
        settings: how to decode.
        suffixes: what follows the gap, one per prompt; None continues left to right.
        num_samples: completions per prompt.
        on_batch: called with the number of completions done so far.

    Returns:
        For each prompt, in the order given, its `num_samples` completions.

    Raises:
        ValueError: as many suffixes as prompts are needed; or the tokenizer cannot fill in the middle.
    """
    if suffixes is not None and len(suffixes) != len(prompts):
        raise ValueError(f"`suffixes` must be one per prompt ({len(prompts)}), got {len(suffixes)}")
    rows = [
        _prepare(
            model,
            tokenizer,
            prompt,
            suffix=None if suffixes is None else suffixes[index],
            sample=sample,
            settings=settings,
        )
        for index, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].token_ids))
    done: dict[int, Completion] = {}
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        results = _generate(model, tokenizer, [rows[index] for index in batch], settings=settings)
        done.update(zip(batch, results, strict=True))
        if on_batch is not None:
            on_batch(len(done))
    return [[done[index * num_samples + sample] for sample in range(num_samples)] for index in range(len(prompts))]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    settings: DecodeSettings = GREEDY,
    suffix: str | None = None,
) -> Completion:
    """Completes one prompt.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompt: the text to continue, or what stands before the gap.
        settings: how to decode.
        suffix: what stands after the gap; None continues left to right.

    Raises:
        ValueError: `suffix` is given and the tokenizer cannot fill in the middle.
    """
    suffixes = None if suffix is None else [suffix]
    return complete_many(model, tokenizer, [prompt], settings=settings, suffixes=suffixes)[0][0]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    settings: DecodeSettings = GREEDY,
    suffix: str | None = None,
) -> Generator[str, None, Completion]:
    """Completes one prompt and yields text as soon as no stop string can take it back.

    The pieces joined are exactly the text of `complete`. Closing the generator ends the decoding.

    Returns:
        The completion, as the generator's return value.

    Raises:
        ValueError: `suffix` is given and the tokenizer cannot fill in the middle.
    """
    row = _prepare(model, tokenizer, prompt, suffix=suffix, sample=0, settings=settings)
    pieces: SimpleQueue[bytes | BaseException | Completion] = SimpleQueue()
    cancelled = Event()
    sent = 0

    def on_step() -> None:
        nonlocal sent
        settled = row.settled()
        if settled > sent:
            pieces.put(row.text[sent:settled])
            sent = settled

    def run() -> None:
        try:
            completion = _generate(model, tokenizer, [row], settings=settings, cancelled=cancelled, on_step=on_step)[0]
            pieces.put(row.text[sent:])
            pieces.put(completion)
        except BaseException as error:
            pieces.put(error)

    thread = Thread(target=run, daemon=True, name="codenas-decode")
    thread.start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while True:
            piece = pieces.get()
            if isinstance(piece, Completion):
                rest = decoder.decode(b"", final=piece.finish_reason in ("stop", "eos"))
                if rest:
                    yield rest
                return piece
            if isinstance(piece, BaseException):
                raise piece
            text = decoder.decode(piece)
            if text:
                yield text
    finally:
        cancelled.set()
        thread.join(timeout=30)
