"""The engine: evolution that is durable, deterministic and never idle. Imports nothing of ours from outside this folder."""

from .records import Budget, Evaluation, Evaluator, Genome, Policy, Rung, Space, TrialRecord

__all__ = ["Budget", "Evaluation", "Evaluator", "Genome", "Policy", "Rung", "Space", "TrialRecord"]
