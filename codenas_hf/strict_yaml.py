"""Settings dataclasses from YAML files and dotted overrides, nothing unknown accepted.

Each part of the package owns its settings dataclass; the functions here build any of them from a mapping, strictly: an
unknown key raises and names the nearest known one, a value of the wrong type raises and says what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml

T = TypeVar("T")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)

_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:_[0-9]{3})+")  # 1_000_000
_SWITCHES = {"on": True, "yes": True, "off": False, "no": False}


class SettingsError(ValueError):
    """A setting that does not exist or cannot be used; the message says which, what was expected and got."""


class _StrictLoader(yaml.SafeLoader):
    """YAML with the few types that settings need, where a key given twice is an error.

    As in YAML 1.2, `1e-3` is a number, and dates, `on`, `0123` or `12:30` are the text that was typed. Keys are text.
    """


class _StrictDumper(yaml.SafeDumper):
    """Puts quotes around every text that `_StrictLoader` (or a plain YAML reader) would take for something else."""


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    found = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            raise SettingsError(f"line {line}: a key must be a name, got {getattr(key, 'value', key.id)!r}")
        if key.value in lines:
            raise SettingsError(
                f"line {line}: `{key.value}` is given twice (first in line {lines[key.value]}); keep one of them"
            )
        lines[key.value] = line
        found[key.value] = loader.construct_object(value, deep=True)
    return found


_TAG = "tag:yaml.org,2002:"
_StrictLoader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "int", "float", "str", "seq")  # None: all others
}
_StrictLoader.add_constructor(f"{_TAG}map", _strict_mapping)
_StrictLoader.yaml_implicit_resolvers = {}
# Whole numbers only as Python prints them, so that one can stand where a name is meant: `study: 2026`.
for _name, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"0|-?[1-9][0-9]*", list("-0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    for _loader in (_StrictLoader, _StrictDumper):
        _loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def _read(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        SettingsError: not YAML, a key given twice, or a type that settings do not have; one line, with its place.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
    except SettingsError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise SettingsError(f"{place}not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise SettingsError(f"not valid YAML: character {error.position + 1} ({error.reason})") from error
    except RecursionError as error:
        raise SettingsError("not valid YAML: nested too deeply") from error
    except ValueError as error:  # a tag such as !!int before something else
        raise SettingsError(f"not valid YAML: {error}") from error


def parse_bytes(text: str | int | float) -> int:
    """Bytes from `"20MB"` (decimal), `"512 MiB"` (binary) or a plain number.

    Raises:
        SettingsError: not a size.
    """
    plain = isinstance(text, (int, float)) and not isinstance(text, bool)
    match = _SIZE.fullmatch(str(text))
    try:
        if plain:
            return int(text)
        if match is not None:
            return int(float(match[1]) * _UNITS[match[2].lower()])
    except (ValueError, OverflowError):  # not a number, or an infinite one
        pass
    raise SettingsError(f"expected a size such as 20MB, 512KiB or a number of bytes, got {text!r}")


def nearest(key: str, known: Sequence[str]) -> str:
    """A half-sentence that names the known key closest to `key`, or all of them."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` asks for; raises SettingsError with the dotted name `where`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        errors = []
        # A string is taken last: "20MB" for `int | str` is a number first.
        for option in sorted((o for o in options if o is not type(None)), key=lambda o: o is str):
            try:
                return _convert(option, value, where)
            except SettingsError as error:
                errors.append(str(error))
        raise SettingsError(errors[-1] if any(hasattr(option, "parse") for option in options) else errors[0])
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value in get_args(hint):
            return value
        raise SettingsError(f"`{where}`: expected one of {', '.join(map(repr, get_args(hint)))}, got {value!r}")
    if origin in (tuple, list, Sequence):
        items = value if isinstance(value, (list, tuple)) else [value]
        converted = [_convert(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
        return converted if origin is list else tuple(converted)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise SettingsError(f"`{where}`: expected a mapping, got {value!r}")
        return {str(k): _convert(get_args(hint)[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, (str, int, float)) and hasattr(hint, "parse"):
            return _checked(where, lambda: hint.parse(str(value)))
        return from_mapping(hint, value, where=where)
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint in (str, Path) and isinstance(value, (str, Path)):
        return _text(hint, value, where)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # as it was typed: see the loader
    if hint is bool and isinstance(value, str) and value in _SWITCHES:
        return _SWITCHES[value]
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        return _number(hint, value, where)
    name, advice = getattr(hint, "__name__", str(hint)), "; write true or false" if hint is bool else ""
    if hint is str and isinstance(value, (bool, float)):
        advice = "; put it in quotes"
    raise SettingsError(f"`{where}`: expected {name}, got {value!r} ({type(value).__name__}){advice}")


def _number(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, str):
        if where.rsplit(".", 1)[-1].endswith("bytes"):
            try:
                return parse_bytes(value)
            except SettingsError as error:
                raise SettingsError(f"`{where}`: {error}") from error
        if _GROUPED.fullmatch(value):
            value = int(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"`{where}`: expected a finite number, got {value!r}")
    if isinstance(value, int) or (isinstance(value, float) and (hint is float or value.is_integer())):
        try:
            return hint(value)
        except OverflowError as error:
            raise SettingsError(f"`{where}`: expected a number of usual size, got {str(value)[:9]}...") from error
    raise SettingsError(f"`{where}`: expected {hint.__name__}, got {value!r} ({type(value).__name__})")


def _text(hint: Any, value: str | Path, where: str) -> Any:
    """`value` as a text or path that can be printed, encoded and opened."""
    if "\0" in str(value) or not _encodable(str(value)):
        raise SettingsError(f"`{where}`: expected text in UTF-8 without a zero, got {str(value)!r}")
    if hint is str:
        return str(value)
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        user = Path(value).parts[0]
        raise SettingsError(f"`{where}`: there is no home folder of {user} here; give the whole path") from error


def _encodable(text: str) -> bool:
    """False with halves of characters: from bytes that are no UTF-8, or escapes; they cannot be written or printed."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _checked(where: str, build: Any) -> Any:
    try:
        return build()
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"`{where}`: {error}" if where else str(error)) from error


def from_mapping(cls: type[T], data: Any, *, where: str = "") -> T:
    """An instance of the settings dataclass `cls` from plain values, strictly.

    Args:
        cls: a dataclass; nested dataclasses, tuples, literals, unions and paths are followed. A field whose name
            ends in `bytes` also takes sizes such as `20MB`.
        data: mapping of field names to values.
        where: dotted name of `data`, for messages.

    Raises:
        SettingsError: unknown key (the nearest known one is named), wrong type, or a value that `cls` refuses.
    """
    if not isinstance(data, Mapping):
        raise SettingsError(f"`{where or cls.__name__}`: expected a mapping of settings, got {data!r}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]  # cls is a dataclass
    values = {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise SettingsError(f"`{name}` is not a setting; {nearest(str(key), known)}")
        values[key] = _convert(hints[key], value, name)
    return typing.cast(T, _checked(where, lambda: cls(**values)))


def read_yaml(path: Path, *, kind: str = "settings") -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. `kind` says of what, for messages.

    Raises:
        SettingsError: no such file, not UTF-8, not YAML, a key given twice, or not a mapping; one line.
    """
    try:
        data = _read(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingsError(f"no {kind} file {path}; see configs/ for examples") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except SettingsError as error:
        raise SettingsError(f"{path}, {error}") from error
    if data is not None and not isinstance(data, dict):
        raise SettingsError(f"{path}: expected a mapping of {kind}, got {type(data).__name__}")
    return data or {}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; anything that is not a mapping replaces."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Nested mapping from `train.learning_rate=1e-3` words; values are YAML.

    Raises:
        SettingsError: a word that is not `name=value`.
    """
    tree: dict[str, Any] = {}
    for word in overrides:
        if not _encodable(word):
            raise SettingsError(f"expected name=value in UTF-8, got {word!r}")
        name, equals, text = word.partition("=")
        if not equals or not name.isprintable() or any(not part for part in name.split(".")):
            raise SettingsError(f"expected name=value, such as limits.bytes=20MB, got {word!r}")
        try:
            value = _read(text)
        except SettingsError as error:
            raise SettingsError(f"the value of {word!r}, {error}") from error
        for part in reversed(name.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def load(cls: type[T], *files: Path, overrides: Sequence[str] = (), without: Mapping[Path, Sequence[str]] = {}) -> T:
    """`cls` from its defaults, then each file, then dotted overrides.

    Args:
        cls: the settings.
        *files: the last on top.
        overrides: `name=value` words, on top of all.
        without: dotted names of what a file says and is not asked.

    Raises:
        SettingsError: see `from_mapping`, `read_yaml`, `parse_overrides`; of a file it names the file.
    """
    data: dict[str, Any] = {}
    for file in files:
        content = read_yaml(file)
        try:
            from_mapping(cls, content, where="")  # alone, so that the message is of the file that is wrong
        except ValueError as error:
            raise SettingsError(f"{file}: {error}") from error
        for name in without.get(file, ()):
            _drop(content, name.split("."))
        data = merge(data, content)
    return from_mapping(cls, merge(data, parse_overrides(overrides)))


def _drop(mapping: Any, names: Sequence[str]) -> None:
    """Takes a nested entry out of a mapping, where it is there."""
    *outer, last = names
    for name in outer:
        mapping = mapping.get(name) or {}
    mapping.pop(last, None)


def to_mapping(settings: Any) -> Any:
    """Plain values (mappings, lists, strings, numbers) of a settings dataclass; `from_mapping` reads them back."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_mapping(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.init}
    if isinstance(settings, Mapping):
        return {key: to_mapping(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_mapping(item) for item in settings]
    return str(settings) if isinstance(settings, Path) else settings


def dump(settings: Any) -> str:
    """Resolved settings as YAML."""
    return yaml.dump(to_mapping(settings), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)
