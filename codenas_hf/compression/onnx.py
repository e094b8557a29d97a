"""ONNX files, named and shaped as ONNX Runtime and transformers.js expect them.

The graph is transformers' own export with a key-value cache. Matrices in few bits are stored as integers behind
`DequantizeLinear`, an operator of the standard: every reader decodes exactly the numbers that were measured, and ONNX
Runtime fuses it with the product (where it then rounds activations to 8 bits too, unless the session's entry
`session.qdq_matmulnbits_accuracy_level` is 1). A tied table is stored once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..folders import whole_file
from .formats import BLOCKS, ONNX_FORMS, Block, is_positions
from .quantize import quantize

_OPSET = 21  # the first whose DequantizeLinear takes blocks


def write_onnx(model: PreTrainedModel, path: Path, *, form: str = "fp32") -> Path:
    """Writes a stock model with its cache as one ONNX file.

    Inputs are `input_ids`, `attention_mask` and `past_key_values.N.key` and `.value`, outputs `logits` and
    `present.N.key` and `.value`. The first step takes a past of length 0.

    Args:
        model: a causal language model of transformers, float32, on the CPU.
        path: the file.
        form: fp32, int8 (8 bits in blocks of 32, embedding included) or int4 (4 bits; embedding and head 8).

    Raises:
        ValueError: an unknown form, or a matrix that is no whole number of blocks; nothing is written.
        ImportError: the packages of the extra `export` are missing.
    """
    if form not in ONNX_FORMS:
        raise ValueError(f"the ONNX form must be one of {', '.join(ONNX_FORMS)}, got {form!r}")
    import onnx

    graph = _exported(model)
    _rename(graph, layers=int(model.config.num_hidden_layers))
    block, _ = ONNX_FORMS[form]
    if block is not None:
        _store(graph, block)
    del graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    with whole_file(path) as draft:
        onnx.save(graph, str(draft))
    return path


def _exported(model: PreTrainedModel) -> Any:
    """transformers' export as a ModelProto, one sequence at a time, any length of past and input."""
    import onnx.version_converter
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), _quiet():
        tokens = torch.randint(int(model.config.vocab_size), (2, 10), generator=generator)
        # Batch, past and input lengths must differ from each other and from 1, or they would be taken for constants.
        past = model(tokens[:, :7], use_cache=True).past_key_values
        inputs = {
            "input_ids": tokens[:, 7:],
            "attention_mask": torch.ones(2, 10, dtype=torch.long),
            "past_key_values": past,
            "use_cache": True,
        }
        own = vars(model).get("forward")
        try:
            program = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True)).program
        finally:  # it leaves a `forward` of its own behind
            vars(model).pop("forward", None)
            if own is not None:
                model.forward = own
        graph = onnx_ir.to_proto(program)
    return onnx.version_converter.convert_version(graph, _OPSET) if _opset(graph) < _OPSET else graph


def _opset(graph: Any) -> int:
    return next(int(entry.version) for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints each of its steps and warns of operators that are not ours."""
    from transformers.exporters import exporter_dynamo

    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "torch.export", "transformers")
    # The last is named by its file, so that it is none of transformers'.
    loggers = [logging.getLogger(name) for name in (*names, exporter_dynamo.__file__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _rename(graph: Any, *, layers: int) -> None:
    """The cache under the names that readers look for, and dimensions under readable ones."""
    names = {}
    for layer in range(layers):
        for theirs, ours in (("keys", "key"), ("values", "value")):
            names[f"input.past_key_values.layers.{layer}.{theirs}"] = f"past_key_values.{layer}.{ours}"
            names[f"output.past_key_values.layers.{layer}.{theirs}"] = f"present.{layer}.{ours}"
    for node in graph.graph.node:
        for field in (node.input, node.output):
            for at, name in enumerate(field):
                field[at] = names.get(name, name)
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        value.name = names.get(value.name, value.name)
    # transformers.js makes the first, empty past of the file's dimensions: 1 for `batch_size`, 0 for any other word.
    sizes: dict[str, tuple[str, ...]] = {
        "input_ids": ("batch_size", "length"),
        "attention_mask": ("batch_size", "total_length"),
        "logits": ("batch_size", "length", ""),
    }
    for value in (*graph.graph.input, *graph.graph.output):
        words = sizes.get(value.name)
        if words is None:
            words = ("batch_size", "", "past_length" if value.name.startswith("past") else "total_length", "")
        for dimension, word in zip(value.type.tensor_type.shape.dim, words, strict=True):
            if word:
                dimension.dim_param = word
            elif dimension.dim_param.isdigit():
                dimension.dim_value = int(dimension.dim_param)
    del graph.graph.value_info[:]  # shapes under the old names; readers infer them


def _store(graph: Any, block: Block) -> None:
    """Replaces constant matrices by integers that every use decodes for itself.

    What is read of a table are the rows looked up: they are decoded after that, not the table before it. A tied head
    turns the integers, which readers do once: ONNX Runtime fuses decoding and product only where the one feeds the
    other.
    """
    from onnx import numpy_helper

    uses: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.graph.node:
        for at, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, at))
    for tensor in list(graph.graph.initializer):
        found = uses.get(tensor.name, [])
        table = any(node.op_type == "Gather" and at == 0 for node, at in found)
        factor = any(node.op_type in ("MatMul", "Gemm") and at == 1 for node, at in found)
        if len(tensor.dims) != 2 or not (table or factor) or is_positions(tensor.name):
            continue
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        own = BLOCKS["q8_0"] if table or _is_head(found) else block
        try:
            stored = quantize(values if table else values.T.contiguous(), own)
        except ValueError as error:
            raise ValueError(f"`{tensor.name}` {list(tensor.dims)} cannot be stored: {error}") from error
        offset = 127 if own.name == "q8_0" else 8
        codes = stored.codes.numpy().astype(np.int16) - offset
        scales = stored.scales.numpy()
        if not table:
            codes, scales = codes.T, scales.T
        graph.graph.initializer.remove(tensor)
        graph.graph.initializer.extend(
            [
                _integers(f"{tensor.name}.codes", codes, bits=8 if own.name == "q8_0" else 4),
                numpy_helper.from_array(np.ascontiguousarray(scales), f"{tensor.name}.scales"),
            ]
        )
        inner = [node for node, _ in found if node.op_type in ("Gather", "Transpose")] if table else []
        if len(inner) < len(found):
            _decode_before(graph, tensor.name, axis=1 if table else 0, size=own.size)
        for node in inner:
            _decode_after(graph, node, axis=-1 if node.op_type == "Gather" else 0, size=own.size)


def _decode_before(graph: Any, name: str, *, axis: int, size: int) -> None:
    """Decodes a matrix under its own name at the beginning of the graph."""
    for node in reversed(_decoding(f"{name}.codes", f"{name}.scales", name, axis=axis, size=size)):
        graph.graph.node.insert(0, node)


def _decode_after(graph: Any, node: Any, *, axis: int, size: int) -> None:
    """A node that picks or turns numbers of a matrix does so with integers and scales, and what comes is decoded."""
    import onnx

    at = next(place for place, other in enumerate(graph.graph.node) if other is node)
    name, result = node.input[0], node.output[0]
    pairs = []
    for part in ("codes", "scales"):
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.input[0], twin.output[0] = f"{node.name}.{part}", f"{name}.{part}", f"{result}.{part}"
        pairs.append(twin)
    graph.graph.node.remove(node)
    decoding = _decoding(f"{result}.codes", f"{result}.scales", result, axis=axis, size=size)
    for place, new in enumerate([*pairs, *decoding]):
        graph.graph.node.insert(at + place, new)


def _decoding(codes: str, scales: str, result: str, *, axis: int, size: int) -> list[Any]:
    from onnx import helper

    wide = f"{scales}32"
    return [
        helper.make_node("Cast", [scales], [wide], to=1),
        helper.make_node("DequantizeLinear", [codes, wide], [result], axis=axis, block_size=size),
    ]


def _is_head(found: list[tuple[Any, int]]) -> bool:
    return any("logits" in node.output for node, _ in found)


def _integers(name: str, codes: Any, *, bits: int) -> Any:
    """An int8 tensor, or an int4 one: two codes in a byte, the first in its low half."""
    import onnx
    from onnx import helper, numpy_helper

    if bits == 8:
        return numpy_helper.from_array(np.ascontiguousarray(codes.astype(np.int8)), name)
    flat = (np.ascontiguousarray(codes).astype(np.int16) & 0xF).astype(np.uint8).ravel()
    packed = flat[0::2] | (flat[1::2] << 4)
    return helper.make_tensor(name, onnx.TensorProto.INT4, list(codes.shape), packed.tobytes(), raw=True)
