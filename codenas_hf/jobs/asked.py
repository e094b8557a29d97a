"""A request to OpenAI's completions API, checked: what it may hold, and which of it decoding is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..generation.decode import SHIPPED

_MOST_CHOICES = 16
_MOST_STOPS = 16
# What decoding here has no form of: accepted with the value that means nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "logprobs": (None,),
    "presence_penalty": (None, 0, 0.0),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A checked request.

    Args:
        model: which one is meant; None means whichever is there.
        prompts: what to continue.
        n: completions of each.
        suffix: what stands behind the gap; None continues.
        stream: piece by piece.
        include_usage: counts of tokens at the end of a stream.
        decoding: fields of `DecodeSettings`.
    """

    model: str | None
    prompts: tuple[str, ...]
    n: int
    suffix: str | None
    stream: bool
    include_usage: bool
    decoding: dict[str, Any]

    @property
    def num_choices(self) -> int:
        """Completions in all."""
        return len(self.prompts) * self.n


def read_request(body: bytes, *, max_new_tokens: int) -> Asked:
    """Reads the body of a request. Settings that it leaves out are those of `codenas complete`.

    Args:
        body: JSON, as `POST /v1/completions` has it.
        max_new_tokens: most that may be asked for; also what is written where nothing is said, up to 128.

    Raises:
        ValueError: names the field, what was expected and what was got.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the body must be an object, got {_shown(found)}")
    given = {name: value for name, value in found.items() if value is not None}
    fields = _Fields(given)
    for name, nothing in _NOTHING.items():
        if given.pop(name, None) not in nothing:
            raise ValueError(f"`{name}` is not supported here: leave it out")
    given.pop("user", None)
    prompts = fields.take("prompt", _texts, "text, or a list of up to 16 texts", required=True)
    n = fields.take("n", _between(1, _MOST_CHOICES), f"1 to {_MOST_CHOICES}", default=1)
    if len(prompts) * n > _MOST_CHOICES:
        raise ValueError(f"{len(prompts)} prompts with n={n} are more than {_MOST_CHOICES} completions; ask for fewer")
    stream = fields.take("stream", _flag, "true or false", default=False)
    options = fields.take("stream_options", _object, "an object", default={})
    temperature = fields.take("temperature", _number(0, 2), "a number from 0 to 2", default=SHIPPED.temperature)
    decoding = {
        "max_new_tokens": fields.take(
            "max_tokens", _between(1, max_new_tokens), f"1 to {max_new_tokens}", default=min(128, max_new_tokens)
        ),
        "temperature": temperature,
        "top_p": fields.take("top_p", _number(1e-9, 1), "a number above 0, up to 1", default=SHIPPED.top_p),
        "top_k": fields.take("top_k", _between(0, 1 << 20), "0 or more", default=0),
        "min_p": fields.take("min_p", _number(0, 1), "a number from 0 to 1", default=0.0),
        "repetition_penalty": fields.take(
            "repetition_penalty", _number(0.1, 10), "a number from 0.1 to 10", default=SHIPPED.repetition_penalty
        ),
        "stop": fields.take("stop", _stops, f"text, or a list of up to {_MOST_STOPS} texts, none empty", default=()),
        "seed": fields.take("seed", _between(0, (1 << 63) - 1), "0 or more", default=0),
    }
    asked = Asked(
        model=fields.take("model", _text, "text"),
        prompts=prompts,
        n=n,
        suffix=fields.take("suffix", _text, "text"),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        decoding=decoding,
    )
    if given:
        raise ValueError(f"this server does not know {', '.join(f'`{name[:40]}`' for name in sorted(given)[:5])}")
    return asked


class _Fields:
    """The fields of a request, each taken once."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def take(
        self,
        name: str,
        read: Callable[[Any], Any],
        expected: str,
        *,
        default: Any = None,
        required: bool = False,
    ) -> Any:
        """A field as `read` makes it; `read` returns None for what it does not take."""
        if name not in self.given:
            if required:
                raise ValueError(f"`{name}` is absent: expected {expected}")
            return default
        value = self.given.pop(name)
        found = read(value)
        if found is None:
            raise ValueError(f"`{name}` must be {expected}, got {_shown(value)}")
        return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any) -> str | None:
    """Text; a lone surrogate, which JSON can spell, is none."""
    try:
        return value if isinstance(value, str) and value.encode() is not None else None
    except UnicodeEncodeError:
        return None


def _texts(value: Any) -> tuple[str, ...] | None:
    many = value if isinstance(value, list) else [value]
    found = [text for text in map(_text, many) if text is not None]
    return tuple(found) if 0 < len(found) == len(many) <= _MOST_CHOICES else None


def _stops(value: Any) -> tuple[str, ...] | None:
    many = value if isinstance(value, list) else [value]
    found = [text for text in map(_text, many) if text]
    return tuple(found) if len(found) == len(many) <= _MOST_STOPS else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _between(low: int, high: int) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and low <= value <= high else None

    return read


def _number(low: float, high: float) -> Callable[[Any], float | None]:
    def read(value: Any) -> float | None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and low <= value <= high else None

    return read
