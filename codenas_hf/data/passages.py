"""Search and report text as passages: many short pieces of many projects, the same bytes for every vocabulary."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..folders import whole_file
from ..folders.files import TOKENIZER
from .corpus import Corpus
from .split import HELD_OUT, LARGEST_SHARE
from .storage import DataError, content_key, file_sha256
from .tokenizer import END_OF_TEXT, PAD, load_backend

Int64 = npt.NDArray[np.int64]

IGNORED = -100
SEARCH_BYTES = 250_000
REPORT_BYTES = 1_000_000
FEWEST_BYTES = 600
CONTEXT_BYTES = 1_000
_VERSION = 1
_SHORT = 200
_ARRAYS = ("input_ids", "targets", "position_ids", "num_bytes", "passage", "project")
_LINE = re.compile(rb"(?<=\n)(?=[^\n\r \t]|[ \t]+[^\s])")


@dataclass(frozen=True)
class Passage:
    """A piece of a document, cut at starts of lines that are not blank.

    Args:
        project: the project of its document.
        document: SHA-256 of the document's text.
        context: what precedes it, from the start of a line: all of it where the limit allows.
        text: what is scored.
        from_start: whether `context` is the document's whole beginning.
    """

    project: str
    document: str
    context: bytes
    text: bytes
    from_start: bool


@dataclass(frozen=True)
class Passages:
    """Passages as tokens of one vocabulary, one or more rows each; every byte of a passage is scored once.

    Args:
        input_ids: int64 [n, length].
        targets: int64 [n, length], already shifted; -100 is not scored (context, padding).
        position_ids: int64 [n, length], 0 at the start of a row.
        num_bytes: int64 [n], UTF-8 bytes of the text that a row's targets spell.
        passage: int64 [n], the passage that a row belongs to; the numbers are the same for every vocabulary.
        project: int64 [n], index into `projects`.
        projects: what scores are resampled by: names of projects, or the documents of the only one.
        by: `project`, or `document` where there is one project only.
    """

    input_ids: Int64
    targets: Int64
    position_ids: Int64
    num_bytes: Int64
    passage: Int64
    project: Int64
    projects: tuple[str, ...]
    by: str


def choose_passages(
    corpus: Corpus, which: str, *, max_bytes: int, context_bytes: int = CONTEXT_BYTES
) -> list[Passage]:
    """Draws passages of search or report text, in turn from every project, until `max_bytes` are reached.

    Within a project they come in turn from every document. So a smaller amount is nearly the beginning of a larger
    one, and where there are projects enough none has more than a fifth. The choice depends on the corpus only.

    Args:
        corpus: the text.
        which: `search` or `report`.
        max_bytes: upper limit of what is scored; less where there is less text.
        context_bytes: upper limit of each passage's context.

    Raises:
        DataError: no such text, or no room for any.
    """
    if which not in HELD_OUT:
        raise DataError(f"passages are of {' or '.join(HELD_OUT)} text, got {which!r}; training text is not scored")
    if max_bytes < 1:
        raise DataError(f"the bytes that are scored must be at least 1, got {max_bytes}")
    queues = _queues(corpus, which)
    share = max_bytes * LARGEST_SHARE if len(queues) > 1 / LARGEST_SHARE else math.inf
    taken: Counter[str] = Counter()
    chosen: list[tuple[str, str, int, int]] = []
    while queues:
        for project in sorted(queues, key=lambda name: _lot(corpus, f"{name}:{len(queues[name])}")):
            document, start, end = queues[project].pop()
            if taken.total() + end - start > max_bytes and chosen:
                queues.clear()
                break
            if taken[project] + end - start <= share or not chosen:
                chosen.append((project, document, start, end))
                taken[project] += end - start
        queues = {project: queue for project, queue in queues.items() if queue and taken[project] < share}
    texts = _texts(corpus, which, {document for _, document, _, _ in chosen})
    return [
        _cut(project, document, texts[document], start, end, context_bytes) for project, document, start, end in chosen
    ]


def build_passages(
    corpus: Corpus, tokenizer: Path, which: str, *, length: int, max_bytes: int, cache: Path
) -> Passages:
    """Encodes the passages, or finds them in `cache`.

    Context and passage are encoded apart, so that tokens never cross the border, and the context is cut to what fits
    before the passage. A passage that is longer than a row takes several, each with the tokens before it.

    Args:
        corpus: the text.
        tokenizer: folder of the tokenizer.
        which: `search` or `report`.
        length: longest row in tokens.
        max_bytes: about how much is scored.
        cache: a folder; what lies there is told apart by text, tokenizer, length and amount.

    Raises:
        DataError: see `choose_passages`; or `length` is below 2.
    """
    if length < 2:
        raise DataError(f"a row of a passage needs at least 2 tokens, got {length}")
    key = content_key([_VERSION, corpus.digest, which, file_sha256(tokenizer / TOKENIZER), length, max_bytes])
    path = cache / f"passages-{which}-{key[:16]}.npz"
    damaged = (OSError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*damaged), np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in _ARRAYS}
        return Passages(**arrays, projects=tuple(map(str, stored["projects"])), by=str(stored["by"]))
    passages = _encode(
        choose_passages(corpus, which, max_bytes=max_bytes, context_bytes=max(CONTEXT_BYTES, 4 * length)),
        tokenizer,
        length,
    )
    with contextlib.suppress(OSError), whole_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **{**vars(passages), "projects": np.array(passages.projects, dtype=str)})
    return passages


def _encode(passages: Sequence[Passage], tokenizer: Path, length: int) -> Passages:
    backend = load_backend(tokenizer)
    sizes = {number: len(token) for token, number in backend.get_vocab().items()}  # a character for a byte
    texts = [text.decode("utf-8") for passage in passages for text in (passage.context, passage.text)]
    encoded = [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    by = "project" if len({passage.project for passage in passages}) > 1 else "document"
    names = [str(getattr(passage, by)) for passage in passages]
    projects = {name: number for number, name in enumerate(sorted(set(names)))}
    rows: list[tuple[list[int], int, int, int]] = []  # tokens, the first that is scored, passage, bytes
    for number, passage in enumerate(passages):
        context, text = encoded[2 * number : 2 * number + 2]
        tokens = [*([END_OF_TEXT] if passage.from_start else []), *context, *text]
        first, stop = len(tokens) - len(text), len(tokens)
        step = len(text) if len(text) <= length else math.ceil(len(text) / math.ceil(2 * len(text) / length))
        for begin in range(first, stop, step):
            end = min(stop, begin + step)
            seen = max(0, end - 1 - length)
            size = sum(sizes[token] for token in tokens[begin:end])
            rows.append((tokens[seen:end], begin - seen, number, size))
    width = max(len(tokens) for tokens, *_ in rows) - 1
    ids = np.full((len(rows), width), PAD, np.int64)
    targets = np.full((len(rows), width), IGNORED, np.int64)
    for place, (tokens, scored, _, _) in enumerate(rows):
        ids[place, : len(tokens) - 1] = tokens[:-1]
        targets[place, scored - 1 : len(tokens) - 1] = tokens[scored:]
    passage_numbers = np.array([number for _, _, number, _ in rows], np.int64)
    return Passages(
        input_ids=ids,
        targets=targets,
        position_ids=np.broadcast_to(np.arange(width, dtype=np.int64), ids.shape).copy(),
        num_bytes=np.array([size for *_, size in rows], np.int64),
        passage=passage_numbers,
        project=np.array([projects[name] for name in names], np.int64)[passage_numbers],
        projects=tuple(projects),
        by=by,
    )


def _lot(corpus: Corpus, name: str) -> bytes:
    return hashlib.sha256(f"{corpus.digest}:{name}".encode()).digest()


def _queues(corpus: Corpus, which: str) -> dict[str, list[tuple[str, int, int]]]:
    """For each project its pieces (document, start, end), the last of which is taken first."""
    pieces: dict[str, list[tuple[bool, int, bytes, tuple[str, int, int]]]] = {}
    for batch in corpus.batches(which, "text", "project", "sha256"):
        for text, project, document in zip(batch["text"], batch["project"], batch["sha256"], strict=True):
            bounds = boundaries(text.encode("utf-8"))
            order = np.random.default_rng(int(document[:15], 16)).permutation(len(bounds) - 1)
            name = unicodedata.normalize("NFC", project).casefold()
            for turn, place in enumerate(order):
                piece = (document, bounds[place], bounds[place + 1])
                short = piece[2] - piece[1] < _SHORT
                pieces.setdefault(name, []).append((short, turn, _lot(corpus, f"{document}:{turn}"), piece))
    return {name: [piece for *_, piece in sorted(found, reverse=True)] for name, found in sorted(pieces.items())}


def boundaries(raw: bytes) -> list[int]:
    """Where a document is cut: at starts of lines that are not blank, as soon as a piece has `FEWEST_BYTES`."""
    bounds = [0]
    for found in _LINE.finditer(raw):
        if found.start() - bounds[-1] >= FEWEST_BYTES:
            bounds.append(found.start())
    if len(bounds) > 1 and len(raw) - bounds[-1] < FEWEST_BYTES // 2:
        bounds.pop()  # the end is too short to stand alone
    return [*bounds, len(raw)]


def _cut(project: str, document: str, raw: bytes, start: int, end: int, context: int) -> Passage:
    begin = 0
    if start > context:
        lines = [found.start() for found in _LINE.finditer(raw, start - context, start + 1)]
        begin = lines[0] if lines else start
        if begin >= start:  # one long line: from the start of its last characters
            begin = start - len(raw[start - context : start].decode("utf-8", "ignore").encode("utf-8"))
    return Passage(project, document, raw[begin:start], raw[start:end], from_start=begin == 0)


def _texts(corpus: Corpus, which: str, documents: set[str]) -> dict[str, bytes]:
    return {
        document: text.encode("utf-8")
        for batch in corpus.batches(which, "text", "sha256")
        for text, document in zip(batch["text"], batch["sha256"], strict=True)
        if document in documents
    }
