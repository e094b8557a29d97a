"""One completion for a visitor: the request checked, streamed, timed and judged.

The text itself comes from the package's one completion function, `codenas_hf.generation.decode`. A Space carries just
that part of the package (`bundle.py` puts it beside this file).
"""

from __future__ import annotations

import ast
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerator import borrows_gpu
from chooser import LoadedModel, ModelShelf, PlaygroundError, PlaygroundSettings

from codenas_hf.generation.decode import (
    FUNCTION_STOPS,
    SHIPPED,
    Completion,
    DecodeSettings,
    stream,
    supports_infilling,
)
from codenas_hf.generation.token_text import as_trained
from codenas_hf.measure import metrics

FILL = "<FILL_HERE>"
ENDED = {"stop": "block", "eos": "end", "length": "length", "time": "time"}
SHORT_CHARACTERS = 160
COPY_CHARACTERS = 6_000
CUT_LINES = 5
SECONDS_BETWEEN_UPDATES = 0.06
# Control characters other than tab and newline, and halves of surrogate pairs, which no tokenizer takes.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
BLOCK = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]", re.MULTILINE)
FUNCTION = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+\w+.*:[ \t]*(?:#.*)?\n(?:[ \t]*\n)*[ \t]+\S", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """What a visitor asks for.

    Args:
        prompt: the beginning of some Python; may hold one `<FILL_HERE>`.
        examples: put before the prompt.
        max_new_tokens: the most tokens to write.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        min_p: least share of the likeliest token's probability.
        repetition_penalty: 1 is off.
        seed: of sampling.
        one_block: end where the function or class ends that the prompt has begun.
    """

    prompt: str
    examples: str = ""
    max_new_tokens: int = 128
    temperature: float = SHIPPED.temperature
    top_p: float = SHIPPED.top_p
    min_p: float = SHIPPED.min_p
    repetition_penalty: float = SHIPPED.repetition_penalty
    seed: int = 0
    one_block: bool = True


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checked request: what the model reads (`text`, `suffix`), what is shown (`prefix`), and remarks."""

    text: str
    prefix: str
    suffix: str | None
    remarks: tuple[str, ...]
    request: CompletionRequest


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A completion so far. Times in seconds; `None` is not known (yet). `ended` is empty while it is written."""

    model: str
    prefix: str
    completion: str = ""
    suffix: str = ""
    ended: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    first_token_s: float | None = None
    tokens_per_second: float | None = None
    parses: bool | None = None
    parse_remark: str = ""
    collapse: str = ""
    remarks: tuple[str, ...] = ()


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` where it is a number between `low` and `high`.

    Raises:
        PlaygroundError: it is not.
    """
    given = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if given is None or not low <= given <= high:
        raise PlaygroundError(f"{name} must be a number between {low:g} and {high:g}, got {str(value)[:40]!r}.")
    return given


def prepare(request: CompletionRequest, *, settings: PlaygroundSettings) -> Prepared:
    """The request checked and cleaned.

    Raises:
        PlaygroundError: empty, too long, a value out of range, or more than one `<FILL_HERE>`.
    """
    if not isinstance(request.prompt, str) or not isinstance(request.examples, str):
        raise PlaygroundError("The prompt and the examples must be text.")
    length = len(request.prompt) + len(request.examples)
    if length > settings.max_prompt_characters:
        raise PlaygroundError(
            f"Prompt and examples have {length:,} characters, the most here is {settings.max_prompt_characters:,}. "
            "Keep the part just before the place to complete: these models read little more."
        )
    if not request.prompt.strip():
        raise PlaygroundError("The prompt is empty. Write the beginning of some Python, or pick one of the starts.")
    checked = replace(
        request,
        max_new_tokens=int(number("The length", request.max_new_tokens, 1, settings.max_new_tokens)),
        temperature=number("The temperature", request.temperature, 0, 2),
        top_p=number("Top-p", request.top_p, 0.01, 1),
        min_p=number("Min-p", request.min_p, 0, 1),
        repetition_penalty=number("The repetition penalty", request.repetition_penalty, 1, 2),
        seed=int(number("The seed", request.seed, 0, 2**31 - 1)),
    )
    prompt, dropped = clean(request.prompt)
    examples, dropped_too = clean(request.examples)
    remarks = []
    if dropped + dropped_too:
        remarks.append(f"{dropped + dropped_too} control characters were left out.")
    if FILL in examples or prompt.count(FILL) > 1:
        raise PlaygroundError(f"{FILL} may stand once, in the prompt: it marks the gap to fill. Remove the others.")
    prefix, marker, rest = prompt.partition(FILL)
    suffix = rest if marker else None
    text = f"{examples.strip()}\n\n\n{prefix}" if examples.strip() else prefix
    return Prepared(text=text, prefix=prefix, suffix=suffix, remarks=tuple(remarks), request=checked)


def clean(text: str) -> tuple[str, int]:
    """The text as training text is read, without unprintable characters, and how many of these were dropped."""
    return UNPRINTABLE.subn("", as_trained(text))


def is_short(prompt: str, examples: str) -> bool:
    """Whether a small model has little to go by: no whole function before the place to complete, and not much text."""
    context = f"{examples.strip()}\n{prompt.partition(FILL)[0]}"
    begun = [match.start() for match in BLOCK.finditer(context)] if in_block(context) else []
    done = context[: begun[-1]] if begun else context  # the function at hand is no example of itself
    return len(context.strip()) < SHORT_CHARACTERS and not FUNCTION.search(done)


class Completer:
    """Runs requests against the models of one shelf."""

    def __init__(self, settings: PlaygroundSettings) -> None:
        self.settings = settings
        self.shelf = ModelShelf(settings)
        self._pieces_on_gpu = borrows_gpu(self._pieces)

    def _pieces(
        self, source: str, text: str, suffix: str | None, settings: DecodeSettings
    ) -> Iterator[tuple[str, float, Completion | None]]:
        """(piece of text, seconds since the start, None), timed where the model runs; at last the whole completion."""
        loaded = self.shelf.load(source)
        model = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        start = time.perf_counter()
        pieces = stream(model, loaded.tokenizer, text, settings=settings, suffix=suffix)
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    yield "", time.perf_counter() - start, end.value
                    return
                yield piece, time.perf_counter() - start, None
        finally:
            pieces.close()

    def run(
        self,
        source: str,
        prepared: Prepared,
        *,
        consent: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress]:
        """The completion as it grows, at most some fifteen times a second; the last one is judged.

        Args:
            source: which model, see `ModelShelf.load`.
            prepared: a checked request.
            consent: see `ModelShelf.load`.
            stopped: asked between two pieces; true ends the completion.

        Raises:
            PlaygroundError: the model cannot be had, or cannot fill gaps.
        """
        loaded = self.shelf.load(source, consent=consent)
        able = supports_infilling(loaded.tokenizer) and loaded.record.fills_gaps is not False
        if prepared.suffix is not None and not able:
            raise PlaygroundError(
                f"{loaded.name} was not trained to fill gaps. Remove {FILL} to continue the text instead, "
                "or pick another model."
            )
        progress = Progress(
            model=loaded.name,
            prefix=prepared.prefix,
            suffix=prepared.suffix or "",
            prompt_tokens=count_tokens(loaded, prepared.text) + count_tokens(loaded, prepared.suffix or ""),
            remarks=prepared.remarks,
        )
        yield progress
        settings = decode_settings(prepared, max_seconds=self.settings.max_seconds)
        pieces = self._pieces_on_gpu(source, prepared.text, prepared.suffix, settings)
        shown = time.monotonic()
        first, ended = "", ""
        try:
            for piece, seconds, completion in pieces:
                if completion is not None:
                    progress, ended = measured(progress, completion), ENDED[completion.finish_reason]
                    break
                first = first or piece
                first_s = seconds if progress.first_token_s is None else progress.first_token_s
                progress = replace(progress, completion=progress.completion + piece, first_token_s=first_s)
                halted = stopped()
                if halted or time.monotonic() - shown >= SECONDS_BETWEEN_UPDATES:
                    progress = replace(progress, **pace(loaded, progress, first=first, seconds=seconds))
                if halted:
                    ended = "stopped"
                    break
                if time.monotonic() - shown >= SECONDS_BETWEEN_UPDATES:
                    shown = time.monotonic()
                    yield progress
        finally:
            pieces.close()
        yield judged(progress, ended=ended, loaded=loaded, prompt=prepared.text)


def decode_settings(prepared: Prepared, *, max_seconds: float) -> DecodeSettings:
    """The visitor's wishes as the package's decoding settings."""
    request = prepared.request
    ends = request.one_block and prepared.suffix is None and in_block(prepared.prefix)
    return DecodeSettings(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=FUNCTION_STOPS if ends else (),
        max_seconds=max_seconds,
    )


def in_block(prefix: str) -> bool:
    """Whether the text to continue has begun an indented block, so that the next top-level line ends it."""
    lines = [line for line in prefix.splitlines() if line.strip()]
    return bool(lines) and (lines[-1][0] in " \t" or lines[-1].split("#")[0].rstrip().endswith(":"))


def token_ids(loaded: LoadedModel, text: str) -> list[int]:
    """Tokens of `text`; a special token's name in it is the plain text that it is."""
    return list(loaded.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def count_tokens(loaded: LoadedModel, text: str) -> int:
    """How many tokens `text` has."""
    return len(token_ids(loaded, text))


def pace(loaded: LoadedModel, progress: Progress, *, first: str, seconds: float) -> dict[str, Any]:
    """Tokens so far, counted from the text, and tokens per second after the first piece; while it is written."""
    tokens = count_tokens(loaded, progress.completion)
    later, since = tokens - count_tokens(loaded, first), seconds - (progress.first_token_s or 0.0)
    return {"new_tokens": tokens, "tokens_per_second": later / since if later > 0 and since > 0 else None}


def measured(progress: Progress, completion: Completion) -> Progress:
    """The progress with the numbers that decoding itself kept."""
    since = completion.seconds - completion.first_token_seconds
    later = completion.num_tokens - 1
    remarks = progress.remarks
    if completion.dropped_tokens:
        remarks += (f"The first {completion.dropped_tokens} tokens did not fit into the model's context.",)
    return replace(
        progress,
        completion=completion.text,
        new_tokens=completion.num_tokens,
        prompt_tokens=completion.prompt_tokens,
        first_token_s=completion.first_token_seconds,
        tokens_per_second=later / since if later > 0 and since > 0 else None,
        remarks=remarks,
    )


def judged(progress: Progress, *, ended: str, loaded: LoadedModel, prompt: str) -> Progress:
    """The finished completion with its parse check and collapse warning."""
    parses, remark = parse_check(progress, cut=ended not in ("end", "block"))
    collapse = collapse_warning(progress, loaded=loaded, prompt=prompt, ended=ended)
    return replace(progress, ended=ended, parses=parses, parse_remark=remark, collapse=collapse)


def parse_check(progress: Progress, *, cut: bool) -> tuple[bool | None, str]:
    """Whether Python reads the prompt with its completion, and what to say of it.

    One that was cut off (`cut`) is read up to its last whole statement: its open end is not the model's fault.
    """
    code = progress.prefix + progress.completion + progress.suffix
    if not progress.completion.strip():
        return None, ""
    if metrics.parses(code):
        return True, "Python reads it"
    written = len(code.splitlines()) - len(progress.prefix.splitlines())
    if cut and not progress.suffix and written > 0 and metrics.parses(code, spare_lines=min(written, CUT_LINES)):
        return True, "Python reads it, but for its cut end"
    return False, syntax_error(code)


def syntax_error(code: str) -> str:
    """Where and why Python does not read `code`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is no error
            ast.parse(code)
    except SyntaxError as error:
        where = f" at line {error.lineno}" if error.lineno else ""
        return f"Python stops{where}: {error.msg}"
    except (ValueError, RecursionError, MemoryError):
        pass
    return "Python gives up on it"


def collapse_warning(progress: Progress, *, loaded: LoadedModel, prompt: str, ended: str) -> str:
    """What looks collapsed: a loop, repetition, a copy of the prompt, or nothing at all; empty where nothing does."""
    # A line end at the very end is another token than one before an indent, and would break every loop.
    tokens = token_ids(loaded, progress.completion.rstrip())
    found = metrics.collapse(
        tokens,
        progress.completion,
        prompt_tokens=token_ids(loaded, prompt[-COPY_CHARACTERS:]),
        ended=ended == "end",
    )
    if found.loop:
        return "It runs in a loop: try a higher repetition penalty or temperature"
    if found.repeat:
        return "It repeats itself: try a higher repetition penalty or temperature"
    if found.copy:
        return "It mostly copies the prompt: try other examples"
    if found.empty and ended != "stopped" and not progress.suffix:
        return "It wrote no code: try another seed, or an example that is closer"
    return ""
