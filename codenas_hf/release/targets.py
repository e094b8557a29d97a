"""What a finished model can be exported to: one table, which the command line's help reads too.

The writers are imported when one is called: help must not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..compression.formats import FORMATS, ONNX_FORMS, PACKED_FORMS
from ..folders import Release, whole_folder
from .spelling import copy_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Writer = Callable[["PreTrainedModel", Path, Path, str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of export.

    Args:
        what: for whom it is.
        forms: storage formats, the default first.
        folder: a folder is written, not a file.
        write: model, tokenizer's folder, where to, form.
    """

    what: str
    forms: tuple[str, ...]
    folder: bool
    write: Writer


def _gguf(model: PreTrainedModel, tokenizer: Path, out: Path, form: str) -> None:
    from ..compression.gguf import write_gguf  # loads torch

    write_gguf(model, out, tokenizer=tokenizer, form=form)


def _onnx(model: PreTrainedModel, tokenizer: Path, out: Path, form: str) -> None:
    from ..compression.onnx import write_onnx  # loads torch

    with whole_folder(out) as draft:
        write_onnx(model, draft / "onnx" / ONNX_FORMS[form][1], form=form)
        model.config.save_pretrained(draft)
        model.generation_config.save_pretrained(draft)
        copy_tokenizer(tokenizer, draft)


def _packed(model: PreTrainedModel, tokenizer: Path, out: Path, form: str) -> None:
    from ..compression.packed import write_packed  # loads torch

    with whole_folder(out) as draft:
        write_packed(model, draft, form=form)
        model.generation_config.save_pretrained(draft)
        copy_tokenizer(tokenizer, draft)


TARGETS: dict[str, Target] = {
    "gguf": Target(
        what="one file for llama.cpp and everything built on it",
        forms=("q8_0", *(name for name in FORMATS if name != "q8_0")),
        folder=False,
        write=_gguf,
    ),
    "onnx": Target(
        what="a folder for ONNX Runtime and transformers.js",
        forms=("int8", *(name for name in ONNX_FORMS if name != "int8")),
        folder=True,
        write=_onnx,
    ),
    "safetensors": Target(
        what="a folder for transformers, with compressed-tensors installed",
        forms=tuple(PACKED_FORMS),
        folder=True,
        write=_packed,
    ),
}


def export_model(model: PreTrainedModel, *, tokenizer: Path, out: Path, to: str, form: str | None = None) -> Path:
    """Writes a model in another form, whole or not at all.

    Args:
        model: of a stock class, float32, on the CPU.
        tokenizer: folder of its tokenizer.
        out: file or folder.
        to: a name in `TARGETS`.
        form: one of the target's storage formats; None takes its first.

    Returns:
        `out`.

    Raises:
        ValueError: no such target or form, or something of the model that the target cannot hold; names it.
        FileExistsError: a folder that is there and is no export.
        IsADirectoryError: a folder where one file is to be written.
        ImportError: a package of the extra `export` is absent.
    """
    if to not in TARGETS:
        raise ValueError(f"there is no export to {to!r}; there are {', '.join(TARGETS)}")
    target = TARGETS[to]
    form = form or target.forms[0]
    if form not in target.forms:
        raise ValueError(f"an export to {to} takes the formats {', '.join(target.forms)}, got {form!r}")
    if model.config.model_type == "codenas":
        raise ValueError(
            "the model has genes that no stock architecture has, so only transformers reads it, with its own code; "
            f"an export to {to} needs a stock architecture (search a space with `export: stock`)"
        )
    if target.folder and out.exists() and (Release(out).record.exists() or not Release(out).config.exists()):
        raise FileExistsError(f"{out} is there already and is no export; name a new folder")
    if not target.folder and out.is_dir():
        raise IsADirectoryError(
            f"{out} is a folder: an export to {to} writes one file; name it, such as {out}/model.{to}"
        )
    target.write(model, tokenizer, out, form)
    return out
