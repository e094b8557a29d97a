"""Decoding in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from codenas_hf.generation.runtimes import Runtime


class OnnxRuntime(Runtime):
    """One sequence in ONNX Runtime, on one thread; keys and values go from a step's outputs to the next one's inputs.

    Args:
        path: an exported file, see `codenas_hf.compression.onnx.write_onnx`.
        context_tokens: most tokens.
    """

    def __init__(self, path: Path, *, context_tokens: int) -> None:
        super().__init__("onnxruntime", context_tokens=context_tokens)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        past = [value for value in self._session.get_inputs() if value.name.startswith("past")]
        self._heads: dict[str, tuple[int, int]] = {value.name: (value.shape[1], value.shape[3]) for value in past}
        self._ones = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((1, context_tokens), np.int64))
        self._forget(0)

    def _compute(self, ids: list[int]) -> NDArray[np.float32]:
        binding: Any = self._session.io_binding()
        length = len(self._kept) + len(ids)
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_input("attention_mask", "cpu", 0, np.int64, (1, length), self._ones.data_ptr())
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name in self._past:
            binding.bind_output(name.replace("past_key_values", "present"))
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        self._past = dict(zip(self._past, present, strict=True))
        found: NDArray[np.float32] = logits.numpy()[0, -1]
        return found

    def _forget(self, length: int) -> int:
        shapes = {name: (1, heads, 0, size) for name, (heads, size) in self._heads.items()}
        whole = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(s, np.float32)) for name, s in shapes.items()}
        if length:
            kept = {name: value.numpy()[:, :, :length] for name, value in self._past.items()}
            whole = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for name, v in kept.items()
            }
        self._past = whole
        return length
