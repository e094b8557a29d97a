"""Completion of code: one function for the command line, the playground and the evaluation suite.

Above any runtime: prompts that end on token boundaries, stop strings, streaming, fill in the middle, and sampling
whose result depends only on the seed and the prompt, never on the runtime or on what else is in the batch.
"""

from __future__ import annotations

import codecs
import itertools
import math
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from codenas_hf.generation.runtimes import Runtime
from codenas_hf.generation.sampling import (
    FUNCTION_STOPS,
    GREEDY,
    SHIPPED,
    Chooser,
    DecodeSettings,
    FinishReason,
    Row,
)
from codenas_hf.generation.token_text import HealedPrompt, TokenText, as_trained

if TYPE_CHECKING:  # decoding in another runtime needs no torch
    from transformers import PreTrainedModel

__all__ = [
    "FUNCTION_STOPS",
    "GREEDY",
    "SHIPPED",
    "Completion",
    "DecodeSettings",
    "complete",
    "complete_many",
    "split_gap",
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
        finish_reason: `stop` (stop string), `eos` (any special token), `length` or `time`.
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


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of text; what looks like a special token in it stays text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def start_tokens(tokenizer: Any, *, settings: DecodeSettings = GREEDY) -> list[int]:
    """What stands before a text: see `DecodeSettings.start`."""
    bos = tokenizer.bos_token_id
    own = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
    packed = bos is not None and bos == tokenizer.eos_token_id
    wanted = settings.start == "always" or (settings.start == "auto" and (own or packed))
    return [bos] if wanted and bos is not None else []


def _fim_ids(tokenizer: Any) -> tuple[int, int, int]:
    vocabulary = tokenizer.get_vocab()
    for names in _FIM_TOKENS:
        if all(name in vocabulary for name in names):
            prefix, suffix, middle = (vocabulary[name] for name in names)
            return prefix, suffix, middle
    raise ValueError(
        "`suffix` needs a model trained to fill in the middle, but this tokenizer has no "
        f"{' '.join(_FIM_TOKENS[0])} tokens: leave `suffix` out, or choose such a model"
    )


def supports_infilling(tokenizer: Any) -> bool:
    """Whether the tokenizer has the tokens that fill-in-the-middle needs."""
    try:
        _fim_ids(tokenizer)
    except ValueError:
        return False
    return True


def split_gap(tokenizer: Any, prompt: str) -> tuple[str, str | None]:
    """Prompt and suffix of a text that a client has put in the order for a gap already, its special tokens as text.

    Any other text is returned whole, without a suffix.
    """
    vocabulary = tokenizer.get_vocab()
    for prefix, suffix, middle in _FIM_TOKENS:
        ordered = prompt.startswith(prefix) and prompt.endswith(middle) and prompt.count(suffix) == 1
        if ordered and middle in vocabulary:
            before, _, after = prompt.removeprefix(prefix).removesuffix(middle).partition(suffix)
            return before, after
    return prompt, None


def _runtime_of(model: PreTrainedModel | Runtime) -> Runtime:
    """A runtime as it is; a PyTorch model as one, the same for the same model."""
    if isinstance(model, Runtime):
        return model
    from codenas_hf.generation.torch_runtime import TorchRuntime  # not for those who decode without torch

    return TorchRuntime.of(model)


def _prepare(
    limit: int | None,
    tokenizer: Any,
    prompt: str,
    *,
    suffix: str | None,
    sample: int,
    settings: DecodeSettings,
) -> Row:
    """Tokens of one prompt, healed, cut to a context of `limit` tokens."""
    table = TokenText.of(tokenizer)
    prompt, suffix = as_trained(prompt), None if suffix is None else as_trained(suffix)
    text = prompt.rstrip() if settings.boundary == "strip" and suffix is None else prompt
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


@dataclass
class _Clock:
    """When a completion began, when its first token came, when it must end."""

    settings: DecodeSettings

    def __post_init__(self) -> None:
        self.start = time.perf_counter()
        self.first_token_seconds = 0.0

    def tick(self) -> bool:
        """Called after each token: True when the time is over."""
        spent = time.perf_counter() - self.start
        self.first_token_seconds = self.first_token_seconds or spent
        return self.settings.max_seconds is not None and spent > self.settings.max_seconds

    def completion(self, row: Row) -> Completion:
        """The row as it is now."""
        return Completion(
            prompt=row.prompt,
            text=_decode_text(row),
            token_ids=tuple(row.new_ids),
            finish_reason=row.finished or "length",
            num_tokens=row.num_tokens,
            prompt_tokens=len(row.token_ids),
            dropped_tokens=row.dropped,
            seconds=time.perf_counter() - self.start,
            first_token_seconds=self.first_token_seconds,
        )


def _steps(row: Row, *, limit: int | None, settings: DecodeSettings) -> int:
    """Most tokens that are drawn. Healing may need more than it took away, where the model spells in smaller ones."""
    steps = settings.max_new_tokens + row.removed + 4 * bool(row.pending)
    return steps if limit is None else max(1, min(steps, limit - len(row.token_ids)))


def _tokens(runtime: Runtime, row: Row, table: TokenText, *, clock: _Clock) -> Iterator[int]:
    """Draws a row to its end, a token at a time."""
    choose = Chooser(row, table, clock.settings)
    ids = list(row.token_ids)
    for _ in range(_steps(row, limit=runtime.context_tokens, settings=clock.settings)):
        token = choose(runtime.logits(ids))
        ids.append(token)
        row.push(token, table)
        if clock.tick() and not row.finished:
            row.finished = "time"
        yield token
        if row.finished:
            return


def _together(runtime: Runtime, tokenizer: Any, rows: list[Row], *, settings: DecodeSettings) -> list[Completion]:
    """Draws several rows at once."""
    table, clock = TokenText.of(tokenizer), _Clock(settings)
    choosers = [Chooser(row, table, settings) for row in rows]
    steps = [_steps(row, limit=runtime.context_tokens, settings=settings) for row in rows]
    count = itertools.count(1)

    def push(tokens: list[int]) -> list[bool]:
        drawn = next(count)
        for row, token in zip(rows, tokens, strict=True):
            row.push(token, table)
        late = clock.tick()
        for row, most in zip(rows, steps, strict=True):
            row.finished = row.finished or ("time" if late else "length" if drawn >= most else None)
        return [row.finished is not None for row in rows]

    runtime.generate_many(
        [row.token_ids for row in rows],
        steps=steps,
        pad=next((index for index in (tokenizer.pad_token_id, tokenizer.eos_token_id) if index is not None), 0),
        choose=lambda at, logits: None if rows[at].finished else choosers[at](logits),
        push=push,
    )
    return [clock.completion(row) for row in rows]


def _decode_text(row: Row) -> str:
    """Text of a row, without the half character that a sequence cut short may leave at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(row.text, final=row.finished in ("stop", "eos"))


def complete_many(
    model: PreTrainedModel | Runtime,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    settings: DecodeSettings = GREEDY,
    suffixes: Sequence[str] | None = None,
    num_samples: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Completes many prompts: in batches of similar length where the runtime is faster so, else one after the other.

    Args:
        model: a runtime, or a causal language model in evaluation mode.
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
    runtime, table = _runtime_of(model), TokenText.of(tokenizer)
    rows = [
        _prepare(
            runtime.context_tokens,
            tokenizer,
            prompt,
            suffix=None if suffixes is None else suffixes[index],
            sample=sample,
            settings=settings,
        )
        for index, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    size = settings.batch_size if runtime.in_batches(min(len(rows), settings.batch_size)) else 1
    order = list(range(len(rows)))
    if size > 1:
        order.sort(key=lambda index: -len(rows[index].token_ids))
    done: dict[int, Completion] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        if len(batch) > 1:
            results = _together(runtime, tokenizer, [rows[at] for at in batch], settings=settings)
        else:
            clock = _Clock(settings)
            for _ in _tokens(runtime, rows[batch[0]], table, clock=clock):
                pass
            results = [clock.completion(rows[batch[0]])]
        done.update(zip(batch, results, strict=True))
        if on_batch is not None:
            on_batch(len(done))
    return [[done[index * num_samples + sample] for sample in range(num_samples)] for index in range(len(prompts))]


def complete(
    model: PreTrainedModel | Runtime,
    tokenizer: Any,
    prompt: str,
    *,
    settings: DecodeSettings = GREEDY,
    suffix: str | None = None,
) -> Completion:
    """Completes one prompt.

    Args:
        model: a runtime, or a causal language model in evaluation mode.
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
    model: PreTrainedModel | Runtime,
    tokenizer: Any,
    prompt: str,
    *,
    settings: DecodeSettings = GREEDY,
    suffix: str | None = None,
    sample: int = 0,
) -> Generator[str, None, Completion]:
    """Completes one prompt and yields text as soon as no stop string can take it back.

    The pieces joined are exactly the text of `complete`, or of the completion number `sample` of `complete_many`.
    Closing the generator ends the decoding.

    Returns:
        The completion, as the generator's return value.

    Raises:
        ValueError: `suffix` is given and the tokenizer cannot fill in the middle.
    """
    runtime = _runtime_of(model)
    row = _prepare(runtime.context_tokens, tokenizer, prompt, suffix=suffix, sample=sample, settings=settings)
    clock, sent = _Clock(settings), 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for _ in _tokens(runtime, row, TokenText.of(tokenizer), clock=clock):
        settled = row.settled()
        if settled > sent:
            text = decoder.decode(row.text[sent:settled])
            sent = settled
            if text:
                yield text
    rest = decoder.decode(row.text[sent:], final=row.finished in ("stop", "eos"))
    if rest:
        yield rest
    return clock.completion(row)
