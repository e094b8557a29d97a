"""The playground for programs: an HTTP API and, with `gradio[mcp]`, tools of an MCP server."""

# No `from __future__ import annotations` here: Gradio reads the real types for the schema that it publishes.
from typing import Any, TypedDict

import gradio as gr
from chooser import PlaygroundError, find_models
from completion import Completer, CompletionRequest, prepare

from codenas_hf.generation.decode import SHIPPED


class CompletionResult(TypedDict):
    """What `complete` returns; times in seconds, `None` where nothing was measured."""

    completion: str
    model: str
    ended: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float | None
    tokens_per_second: float | None
    parses: bool | None
    parse_remark: str
    collapse: str
    remarks: list[str]


class ModelEntry(TypedDict):
    """One model on offer: `name` for people, `source` for the `model` argument of `complete`."""

    name: str
    source: str


def add_endpoints(completer: Completer) -> None:
    """Adds `/complete` and `/list_models` to the Blocks that is being built."""
    settings = completer.settings

    def complete(
        prompt: str,
        model: str = "",
        examples: str = "",
        max_new_tokens: int = 128,
        temperature: float = SHIPPED.temperature,
        top_p: float = SHIPPED.top_p,
        min_p: float = SHIPPED.min_p,
        repetition_penalty: float = SHIPPED.repetition_penalty,
        seed: int = 0,
        one_block: bool = True,
    ) -> CompletionResult:
        """Complete Python code with a small code model; streams, the last result is the whole one.

        Args:
            prompt: The beginning of some Python. Mark one gap with <FILL_HERE> to have it filled instead.
            model: A source that list_models names. Empty means the first of them.
            examples: Example functions put before the prompt. One or two decide how good a small model is.
            max_new_tokens: The most tokens to write, from 1 up.
            temperature: 0 takes the likeliest token each time, up to 2.
            top_p: Draws from the likeliest tokens that hold this probability together, above 0 up to 1.
            min_p: Leaves out tokens less likely than this share of the likeliest one, 0 to 1.
            repetition_penalty: 1 is off, up to 2.
            seed: Same seed, same text.
            one_block: End where the function or class ends that the prompt has begun.

        Returns:
            The completion and its measurements: times, tokens, whether Python reads it, and a warning where it loops.
        """
        request = CompletionRequest(
            prompt=prompt,
            examples=examples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            one_block=one_block,
        )
        try:
            prepared = prepare(request, settings=settings)
            for progress in completer.run(_source(model), prepared):
                yield result_of(progress)
        except PlaygroundError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def list_models() -> list[ModelEntry]:
        """List the models that complete can use.

        Returns:
            Name and source of every model on offer, the default first.
        """
        return [ModelEntry(name=name, source=source) for name, source in find_models(settings)]

    def _source(model: Any) -> str:
        if not isinstance(model, str):
            raise PlaygroundError("`model` must be text: a source that list_models names, or empty.")
        offered = find_models(settings)
        return model or (offered[0][1] if offered else "")

    gr.api(complete, api_name="complete", concurrency_limit=settings.concurrency, concurrency_id="model")
    gr.api(list_models, api_name="list_models", queue=False)


def result_of(progress: Any) -> CompletionResult:
    """A completion's progress as plain data."""
    return CompletionResult(
        **{name: getattr(progress, name) for name in CompletionResult.__annotations__ if name != "remarks"},
        remarks=list(progress.remarks),
    )
