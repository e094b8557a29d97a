"""What a finished model is asked for: an evaluation, another form."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..folders import Release, whole_file
from ..generation.llama_cpp import is_installed
from ..generation.loading import LoadedModel, load_model
from ..generation.runtimes import Runtime
from ..hardware import Hardware
from ..release.targets import export_model
from ..suite.evaluation import SUITES, evaluate_model, format_table
from .opening import RuntimeName, folder_of, gguf_of, onnx_of, open_runtime

__all__ = ["evaluate", "export", "format_table", "open_model"]


def open_model(
    model: str | Path | LoadedModel, *, device: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """A model with its tokenizer, ready to be asked more than once.

    Args:
        model: folder, GGUF file or Hub id, or a study, which means its winner; one that is open already is returned
            as it is.
        device: such as `cuda`; None takes what there is.
        trust_remote_code: run code that a model brings.

    Raises:
        FileNotFoundError: a path that holds no model.
    """
    if isinstance(model, LoadedModel):
        return model
    device = device or Hardware.discover().device
    return load_model(folder_of(model), device=device, trust_remote_code=trust_remote_code)


def evaluate(
    model: str | Path | LoadedModel,
    *,
    suite: str = "quick",
    folder: Path | None = None,
    runtime: RuntimeName = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    tasks: Sequence[Path] = (),
    held_out: Path | None = None,
    on_part: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Measures a finished model, ours or any, without a network.

    Args:
        model: folder, GGUF file or Hub id; or what `open_model` returned.
        suite: how much, `quick` or `full`.
        folder: where results and completions go; None takes the model's own folder, and writes nothing
            where it has none.
        runtime: what decodes and scores: `torch`, `llama.cpp`, `onnxruntime`, or `auto`: a GGUF file in llama.cpp
            where that is installed, everything else in torch, whose batches are faster than one sequence at a time.
        device: such as `cuda`; None takes what there is.
        trust_remote_code: run code that a model brings.
        tasks: files of further tasks: MBPP, gaps to fill, sets in the form of HumanEval (docs/evaluation.md).
        held_out: folder whose sub-folders are projects that the model never saw.
        on_part: told the name of each part when it ends, and its seconds.

    Returns:
        Rows with their intervals, the protocol, and what was not measured and why.

    Raises:
        FileNotFoundError: a path that holds no model.
        ValueError: no such suite or runtime, or the runtime has no form of the model that it reads.
    """
    settings = next((value for name, value in SUITES.items() if name == suite), None)
    if settings is None:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")
    settings = replace(settings, task_files=tuple(tasks), held_out=held_out)
    if not isinstance(model, LoadedModel):
        place = Path(folder_of(model))
        if onnx_of(place) is not None and not Release(place).weights:
            raise ValueError(
                f"{model} has a graph for ONNX Runtime alone: evaluate the model that it was exported from"
            )
    loaded = open_model(model, device=device, trust_remote_code=trust_remote_code)
    if folder is None and Path(loaded.name).is_dir():
        folder = Path(loaded.name)
    reader = _reader(loaded, runtime=runtime, device=device)
    if reader is not None and reader.file is not None and reader.file == gguf_of(Path(loaded.name)):
        loaded = replace(loaded, num_bytes=reader.file.stat().st_size)  # that file is what is measured
    return evaluate_model(loaded, runtime=reader, settings=settings, folder=folder, on_part=on_part)


def _reader(loaded: LoadedModel, *, runtime: RuntimeName, device: str | None) -> Runtime | None:
    """What decodes in place of torch; None where torch does."""
    file = gguf_of(Path(loaded.name)) if Path(loaded.name).is_file() else None
    if runtime == "auto":
        runtime = "llama.cpp" if file is not None and device in (None, "cpu") and is_installed() else "torch"
    return None if runtime == "torch" else open_runtime(loaded.name, runtime=runtime).runtime


def export(folder: Path, out: Path, *, to: str = "gguf", form: str | None = None) -> Path:
    """Writes a model in another form: GGUF, ONNX, or safetensors in few bits.

    Args:
        folder: of the release, of the study whose winner it is, or of any model of transformers.
        out: file (gguf) or folder.
        to: `gguf`, `onnx` or `safetensors`.
        form: storage format; None takes 8 bits, or for gguf what the study ships, whose own file is then copied.

    Raises:
        FileNotFoundError: no model there.
        ValueError: something that the form cannot hold; names it.
    """
    source = folder if Release(folder).config.is_file() else Release.find(folder).folder
    shipped = Release(source).shipped
    if to == "gguf" and shipped is not None and form in (None, shipped.stem.removeprefix("model-")):
        with whole_file(out) as draft:  # made of the full precision, which the folder does not hold any more
            shutil.copyfile(shipped, draft)
        return out
    return export_model(load_model(source).model, tokenizer=source, out=out, to=to, form=form)
