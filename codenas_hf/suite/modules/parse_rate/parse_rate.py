"""Parse rate as an `evaluate` module."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from codenas_hf.measure.metrics import parses, wilson_interval


class ParseRate(evaluate.Metric):
    """Predictions: whole modules, prompt and completion joined."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of texts that Python's parser takes.",
            citation="",
            inputs_description="predictions: Python modules",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], spare_lines: int = 0) -> dict[str, Any]:
        good = sum(parses(text, spare_lines=spare_lines) for text in predictions)
        low, high = wilson_interval(good, len(predictions))
        return {"parse_rate": good / len(predictions), "low": low, "high": high}
