"""The names of our files, and how a file or folder is written: whole, or not at all."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of a release. The first three names are those of transformers.
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
RECORD, SETTINGS, EVALUATION = "record.json", "settings.yaml", "evaluation.json"
TOKENIZER_MANIFEST = "codenas_tokenizer.json"  # what a tokenizer was built from, beside it
# Of a study. The journal's stands in the engine too, which imports nothing of ours; a test compares them.
DATA, LATENCY, PRECISION = "data.json", "latency.json", "precision.json"
PLAN, FINISH, PARENT = "plan.json", "finish.json", "parent.json"
JOURNAL, WINNER = "study.journal", "winner"

# What a reader of the model does not download to run it. All else counts, so that nothing can hide.
_FREE_SUFFIXES = frozenset({".py", ".pyc", ".md", ".yaml", ".yml", ".html", ".png", ".svg", ".csv", ".jsonl"})
_FREE_NAMES = frozenset({RECORD, EVALUATION, TOKENIZER_MANIFEST, "LICENSE", ".gitattributes"})
_SHORT_BYTES = 60  # of a temporary folder: a socket's path may have 107, and multiprocessing adds about 30


def folder_bytes(folder: Path) -> int:
    """Bytes of what must be shipped to run the model in a folder: weights, tokenizer, configuration.

    Code, texts for people, the record and what an evaluation left do not count, nor does a GGUF file beside weights
    for transformers: whoever loads the one does not need the other.

    Raises:
        FileNotFoundError: the folder holds no such file.
    """
    free = _FREE_SUFFIXES | ({".gguf"} if (folder / WEIGHTS).is_file() else set())
    counted = [
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in free and path.name not in _FREE_NAMES
    ]
    if not counted:
        raise FileNotFoundError(f"{folder} holds no model: expected {WEIGHTS} and {CONFIG}")
    return sum(counted)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once the block ends without an error.

    Whatever happens, `path` is as it was or new and complete; its permissions are those that the umask gives. The
    temporary file keeps the name's ending, for libraries that read the format from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids repeat on the machines that share a folder.
    draft = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.{path.name}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.chmod(0o666 & ~_umask())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` once the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = draft.with_name(f"{draft.name}-old")
    umask = _umask()
    try:
        draft.chmod(0o777 & ~umask)
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(draft, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all.

    Raises:
        ValueError: a number that JSON does not have, such as nan.
    """
    with whole_file(path) as draft:
        draft.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: something else is in it; the message names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); write it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected an object, got {type(found).__name__}; write it again")
    return found


def keep_sockets_short() -> None:
    """Gives the sockets of this process's children a short path where the temporary folder's is long.

    A socket's path may have 107 bytes, and batch systems set a `TMPDIR` that leaves no room. Only the sockets move:
    everything else is still written below `TMPDIR`. Call it before a `forkserver` is started.

    Raises:
        OSError: the temporary folder is too long, and there is no other.
    """
    settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # as util does
    if len(os.fsencode(tempfile.gettempdir())) <= _SHORT_BYTES or "tempdir" in settings:
        return
    for base in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp", "/dev/shm"):
        if base and len(os.fsencode(base)) <= _SHORT_BYTES and os.access(base, os.W_OK | os.X_OK):
            settings["tempdir"] = tempfile.mkdtemp(prefix="codenas-", dir=base)
            atexit.register(_remove_own, settings["tempdir"], os.getpid())
            return
    raise OSError(
        f"the temporary folder {tempfile.gettempdir()} is too long for sockets: set TMPDIR to a short folder"
    )


def _remove_own(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take it from its parent
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
