"""Decode latency as an objective: in the runtime that ships, on this machine or, from a file, on another one."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ..architecture.space import SearchSpace
from ..architecture.stock import find_row
from ..compression.gguf import write_gguf
from ..folders import StudyFolder, read_json, write_json
from ..generation.llama_cpp import LlamaCppError, LlamaCppRuntime, is_installed
from ..hardware import Hardware, exclusively
from ..measure.latency import LatencyModel, device_fingerprint, space_digest
from ..measure.shipped import ShipSettings
from ..measure.timing import Latency, Timer, TimingProtocol, measure_latency, runtime_latency
from ..strict_yaml import SettingsError
from .settings import RunSettings
from .spaces import load_space, with_space

Say = Callable[[str], None]
_CONTEXT = 256  # tokens that a timing needs at least


@dataclass(frozen=True)
class ReaderTimer:
    """Times models in llama.cpp: what of their file decides is the shape and the format, so weights are drawn.

    Args:
        form: the storage format.
    """

    form: str

    def __call__(self, model: nn.Module, protocol: TimingProtocol) -> Latency:
        """Times a model of ours, or of a stock class.

        Raises:
            ValueError: llama.cpp knows no such architecture, or the format cannot store it.
            LlamaCppError: llama.cpp is not here.
        """
        config: Any = model.config
        row, _ = find_row(config) if config.model_type == "codenas" else (None, [])
        stock = config if row is None else AutoConfig.for_model(row.model_type, **row.settings(config))
        drawn: Any = AutoModelForCausalLM.from_config(stock, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as name:
            path = write_gguf(drawn, Path(name) / "m.gguf", tokenizer=_letters(Path(name) / "words"), form=self.form)
            needed = max(_CONTEXT, protocol.prompt_tokens + protocol.new_tokens + 1)
            context = min(needed, getattr(config, "max_position_embeddings", None) or needed)
            runtime = LlamaCppRuntime(path, context_tokens=context, threads=protocol.threads)
            try:
                return runtime_latency(runtime, protocol, vocab_size=int(config.vocab_size), form=self.form)
            finally:
                runtime.close()


def _letters(folder: Path) -> Path:
    """A tokenizer that knows bytes alone; entries of a vocabulary beyond them stay without a name."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate([*letters, "in"])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[("i", "n")]))  # llama.cpp reads no list without an entry
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def timer_of(ship: ShipSettings) -> Timer:
    """What times a model in the runtime that ships."""
    return ReaderTimer(ship.format) if ship.runtime == "llama.cpp" else measure_latency


def timed_on(ship: ShipSettings, device: str) -> str:
    """The device of the timing: `device` for torch, the processor for llama.cpp."""
    return "cpu" if ship.runtime == "llama.cpp" else device


def fingerprint_of(ship: ShipSettings, device: str) -> dict[str, str]:
    """What a latency in the runtime that ships depends on besides the model.

    Raises:
        LlamaCppError: llama.cpp was asked for and is not here.
    """
    if ship.runtime == "torch":
        return device_fingerprint(device)
    if not is_installed():
        raise LlamaCppError("`ship.runtime=llama.cpp` needs llama.cpp; pip install 'codenas-hf[fast]'")
    return device_fingerprint("cpu", packages={"xllamacpp": metadata.version("xllamacpp")})


def study_latency(
    settings: RunSettings, *, folder: Path, space: SearchSpace, hardware: Hardware, say: Say
) -> LatencyModel:
    """The latency model of a study: of the file that it names; else its own, else this machine's, else fitted.

    One is fitted for each device, runtime and format (torch computes all formats alike). It is kept with the study
    because its predictions are part of the record: another fit would be another search. So a study keeps its own on
    every processor and with every version of a package; what other studies share must be of just this machine.

    Raises:
        SettingsError: `latency.file` cannot be read, or is of another space, runtime or format.
        LlamaCppError: llama.cpp was asked for and is not here.
    """
    if settings.latency.file is not None:
        found = read_latency(settings.latency.file, settings=settings, space=space)
        say(f"latency   of {found.fingerprint.get('name', 'another device')}, from {settings.latency.file}")
        return found
    ship, own = settings.ship, StudyFolder(folder).latency
    device, wanted = timed_on(ship, hardware.device), fingerprint_of(ship, hardware.device)
    suffix = "" if ship.runtime == "torch" else f"-{ship.runtime}-{ship.format}"
    shared = settings.folder / "latency" / f"{settings.space.replace('/', '_')}-{device}{suffix}.json"
    with exclusively(settings.folder / "latency" / ".lock"):
        for model in (_begun_with(own, device=device), LatencyModel.load(shared, fingerprint=wanted)):
            if model is not None and (model.runtime, model.format) == _runtime_and_format(ship):
                break
        else:
            where = "alone on this device" if ship.runtime == "torch" else f"alone in llama.cpp as {ship.format}"
            say(f"latency   timing architectures of the space {where}, to predict the others")
            model = fit_latency(space, ship, device=hardware.device)
            write_json(shared, model.to_dict())
    return model


def _begun_with(path: Path, *, device: str) -> LatencyModel | None:
    """The model in a study's folder; None where it is absent or damaged, or of a processor and this is a GPU."""
    try:
        found = LatencyModel.from_dict(read_json(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.fingerprint.get("device", device) == device else None


def fit_latency(space: SearchSpace, ship: ShipSettings, *, device: str) -> LatencyModel:
    """Times architectures of a space in the runtime that ships, and fits the model.

    Args:
        space: to draw from.
        ship: runtime and format.
        device: of torch, `cpu` or `cuda`.

    Raises:
        LlamaCppError: llama.cpp was asked for and is not here.
    """
    wanted = fingerprint_of(ship, device)
    fitted = LatencyModel.fit(space, device=timed_on(ship, device), timer=timer_of(ship))
    runtime, form = _runtime_and_format(ship)
    return replace(fitted, fingerprint=wanted, runtime=runtime, format=form, space=space_digest(space))


def _runtime_and_format(ship: ShipSettings) -> tuple[str, str | None]:
    return ship.runtime, None if ship.runtime == "torch" else ship.format


def write_latency(settings: RunSettings, out: Path, *, say: Say) -> LatencyModel:
    """Fits the latency model of this machine for a space, runtime and format, and writes it for another machine.

    Args:
        settings: `space`, `ship.runtime`, `ship.format` and `device` count.
        out: the file; a search elsewhere takes it as `latency.file`.
        say: told what is going on.

    Raises:
        LlamaCppError: llama.cpp was asked for and is not here.
    """
    settings = with_space(settings)
    what = settings.ship.runtime if settings.ship.runtime == "torch" else f"llama.cpp as {settings.ship.format}"
    say(f"latency   timing architectures of the space `{settings.space}` in {what}; nothing else should run")
    hardware = Hardware.discover(settings.device)
    model = fit_latency(load_space(settings.space), settings.ship, device=hardware.device)
    write_json(out, {**model.to_dict(), "space_name": settings.space})
    return model


def read_latency(path: Path, *, settings: RunSettings, space: SearchSpace) -> LatencyModel:
    """A file of `write_latency`, for the space, runtime and format of these settings.

    Raises:
        SettingsError: it cannot be read, or is of another space, runtime or format; says of which.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        model = LatencyModel.from_dict(data)
    except OSError as error:
        raise SettingsError(f"`latency.file` {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"`latency.file` {path} is no latency file ({type(error).__name__}: {error}); "
            "`codenas latency --out FILE` writes one"
        ) from error
    ship = settings.ship
    if model.space != space_digest(space):
        raise SettingsError(
            f"`latency.file` {path} is of the space `{data.get('space_name', 'unknown')}`, not of "
            f"`{settings.space}` as it is here: write one for it with "
            f"`codenas latency space={settings.space} --out FILE` on that machine"
        )
    if model.runtime != ship.runtime:
        raise SettingsError(
            f"`latency.file` {path} was timed in {model.runtime}, and `ship.runtime` is {ship.runtime}: give "
            f"ship.runtime={model.runtime}, or another file"
        )
    if (model.runtime, model.format) != _runtime_and_format(ship):
        raise SettingsError(
            f"`latency.file` {path} was timed as {model.format}, and `ship.format` is {ship.format}: give "
            f"ship.format={model.format}, or another file"
        )
    return model


def latency_identity(settings: RunSettings, latency: LatencyModel) -> Mapping[str, Any]:
    """What decides about latency in a study's identity: nothing for torch on this device, as in earlier studies."""
    found: dict[str, Any] = {}
    if settings.ship.runtime != "torch":
        found["runtime"] = settings.ship.runtime
    if settings.latency.file is not None:
        text = json.dumps(latency.to_dict(), sort_keys=True)
        found["latency_file"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def timed_elsewhere(settings: RunSettings) -> bool:
    """Whether latency is predicted for another machine, so that no candidate is timed on this one."""
    return settings.latency.file is not None
