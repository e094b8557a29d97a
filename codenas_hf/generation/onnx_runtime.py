"""Decoding in ONNX Runtime, from a file that `codenas export --to onnx` writes.

Keys and values go from the outputs of a step to the inputs of the next one where they lie: they become no arrays on
the way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runtimes import Runtime

_PACKAGE = "onnxruntime"


class OnnxRuntimeError(RuntimeError):
    """ONNX Runtime is not here, or refuses a file; says why and what to do."""


def is_installed() -> bool:
    """Whether ONNX Runtime is here; loads nothing."""
    return importlib.util.find_spec(_PACKAGE) is not None


class OnnxRuntime(Runtime):
    """One sequence in ONNX Runtime, on a processor.

    Args:
        path: a file with the inputs and outputs of `compression.onnx.write_onnx`.
        context_tokens: most tokens.
        threads: of the computation.

    Raises:
        OnnxRuntimeError: the package is missing, or the file cannot be read or has other inputs.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: Path, *, context_tokens: int, threads: int = 1) -> None:
        super().__init__(_PACKAGE, context_tokens=context_tokens, file=path)
        if not path.is_file():
            raise FileNotFoundError(f"no ONNX file {path}")
        try:
            import onnxruntime  # an extra
        except ModuleNotFoundError as error:
            raise OnnxRuntimeError("ONNX Runtime is not installed here; pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            why = str(error).splitlines()[0]
            raise OnnxRuntimeError(f"ONNX Runtime cannot read {path}: {why}") from error
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._shapes = {name: (shape[1], shape[3]) for name, shape in inputs.items() if name.startswith("past_key")}
        if set(inputs) - set(self._shapes) != {"input_ids", "attention_mask"} or not self._shapes:
            others = ", ".join(sorted(set(inputs) - set(self._shapes)))
            raise OnnxRuntimeError(
                f"{path} takes {others}; expected input_ids, attention_mask and past_key_values, as "
                "`codenas export --to onnx` writes them"
            )
        self._value: Any = onnxruntime.OrtValue.ortvalue_from_numpy
        self._ones = self._value(np.ones((1, context_tokens), np.int64))
        self._past: dict[str, Any] = {}
        self._forget(0)

    def all_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind each token in one pass; see `Runtime.all_logits`."""
        if not 0 < len(token_ids) <= (self.context_tokens or 0):
            raise ValueError(f"{len(token_ids)} tokens do not fit a context of {self.context_tokens}; give fewer")
        self._kept.clear()
        self._forget(0)
        found = self._run(list(token_ids))
        self._forget(0)
        return found

    def _compute(self, ids: list[int]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._run(ids)[-1]
        return found

    def _run(self, ids: list[int]) -> NDArray[np.float32]:
        """The logits `[tokens, vocabulary]` of more tokens."""
        binding: Any = self._session.io_binding()
        length = len(self._kept) + len(ids)
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_input("attention_mask", "cpu", 0, np.int64, (1, length), self._ones.data_ptr())
        binding.bind_output("logits")
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_output(name.replace("past_key_values", "present"))
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        self._past = dict(zip(self._past, present, strict=True))
        found: NDArray[np.float32] = logits.numpy()[0]
        return found

    def _forget(self, length: int) -> int:
        for name, (heads, size) in self._shapes.items():
            if length:
                kept = np.ascontiguousarray(self._past[name].numpy()[:, :, :length])
            else:
                kept = np.zeros((1, heads, 0, size), np.float32)
            self._past[name] = self._value(kept)
        return length
