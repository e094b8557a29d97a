"""Decoding in llama.cpp, from a GGUF file: one sequence, or many at once.

The library comes with the package `xllamacpp` (`pip install 'codenas-hf[fast]'`), whose wheels hold llama.cpp's own C
interface for any processor; no compiler is needed. Its functions are called directly: one call for each token, the
logits read where they lie. Structures are never spelt out: they are asked for by llama.cpp's own functions and handed
back, so a newer version with longer ones works too. The few fields that are set stand at the very front, and their
defaults are checked first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runtimes import Runtime

_PACKAGE = "xllamacpp"
_BATCH = 512
_MOST_ROWS = 256  # sequences of one context, at most (LLAMA_MAX_SEQ)
_CELLS = 256  # a sequence's share of a context is a multiple of it
# The first fields of the context's settings: context, batch and micro-batch in tokens, most sequences; and defaults.
_CONTEXT_FIELDS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1}


class LlamaCppError(RuntimeError):
    """llama.cpp is not here, or refuses a file; says why and what to do."""


class _Settings(ctypes.Structure):
    """Room for a structure of llama.cpp, larger than any of its versions needs."""

    _fields_ = [("bytes", ctypes.c_uint8 * 2048)]


class _Batch(ctypes.Structure):
    """llama_batch: what `llama_batch_get_one` returns and `llama_decode` takes.

    Its pointers: tokens, embeddings, positions, numbers of sequences, sequences, and whose logits are asked for.
    """

    _fields_ = [("count", ctypes.c_int32), *((f"at{i}", ctypes.c_void_p) for i in range(6))]


def is_installed() -> bool:
    """Whether the package that brings llama.cpp is here; loads nothing."""
    return importlib.util.find_spec(_PACKAGE) is not None


class LlamaCppRuntime(Runtime):
    """One sequence in llama.cpp, or many at once in a context of their own.

    Args:
        path: a GGUF file.
        context_tokens: most tokens; None takes what the file says.
        threads: of the computation. More than one pays for large models only: its barriers spin.

    Raises:
        LlamaCppError: the package is missing, or the file cannot be read.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: Path, *, context_tokens: int | None = None, threads: int = 1) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no GGUF file {path}")
        self._library = library = _load()
        self._model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not self._model:
            raise LlamaCppError(f"llama.cpp cannot read {path}: damaged, or an architecture that it does not know")
        trained = int(library.llama_model_n_ctx_train(self._model))
        super().__init__("llama.cpp", context_tokens=context_tokens or trained, file=path)
        self.vocab_size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))
        self._threads = threads
        try:
            self._context = self._new_context(self.context_tokens or trained)
        except LlamaCppError:
            library.llama_model_free(self._model)
            self._model = None
            raise
        self._memory = library.llama_get_memory(self._context)

    def _new_context(self, tokens: int, *, rows: int = 1) -> Any:
        """Room for so many tokens of each of some sequences."""
        settings = self._library.llama_context_default_params()
        values = (rows * tokens, _BATCH, _BATCH, rows)
        ctypes.memmove(settings.bytes, np.array(values, np.uint32).tobytes(), 16)
        context = self._library.llama_init_from_model(self._model, settings)
        if not context:
            raise LlamaCppError(f"llama.cpp cannot make a context of {rows * tokens} tokens for {self.file}")
        self._library.llama_set_n_threads(context, self._threads, self._threads)
        return context

    def close(self) -> None:
        """Frees the model."""
        if self._model:
            self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def all_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind each token, many tokens in one pass; see `Runtime.all_logits`."""
        if not 0 < len(token_ids) <= (self.context_tokens or 0):
            raise ValueError(f"{len(token_ids)} tokens do not fit a context of {self.context_tokens}; give fewer")
        self._kept.clear()
        self._forget(0)
        found = []
        for start in range(0, len(token_ids), _BATCH):
            part = list(token_ids[start : start + _BATCH])
            wanted = np.ones(len(part), np.int8)  # a flag for each token: its logits are asked for
            self._decode(part, flags=wanted)
            shape = (len(part), self.vocab_size)
            found.append(np.ctypeslib.as_array(self._library.llama_get_logits(self._context), shape).copy())
        self._forget(0)
        return np.concatenate(found)

    def in_batches(self, count: int) -> bool:
        """Whether so many sequences are decoded faster together: the weights are then read once for all of them."""
        return 1 < count <= _MOST_ROWS

    def generate_many(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        steps: Sequence[int],
        pad: int,
        choose: Callable[[int, NDArray[np.float32]], int | None],
        push: Callable[[list[int]], list[bool]],
    ) -> None:
        """A token of every row in each pass; a prompt that several rows share is computed once. See `Runtime`."""
        cells = max(len(prompt) + most for prompt, most in zip(prompts, steps, strict=True))
        cells = -(-cells // _CELLS) * _CELLS
        with self._lock:
            context = self._new_context(cells, rows=len(prompts))
            try:
                logits = self._read_prompts(context, prompts)
                for step in range(max(steps)):
                    tokens = [choose(row, logits[row]) for row in range(len(prompts))]
                    done = push([pad if token is None else token for token in tokens])
                    rows = [row for row, token in enumerate(tokens) if token is not None and not done[row]]
                    if not rows:
                        return
                    ids = [tokens[row] for row in rows]
                    found = self._decode_rows(context, ids, at=[len(prompts[row]) + step for row in rows], rows=rows)
                    logits[rows] = found
            finally:
                self._library.llama_free(context)

    def _read_prompts(self, context: Any, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Computes each prompt once, for all rows that have it; the logits `[rows, vocabulary]` behind each."""
        memory = self._library.llama_get_memory(context)
        logits = np.empty((len(prompts), self.vocab_size), np.float32)
        first: dict[tuple[int, ...], int] = {}
        for row, prompt in enumerate(prompts):
            same = first.setdefault(tuple(prompt), row)
            if same != row:
                self._library.llama_memory_seq_cp(memory, same, row, -1, -1)
                logits[row] = logits[same]
                continue
            for start in range(0, len(prompt), _BATCH):
                part = prompt[start : start + _BATCH]
                places = range(start, start + len(part))
                logits[row] = self._decode_rows(context, part, at=places, rows=[row] * len(part), last=True)
        return logits

    def _decode_rows(
        self, context: Any, ids: Sequence[Any], *, at: Sequence[int], rows: Sequence[int], last: bool = False
    ) -> NDArray[np.float32]:
        """Computes tokens of several sequences; the logits behind each, or behind the last one alone."""
        tokens, places, numbers = (np.array(values, np.int32) for values in (ids, at, rows))
        ones = np.ones(len(tokens), np.int32)
        pointers = numbers.ctypes.data + np.arange(len(tokens), dtype=np.uint64) * np.uint64(numbers.itemsize)
        flags = np.ones(len(tokens), np.int8)
        if last:
            flags[:-1] = 0
        parts = (tokens, None, places, ones, pointers, flags)
        batch = _Batch(len(tokens), *(None if part is None else part.ctypes.data for part in parts))
        self._check(self._library.llama_decode(context, batch), len(tokens))
        shape = (int(flags.sum()), self.vocab_size)
        return np.ctypeslib.as_array(self._library.llama_get_logits(context), shape)

    def _compute(self, ids: list[int]) -> NDArray[np.float32]:
        for start in range(0, len(ids), _BATCH):
            self._decode(ids[start : start + _BATCH])
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (self.vocab_size,)).copy()

    def _decode(self, ids: Sequence[int], *, flags: NDArray[np.int8] | None = None) -> None:
        part = np.array(ids, np.int32)
        batch = self._library.llama_batch_get_one(part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(part))
        if flags is not None:
            batch.at5 = flags.ctypes.data
        self._check(self._library.llama_decode(self._context, batch), len(part))

    def _check(self, status: int, count: int) -> None:
        if status:
            raise LlamaCppError(f"llama.cpp could not compute {count} tokens (status {status})")

    def _forget(self, length: int) -> int:
        if self._library.llama_memory_seq_rm(self._memory, 0, length, -1):
            return length
        self._library.llama_memory_clear(self._memory, True)
        return 0


@functools.cache
def _load() -> Any:
    """The library with the functions that are used here, each with its types."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise LlamaCppError("llama.cpp is not installed here; pip install 'codenas-hf[fast]'")
    files = sorted(Path(found.submodule_search_locations[0]).glob(f"{_PACKAGE}*.so"))
    if not files:
        raise LlamaCppError(f"{_PACKAGE} is installed without its library; pip install --force-reinstall {_PACKAGE}")
    library = ctypes.CDLL(str(files[0]))
    handle, number, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    tokens, logits = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_float)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [handle, handle]),
        "llama_model_default_params": (_Settings, []),
        "llama_context_default_params": (_Settings, []),
        "llama_model_load_from_file": (handle, [ctypes.c_char_p, _Settings]),
        "llama_model_free": (None, [handle]),
        "llama_model_n_ctx_train": (number, [handle]),
        "llama_model_get_vocab": (handle, [handle]),
        "llama_vocab_n_tokens": (number, [handle]),
        "llama_init_from_model": (handle, [handle, _Settings]),
        "llama_free": (None, [handle]),
        "llama_set_n_threads": (None, [handle, number, number]),
        "llama_get_memory": (handle, [handle]),
        "llama_memory_seq_rm": (flag, [handle, number, number, number]),
        "llama_memory_clear": (None, [handle, flag]),
        "llama_memory_seq_cp": (None, [handle, number, number, number, number]),
        "llama_batch_get_one": (_Batch, [tokens, number]),
        "llama_decode": (number, [handle, _Batch]),
        "llama_get_logits": (logits, [handle]),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise LlamaCppError(
                f"this version of {_PACKAGE} lacks {name}; install the one that codenas-hf names"
            ) from error
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(ctypes.cast(_silence, handle), None)
    library.llama_backend_init()
    front = np.frombuffer(bytes(library.llama_context_default_params().bytes), np.uint32)[: len(_CONTEXT_FIELDS)]
    if front.tolist() != list(_CONTEXT_FIELDS.values()):
        raise LlamaCppError(
            f"this version of {_PACKAGE} lays its settings out differently; install the one named here"
        )
    return library


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silence(level: int, text: bytes, data: int) -> None:
    """llama.cpp's own log: errors come back as return values."""
