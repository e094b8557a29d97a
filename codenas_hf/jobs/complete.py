"""A completion of a finished model, from a name and a prompt; without torch where llama.cpp reads the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..generation import decode
from .opening import OpenModel, RuntimeName, check_gaps, open_runtime

if TYPE_CHECKING:  # torch
    from ..generation.loading import LoadedModel


def stream(
    model: str | Path | OpenModel | LoadedModel,
    prompt: str,
    *,
    suffix: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = decode.SHIPPED.temperature,
    top_p: float = decode.SHIPPED.top_p,
    repetition_penalty: float = decode.SHIPPED.repetition_penalty,
    seed: int = 0,
    runtime: RuntimeName = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[str]:
    """The text of `complete`, piece by piece as it comes. The arguments and errors are those of `complete`.

    A setting out of range raises here, before the model is loaded; what the model cannot do raises at the first piece.
    """
    _check_text(prompt=prompt, suffix=suffix or "")
    settings = replace(
        decode.SHIPPED,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p if temperature else 1.0,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if isinstance(model, (str, Path)):
        model = open_runtime(model, runtime=runtime, device=device, trust_remote_code=trust_remote_code)
    if suffix is not None:
        check_gaps(model.name)
    reader = model.runtime if isinstance(model, OpenModel) else model.model
    return decode.stream(reader, model.tokenizer, prompt, settings=settings, suffix=suffix)


def _check_text(**texts: str) -> None:
    """Refuses what no tokenizer takes: a lone surrogate, as a command line holds it for bytes that are not UTF-8."""
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"`{name}` is not text: character {error.start + 1} is {text[error.start]!a}") from error


def complete(
    model: str | Path | OpenModel | LoadedModel,
    prompt: str,
    *,
    suffix: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = decode.SHIPPED.temperature,
    top_p: float = decode.SHIPPED.top_p,
    repetition_penalty: float = decode.SHIPPED.repetition_penalty,
    seed: int = 0,
    runtime: RuntimeName = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Continues code, or fills the gap between `prompt` and `suffix`.

    Args:
        model: folder, GGUF file or Hub id; or what `open_runtime` or `open_model` returned, for more than one prompt.
        prompt: the text to continue, or what stands before the gap; an empty one begins a file.
        suffix: what stands after the gap.
        max_new_tokens: upper bound.
        temperature: 0 is greedy.
        top_p: nucleus that is sampled from, with a temperature.
        repetition_penalty: 1 is off.
        seed: of sampling; the same call gives the same text.
        runtime: `torch`, `llama.cpp`, `onnxruntime`, or `auto`: the faster one that is here and reads the model.
        device: of torch, such as `cuda`, which takes torch; None takes what there is.
        trust_remote_code: run code that a model brings.

    Returns:
        The new text, without the prompt.

    Raises:
        FileNotFoundError: a path that holds no model.
        ValueError: a setting out of range; a suffix for a model that cannot fill gaps; an empty prompt for a
            tokenizer without a start token; a text that is not Unicode.
    """
    return "".join(
        stream(
            model,
            prompt,
            suffix=suffix,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            runtime=runtime,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    )
