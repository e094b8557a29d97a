"""Opens a model to complete with: in the fastest runtime that is here and reads it.

A GGUF file is read by llama.cpp. A folder for transformers is tried once in both runtimes: its weights, in float32, go
as a GGUF file into the user's cache, some tokens are decoded, and the faster is taken from then on. So the second
completion needs no torch. None of this where there is a GPU, or where a model has genes that no stock architecture
has. The tokenizer of a GGUF file that stands alone is kept in the cache too: to read it takes torch. A folder that was
exported to ONNX has no weights that others read, and goes to ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..folders import (
    Release,
    StudyFolder,
    cache_folder,
    default_model,
    read_json,
    whole_file,
    whole_folder,
    write_json,
)
from ..generation.llama_cpp import LlamaCppError, LlamaCppRuntime, is_installed
from ..generation.onnx_runtime import OnnxRuntime
from ..generation.runtimes import Runtime
from ..hardware import Hardware, processor_name

if TYPE_CHECKING:  # torch
    from ..generation.loading import LoadedModel

RuntimeName = Literal["auto", "torch", "llama.cpp", "onnxruntime"]
RUNTIMES = get_args(RuntimeName)
_LARGEST_BYTES = 1 << 28  # of weights that are copied into the cache
_KEPT_MODELS = 16
_TRIED_TOKENS = 64
_OPEN_CONTEXT = 4096  # tokens, where a configuration bounds none
_NEAR = 0.05  # of the spread of the logits: float16 in llama.cpp's cache moves them by a hundredth of that
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model in a runtime, with its tokenizer.

    Args:
        name: folder, file or Hub id.
        runtime: that computes it; one sequence at a time.
        tokenizer: its tokenizer.
    """

    name: str
    runtime: Runtime
    tokenizer: Any


def folder_of(model: str | Path) -> str | Path:
    """The model as it was named; of a study the folder of its winner."""
    winner = StudyFolder(Path(model)).winner
    if winner.config.is_file() and not Release(Path(model)).config.is_file():
        return winner.folder
    return model


def named_model(model: str | None, *, say: Callable[[str], None]) -> str | Path:
    """The model that was named, or else the default one, which is told, since nobody asked for it."""
    if model is not None:
        return model
    found = default_model()
    say(f"model     {found.parent.name}/{found.name}")
    return found


def check_gaps(name: str) -> None:
    """Refuses a model that was trained without gaps: its tokenizer has the tokens for them, but it never saw them.

    Raises:
        ValueError: says how one is trained.
    """
    if Release.around(Path(folder_of(name))).fills_gaps is False:
        raise ValueError(
            f"`suffix` needs a model trained to fill in the middle, and {name} was not: leave `suffix` out, or train "
            "with train.fim_rate=0.5"
        )


def gguf_of(model: Path) -> Path | None:
    """The GGUF file that a path means: itself, what a release ships, or the only one of a folder; None for none."""
    if model.is_file():
        return model if model.suffix == ".gguf" else None
    if Release(model).config.is_file():
        return Release(model).shipped
    files = sorted(model.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def onnx_of(model: Path) -> Path | None:
    """The ONNX file that a path means: itself, or the only one of an exported folder; None for none."""
    if model.is_file():
        return model if model.suffix == ".onnx" else None
    files = sorted((model / "onnx").glob("*.onnx"))
    return files[0] if len(files) == 1 else None


def open_runtime(
    model: str | Path,
    *,
    runtime: RuntimeName = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> OpenModel:
    """A model with its tokenizer, ready to be asked more than once.

    Args:
        model: folder, GGUF or ONNX file or Hub id, or a study, which means its winner.
        runtime: `torch`, `llama.cpp`, `onnxruntime`, or `auto`: the faster one that is here and reads the model.
        device: of torch, such as `cuda`, which takes torch; None takes what there is.
        trust_remote_code: run code that a model brings.

    Raises:
        FileNotFoundError: a path that holds no model.
        ValueError: no such runtime or device, or the runtime has no form of the model that it reads.
        codenas_hf.generation.llama_cpp.LlamaCppError: llama.cpp was asked for, and is not here or refuses.
        codenas_hf.generation.onnx_runtime.OnnxRuntimeError: the same of ONNX Runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    source = folder_of(model)
    graph = onnx_of(Path(source))
    if runtime == "onnxruntime" or (runtime == "auto" and graph is not None and not Release(Path(source)).weights):
        if graph is None:
            raise ValueError(
                f"onnxruntime cannot read {source}: expected a folder with one onnx/*.onnx, or such a file, as "
                "`codenas export --to onnx` writes it"
            )
        return _in_onnx(str(model), graph)
    wanted = runtime == "llama.cpp"
    if not wanted and (runtime == "torch" or device not in (None, "cpu") or not is_installed()):
        return _in_torch(source, device=device, trust_remote_code=trust_remote_code)
    file = gguf_of(Path(source))
    if file is not None:
        try:
            return _in_llama_cpp(str(model), file)
        except LlamaCppError:
            if wanted:
                raise
            return _in_torch(source, device=device, trust_remote_code=trust_remote_code)
    folder = Path(source)
    refusal = _why_no_copy(folder)
    if wanted and refusal:
        raise ValueError(f"llama.cpp cannot read {source}: {refusal}")
    if refusal:
        return _in_torch(source, device=device, trust_remote_code=trust_remote_code)
    return _faster(str(model), folder, device=device, wanted=wanted)


def _in_torch(source: str | Path, **options: Any) -> OpenModel:
    return _of_loaded(_load(source, **options))


def _load(source: str | Path, *, device: str | None, trust_remote_code: bool = False) -> LoadedModel:
    from ..generation.loading import load_model  # loads torch

    return load_model(source, device=device or Hardware.discover().device, trust_remote_code=trust_remote_code)


def _of_loaded(loaded: LoadedModel) -> OpenModel:
    from ..generation.torch_runtime import TorchRuntime  # loads torch

    return OpenModel(loaded.name, TorchRuntime(loaded.model), loaded.tokenizer)


def _in_llama_cpp(name: str, file: Path, *, tokenizer: Path | None = None) -> OpenModel:
    """A GGUF file with the tokenizer of a folder, of the file's own folder, or of the file."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer loads torch

    runtime = LlamaCppRuntime(file)
    folder = tokenizer or file.parent
    if not Release(folder).tokenizer.is_file():
        folder = _kept("tokenizers", file)
        if not Release(folder).tokenizer.is_file():
            words = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)  # loads torch
            with whole_folder(folder) as draft:
                words.save_pretrained(draft)
    return OpenModel(name, runtime, PreTrainedTokenizerFast.from_pretrained(folder))


def _in_onnx(name: str, file: Path) -> OpenModel:
    """An ONNX file with configuration and tokenizer of the folder that it was exported to."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer loads torch

    folder = next((place for place in (file.parent.parent, file.parent) if Release(place).config.is_file()), None)
    if folder is None or not Release(folder).tokenizer.is_file():
        raise FileNotFoundError(f"no configuration and tokenizer beside {file}: name the folder of the export")
    context = int(Release(folder).read_config().get("max_position_embeddings") or _OPEN_CONTEXT)
    return OpenModel(name, OnnxRuntime(file, context_tokens=context), PreTrainedTokenizerFast.from_pretrained(folder))


def _why_no_copy(folder: Path) -> str | None:
    """Why no GGUF copy is made of what a name means; None where one can be made."""
    release = Release(folder)
    if not release.config.is_file() or not release.weights:
        return "it is no folder with weights; give one, or a GGUF file"
    with contextlib.suppress(ValueError):
        if release.read_config().get("model_type") == "codenas":
            return "it has genes that no stock architecture has; leave `runtime` out"
    if release.weights_bytes > _LARGEST_BYTES:
        return f"{release.weights_bytes:,} bytes are too many to copy; `codenas export` writes a GGUF file"
    return None


def _kept(kind: str, *files: Path) -> Path:
    """Where something is kept that was made of some files; elsewhere once they or the packages change."""
    stamps = [(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    versions = [metadata.version(name) for name in ("xllamacpp", "torch", "transformers")]
    key = json.dumps([stamps, versions, processor_name()])
    return cache_folder() / kind / hashlib.sha256(key.encode()).hexdigest()[:24]


class _Copy:
    """The GGUF copy of a folder in the user's cache, and which runtime was the faster."""

    def __init__(self, folder: Path) -> None:
        files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json")]
        self.facts = _kept("runtimes", *files).with_suffix(".json")
        self.file = self.facts.with_suffix(".gguf")

    def choice(self) -> str | None:
        """`torch` or `llama.cpp`; None where nothing was measured."""
        with contextlib.suppress(OSError, ValueError):
            found = str(read_json(self.facts).get("runtime"))
            return found if found == "torch" or self.file.is_file() else None
        return None

    def keep(self, runtime: str, **facts: Any) -> None:
        """Writes the choice; the oldest copies leave."""
        write_json(self.facts, {"runtime": runtime, **facts})
        kept = sorted(self.facts.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_KEPT_MODELS]:
            path.with_suffix(".gguf").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _faster(name: str, folder: Path, *, device: str | None, wanted: bool) -> OpenModel:
    """A folder in the faster runtime; in llama.cpp where that is `wanted`."""
    copy = _Copy(folder)
    choice = copy.choice()
    if copy.file.is_file() and (wanted or choice == "llama.cpp"):
        return _in_llama_cpp(name, copy.file, tokenizer=folder)
    loaded = _load(folder, device="cpu" if wanted else device)
    ours = _of_loaded(loaded)
    if not wanted and (choice == "torch" or loaded.model.device.type != "cpu"):
        return ours
    try:
        reader = _copied(loaded, ours.runtime, folder=folder, copy=copy)
    except (ImportError, ValueError, OSError, LlamaCppError) as error:
        if wanted:
            raise
        _log.info("%s is decoded in torch: %s", name, error)
        if not isinstance(error, ImportError):  # a package may come later
            with contextlib.suppress(OSError):
                copy.keep("torch", why=str(error))
        return ours
    times = {found.runtime.name: _milliseconds(found.runtime, loaded) for found in (ours, reader)}
    best = min(times, key=lambda runtime: times[runtime])
    copy.keep(best, decode_ms=times)
    return reader if wanted or best == reader.runtime.name else ours


def _copied(loaded: LoadedModel, ours: Runtime, *, folder: Path, copy: _Copy) -> OpenModel:
    """The copy, written and compared; `ours` is the model in torch.

    Raises:
        ValueError: GGUF cannot hold the model, or llama.cpp computes another one.
    """
    from ..release.targets import export_model

    copy.file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(copy.file) as draft:
        export_model(loaded.model, tokenizer=folder, out=draft, to="gguf", form="f32")
        reader = LlamaCppRuntime(draft)
        try:
            size = int(loaded.model.config.vocab_size)
            length = min(_TRIED_TOKENS, reader.context_tokens or _TRIED_TOKENS)
            ids = np.random.default_rng(0).integers(size, size=length).tolist()
            wanted, found = ours.logits(ids)[:size], reader.logits(ids)[:size]
            if np.abs(found - wanted).max() > _NEAR * float(wanted.std()):
                raise ValueError(f"llama.cpp computes another model from {folder}")
        finally:
            reader.close()
    return _in_llama_cpp(loaded.name, copy.file, tokenizer=folder)


def _milliseconds(runtime: Runtime, loaded: LoadedModel) -> float:
    """Median time of a greedy token."""
    from ..measure.timing import TimingProtocol  # loads torch
    from .files import time_runtime

    protocol = TimingProtocol(new_tokens=16, warmup=1, repeats=2)
    return time_runtime(runtime, protocol, vocab_size=int(loaded.model.config.vocab_size))[0]
