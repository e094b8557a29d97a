"""A model with its tokenizer, from a folder, a GGUF file or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from codenas_hf.folders import Release


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it.

    Args:
        name: folder, file or Hub id.
        model: in evaluation mode, float32.
        tokenizer: its tokenizer.
        num_bytes: bytes of the files to ship; None for a model of the Hub's cache.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    num_bytes: int | None


def load_model(
    name: str | Path, *, device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """Loads a folder, a GGUF file, a folder with one GGUF file, or a Hub id.

    Raises:
        FileNotFoundError: a path that holds no model.
    """
    path = Path(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    num_bytes: int | None = None
    source = str(name)
    if path.exists():
        files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
        if path.is_file() or (files and not Release(path).config.exists()):
            if len(files) != 1 or files[0].suffix != ".gguf":
                raise FileNotFoundError(f"{path} is neither a model's folder nor one GGUF file: name the file")
            source, options["gguf_file"] = str(files[0].parent), files[0].name
            num_bytes = files[0].stat().st_size
        elif not Release(path).config.exists():
            raise FileNotFoundError(
                f"{path} holds no {Release(path).config.name}: name the folder that `save_pretrained` wrote"
            )
        else:
            num_bytes = Release(path).artifact_bytes
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return LoadedModel(str(name), model.eval(), tokenizer, num_bytes)
