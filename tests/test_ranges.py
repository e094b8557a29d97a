"""One check for the numbers of all settings: what is allowed is said, and NaN is never in range."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from codenas_hf.folders.ranges import check_range


@dataclass
class Numbers:
    n: Any


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1, {"least": 1}),
        (0.5, {"above": 0}),
        (math.inf, {"above": 0}),
        (np.int64(3), {"least": 1, "below": 4}),
        (None, {"least": 1, "optional": True}),
        (1, {"least": 0, "most": 1}),
    ],
    ids=str,
)
def test_numbers_in_range_pass(value: Any, bounds: dict[str, Any]) -> None:
    check_range(Numbers(value), "n", **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"least": 1}, "`n` must be 1 or more, got 0"),
        (0.0, {"above": 0}, "`n` must be above 0, got 0.0"),
        (1.0, {"least": 0, "below": 1}, "`n` must be at least 0 and below 1, got 1.0"),
        (0, {"above": 0, "most": 1}, "`n` must be above 0 and at most 1, got 0"),
        (math.nan, {"least": 1}, "`n` must be 1 or more, got nan"),
        (math.nan, {"least": 0, "below": 1}, "`n` must be at least 0 and below 1, got nan"),
        (True, {"least": 0}, "`n` must be 0 or more, got True"),
        ("3", {"least": 0}, "`n` must be 0 or more, got '3'"),
        (None, {"least": 0}, "`n` must be 0 or more, got None"),
        (
            0,
            {"least": 1, "optional": True, "advice": "3 is usual"},
            "`n` must be 1 or more, or null, got 0; 3 is usual",
        ),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_named(value: Any, bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_range(Numbers(value), "n", **bounds)
    assert str(raised.value) == message
