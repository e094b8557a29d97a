"""Where machines without a common folder leave folders for each other, each under the hash of its content."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec

from .files import whole_file, whole_folder

logger = logging.getLogger(__name__)


class ShareError(ValueError):
    """Something is not in the share, is damaged there, or cannot be reached."""


@dataclass(frozen=True)
class Share:
    """A place that every machine of a study reaches; picklable.

    What lies there is named by the SHA-256 of its bytes, so a half of an upload is never taken for the whole, and what
    was left there twice lies there once.

    Args:
        url: a folder, or what fsspec opens: `hf://buckets/OWNER/NAME`, `s3://...`, `sftp://...`, or an HTTP folder
            that takes PUT.
    """

    url: str

    def put(self, folder: Path) -> str:
        """Leaves a copy of a folder there.

        Returns:
            The hex SHA-256 under which it is found.

        Raises:
            ShareError: it cannot be written there.
        """
        with tempfile.TemporaryDirectory(prefix="codenas-share-") as work:
            packed = Path(work) / "packed.tar"
            with tarfile.open(packed, "w", format=tarfile.PAX_FORMAT) as archive:
                for path in sorted(folder.rglob("*")):
                    archive.add(path, arcname=str(path.relative_to(folder)), recursive=False, filter=_nameless)
            digest = _sha256(packed)
            with self._told(f"{folder.name} could not be left for the other machines"):
                system, place = self._place(digest)
                if system.exists(place) and system.size(place) == packed.stat().st_size:
                    return digest
                if _is_local(system):
                    with whole_file(Path(place)) as draft:
                        shutil.copyfile(packed, draft)
                    return digest
                if not _is_http(system):
                    system.makedirs(place.rpartition("/")[0], exist_ok=True)
                system.put_file(str(packed), place, **({"method": "put"} if _is_http(system) else {}))
        return digest

    def fetch(self, digest: str, folder: Path) -> None:
        """Makes `folder` what was left there under `digest`, whole or not at all.

        Raises:
            ShareError: it is not there, is not what its name says, or cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="codenas-share-") as work:
            packed = Path(work) / "packed.tar"
            with self._told(f"{digest[:12]} could not be fetched"):
                system, place = self._place(digest)
                system.get_file(place, str(packed))
            found = _sha256(packed)
            if found != digest:
                raise ShareError(
                    f"{self.shown}: {digest[:12]} is damaged there, its content has the hash {found[:12]}"
                )
            with whole_folder(folder) as fresh, tarfile.open(packed) as archive:
                archive.extractall(fresh, filter="data")

    def discard(self, digest: str) -> None:
        """Removes what was left there under `digest`; harmless when repeated, and where nothing can be removed."""
        try:
            system, place = self._place(digest)
            system.rm_file(place)
        except Exception as error:  # every storage has errors of its own, and what stays costs room only
            logger.debug("%s stays in %s: %s", digest[:12], self.shown, error)

    @property
    def shown(self) -> str:
        """The place without user and password."""
        return re.sub(r"//[^@/]*@", "//***@", self.url)

    def _place(self, digest: str) -> tuple[Any, str]:
        system, root = fsspec.core.url_to_fs(os.path.expanduser(self.url))
        return system, f"{root.rstrip('/')}/{digest}.tar"

    @contextmanager
    def _told(self, problem: str) -> Iterator[None]:
        """Any error of any storage as one of ours, without what the place keeps secret."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).replace(self.url, self.shown).split()) or type(error).__name__
            text = re.sub(r"//[^@/\s]*@", "//***@", text)
            raise ShareError(f"{problem} ({self.shown}): {type(error).__name__}: {text[:300]}") from error


def _nameless(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what differs from machine to machine: equal content has an equal hash."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_local(system: Any) -> bool:
    return "file" in _protocols(system)


def _is_http(system: Any) -> bool:
    return "http" in _protocols(system)


def _protocols(system: Any) -> tuple[str, ...]:
    found = system.protocol
    return (found,) if isinstance(found, str) else cast("tuple[str, ...]", tuple(found))
