"""Repetition and collapse as an `evaluate` module, over white-space separated tokens of the texts."""

from __future__ import annotations

import re
from typing import Any

import datasets
import evaluate

from codenas_hf.measure import metrics


class Repetition(evaluate.Metric):
    """Predictions: completions; references: what a person wrote there ("" where nobody did)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="rep-4 over words and punctuation, rep-line, loops and the collapse rate of completions.",
            citation="",
            inputs_description="predictions: completions; references: human text, or empty",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        tokens = [re.findall(r"\w+|[^\w\s]|\n[ \t]*", text) for text in predictions]
        found = [
            metrics.collapse(row, text, reference=reference or None)
            for row, text, reference in zip(tokens, predictions, references, strict=True)
        ]
        count = len(predictions)
        return {
            "rep_4": sum(map(metrics.repetition, tokens)) / count,
            "rep_line": sum(map(metrics.line_repetition, predictions)) / count,
            "loop_rate": sum(item.loop for item in found) / count,
            "collapse_rate": sum(item.collapsed for item in found) / count,
            "legacy_repetition_ratio": sum(map(metrics.legacy_repetition_ratio, predictions)) / count,
            "legacy_collapse_rate": sum(map(metrics.legacy_collapse, predictions)) / count,
        }
