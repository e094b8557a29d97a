"""Search, train, measure and share ultra-light Python code language models.

    from codenas_hf import RunSettings, complete, publish, search

    found = search(RunSettings.of("limits.bytes=4MB"))
    print(complete(found.winner, "def fibonacci(n):"))
    publish(found.folder, repo_id="me/my-codelm")

Each name is imported when it is first used: importing the package loads nothing, and the command line answers at once.
The model classes come with their registration: after `from codenas_hf import CodeNASForCausalLM`, or after importing
both transformers and, later, this package, transformers' Auto classes know the model type `codenas`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .architecture.genome import Genome
    from .architecture.space import SearchSpace
    from .engine import Budget, Evaluation, Rung, SearchResult, SearchSettings, run_search
    from .generation.loading import (
        CodeNASConfig,
        CodeNASForCausalLM,
        CodeNASForSequenceClassification,
        CodeNASForTokenClassification,
        CodeNASModel,
    )
    from .jobs.complete import complete
    from .jobs.models import evaluate
    from .jobs.search import search
    from .jobs.settings import RunSettings
    from .jobs.study import open_study
    from .jobs.train import train
    from .release.hub import publish

__version__ = "0.1.0"

_HOMES = {
    "architecture.genome": ("Genome",),
    "architecture.space": ("SearchSpace",),
    "engine": ("Budget", "Evaluation", "Rung", "SearchResult", "SearchSettings", "run_search"),
    "jobs.complete": ("complete",),
    "jobs.models": ("evaluate",),
    "jobs.search": ("search",),
    "jobs.settings": ("RunSettings",),
    "jobs.study": ("open_study",),
    "jobs.train": ("train",),
    "release.hub": ("publish",),
    "generation.loading": (
        "CodeNASConfig",
        "CodeNASForCausalLM",
        "CodeNASForSequenceClassification",
        "CodeNASForTokenClassification",
        "CodeNASModel",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "CodeNASConfig",
    "CodeNASForCausalLM",
    "CodeNASForSequenceClassification",
    "CodeNASForTokenClassification",
    "CodeNASModel",
    "Evaluation",
    "Genome",
    "RunSettings",
    "Rung",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "complete",
    "evaluate",
    "open_study",
    "publish",
    "run_search",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:  # whoever has it loaded pays no more for the registration
    importlib.import_module(".generation.loading", __name__)
