"""The engine: evolution that is durable, deterministic and never idle. It imports nothing of ours from elsewhere."""

from .driver import run_search
from .evolution import GeneticPolicy, RandomPolicy, RegularizedEvolution, Seeded
from .guided import GuidedPolicy
from .journal import JournalError, SingleJobError, check_local
from .objectives import Frame, Objectives
from .optuna_policy import OptunaPolicy
from .pareto import crowding_distance, front, hypervolume, non_domination_rank
from .records import Budget, Evaluation, Evaluator, Genome, Policy, Rung, Space, TrialRecord
from .result import RankCorrelation, SearchResult
from .schedule import PolicyError
from .settings import Patience, RanksError, SearchSettings, single_stage, two_stage
from .storage import StorageError
from .study import IdentityError
from .surrogate import Screened

__all__ = [
    "Budget",
    "Evaluation",
    "Evaluator",
    "Frame",
    "GeneticPolicy",
    "Genome",
    "GuidedPolicy",
    "IdentityError",
    "JournalError",
    "Objectives",
    "OptunaPolicy",
    "Patience",
    "Policy",
    "PolicyError",
    "RandomPolicy",
    "RankCorrelation",
    "RanksError",
    "RegularizedEvolution",
    "Rung",
    "Screened",
    "SearchResult",
    "SearchSettings",
    "Seeded",
    "SingleJobError",
    "Space",
    "StorageError",
    "TrialRecord",
    "check_local",
    "crowding_distance",
    "front",
    "hypervolume",
    "non_domination_rank",
    "run_search",
    "single_stage",
    "two_stage",
]
