"""Which models the playground offers, and how one of them is loaded: local winners, a folder, a Hub id.

A Hub id is fetched only when somebody asks for it, safetensors only, and code that comes with a model runs only after
an explicit yes of whoever started the playground (or, on their own machine, of the person in front of it).
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
)
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from codenas_hf.folders.files import CONFIG, WINNER, read_json
from codenas_hf.folders.places import Release, default_model
from codenas_hf.folders.record import Record, RecordError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_log = logging.getLogger(__name__)
HUB_SECONDS = 20.0  # for an answer; other visitors wait meanwhile
FETCHED = (".safetensors", ".json", ".model", ".py", "merges.txt", "vocab.txt", "README.md")


class PlaygroundError(ValueError):
    """Something a visitor can mend; the message says what was expected, what was got and how to mend it."""


@dataclass(frozen=True, kw_only=True)
class PlaygroundSettings:
    """What a launcher decides.

    Args:
        runs: folder of local runs; the winners of its studies and the releases in it are offered.
        models: further folders or Hub ids that are offered.
        any_model: visitors may name any folder or Hub id. Only for a playground that nobody else reaches.
        trust_remote_code: code that comes with a model may run without asking again.
        max_model_bytes: weights above this size are refused before they are fetched.
        max_prompt_characters: prompt and examples together.
        max_new_tokens: upper end of the length slider and of the API.
        max_seconds: a completion is ended after this time, so that the queue moves.
        max_waiting: visitors in the queue; the next one is told to come back.
        concurrency: completions that run at the same time.
        kept_models: loaded models kept in memory, least recently used dropped first.
    """

    runs: Path = Path("runs")
    models: tuple[str, ...] = ()
    any_model: bool = True
    trust_remote_code: bool = False
    max_model_bytes: int = 2 * 2**30
    max_prompt_characters: int = 20_000
    max_new_tokens: int = 512
    max_seconds: float = 60.0
    max_waiting: int = 100
    concurrency: int = 1
    kept_models: int = 4

    def __post_init__(self) -> None:
        for name in ("max_model_bytes", "max_prompt_characters", "max_new_tokens", "max_waiting", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}; give a larger one")
        if self.kept_models < 2:
            raise ValueError(f"`kept_models` must be at least 2 (two stand side by side), got {self.kept_models}")
        if self.max_seconds <= 0:
            raise ValueError(f"`max_seconds` must be above 0, got {self.max_seconds}; give a longer time")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """One model in memory with what the playground shows of it; sizes in bytes, `context` in tokens."""

    source: str
    name: str
    model: Any
    tokenizer: Any
    context: int
    num_parameters: int
    weights_bytes: int
    card: str
    record: Record


def find_models(settings: PlaygroundSettings) -> list[tuple[str, str]]:
    """(label, source) of everything that can be loaded without a download first, then what the launcher named.

    Where that is nothing, the model that comes with the package.

    Sources are folders or Hub ids. Models in the local Hub cache are listed only where visitors may name any model.
    """
    found = [(_label(str(own.folder)), str(own.folder)) for own in Release.all_in(settings.runs)]
    found += [(_label(source), source) for source in settings.models]
    if not found:
        with contextlib.suppress(FileNotFoundError):  # the package without its model
            found = [(_label(source), source) for source in [str(default_model(settings.runs))]]
    if settings.any_model:
        known = {source for _, source in found}
        found += [(f"{name} (on this machine)", name) for name in _cached_models(settings) if name not in known]
    return found


def _label(source: str) -> str:
    folder = Path(source)
    if not folder.is_dir():
        return source
    return f"{folder.parent.name} (winner)" if folder.name == WINNER else folder.name


def _cached_models(settings: PlaygroundSettings) -> list[str]:
    """Hub ids of causal language models that lie in the local Hub cache as safetensors, smallest first."""
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    fitting = []
    for repo in repos:
        files = {file.file_name: file for revision in repo.revisions for file in revision.files}
        weights = [file for name, file in files.items() if name.endswith(".safetensors")]
        if repo.repo_type != "model" or CONFIG not in files or not weights:
            continue
        architectures = _read_config(Path(files[CONFIG].file_path)).get("architectures") or []
        size = sum(file.size_on_disk for file in weights)
        if size <= settings.max_model_bytes and any(str(name).endswith("ForCausalLM") for name in architectures):
            fitting.append((size, repo.repo_id))
    return [name for _, name in sorted(fitting)]


def _existing_folder(source: str) -> Path | None:
    try:
        folder = Path(source.strip()).expanduser()
        return folder if source.strip() and folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, with a null byte, or of an unknown home
        return None


def may_bring_code(source: str) -> bool:
    """Whether a model may come with code of its own: its folder says so, or it is on the Hub and not yet looked at."""
    folder = _existing_folder(source)
    return brings_code(_read_config(Release(folder).config)) if folder else bool(source.strip())


def brings_code(config: dict[str, Any]) -> bool:
    """Whether a model's configuration needs code that neither transformers nor an imported package has."""
    return bool(config.get("auto_map")) and config.get("model_type") not in CONFIG_MAPPING


_LOADING = threading.Lock()


# Of each file of a folder: name, inode, time of its last change and size; empty for a model of the Hub.
Stamp = tuple[tuple[str, int, int, int], ...]


def _stamp(folder: Path | None) -> Stamp:
    """Tells a folder from itself after another training or release wrote there."""
    found = []
    for path in sorted(folder.iterdir()) if folder else ():
        if path.suffix in (".safetensors", ".json"):
            facts = path.stat()
            found.append((path.name, facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


class ModelShelf:
    """Loads models on demand and keeps the last few; safe to call from several threads."""

    def __init__(self, settings: PlaygroundSettings) -> None:
        self.settings = settings
        self._loaded: OrderedDict[str, tuple[Stamp, LoadedModel]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, source: str, *, consent: bool = False) -> LoadedModel:
        """The model behind `source`, from memory where it is there and its files are those that were loaded.

        Args:
            source: a value of `find_models`, or a folder or Hub id where any model may be named.
            consent: the person in front of the playground agreed to run code that comes with this model. Counts only
                where any model may be named; elsewhere only the launcher can agree.

        Raises:
            PlaygroundError: no such model, not offered here, too large, or code without consent.
        """
        source = source.strip()
        trusted = self.settings.trust_remote_code or (consent and self.settings.any_model)
        with self._lock:
            stamp = _stamp(_existing_folder(source))
            known, loaded = self._loaded.pop(source, (stamp, None))
            if loaded is None or known != stamp:
                folder = self._folder(source)
                loaded = load_folder(folder, source=source, trusted=trusted, max_bytes=self.settings.max_model_bytes)
            self._loaded[source] = stamp, loaded
            while len(self._loaded) > self.settings.kept_models:
                self._loaded.popitem(last=False)
        return loaded

    def _folder(self, source: str) -> Path:
        offered = [value for _, value in find_models(self.settings)]
        if not source:
            raise PlaygroundError(
                "No model is chosen. Pick one in the list."
                if offered
                else "There is no model yet. Train one with `accelerate launch recipes/search_two_stage.py`, "
                "or name a folder or a Hub id as the model."
            )
        if source not in offered and not self.settings.any_model:
            raise PlaygroundError(f"This playground offers {', '.join(offered) or 'no model'}, not {source[:100]!r}.")
        folder = _existing_folder(source)
        if folder:
            return folder
        if not HUB_ID.fullmatch(source):
            raise PlaygroundError(
                f"{source[:100]!r} is neither a folder here nor a Hub id. "
                "Give a folder such as runs/my_study/winner or an id such as owner/model."
            )
        return fetch_from_hub(source, max_bytes=self.settings.max_model_bytes)


def fetch_from_hub(repo_id: str, *, max_bytes: int) -> Path:
    """Folder in the Hub cache with the model's weights, configuration and tokenizer; nothing else is fetched.

    Raises:
        PlaygroundError: not there, gated, no safetensors, larger than `max_bytes`, or no network and not in the cache.
    """
    try:
        siblings = HfApi().model_info(repo_id, files_metadata=True, timeout=HUB_SECONDS).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings if "/" not in file.rfilename}
        weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
        if not weights:
            raise PlaygroundError(f"{repo_id} has no .safetensors weights. Only these are loaded; pick another model.")
        _check_size(repo_id, weights, max_bytes)
        wanted = [name for name in sizes if name.endswith(FETCHED)]
        return Path(snapshot_download(repo_id, allow_patterns=wanted))
    except GatedRepoError as error:
        raise PlaygroundError(
            f"{repo_id} is gated. Accept its terms on its Hub page and log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise PlaygroundError(
            f"The Hub knows no model {repo_id!r} that this machine may read. Check the spelling, or log in."
        ) from error
    except PlaygroundError:
        raise
    except Exception as error:
        # No network, whose errors have no common class: what an earlier session fetched still works.
        try:
            return Path(snapshot_download(repo_id, local_files_only=True))
        except OSError:
            raise PlaygroundError(
                f"The Hub cannot be reached and {repo_id} is not on this machine. "
                "Check the network, or name a folder with a model."
            ) from error


def _check_size(name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise PlaygroundError(
            f"{name} has {size / 1e6:,.0f} MB of weights, this playground loads up to {max_bytes / 1e6:,.0f} MB. "
            "Pick a smaller model, or start the playground with a larger --max-model-mb."
        )


def load_folder(folder: Path, *, source: str, trusted: bool, max_bytes: int) -> LoadedModel:
    """The model that `save_pretrained` wrote into `folder`; float32 on a CPU, as stored on a GPU.

    Raises:
        PlaygroundError: files missing, too large, or the model brings code and `trusted` is false.
    """
    release = Release(folder)
    config = _read_config(release.config)
    if not config or not release.weights:
        raise PlaygroundError(
            f"{source[:100]} holds no {'.safetensors weights' if config else f'readable {CONFIG}'}. "
            "Give a folder that save_pretrained wrote, such as runs/my_study/winner."
        )
    size = release.weights_bytes
    _check_size(source[:100], size, max_bytes)
    if brings_code(config) and not trusted:
        raise PlaygroundError(
            f"{source[:100]} brings its own model code, which would run with all your rights. Read it; if you trust "
            "it, tick the box below the model (on your own machine) or start the playground with --trust-remote-code."
        )
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    try:
        # transformers switches weight tying off for the whole process while it loads: two loads at once, even of two
        # shelves, can leave it off.
        with _LOADING:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=trusted
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise PlaygroundError(
            f"{source[:100]} does not load as a causal language model: {_first_line(error)}. "
            "Check that AutoModelForCausalLM.from_pretrained can read it, or pick another model."
        ) from error
    return LoadedModel(
        source=source,
        name=_label(source),
        model=model.eval(),
        tokenizer=tokenizer,
        context=int(getattr(model.config, "max_position_embeddings", None) or 2048),
        num_parameters=model.num_parameters(),
        weights_bytes=size,
        card=_read_text(folder / "README.md"),
        record=_read_record(release),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def _read_text(path: Path, *, limit: int = 60_000) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:limit]
    except OSError:
        return ""


def _read_config(path: Path) -> dict[str, Any]:
    """A model's configuration; empty where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _read_record(release: Release) -> Record:
    """What a model's record says; nothing where it has none, or one that is not ours: the model runs without it."""
    try:
        return release.read_record()
    except FileNotFoundError:
        return Record()
    except (RecordError, OSError, ValueError) as error:
        _log.warning("%s; its facts are not shown", error)
        return Record()
