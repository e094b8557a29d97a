"""A model with its tokenizer, from a folder, a GGUF file or the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from codenas_hf.configuration_codenas import CodeNASConfig
from codenas_hf.folders import Release, folder_bytes
from codenas_hf.modeling_codenas import (
    CodeNASForCausalLM,
    CodeNASForSequenceClassification,
    CodeNASForTokenClassification,
    CodeNASModel,
)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

__all__ = [
    "CodeNASConfig",
    "CodeNASForCausalLM",
    "CodeNASForSequenceClassification",
    "CodeNASForTokenClassification",
    "CodeNASModel",
    "LoadedModel",
    "load_model",
    "register",
]


class ModelTypeError(RuntimeError):
    """Another package has taken the model type `codenas`."""


def register() -> None:
    """Makes transformers' Auto classes know the model type `codenas`; harmless when repeated.

    Importing this module does it. It is also the entry point of the group `vllm.general_plugins`: vLLM calls it in
    each of its processes.

    Raises:
        ModelTypeError: another package has taken the model type.
    """
    known = CONFIG_MAPPING["codenas"] if "codenas" in CONFIG_MAPPING else CodeNASConfig
    if known is not CodeNASConfig:
        raise ModelTypeError(f"the model type `codenas` should belong to {CodeNASConfig}, got {known}")
    AutoConfig.register("codenas", CodeNASConfig, exist_ok=True)
    AutoModel.register(CodeNASConfig, CodeNASModel, exist_ok=True)
    AutoModelForCausalLM.register(CodeNASConfig, CodeNASForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(CodeNASConfig, CodeNASForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(CodeNASConfig, CodeNASForTokenClassification, exist_ok=True)


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


def usable_device(device: str | torch.device) -> torch.device:
    """A device by name.

    Raises:
        ValueError: torch knows no such device, or it is not here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"`device` must be cpu, or cuda where there is a GPU, got {str(device)!r}: {why}") from error
    return found


def load_model(
    name: str | Path, *, device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """Loads a folder, a GGUF file, a folder with one GGUF file, or a Hub id.

    Raises:
        FileNotFoundError: a path that holds no model, or where nothing is.
        OSError: a Hub id that is not there, or not reached.
        ValueError: what transformers cannot read, or a device that is not here; says why.
    """
    path, device = Path(name), usable_device(device)
    if not path.exists() and not _is_hub_id(str(name)):
        raise FileNotFoundError(f"no such folder or file: {name}; a model on the Hub is named owner/name")
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
            num_bytes = folder_bytes(path)  # of what is loaded, whatever else is shipped beside it
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if "gguf_file" in options:
            options["config"] = _gguf_config(Path(source), options["gguf_file"])
            options["quantization_config"] = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
        # Plain weights now: who writes them must not say that they lie in that file.
        if "gguf_file" in options and hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    except OSError as error:
        if path.exists():
            raise
        reason = "the Hub is not asked (HF_HUB_OFFLINE)" if is_offline_mode() else str(error).splitlines()[0]
        raise OSError(f"{name} is no folder here and was not loaded from the Hub: {reason}") from error
    except (ImportError, ValueError) as error:  # a package that its format needs, or an architecture
        raise ValueError(f"transformers cannot read {name}: {' '.join(str(error).split())}") from error
    model.to(torch.device(device))  # type: ignore[arg-type]
    return LoadedModel(str(name), model.eval(), tokenizer, num_bytes)


def _gguf_config(folder: Path, name: str) -> Any:
    """The configuration in a GGUF file, with its own width of a head: for some architectures (Qwen3) transformers
    takes a default instead, and then finds that the weights do not fit."""
    from gguf import GGUFReader  # which transformers reads the file with

    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    width = next(
        (f for key, f in GGUFReader(folder / name).fields.items() if key.endswith("attention.key_length")), None
    )
    if width is not None and hasattr(config, "head_dim"):
        config.head_dim = int(width.contents())
    return config


def _is_hub_id(name: str) -> bool:
    """True for `owner/name` as the Hub spells it, where nothing here looks like the path that was meant."""
    owner, _, rest = name.partition("/")
    return (
        HUB_ID.fullmatch(name) is not None
        and not Path(owner).exists()
        and Path(rest).suffix not in (".gguf", ".safetensors", ".bin", ".json", ".yaml")
    )


register()
