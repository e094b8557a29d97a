"""pass@k as an `evaluate` module; programs run in the package's sandbox."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from codenas_hf.measure.metrics import pass_at_k
from codenas_hf.sandbox.judge import run_program


class PassAtK(evaluate.Metric):
    """Predictions: candidate programs of each task; references: its trusted checks."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Unbiased pass@k of programs against trusted checks.",
            citation="Chen et al., 2021, arXiv 2107.03374",
            inputs_description="predictions: lists of programs; references: checks",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[str], k: tuple[int, ...] = (1,), timeout_s: float = 3.0
    ) -> dict[str, Any]:
        counts, unjudged = [], 0
        for programs, checks in zip(predictions, references, strict=True):
            outcomes = [run_program(text, checks=checks, timeout_s=timeout_s) for text in programs]
            judged = [outcome.passed for outcome in outcomes if outcome.judged]
            unjudged += len(outcomes) - len(judged)
            if len(judged) >= max(k):
                counts.append((len(judged), sum(judged)))
        if not counts:
            raise ValueError(f"no task has {max(k)} programs that could be judged; see `run_program` for the reasons")
        rates = {f"pass@{n}": sum(pass_at_k(total, good, n) for total, good in counts) / len(counts) for n in k}
        return {**rates, "tasks": len(counts), "unjudged": unjudged}
