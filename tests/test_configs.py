"""Every file of configs/ is read by what it is for, and holds only what differs from the defaults."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.hardware import Hardware
from codenas_hf.jobs.settings import RunSettings, config_path
from codenas_hf.jobs.squeeze import read_squeeze_genome
from codenas_hf.jobs.squeeze_prepare import load_choices
from codenas_hf.jobs.wanted import LadderSettings, LimitSettings
from codenas_hf.strict_yaml import SettingsError, dump, from_mapping, load, read_yaml, to_mapping

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("corpus/*.yaml")])


def leaves(data: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in data.items():
        found |= leaves(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
    return found


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_run_files_are_read_and_differ(path: Path) -> None:
    settings, defaults = to_mapping(load(RunSettings, path)), to_mapping(RunSettings())
    others = leaves(read_yaml(CONFIGS / "gpu.yaml"))  # under a squeeze's there may be a GPU's: some are put back
    for keys, own in leaves(read_yaml(path)).items():
        got, usual = settings, defaults
        for key in keys:
            got, usual = got[key], usual[key] if isinstance(usual, Mapping) else None
        put_back = path.stem == "squeeze" and others.get(keys, own) != own
        assert got != usual or put_back, f"{path.name}: {'.'.join(keys)} is the default"


def test_a_squeeze_heals_alike_where_there_is_a_gpu() -> None:
    """The settings of a GPU lie under those of a squeeze."""
    plain, over = (
        load(RunSettings, *files, CONFIGS / "squeeze.yaml", overrides=["limits.bytes=60MB"])
        for files in ((), (CONFIGS / "gpu.yaml",))
    )
    assert replace(over.train, loss_chunk_tokens=None) == replace(plain.train, loss_chunk_tokens=None)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("spaces/[!s]*.yaml")), ids=lambda p: p.stem)
def test_spaces_are_read(path: Path) -> None:
    assert SearchSpace.from_yaml(path).size() > 1000


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("spaces/[!s]*.yaml")), ids=lambda p: p.stem)
def test_every_format_stores_every_member_of_a_shipped_space(path: Path) -> None:
    space, rng = SearchSpace.from_yaml(path), np.random.default_rng(0)
    for genome in (space.sample(rng) for _ in range(64)):
        rows = {shape[-1] for shape in genome.parameter_shapes().values() if len(shape) == 2}
        assert not [length for length in rows if length % 32], genome


@pytest.mark.parametrize("size", [75, 60, 50])
def test_squeeze_genomes_are_read_by_name(size: int) -> None:
    space = load_choices("squeeze")
    genome = read_squeeze_genome(Path(f"squeezed/{size}mb"))
    assert genome.vocab_size in space.vocab_sizes
    assert len(genome.attention) == space.sections
    assert {*genome.attention, *genome.feed_forward} <= {*space.matrices}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("genomes/*.yaml")), ids=lambda p: p.stem)
def test_genomes_are_read(path: Path) -> None:
    assert Genome.from_yaml(path).num_parameters() > 100_000


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("accelerate/*.yaml")), ids=lambda p: p.stem)
def test_accelerate_files_are_read(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert config_path("mine.yaml", kind="spaces") == Path("mine.yaml"), "a file here needs no ./ before it"
    for name, kind in (("tiny", "spaces"), ("spaces/tiny", "spaces"), ("spaces/tiny", "")):
        assert config_path(name, kind=kind) == CONFIGS / "spaces" / "tiny.yaml"
    assert config_path("squeezed/60mb", kind="genomes") == CONFIGS / "genomes" / "squeezed" / "60mb.yaml"
    with pytest.raises(SettingsError, match="no settings file runs/typo; give a path"):
        config_path("runs/typo", kind="genomes")
    assert config_path("smoke") == config_path("smoke.yaml") == CONFIGS / "smoke.yaml"
    assert config_path(CONFIGS / "smoke.yaml") == CONFIGS / "smoke.yaml"
    with pytest.raises(SettingsError, match=r"no settings file spaces/tinny; there are .*spaces/tiny"):
        config_path("spaces/tinny")
    with pytest.raises(SettingsError, match="no settings file nowhere/x; give a path"):
        config_path("nowhere/x")


def test_who_names_a_limit_names_them_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("limits: {bytes: 3MB}\n", encoding="utf-8")
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(Hardware, "discover", lambda asked="auto", device=device: Hardware(device, "any", 1))
        assert RunSettings.of("limits.bytes=2MB").limits == LimitSettings(bytes=2_000_000)
        assert RunSettings.of(config=[file]).limits == LimitSettings(bytes=3_000_000)
        assert RunSettings.of(config=["squeeze"]).limits == LimitSettings(bytes=60_000_000)
        assert RunSettings.of().limits.bytes == {"cpu": 4_000_000, "cuda": 100_000_000}[device]


def test_settings_read_back(tmp_path: Path) -> None:
    settings = load(RunSettings, CONFIGS / "gpu.yaml", overrides=["limits.decode_ms=4", "search.seed=3"])
    file = tmp_path / "settings.yaml"
    file.write_text(dump(settings))
    assert load(RunSettings, file) == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limits.bytes=0", "`limits`: `bytes` must be above 0, or null, got 0; leave it out for no limit"),
        ("limits.decode_ms=-1", "`decode_ms` must be above 0, or null, got -1"),
        ("search.population=0", "`search`: `population` must be 1 or more, got 0"),
        ("search.seed=-1", "`seed` must be 0 or more, got -1"),
        ("search.workers_per_rank=0", "`workers_per_rank` must be 1 or more, or null, got 0"),
        ("search.time_limit_s=0", "`time_limit_s` must be above 0, or null, got 0"),
        ("final_score_bytes=0", "`final_score_bytes` must be 1 or more, got 0"),
        ("study=1.10", "`study`: expected str, got 1.1"),
        ("limits={bytes: 5MB, min_bytes: 6MB}", "must be below `bytes`"),
        ("weights.artifact_bytes=-1", "`artifact_bytes` must be 0 or more, got -1"),
        ("search.keep=[]", "one number less than `budgets`"),
        ("serch.seed=1", "`serch` is not a setting; did you mean `search`"),
        ("search.population=twelve", "`search.population`: expected int"),
    ],
)
def test_bad_settings(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(RunSettings, overrides=[override])


def test_the_ladder_becomes_rungs() -> None:
    ladder = from_mapping(LadderSettings, {"budgets": ["1 steps", "2 steps", "3 steps"], "keep": [5, 2]})
    assert [(r.index, r.budget.amount, r.keep) for r in ladder.rungs] == [(0, 1, 5), (1, 2, 2), (2, 3, None)]
