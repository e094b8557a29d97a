"""The settings files of configs/corpus."""

from pathlib import Path

import pytest

from codenas_hf.data.archives import _read_manifest
from codenas_hf.data.sources import is_stream
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.strict_yaml import load

FOLDER = Path(__file__).parent.parent / "configs" / "corpus"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_loads_and_differs_from_the_defaults(path):
    settings = load(RunSettings, path)
    assert settings.corpus != RunSettings().corpus
    assert settings == load(RunSettings, path, overrides=["corpus.seed=0"])


def test_the_stack_is_a_stream():
    (source,) = load(RunSettings, FOLDER / "stack_dedup.yaml").corpus.sources
    assert is_stream(source)


def test_the_manifest_names_versions():
    (source,) = load(RunSettings, FOLDER / "packages.yaml").corpus.sources
    packages = _read_manifest(FOLDER.parent.parent / source.removeprefix("pypi:"))
    assert len(packages) > 25
    assert all(version[0].isdigit() for version in packages.values())
