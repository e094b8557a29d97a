"""Exact match and edit similarity of the next line as an `evaluate` module."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from codenas_hf.measure.metrics import edit_similarity, first_line, line_exact_match


class LineCompletion(evaluate.Metric):
    """Predictions: completions; references: the lines that were there."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Line exact match and edit similarity.",
            citation="",
            inputs_description="predictions: completions; references: true continuations",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        pairs = list(zip(predictions, references, strict=True))
        return {
            "line_exact_match": sum(line_exact_match(a, b) for a, b in pairs) / len(pairs),
            "edit_similarity": sum(edit_similarity(first_line(a), first_line(b)) for a, b in pairs) / len(pairs),
        }
