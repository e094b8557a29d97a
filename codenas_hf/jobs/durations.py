"""How long something may take, as people write it: `90s`, `30m`, `3h`, `1h30m`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS = (86_400.0, 3600.0, 60.0, 1.0)


@dataclass(frozen=True)
class Duration:
    """A length of time.

    Args:
        seconds: of wall clock.

    Raises:
        ValueError: not a positive finite number of seconds.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"a duration must be a positive number of seconds, got {self.seconds!r}")

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Reads `90s`, `30m`, `3h`, `1.5h`, `1h30m`, `2d`: units from long to short, each at most once.

        Raises:
            ValueError: anything else; a number without a unit too, since it could be minutes or seconds.
        """
        match = _PARTS.fullmatch(text.strip())
        if match is None or not any(match.groups()):
            raise ValueError(f"a duration reads like 30m, 3h, 1h30m or 90s, got {text!r}")
        return cls(math.fsum(float(part or 0) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True)))

    def twice(self) -> Duration:
        """Twice as long."""
        return Duration(2 * self.seconds)

    def __str__(self) -> str:
        """The same in the largest units that spell it exactly; `parse` reads it back."""
        left, parts = self.seconds, []
        for unit, name in zip(_SECONDS[:-1], "dhm", strict=True):
            count, left = divmod(left, unit)
            parts += [f"{count:.0f}{name}"] if count else []
        return "".join(parts + ([f"{left:.3f}".rstrip("0").rstrip(".") + "s"] if left or not parts else []))
