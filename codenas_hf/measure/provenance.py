"""What is needed to repeat a measurement: versions, device, commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..hardware import cores, device_name

_PACKAGES = ("codenas-hf", "torch", "transformers", "accelerate", "numpy")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


@functools.cache
def commit() -> str | None:
    """Commit of the source tree that the package was imported from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def provenance(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions and commit of this process; what is unknown is absent."""
    known = {
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "versions": versions(),
        "commit": commit(),
    }
    return {name: value for name, value in known.items() if value is not None}
