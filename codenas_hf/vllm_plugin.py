"""Entry point of the group `vllm.general_plugins`: vLLM calls it in each of its processes."""

from __future__ import annotations

from transformers import CONFIG_MAPPING

from .configuration_codenas import CodeNASConfig


def register() -> None:
    """Makes the model type `codenas` known. Importing this module has imported the package, which registers it.

    Raises:
        RuntimeError: another package has taken the model type.
    """
    known = CONFIG_MAPPING["codenas"] if "codenas" in CONFIG_MAPPING else None
    if known is not CodeNASConfig:
        raise RuntimeError(f"the model type `codenas` should belong to {CodeNASConfig}, got {known}")
