"""Corpus, tokenizers and tokens of a job, each built once and found again by content."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..folders.files import TOKENIZER
from .candidates import list_inputs
from .corpus import Corpus, OnProgress, build_corpus
from .passages import REPORT_BYTES, SEARCH_BYTES, Passages, build_passages
from .settings import CorpusSettings
from .split import SPLITS
from .storage import DataError, content_key, file_sha256
from .tokenizer import SPECIAL_TOKENS, TokenizerSettings, build_tokenizer, load_backend, tokenizer_key
from .tokens import Tokens, build_tokens


@dataclass(frozen=True)
class PreparedData:
    """Everything that training and evaluation read, by place; cheap to pickle and to open in a child process.

    Args:
        folder: root of the cache.
        corpus_folder: folder of the corpus.
        digest: hex SHA-256 of the corpus, the tokenizer settings and the vocabularies.
        tokenizers: vocabulary size to the tokenizer's folder.
        splits: vocabulary size and split to the tokens' folder.
    """

    folder: Path
    corpus_folder: Path
    digest: str
    tokenizers: dict[int, Path]
    splits: dict[tuple[int, str], Path]

    @property
    def corpus(self) -> Corpus:
        """The corpus."""
        return Corpus.open(self.corpus_folder)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """The vocabulary sizes that are prepared, ascending."""
        return tuple(sorted(self.tokenizers))

    def to_dict(self, *, beside: Path) -> dict[str, Any]:
        """JSON form: places and digest, no content.

        Args:
            beside: folder of the study that keeps it: places are relative to it, so that both may move together.
        """

        def place(path: Path) -> str:
            return os.path.relpath(path.resolve(), beside.resolve())

        return {
            "beside": str(beside.resolve()),
            "folder": place(self.folder),
            "corpus_folder": place(self.corpus_folder),
            "digest": self.digest,
            "tokenizers": {str(size): place(path) for size, path in self.tokenizers.items()},
            "splits": [[size, split, place(path)] for (size, split), path in self.splits.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, beside: Path) -> PreparedData:
        """Inverse of `to_dict`, for a study that may have moved: with its data, or away from them.

        Args:
            data: JSON form; earlier studies kept absolute places.
            beside: folder of the study now.
        """

        def place(text: str) -> Path:
            here, parts = beside.resolve(), Path(text).parts
            ends = [here.parent.joinpath(*parts[start:]) for start in range(1, len(parts)) if Path(text).is_absolute()]
            # The old folder may be gone, so `..` is taken away by its letters.
            places = [Path(os.path.normpath(root / text)) for root in (here, Path(data.get("beside", here)))]
            return next((path for path in (*places, *ends) if path.exists()), places[0])

        return cls(
            folder=place(data["folder"]),
            corpus_folder=place(data["corpus_folder"]),
            digest=data["digest"],
            tokenizers={int(size): place(path) for size, path in data["tokenizers"].items()},
            splits={(int(size), str(split)): place(path) for size, split, path in data["splits"]},
        )

    def tokenizer(self, vocab_size: int) -> Path:
        """Folder of the tokenizer, for `AutoTokenizer.from_pretrained`.

        Raises:
            DataError: that size was not prepared.
        """
        if vocab_size not in self.tokenizers:
            raise DataError(f"no tokenizer with {vocab_size} entries is prepared: expected one of {self.vocab_sizes}")
        return self.tokenizers[vocab_size]

    def tokens(self, vocab_size: int, split: str) -> Tokens:
        """The tokens of one split.

        Raises:
            DataError: that size or split was not prepared, or a shard is damaged.
        """
        if (vocab_size, split) not in self.splits:
            raise DataError(
                f"no tokens of `{split}` with {vocab_size} entries are prepared: expected {', '.join(SPLITS)}, "
                f"and one of {self.vocab_sizes}"
            )
        return Tokens.open(self.splits[vocab_size, split])

    def passages(self, vocab_size: int, which: str, *, length: int, max_bytes: int | None = None) -> Passages:
        """Search or report text to score: many short passages, the same bytes for every vocabulary.

        Args:
            vocab_size: whose tokens.
            which: `search` (what rungs are scored on) or `report` (what is finally claimed).
            length: longest row in tokens.
            max_bytes: about how much is scored; None takes 250 kB of search text, 1 MB of report text.

        Raises:
            DataError: that size was not prepared, or no such text.
        """
        if max_bytes is None:
            max_bytes = REPORT_BYTES if which == "report" else SEARCH_BYTES
        tokenizer = self.tokenizer(vocab_size)
        cache = self.splits.get((vocab_size, which), self.folder)
        return build_passages(self.corpus, tokenizer, which, length=length, max_bytes=max_bytes, cache=cache)


def prepare_data(
    *,
    corpus: CorpusSettings,
    tokenizer: TokenizerSettings,
    vocab_sizes: Sequence[int],
    folder: Path,
    on_progress: OnProgress | None = None,
) -> PreparedData:
    """Builds what is missing of corpus, tokenizers and tokens, and verifies what is there.

    Args:
        corpus: what text.
        tokenizer: how it is cut.
        vocab_sizes: the vocabularies that will be used.
        folder: root of the cache; several jobs may share it.
        on_progress: told what is being made, how much of it is, and how much there will be: `"corpus"` in bytes of
            text, then `"vocabularies"` in their number.

    Raises:
        DataError: see `build_corpus`, `build_tokenizer`, `build_tokens`; or no vocabulary is asked for.
    """
    sizes = sorted(set(vocab_sizes), reverse=True)
    if not sizes:
        raise DataError("`vocab_sizes` must name at least one vocabulary size, got none")
    built = _build_corpus(corpus, folder, on_progress=on_progress)
    tokenizers: dict[int, Path] = {}
    splits: dict[tuple[int, str], Path] = {}
    if on_progress is not None:
        on_progress("vocabularies", 0, len(sizes))
    for size in sizes:
        key = tokenizer_key(built, vocab_size=size, settings=tokenizer)[:12]
        tokenizers[size] = build_tokenizer(
            built,
            vocab_size=size,
            settings=tokenizer,
            folder=folder / "tokenizers" / f"{size}-{key}",
            larger=tokenizers.get(sizes[0]),
        )
        for split in SPLITS:
            target = folder / "tokens" / f"{size}-{key}-{split}"
            larger = None if size == sizes[0] else (splits[sizes[0], split], tokenizers[sizes[0]])
            build_tokens(built, tokenizers[size], split=split, folder=target, larger=larger)
            splits[size, split] = target
        if on_progress is not None:
            on_progress("vocabularies", len(tokenizers), len(sizes))
    digest = content_key([built.digest, dataclasses.asdict(tokenizer), sizes])
    return PreparedData(folder, built.folder, digest, tokenizers, splits)


def prepare_for_tokenizer(
    tokenizer: Path, *, corpus: CorpusSettings, folder: Path, on_progress: OnProgress | None = None
) -> PreparedData:
    """As `prepare_data`, with the tokenizer of a model that is there already and reads other text now.

    Args:
        tokenizer: a release folder, or any folder with a tokenizer of `build_tokenizer`.
        corpus: what text.
        folder: root of the cache.
        on_progress: as in `prepare_data`.

    Raises:
        DataError: the tokenizer is none of ours; or see `build_corpus`, `build_tokens`.
    """
    backend = load_backend(tokenizer)
    if [backend.token_to_id(token) for token in SPECIAL_TOKENS] != list(range(len(SPECIAL_TOKENS))):
        raise DataError(
            f"the tokenizer in {tokenizer} is none that this package trains: expected {', '.join(SPECIAL_TOKENS)} as "
            f"its first entries; only models released by codenas can be fine-tuned"
        )
    built = _build_corpus(corpus, folder, on_progress=on_progress)
    size = backend.get_vocab_size()
    digest = content_key([built.digest, file_sha256(tokenizer / TOKENIZER)])
    splits = {(size, split): folder / "tokens" / f"{size}-{digest[:12]}-{split}" for split in SPLITS}
    for (_, split), target in splits.items():
        build_tokens(built, tokenizer, split=split, folder=target)
    return PreparedData(folder, built.folder, digest, {size: tokenizer}, splits)


def prepare_text(corpus: CorpusSettings, *, folder: Path, on_progress: OnProgress | None = None) -> PreparedData:
    """As `prepare_data`, without any tokenizer: for a parent that brings its own.

    Args:
        corpus: what text.
        folder: root of the cache.
        on_progress: as in `prepare_data`.

    Raises:
        DataError: see `build_corpus`.
    """
    built = _build_corpus(corpus, folder, on_progress=on_progress)
    return PreparedData(folder, built.folder, built.digest, {}, {})


def _build_corpus(settings: CorpusSettings, folder: Path, *, on_progress: OnProgress | None = None) -> Corpus:
    inputs = list_inputs(settings)
    return build_corpus(settings, folder=folder / "corpora" / inputs.key[:12], inputs=inputs, on_progress=on_progress)
