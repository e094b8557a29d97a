"""Archives of named PyPI packages, from an explicit versioned manifest."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import yaml

from .licences import UNKNOWN, licence_of_text, package_licence
from .source_files import UNREADABLE, SourceFile
from .sources import expanded
from .storage import DataError


def list_manifest(source: str, *, archives: Path, download: bool) -> list[SourceFile]:
    """Lists the Python files in the wheels that a manifest names.

    The manifest is YAML: `version: 1` and `packages: {name: version}`. Only wheels are used: nothing of a package is
    executed, and its licence comes from its own metadata.

    Args:
        source: `pypi:MANIFEST`.
        archives: folder with the wheels; the cache of downloads.
        download: let pip fetch what is missing (`pip download --no-deps --only-binary=:all:`).

    Raises:
        DataError: the manifest cannot be read, or a wheel is missing or damaged.
    """
    manifest = expanded(source.removeprefix("pypi:"))
    packages = _read_manifest(manifest)
    missing = [f"{name}=={version}" for name, version in packages.items() if _wheel(archives, name, version) is None]
    if missing and download:
        _download(missing, archives)
        missing = [text for text in missing if _wheel(archives, *text.split("==")) is None]
    if missing:
        raise DataError(
            f"{manifest} names {len(missing)} packages without a wheel in {archives}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; set `download` to true, or put the wheels there"
        )
    files: list[SourceFile] = []
    for name, version in packages.items():
        wheel = _wheel(archives, name, version)
        assert wheel is not None
        files += _list_wheel(wheel, project=name, source=source)
    return files


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"the manifest {path} cannot be read: {error}") from error
    packages = value.get("packages") if isinstance(value, dict) and value.get("version") == 1 else None
    if not isinstance(packages, dict) or not packages or not all(isinstance(v, str) for v in packages.values()):
        raise DataError(f"{path}: expected `version: 1` and `packages:` with quoted versions, as in networkx: '3.4.2'")
    named: dict[str, str] = {}
    for name, version in packages.items():
        project = re.sub(r"[-_.]+", "-", str(name)).lower()
        if project in named:
            raise DataError(f"{path} names the package {project} twice: keep one version of it")
        named[project] = version
    return named


def _wheel(archives: Path, name: str, version: str) -> Path | None:
    for path in sorted(archives.glob("*.whl")):
        parts = path.name.lower().split("-")
        if len(parts) > 2 and re.sub(r"[._]+", "-", parts[0]) == name and parts[1] == version.lower():
            return path
    return None


def _download(requirements: list[str], archives: Path) -> None:
    archives.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"]
    result = subprocess.run([*command, str(archives), *requirements], capture_output=True, text=True, check=False)
    if result.returncode:
        raise DataError(f"pip could not download {', '.join(requirements[:5])}: {result.stderr.strip()[-500:]}")


def _list_wheel(wheel: Path, *, project: str, source: str) -> list[SourceFile]:
    try:
        with zipfile.ZipFile(wheel) as bundle:
            members = bundle.infolist()
            metadata = next((m for m in members if re.fullmatch(r"[^/]+\.dist-info/METADATA", m.filename)), None)
            text = bundle.read(metadata).decode("utf-8", "replace") if metadata else ""
            licence = package_licence(Parser().parsestr(text, headersonly=True)) if text else UNKNOWN
            if licence == UNKNOWN:
                licence = _licence_of_members(bundle)
    except UNREADABLE as error:
        raise DataError(
            f"the archive {wheel} is damaged ({error}); delete it and let it be downloaded again"
        ) from error
    stamp = wheel.stat().st_mtime_ns
    return [
        SourceFile(
            str(wheel),
            project,
            member.filename,
            licence,
            member.file_size,
            stamp,
            source,
            member=member.filename,
        )
        for member in sorted(members, key=lambda member: member.filename)
        if member.filename.endswith(".py")
    ]


def _licence_of_members(bundle: zipfile.ZipFile) -> str:
    names = [
        name for name in bundle.namelist() if re.search(r"\.dist-info/(?:licenses/)?(?:LICEN[CS]E|COPYING)", name)
    ]
    found = {licence_of_text(bundle.read(name).decode("utf-8", "replace")) for name in names}
    return found.pop() if len(found) == 1 else UNKNOWN
