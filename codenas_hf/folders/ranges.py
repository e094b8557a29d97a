"""The numbers of a settings dataclass: in range, or one clear error. Here because every room's settings need it."""

from __future__ import annotations

from numbers import Real
from typing import Any


def check_range(
    settings: Any,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
    advice: str = "",
) -> None:
    """Raises unless each of the named fields is a number in range; NaN and a truth value never are.

    Args:
        settings: the dataclass, in its `__post_init__`.
        names: its fields.
        least: smallest allowed number.
        above: the numbers are greater than this.
        most: greatest allowed number.
        below: the numbers are smaller than this.
        optional: whether None is allowed too.
        advice: how to mend it, for the end of the message.

    Raises:
        ValueError: names the field, what is allowed and the value.
    """
    for name in names:
        value = getattr(settings, name)
        if value is None and optional:
            continue
        fits = isinstance(value, Real) and not isinstance(value, bool) and value == value  # a NaN is not
        if fits:
            fits = (least is None or value >= least) and (above is None or value > above)
            fits = fits and (most is None or value <= most) and (below is None or value < below)
        if not fits:
            words = f"{_words(least, above, most, below)}{', or null' * optional}"
            raise ValueError(f"`{name}` must be {words}, got {value!r}" + (f"; {advice}" if advice else ""))


def _words(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    if most is None and below is None:
        return f"above {above:g}" if least is None else f"{least:g} or more"
    low = f"above {above:g}" if least is None else f"at least {least:g}"
    return f"{low} and {f'below {below:g}' if most is None else f'at most {most:g}'}"
