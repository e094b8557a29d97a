"""A study on several machines: what it stands on travels with its database, what is large through its share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data import PreparedData
from ..engine import StorageError
from ..engine.storage import open_storage
from ..engine.study import Study
from ..folders import StudyFolder, read_json, write_json
from ..folders.share import Share
from ..strict_yaml import SettingsError
from .settings import RunSettings

Say = Callable[[str], None]

_FACT = "begun"
_LOOK_S = 2.0
_SAY_S = 60.0


def share_of(settings: RunSettings) -> Share | None:
    """Where the machines of a study leave checkpoints for each other; None where they see one folder."""
    return None if settings.search.share is None else Share(settings.search.share)


def leave_facts(settings: RunSettings, *, folder: Path, data: PreparedData) -> None:
    """Stores with the database what the study in `folder` stands on, so that another machine can join it.

    Raises:
        ShareError: the data cannot be left in the share.
    """
    url, share, study = settings.search.storage, share_of(settings), StudyFolder(folder)
    if url is None:
        return
    storage = open_storage(url, folder=folder)
    if Study.stored_fact(storage, settings.study, _FACT) is not None:
        return
    facts = (study.data, study.latency, study.precision, study.plan)
    objects: dict[str, str] = {}
    if share is not None:
        for place in sorted({data.corpus_folder, *data.tokenizers.values(), *data.splits.values()}):
            objects[os.path.relpath(place.resolve(), folder.resolve())] = share.put(place)
    files = {path.name: read_json(path) for path in facts if path.is_file()}
    Study.store_fact(storage, settings.study, _FACT, {"files": files, "objects": objects})


def take_facts(settings: RunSettings, *, folder: Path, wait_s: float, say: Say) -> None:
    """Takes over what a study that lies in a database stands on; what this machine has already stays.

    Args:
        settings: of the study.
        folder: of the study, here.
        wait_s: how long to wait for a study that nobody has begun yet, or a database that is not up; 0 for one that
            may be new.
        say: told that it waits.

    Raises:
        SettingsError: nobody began the study in that time.
        StorageError: the database cannot be opened.
        ShareError: data of the study cannot be fetched.
    """
    if settings.search.storage is None:
        return
    facts = _awaited(settings, folder=folder, wait_s=wait_s, say=say)
    if facts is None:
        return
    for name, content in facts["files"].items():
        if not (folder / Path(name).name).exists():
            write_json(folder / Path(name).name, content)
    share, root = share_of(settings), settings.folder.resolve()
    for place, digest in facts["objects"].items():
        target = Path(os.path.normpath(folder.resolve() / place))
        if share is not None and target.is_relative_to(root) and not target.exists():
            say(f"fetch     {place} from {share.shown}")
            share.fetch(digest, target)


def _awaited(settings: RunSettings, *, folder: Path, wait_s: float, say: Say) -> Mapping[str, Any] | None:
    deadline, told, trouble = time.monotonic() + wait_s, -_SAY_S, ""
    while True:
        try:
            storage = open_storage(settings.search.storage, folder=folder)
            found: Mapping[str, Any] | None = Study.stored_fact(storage, settings.study, _FACT)
            trouble = ""
        except StorageError as error:
            if wait_s == 0:
                raise
            found, trouble = None, f"; the last try: {error}"
        if found is not None or wait_s == 0:
            return found
        if time.monotonic() > deadline:
            raise SettingsError(
                f"nobody began the study {settings.study!r} within {wait_s:g} s: start the same command without "
                f"--worker on one machine, which prepares the data{trouble}"
            )
        if time.monotonic() - told > _SAY_S:
            told = time.monotonic()
            say(f"waiting   for the study {settings.study}, which another machine begins{trouble}")
        time.sleep(_LOOK_S)
