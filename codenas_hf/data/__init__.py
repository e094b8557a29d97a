"""Raw Python in, fixed token shards out."""

from .corpus import Corpus, build_corpus
from .filters import FilterSettings
from .ngram import ngram_bits_per_byte
from .overview import overview
from .passages import Passages
from .prepare import PreparedData, prepare_data, prepare_for_tokenizer, prepare_text
from .settings import CorpusSettings
from .split import SPLITS
from .storage import DataError
from .streams import HubSettings
from .tokenizer import TokenizerSettings, build_tokenizer
from .tokens import Tokens, build_tokens

__all__ = [
    "SPLITS",
    "Corpus",
    "CorpusSettings",
    "DataError",
    "FilterSettings",
    "HubSettings",
    "Passages",
    "PreparedData",
    "TokenizerSettings",
    "Tokens",
    "build_corpus",
    "build_tokenizer",
    "build_tokens",
    "ngram_bits_per_byte",
    "overview",
    "prepare_data",
    "prepare_for_tokenizer",
    "prepare_text",
]
