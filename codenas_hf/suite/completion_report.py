"""Completions of the prompt sets: collapse by cause, diversity, validity, next lines; human code beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codenas_hf.generation.decode import Completion, DecodeSettings, complete_many
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.measure import metrics
from codenas_hf.suite.prompts import Prompt


@dataclass(frozen=True)
class Row:
    """One number of a report.

    Args:
        name: what was measured, such as `short/greedy/collapse_rate`.
        value: the number.
        low: lower end of its 95 % interval; None where it has none.
        high: upper end.
        count: of what it is the mean.
        unjudged: what could not be judged and is not in it, with reasons; None where all was.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None
    unjudged: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what was not measured is absent."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def rate(name: str, hits: Sequence[bool]) -> Row:
    """A rate with its Wilson interval."""
    low, high = metrics.wilson_interval(sum(hits), len(hits))
    return Row(name, sum(hits) / len(hits), low, high, len(hits))


def mean(name: str, values: Sequence[float]) -> Row:
    """A mean without an interval."""
    return Row(name, sum(values) / len(values), count=len(values))


def collapse_rows(
    name: str,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]],
    *,
    references: Sequence[str | None],
    prompt_tokens: Sequence[Sequence[int]],
    ended: Sequence[bool],
    whole: Sequence[str],
) -> list[Row]:
    """Collapse by cause, repetition, validity, likeness across prompts, and the earlier project's columns.

    Args:
        name: put in front of every row's name.
        prompts: the prompts.
        texts: one completion of each.
        tokens: their tokens.
        references: what people wrote there, no longer in tokens than the completions may be; None where nobody did.
        prompt_tokens: tokens of the prompts.
        ended: whether the text was ended by its author, not by the length limit.
        whole: prompt and completion joined.
    """
    found = [
        metrics.collapse(row, text, prompt_tokens=given, reference=reference, ended=end)
        for row, text, reference, given, end in zip(tokens, texts, references, prompt_tokens, ended, strict=True)
    ]
    alike = metrics.prompt_collapse(texts, tokens)
    rows = [rate(f"{name}/collapse_rate", [item.collapsed for item in found])]
    rows += [
        rate(f"{name}/{cause}_rate", [getattr(item, cause) for item in found])
        for cause in ("loop", "repeat", "empty", "copy")
    ]
    rows += [
        mean(f"{name}/rep_4", [metrics.repetition(row) for row in tokens]),
        mean(f"{name}/rep_line", [metrics.line_repetition(text) for text in texts]),
        Row(f"{name}/prompt_collapse_share", alike.share, count=len(texts)),
        Row(f"{name}/effective_answers", alike.effective, count=len(texts)),
        Row(f"{name}/distinct_2", alike.distinct_2, count=len(texts)),
        rate(f"{name}/legacy_collapse_rate", [metrics.legacy_collapse(text) for text in texts]),
        mean(f"{name}/legacy_repetition_ratio", [metrics.legacy_repetition_ratio(text) for text in texts]),
    ]
    # Cut out of the middle of a file, no text parses as a module, whoever wrote it.
    if prompts[0].kind != "mid_file":
        rows.append(rate(f"{name}/parse_rate", [metrics.parses(text, spare_lines=3) for text in whole]))
    return rows


def line_rows(name: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Row]:
    """Exact match and edit similarity of the line after a cut."""
    pairs = [
        (text.lstrip("\n"), (prompt.reference or "").lstrip("\n")) for prompt, text in zip(prompts, texts, strict=True)
    ]
    return [
        rate(f"{name}/line_exact_match", [metrics.line_exact_match(a, b) for a, b in pairs]),
        mean(
            f"{name}/line_edit_similarity",
            [metrics.edit_similarity(metrics.first_line(a), metrics.first_line(b)) for a, b in pairs],
        ),
    ]


def completion_rows(
    model: PreTrainedModel | Runtime,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    name: str,
    settings: DecodeSettings,
    num_samples: int = 1,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> list[Row]:
    """Completes one prompt set and reports on it.

    Args:
        model: a runtime, or a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: one set.
        name: put in front of every row's name.
        settings: how to decode.
        num_samples: completions per prompt; the first is reported on, all of them for their likeness.
        keep: given every completion, for those who want to read them.
    """
    texts = [prompt.text for prompt in prompts]
    done = complete_many(model, tokenizer, texts, settings=settings, num_samples=num_samples)
    first: list[Completion] = [row[0] for row in done]
    if keep is not None:
        for prompt, row in zip(prompts, done, strict=True):
            for sample, item in enumerate(row):
                record = {"name": name, "prompt_id": prompt.prompt_id, "sample": sample, "text": item.text}
                keep({**record, "finish_reason": item.finish_reason})
    rows = collapse_rows(
        name,
        prompts,
        [item.text for item in first],
        [item.token_ids for item in first],
        references=_references(tokenizer, prompts, max_tokens=settings.max_new_tokens),
        prompt_tokens=_tokens(tokenizer, texts),
        ended=[item.finish_reason == "eos" for item in first],
        whole=[item.prompt + item.text for item in first],
    )
    if num_samples > 1:
        alike = [metrics.sample_similarity([item.text for item in row]) for row in done]
        rows.append(mean(f"{name}/sample_similarity", alike))
        rows.append(rate(f"{name}/sample_collapse_rate", [value > 0.95 for value in alike]))
    if prompts[0].kind == "mid_file":
        rows += line_rows(name, prompts, [item.text for item in first])
    return rows


def human_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, name: str, max_tokens: int
) -> list[Row]:
    """The same numbers of what people wrote after these prompts: the floor."""
    known = [prompt for prompt in prompts if prompt.reference]
    texts = [text or "" for text in _references(tokenizer, known, max_tokens=max_tokens)]
    return collapse_rows(
        name,
        known,
        texts,
        _tokens(tokenizer, texts),
        references=texts,
        prompt_tokens=_tokens(tokenizer, [prompt.text for prompt in known]),
        ended=[False] * len(known),
        whole=[prompt.text + text for prompt, text in zip(known, texts, strict=True)],
    )


def _references(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, max_tokens: int) -> list[str | None]:
    """What people wrote, cut to the tokens that a completion may have: what lies beyond, no completion can match."""
    rows = _tokens(tokenizer, [prompt.reference or "" for prompt in prompts])
    return [
        str(tokenizer.decode(row[:max_tokens])) if prompt.reference else None
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) for text in texts]
