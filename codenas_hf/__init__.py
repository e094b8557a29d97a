"""Search, train, measure and share ultra-light Python code language models.

Importing the package makes transformers' Auto classes know the model type `codenas`; it does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_codenas import CodeNASConfig
from .engine import Budget, Evaluation, Rung, SearchResult, SearchSettings, run_search
from .modeling_codenas import (
    CodeNASForCausalLM,
    CodeNASForSequenceClassification,
    CodeNASForTokenClassification,
    CodeNASModel,
)

__version__ = "0.1.0"

AutoConfig.register("codenas", CodeNASConfig, exist_ok=True)
AutoModel.register(CodeNASConfig, CodeNASModel, exist_ok=True)
AutoModelForCausalLM.register(CodeNASConfig, CodeNASForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(CodeNASConfig, CodeNASForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(CodeNASConfig, CodeNASForTokenClassification, exist_ok=True)

__all__ = [
    "Budget",
    "CodeNASConfig",
    "CodeNASForCausalLM",
    "CodeNASModel",
    "Evaluation",
    "Rung",
    "SearchResult",
    "SearchSettings",
    "run_search",
]
