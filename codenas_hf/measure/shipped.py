"""The storage format that a study ships: what a model is in it, how many bytes it takes, and what it cannot store.

In bf16 a model ships as a folder for transformers. In a format of codes it ships as one GGUF file, tokenizer inside,
which llama.cpp reads; training states and scored models stay in full precision.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AutoConfig

from ..architecture.genome import Genome
from ..architecture.space import stock_view
from ..architecture.stock import StockRow, find_row
from ..compression.formats import BLOCKS as BLOCKS  # what a study can ship, and in which blocks, is asked here
from ..compression.formats import FORMATS as FORMATS
from ..compression.formats import SHIPPED as SHIPPED
from ..compression.formats import Format as Format
from ..compression.gguf import Layout, check_architecture, file_layout
from ..compression.quantize import stored_bytes as stored_bytes
from ..compression.quantize import stored_weights as stored_weights
from ..folders import folder_bytes

ShipRuntime = Literal["torch", "llama.cpp"]


@dataclass(frozen=True, kw_only=True)
class ShipSettings:
    """What leaves a study.

    Args:
        format: how weights are stored, a name in `SHIPPED` (docs/formats.md): every candidate is scored and weighed in
            it. `bf16` ships a folder for transformers; the others a GGUF file, and a folder beside it.
        runtime: in which every candidate's latency is predicted, the front is timed, and limits of latency are meant
            (docs/runtimes.md): `torch`, or `llama.cpp` for a format that it reads.

    Raises:
        ValueError: no such format or runtime, or the runtime does not read what ships.
    """

    format: str = SHIPPED[0]
    runtime: ShipRuntime = "torch"

    def __post_init__(self) -> None:
        if self.format not in SHIPPED:
            raise ValueError(f"`format` must be one of {', '.join(SHIPPED)}, got {self.format!r}")
        if self.runtime not in get_args(ShipRuntime):
            raise ValueError(f"`runtime` must be one of {', '.join(get_args(ShipRuntime))}, got {self.runtime!r}")
        if self.runtime == "llama.cpp" and not self.form.coded:
            coded = ", ".join(name for name in SHIPPED if FORMATS[name].coded)
            raise ValueError(
                f"`ship.runtime=llama.cpp` needs a format that ships as a GGUF file: give `ship.format` as one of "
                f"{coded}, got {self.format}"
            )

    @property
    def form(self) -> Format:
        """The row of the format."""
        return FORMATS[self.format]


@contextmanager
def as_shipped(model: nn.Module, ship: ShipSettings) -> Iterator[None]:
    """Inside the block a model has the weights that its reader will have; as it was afterwards."""
    with stored_weights(model, ship.form):
        yield


def check_widths(genome: Genome, ship: ShipSettings) -> None:
    """Refuses a genome that the format cannot store.

    Raises:
        ValueError: names the first layer and its shape.
    """
    if ship.form.coded:
        stored_bytes(genome.parameter_shapes(), ship.form)


def why_unread(genome: Genome, ship: ShipSettings) -> str | None:
    """Why no reader of the format knows a genome's architecture; None where one does.

    Raises:
        ImportError: the package that writes the file is absent.
    """
    if ship.form.coded:
        try:
            check_architecture(_stock_config(genome, _row(genome, ship.format)))
        except ValueError as error:
            return str(error)
    return None


def check_shippable(genome: Genome, ship: ShipSettings, *, tokenizer: Path) -> None:
    """Refuses what could not be written after hours of training.

    Raises:
        ValueError: a layer that the format cannot store, or a model or tokenizer that llama.cpp does not know.
        ImportError: the package that writes the file is absent.
    """
    check_widths(genome, ship)
    if ship.form.coded:
        _layout(genome, ship.format, tokenizer)


def shipped_bytes(genome: Genome, ship: ShipSettings, *, tokenizer: Path) -> int:
    """Bytes to ship, before anything is built: of a GGUF file exactly, else of weights and tokenizer.

    Args:
        genome: the architecture.
        ship: the format.
        tokenizer: folder of its tokenizer.

    Raises:
        ValueError: as `check_shippable`.
    """
    if not ship.form.coded:
        return genome.weights_bytes() + _tokenizer_bytes(tokenizer)
    check_widths(genome, ship)
    row = _row(genome, ship.format)
    ours = {name: torch.empty(shape, device="meta") for name, shape in genome.parameter_shapes().items()}
    shapes = {name: tuple(weight.shape) for name, weight in row.convert(genome, ours).items()}  # type: ignore[arg-type]
    return _layout(genome, ship.format, tokenizer).file_bytes(shapes, layers=genome.num_hidden_layers)


def _row(genome: Genome, form: str) -> StockRow:
    """The stock architecture whose file it will be."""
    row, reasons = None, ["a gene differs between layers"]
    if not any(isinstance(getattr(genome, name), tuple) for name in genome.PER_BLOCK_GENES):
        row, reasons = find_row(stock_view(genome))
    if row is None:
        raise ValueError(f"only a stock architecture ships as {form}: {'; '.join(reasons)}")
    return row


def _layout(genome: Genome, form: str, tokenizer: Path) -> Layout:
    """What all files of a genome's architecture, vocabulary and format have in common; found once in a process."""
    row = _row(genome, form)
    kind = (row.model_type, genome.hidden_act, genome.sliding_window, genome.vocab_size, form, tokenizer)
    if kind not in _LAYOUTS:
        _LAYOUTS[kind] = file_layout(_stock_config(genome, row), tokenizer=tokenizer, form=form)
    return _LAYOUTS[kind]


_LAYOUTS: dict[tuple[Any, ...], Layout] = {}


def _stock_config(genome: Genome, row: StockRow) -> Any:
    return AutoConfig.for_model(row.model_type, **row.settings(genome.to_config()))


@functools.cache
def _tokenizer_bytes(folder: Path) -> int:
    return folder_bytes(folder)
