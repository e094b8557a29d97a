"""Bits per byte as an `evaluate` module: `evaluate.load(".../suite/modules/bits_per_byte")`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from codenas_hf.measure.metrics import bits_per_byte


class BitsPerByte(evaluate.Metric):
    """Predictions: summed negative log-likelihood in nats, one per document; references: the documents."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Summed negative log-likelihood in bits, per UTF-8 byte of text.",
            citation="",
            inputs_description="predictions: nats per document; references: documents",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[str]) -> dict[str, Any]:
        num_bytes = sum(len(text.encode()) for text in references)
        return {"bits_per_byte": bits_per_byte(sum(predictions), num_bytes), "num_bytes": num_bytes}
