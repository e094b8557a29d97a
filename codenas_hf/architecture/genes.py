"""What a gene is: a row of the one table of genes, which stands at the fields of `Genome`.

Canonical genomes, the counting of a space, what a linked choice may set and which combinations a stock space checks
all follow from these rows.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Where = Literal["model", "layout", "attention", "network"]
LAYER_LETTERS = {"f": "full_attention", "s": "sliding_attention", "c": "conv"}


@dataclass(frozen=True, kw_only=True)
class Gene:
    """A row of the table: where a gene acts, what makes it idle, and so how it counts.

    Args:
        where: `model`: once for the whole model, so its choices multiply. `attention`: in each block with attention,
            `network`: in each block's feed-forward network; both may differ from block to block, and their distinct
            settings count to the power of those blocks where they do. `layout`: width, depth and order of the blocks,
            which `choices` counts one by one.
        needs: another gene and the value of it without which this one is idle: set back to its default, counted once.
            For `layer_pattern` the value is a letter that one block must have.
        filled: where it acts, None is no value.
        decides: whether its value can decide which stock architecture a genome equals.

    Raises:
        ValueError: a condition on a gene of the blocks, which nobody counts.
    """

    where: Where = "model"
    needs: tuple[str, Any] | None = None
    filled: bool = False
    decides: bool = True

    def __post_init__(self) -> None:
        if self.needs and self.where != "model":
            raise ValueError(f"`needs` is counted for genes of the whole model, got {self.needs} with {self.where!r}")

    def acts(self, genes: Mapping[str, Any], letters: str) -> bool:
        """Whether the gene has an effect beside these values of the genes that others need, and block letters."""
        if self.needs is None:
            return True
        other, value = self.needs
        return value in letters if other == "layer_pattern" else bool(genes[other] == value)


def row(**values: Any) -> dict[str, Gene]:
    """The metadata of a field of `Genome` that is a gene; the arguments are those of `Gene`."""
    return {"gene": Gene(**values)}


def plain(value: Any) -> Any:
    """Python's own numbers and tuples, whatever the caller's (NumPy scalars, lists) were."""
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, float):
        return float(value)
    try:
        return operator.index(value)
    except TypeError:
        return value.item() if hasattr(value, "item") else value
