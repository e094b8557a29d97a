"""What transformers 5 writes, spelled so that older readers (transformers 4, vLLM, converters) read the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..folders import read_json, write_json
from ..folders.files import TOKENIZER

# Every file that a tokenizer may consist of; what else lies in its folder is not its own.
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
# How it came to be loaded here, which says nothing to whoever loads it elsewhere.
_OF_THIS_MACHINE = frozenset({"is_local", "local_files_only", "name_or_path", "_name_or_path"}) | frozenset(
    {"tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"}
)
_STANDARD_TOKENS = frozenset(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer: to load and save it again would write this machine and this version into them.

    Only `tokenizer_config.json` is written anew, as `tokenizer_config` spells it.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if source / TOKENIZER not in found:
        raise FileNotFoundError(f"{source} holds no {TOKENIZER}: expected a fast tokenizer; save one there")
    for path in found:
        shutil.copyfile(path, target / path.name)
    config = target / "tokenizer_config.json"
    write_json(config, tokenizer_config(read_json(config) if config.is_file() else {}))


def tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `tokenizer_config.json` for readers of either version.

    The class gets the name that both know. Version 5 writes extra tokens as a list, at which version 4 fails, and
    named ones (`fim_prefix_token`) beside it; both read a mapping of names, and a list under its older name.
    """
    known = {name: value for name, value in config.items() if name not in _OF_THIS_MACHINE}
    if known.get("tokenizer_class", "TokenizersBackend") == "TokenizersBackend":
        known["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = known.pop("extra_special_tokens", None) or {}
    if isinstance(extra, list):
        known.setdefault("additional_special_tokens", extra)
        extra = {}
    named = {name: v for name, v in known.items() if name.endswith("_token") and name not in _STANDARD_TOKENS}
    named = {name: value for name, value in named.items() if isinstance(value, str | dict)}
    if extra or named:
        known["extra_special_tokens"] = {**named, **extra}
    return known


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` for readers of either version.

    Version 5 keeps all of the rotary embedding under `rope_parameters`. Whatever reads the older fields would take its
    defaults in silence: theta 10,000 for a Llama, 2,000,000 for a SmolLM3, a quarter of each head for a StableLM.
    """
    rope = dict(config.get("rope_parameters") or {})
    older = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = rope
    if config.get("dtype") is not None:
        older["torch_dtype"] = config["dtype"]
    known = {name: value for name, value in config.items() if name not in _OF_THIS_MACHINE}
    return dict(sorted({**known, **older}.items()))


# A path from the root of this machine inside a text: at its beginning, or behind a blank, a quote or a bracket. Not a
# URL, a fraction, a closing tag, or letters of base64. The scheme of `file:///a/b` and `sqlite:////a/b` is left.
_PLACE = re.compile(
    r"(?:(?<![\w/:.~<>+,*\\-])|(?<=:///)|(?<=://)(?=/)|(?<=git:)|(?<=pypi:))/(?:[^\s/\"'`<>|;,()\[\]]+/+)+"
)
_PASSWORD = re.compile(r"(\w+://)[^\s/:@\"']+:[^\s/@\"']+@")


def without_places(value: Any) -> Any:
    """Plain values as they may leave the house: of a path from the root of this machine its last name stays.

    Whoever loads a release elsewhere cannot follow such a path, and it tells who made it where. What is relative,
    below `~` or on the Hub stays as it is. Keys of mappings are looked at too; two that become one are numbered.
    Passwords in URLs become `***`.
    """
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, item in value.items():
            name = plain = str(without_places(key)) if isinstance(key, str) else key
            number = 2
            while name in found:
                name, number = f"{plain} ({number})", number + 1
            found[name] = without_places(item)
        return found
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return text_without_places(value) if isinstance(value, str) else value


def text_without_places(text: str) -> str:
    """As `without_places`, for one text; a text that is a path as a whole may hold blanks."""
    if text.startswith("/") and "\n" not in text:
        return PurePosixPath(text).name or "."
    return _PLACE.sub("", _PASSWORD.sub(r"\1***@", text))
