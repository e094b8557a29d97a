"""The storage formats: what a weight costs, in which blocks, which layers stay wider, which runtimes read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What four bits stand for in MXFP4, in the order of their codes here: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives,
# doubled. The reader has the sign in the highest bit.
MXFP4_POINTS = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)
# The fixed points of a 4-bit weight in llama.cpp's IQ4_NL: denser near zero, where weights are.
IQ4_NL_POINTS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, kw_only=True)
class Block:
    """How the weights of one tensor are stored.

    Args:
        name: as llama.cpp spells it, in small letters.
        size: weights that share one scale, a float16; 1 where there is none.
        bits: of one weight, its share of the scale included.
        points: what a code stands for, in units of the scale; None for plain floating point.
        offset: a second float16 of each block is added to all of its weights.
        power: scales are powers of two, in one byte.
    """

    name: str
    size: int
    bits: float
    points: tuple[int, ...] | None = None
    offset: bool = False
    power: bool = False

    def num_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix.

        Raises:
            ValueError: its rows are not whole blocks.
        """
        if columns % self.size:
            raise ValueError(
                f"{self.name} stores rows in blocks of {self.size} weights, got rows of {columns}; "
                "store it as bf16 or f16, or choose widths that are multiples of it"
            )
        return round(rows * columns * self.bits / 8)


BLOCKS = {
    block.name: block
    for block in (
        Block(name="f32", size=1, bits=32),
        Block(name="bf16", size=1, bits=16),
        Block(name="f16", size=1, bits=16),
        Block(name="q8_0", size=32, bits=8.5, points=tuple(range(-127, 128))),
        Block(name="q5_1", size=32, bits=6.0, points=tuple(range(32)), offset=True),
        Block(name="q5_0", size=32, bits=5.5, points=tuple(range(-16, 16))),
        Block(name="q4_1", size=32, bits=5.0, points=tuple(range(16)), offset=True),
        Block(name="q4_0", size=32, bits=4.5, points=tuple(range(-8, 8))),
        Block(name="iq4_nl", size=32, bits=4.5, points=IQ4_NL_POINTS),
        Block(name="mxfp4", size=32, bits=4.25, points=MXFP4_POINTS, power=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a whole model is stored. Norms and other vectors stay in float32 (float in safetensors: the model's).

    Args:
        name: of the format.
        matrix: the block of attention and feed-forward matrices.
        embedding: the block of embedding and head, which are hit hardest by few bits.
        readers: runtimes that read a file of it.
        file_type: llama.cpp's number for a file of it.
    """

    name: str
    matrix: Block
    embedding: Block
    readers: tuple[str, ...]
    file_type: int

    @property
    def coded(self) -> bool:
        """Weights are codes in blocks, which ship in a GGUF file; else numbers, which ship in a folder."""
        return self.matrix.points is not None

    def block_of(self, name: str, shape: tuple[int, ...]) -> Block:
        """The block of one tensor by its name and shape; no reader takes a table of positions in codes."""
        if len(shape) != 2 or (self.coded and is_positions(name)):
            return BLOCKS["f32"] if self.coded else self.matrix
        return self.embedding if is_embedding(name) else self.matrix


@dataclass(frozen=True, kw_only=True)
class MixedFormat(Format):
    """A format in which tensors have blocks of their own, as a squeezed model has.

    Args:
        blocks: by the name of a tensor; all others are stored as in any format.
    """

    blocks: Mapping[str, Block] = field(default_factory=dict)

    def block_of(self, name: str, shape: tuple[int, ...]) -> Block:
        """The block of one tensor by its name and shape."""
        found = self.blocks.get(name)
        return super().block_of(name, shape) if found is None or len(shape) != 2 else found


_ALL = ("torch", "onnxruntime", "llama.cpp")
FORMATS = {
    form.name: form
    for form in (
        Format(name="bf16", matrix=BLOCKS["bf16"], embedding=BLOCKS["bf16"], readers=_ALL, file_type=32),
        Format(name="f32", matrix=BLOCKS["f32"], embedding=BLOCKS["f32"], readers=_ALL, file_type=0),
        Format(name="f16", matrix=BLOCKS["f16"], embedding=BLOCKS["f16"], readers=("llama.cpp",), file_type=1),
        Format(name="q8_0", matrix=BLOCKS["q8_0"], embedding=BLOCKS["q8_0"], readers=("llama.cpp",), file_type=7),
        Format(name="q4_0", matrix=BLOCKS["q4_0"], embedding=BLOCKS["q8_0"], readers=("llama.cpp",), file_type=2),
        Format(name="iq4_nl", matrix=BLOCKS["iq4_nl"], embedding=BLOCKS["q8_0"], readers=("llama.cpp",), file_type=25),
    )
}
# What a study can ship: its winner is a folder for transformers in bf16, or has a GGUF file in codes beside that.
SHIPPED = ("bf16", *(name for name, form in FORMATS.items() if form.coded))
# Name of an ONNX form: the block of its matrices, and the file's name in a release, which transformers.js looks for.
ONNX_FORMS: dict[str, tuple[Block | None, str]] = {
    "fp32": (None, "model.onnx"),
    "int8": (BLOCKS["q8_0"], "model_quantized.onnx"),
    "int4": (BLOCKS["q4_0"], "model_q4.onnx"),
}
# Name of a packed form of safetensors: the block of every matrix.
PACKED_FORMS: dict[str, Block] = {"int8": BLOCKS["q8_0"], "int4": BLOCKS["q4_0"]}


def is_embedding(name: str) -> bool:
    """True for the tables of tokens and positions and for the head."""
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def is_positions(name: str) -> bool:
    """True for a table of learned positions."""
    return any(part in name for part in ("embed_positions", "wpe"))


def find_format(name: str) -> Format:
    """A format by name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in FORMATS:
        raise ValueError(f"the storage format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
