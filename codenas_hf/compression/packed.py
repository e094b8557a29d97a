"""A folder in few bits that plain `AutoModelForCausalLM.from_pretrained` loads on any device.

The layout is that of compressed-tensors, which transformers reads where that package is installed
(`pip install compressed-tensors`): integers packed into int32 words, a scale for each 32 weights. It saves bytes, not
time: loading decodes to the model's own number format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..folders.files import CONFIG, WEIGHTS
from .formats import PACKED_FORMS
from .quantize import Codes, quantize

_BITS = {"q8_0": 8, "q4_0": 4}


def write_packed(model: PreTrainedModel, folder: Path, *, form: str) -> int:
    """Writes `model.safetensors` and `config.json` into an existing folder.

    Args:
        model: a causal language model of transformers, float32, on the CPU.
        folder: where to; the caller adds tokenizer and generation settings.
        form: int8 or int4, of every matrix, embedding and head included: transformers reads one scheme for a model.

    Returns:
        Bytes of the weights.

    Raises:
        ValueError: an unknown form, a layer that the layout does not know, or a matrix that is no whole number of
            blocks; names the layer. Nothing is written.
    """
    if form not in PACKED_FORMS:
        raise ValueError(f"the packed form must be one of {', '.join(PACKED_FORMS)}, got {form!r}")
    tensors: dict[str, torch.Tensor] = {}
    packed: set[str] = set()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, Conv1D):
            raise ValueError(f"`{path}` is a Conv1D, which compressed-tensors does not store; write gguf or onnx")
        if not isinstance(module, nn.Linear | nn.Embedding) or names.get(id(module.weight)) != f"{path}.weight":
            continue  # a tied head is written under the embedding's name
        block = PACKED_FORMS[form]
        try:
            codes = quantize(module.weight, block)
        except ValueError as error:
            raise ValueError(f"`{path}` {list(module.weight.shape)} cannot be stored: {error}") from error
        tensors[f"{path}.weight_packed"] = _words(codes)
        tensors[f"{path}.weight_scale"] = codes.scales.float()
        tensors[f"{path}.weight_shape"] = torch.tensor(module.weight.shape)
        packed.add(f"{path}.weight")
    for name, parameter in model.named_parameters():
        if name not in packed:
            tensors[name] = parameter.detach().clone()
    config = json.loads(model.config.to_json_string())
    config["quantization_config"] = _scheme(form, tied=bool(model.config.tie_word_embeddings))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return (folder / WEIGHTS).stat().st_size


def _words(codes: Codes) -> torch.Tensor:
    """int32 `[rows, columns * bits / 32]`: unsigned codes, the first in the lowest bits."""
    bits = _BITS[codes.block.name]
    # Points start at -127 or -8; the layout counts from -128 or -8.
    values: NDArray[Any] = codes.codes.numpy() + np.uint8(1 if bits == 8 else 0)
    if bits == 4:
        values = values[:, 0::2] | (values[:, 1::2] << 4)
    return torch.from_numpy(np.ascontiguousarray(values).view(np.int32).copy())


def _scheme(form: str, *, tied: bool) -> dict[str, Any]:
    weights = {
        "num_bits": _BITS[PACKED_FORMS[form].name],
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": True,  # without it a tied table has no weight when the head asks for it
        "config_groups": {"all": {"targets": ["Linear", "Embedding"], "weights": weights}},
        "ignore": ["lm_head"] if tied else [],
    }
