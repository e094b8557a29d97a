"""Token shards on disk: packed training batches by (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folders import write_json
from ..folders.files import TOKENIZER
from .corpus import Corpus
from .encode import BulkEncoder
from .nested import TokenSplitter
from .storage import DataError, building, content_key, file_sha256, locked, read_json, stored_key
from .tokenizer import END_OF_TEXT, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, load_backend

Int64 = npt.NDArray[np.int64]

_VERSION = 1
_MANIFEST = "tokens.json"
_BATCH_BYTES = 1_000_000
_SHORTEST_FIM = 16
_BLOCK_ROWS = 1 << 20  # rows that are shuffled together: 8 MB of indices, whatever the size of the corpus


class Tokens:
    """One split of a corpus as tokens, memory-mapped; opening is cheap and the object can be pickled.

    Each document is `<|endoftext|>` followed by its tokens, so a model learns what starts a document and what ends it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Use `Tokens.open`."""
        self.folder = folder
        self.digest: str = manifest["digest"]
        self.vocab_size: int = manifest["vocab_size"]
        self.num_tokens: int = manifest["num_tokens"]
        self.num_bytes: int = manifest["num_bytes"]
        self.num_documents: int = manifest["num_documents"]
        self._shards: list[npt.NDArray[np.uint16]] = []
        for entry in manifest["shards"]:
            path = folder / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
                raise DataError(
                    f"the token shard {path} is damaged: expected {entry['bytes']:,} bytes, found {found}; "
                    f"delete {folder} and prepare the data again"
                )
            self._shards.append(np.memmap(path, "<u2", mode="r"))
        # int64 [n, 5]: tokens, bytes, sort key (from the text's SHA-256), shard, offset in the shard.
        self.documents: Int64 = np.load(folder / "documents.npy", allow_pickle=False)
        self._stream_length = self.num_tokens + self.num_documents
        self._order = functools.lru_cache(maxsize=3)(self._shuffle)
        self._row_order = functools.lru_cache(maxsize=2)(self._shuffle_rows)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Tokens:
        """Opens finished tokens.

        Args:
            folder: as given to `build_tokens`.
            verify: also compare every shard's SHA-256 with the manifest.

        Raises:
            DataError: there are none, or a shard is damaged.
        """
        manifest = read_json(folder / _MANIFEST, what="tokens")
        tokens = cls(folder, manifest)
        if verify:
            for entry in [*manifest["shards"], manifest["documents"]]:
                if file_sha256(folder / entry["name"]) != entry["sha256"]:
                    raise DataError(
                        f"the token shard {folder / entry['name']} is damaged: its SHA-256 is not the manifest's; "
                        f"delete {folder} and prepare the data again"
                    )
        return tokens

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return (Tokens.open, (self.folder,))

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes that one token stands for."""
        return self.num_bytes / self.num_tokens

    def document(self, index: int) -> npt.NDArray[np.uint16]:
        """The tokens of one document, without `<|endoftext|>`: a view of the file."""
        count, _, _, shard, offset = self.documents[index]
        tokens: npt.NDArray[np.uint16] = self._shards[shard][offset : offset + count]
        return tokens

    def _shuffle(self, seed: int, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's order of documents, and where each starts in the epoch's stream."""
        order = np.random.default_rng([seed, epoch]).permutation(self.num_documents)
        ends = np.cumsum(self.documents[order, 0] + 1)
        return order, np.concatenate([[0], ends])

    def _shuffle_rows(self, seed: int, block: int, rows: int) -> Int64:
        """The order in which a block of rows is read."""
        order: Int64 = np.random.default_rng([seed, block, rows]).permutation(rows)
        return order

    def batch(
        self,
        step: int,
        *,
        sequences: int,
        length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        fim_rate: float = 0.0,
        spm_share: float = 0.5,
    ) -> dict[str, Int64]:
        """One step's packed sequences: a pure function of its arguments, so that resuming is exact.

        The documents of each epoch form one stream, in a new order each epoch, cut into rows of `length`. The rows are
        read in a random order: one long file would otherwise fill many steps in turn. All ranks together read them:
        one process with 8 sequences sees what two with 4 see.

        Args:
            step: optimiser step (or micro step), from 0.
            sequences: rows of this rank.
            length: tokens of a row.
            seed: of the order of documents and of the fill-in-the-middle cuts.
            rank: this process.
            world: number of processes.
            fim_rate: share of the pieces (a document's part in a row) that are rearranged to fill in the middle.
            spm_share: share of those in the order suffix, prefix, middle; the others are prefix, suffix, middle.

        Returns:
            int64 arrays [sequences, length]: `input_ids`, `labels` (the same; the model shifts), `position_ids`
            (0 where a document or a row starts).
        """
        ids = np.empty((sequences, length), np.int64)
        positions = np.empty((sequences, length), np.int64)
        first = (step * world + rank) * sequences
        for row in range(sequences):
            column = 0
            rng = np.random.default_rng([seed, first + row, length]) if fim_rate > 0 else None
            begin = length * self._row(first + row, length, seed)
            for document, start, count in self._pieces(begin, length, seed):
                piece = ids[row, column : column + count]
                body = piece
                if start == 0:
                    piece[0] = END_OF_TEXT
                    body = piece[1:]
                    start = 1
                body[:] = self.document(document)[start - 1 : start - 1 + len(body)]
                if rng is not None and rng.random() < fim_rate and len(body) >= _SHORTEST_FIM:
                    body[:] = fill_in_the_middle(body, rng=rng, suffix_first=rng.random() < spm_share)
                positions[row, column : column + count] = np.arange(count)
                column += count
        return {"input_ids": ids, "labels": ids.copy(), "position_ids": positions}

    def _row(self, index: int, length: int, seed: int) -> int:
        """Which row of the stream is read as number `index`."""
        rows: int = min(max(1, self._stream_length // length), _BLOCK_ROWS)
        block, place = divmod(index, rows)
        return block * rows + int(self._row_order(seed, block, rows)[place])

    def _pieces(self, begin: int, length: int, seed: int) -> Iterator[tuple[int, int, int]]:
        """The documents that a row covers: (document, start in it with `<|endoftext|>` counted, tokens taken)."""
        while length > 0:
            epoch, place = divmod(begin, self._stream_length)
            order, starts = self._order(seed, epoch)
            index = int(np.searchsorted(starts, place, side="right")) - 1
            while length > 0 and index < len(order):
                count = min(int(starts[index + 1]) - place, length)
                yield int(order[index]), place - int(starts[index]), count
                begin += count
                place += count
                length -= count
                index += 1


def fill_in_the_middle(body: Int64, *, rng: np.random.Generator, suffix_first: bool) -> Int64:
    """Rearranges a piece of a document so that its middle comes last (Bavarian et al. 2022, arXiv:2207.14255).

    The three marks take the room of the last three tokens, so the length stays.

    Args:
        body: token ids [n], n > 3.
        rng: draws the two cuts.
        suffix_first: suffix, prefix, middle ("SPM") instead of prefix, suffix, middle ("PSM").

    Returns:
        int64 [n].
    """
    count = len(body) - 3
    a, b = np.sort(rng.integers(0, count + 1, size=2))
    prefix, middle, suffix = body[:a], body[a:b], body[b:count]
    if suffix_first:
        parts = ([FIM_PREFIX, FIM_SUFFIX], suffix, [FIM_MIDDLE], prefix, middle)
    else:
        parts = ([FIM_PREFIX], prefix, [FIM_SUFFIX], suffix, [FIM_MIDDLE], middle)  # type: ignore[assignment]
    return np.concatenate(parts).astype(np.int64)


def build_tokens(
    corpus: Corpus, tokenizer: Path, *, split: str, folder: Path, larger: tuple[Path, Path] | None = None
) -> Tokens:
    """Encodes one split, or opens it when `folder` holds it already (then every hash is verified).

    A killed build goes on with the next shard.

    Args:
        corpus: the text.
        tokenizer: folder of the tokenizer.
        split: `train`, `search` or `report`.
        folder: where the tokens go.
        larger: folders of the same split's tokens, and of their tokenizer, with a larger vocabulary of the same
            merges; then nothing is encoded again. The result is the same.

    Raises:
        DataError: no such split or tokenizer, a damaged shard, a full disk.
    """
    backend = load_backend(tokenizer)
    key = content_key([_VERSION, corpus.digest, split, file_sha256(tokenizer / TOKENIZER)])
    with locked(folder):
        if stored_key(folder, _MANIFEST) == key:
            return Tokens.open(folder, verify=True)
        with building(folder, name=f"building-{key[:12]}", keep=True) as work:
            splitter = TokenSplitter.between(larger[1], tokenizer) if larger else None
            whole = Tokens.open(larger[0]) if larger else None
            encoder = None if larger else BulkEncoder(backend)
            shards = []
            for number, path in enumerate(corpus.shards(split)):
                name = f"tokens-{number:05d}.bin"
                if (work / f"{name}.npy").exists():
                    pass
                elif encoder:
                    _encode_shard(corpus, path, encoder, work / name)
                elif splitter and whole:
                    _split_shard(whole, number, splitter, work / name)
                shards.append(
                    {"name": name, "bytes": (work / name).stat().st_size, "sha256": file_sha256(work / name)}
                )
            documents = np.concatenate([np.load(work / f"{entry['name']}.npy") for entry in shards])
            documents[:, 3] = np.repeat(
                np.arange(len(shards)), [len(np.load(work / f"{entry['name']}.npy")) for entry in shards]
            )
            np.save(work / "documents.npy", documents, allow_pickle=False)
            for entry in shards:
                (work / f"{entry['name']}.npy").unlink()
            manifest = {
                "key": key,
                "digest": key,
                "split": split,
                "corpus": corpus.digest,
                "vocab_size": backend.get_vocab_size(),
                "num_tokens": int(documents[:, 0].sum()),
                "num_bytes": int(documents[:, 1].sum()),
                "num_documents": len(documents),
                "shards": shards,
                "documents": {"name": "documents.npy", "sha256": file_sha256(work / "documents.npy")},
            }
            write_json(work / _MANIFEST, manifest)
    return Tokens.open(folder)


def _encode_shard(corpus: Corpus, path: Path, encoder: BulkEncoder, out: Path) -> None:
    """Encodes one Arrow shard into one token shard; its table of documents is renamed into place last."""
    documents: list[tuple[int, int, int, int, int]] = []
    offset = 0
    with out.open("wb") as file:
        for texts, hashes in _small_batches(corpus, path):
            for text, sha, ids in zip(texts, hashes, encoder.encode(texts), strict=True):
                ids.astype("<u2").tofile(file)
                documents.append((len(ids), len(text.encode("utf-8")), int(sha[:15], 16), 0, offset))
                offset += len(ids)
    _finish_shard(out, documents)


def _split_shard(whole: Tokens, number: int, splitter: TokenSplitter, out: Path) -> None:
    """The same shard with a smaller vocabulary."""
    documents: list[tuple[int, int, int, int, int]] = []
    offset = 0
    with out.open("wb") as file:
        for index in np.flatnonzero(whole.documents[:, 3] == number):
            ids = splitter.split(whole.document(int(index)))
            ids.astype("<u2").tofile(file)
            documents.append((len(ids), int(whole.documents[index, 1]), int(whole.documents[index, 2]), 0, offset))
            offset += len(ids)
    _finish_shard(out, documents)


def _finish_shard(out: Path, documents: list[tuple[int, int, int, int, int]]) -> None:
    temporary = out.with_name(out.name + ".tmp.npy")
    np.save(temporary, np.array(documents, np.int64).reshape(-1, 5), allow_pickle=False)
    temporary.rename(out.with_name(out.name + ".npy"))


def _small_batches(corpus: Corpus, path: Path) -> Iterator[tuple[list[str], list[str]]]:
    texts: list[str] = []
    hashes: list[str] = []
    size = 0
    for batch in corpus.read_shard(path, "text", "sha256"):
        for text, sha in zip(batch["text"], batch["sha256"], strict=True):
            texts.append(text)
            hashes.append(sha)
            size += len(text)
            if size >= _BATCH_BYTES:
                yield texts, hashes
                texts, hashes, size = [], [], 0
    if texts:
        yield texts, hashes
