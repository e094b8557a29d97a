"""Strict settings: what is unknown, mistyped or impossible is named; what is written is read back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from codenas_hf.engine import Budget
from codenas_hf.strict_yaml import SettingsError, dump, from_mapping, load, parse_bytes, parse_overrides, read_yaml


@dataclass(frozen=True, kw_only=True)
class Inner:
    learning_rate: float = 1e-3
    max_bytes: int | None = None
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    folder: Path = Path("runs")
    budgets: tuple[Budget, ...] = (Budget("steps", 10),)
    weights: dict[str, float] = field(default_factory=dict)
    flag: bool = False
    steps: int = 3


def test_files_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("inner: {learning_rate: 2e-3, kind: b}\nsteps: 5\n")
    got = load(
        Outer, file, overrides=["inner.learning_rate=1e-2", "inner.max_bytes=20MB", "budgets=[50 steps, 9 seconds]"]
    )
    assert got.inner == Inner(learning_rate=1e-2, kind="b", max_bytes=20_000_000)
    assert got.steps == 5
    assert got.budgets == (Budget("steps", 50), Budget("seconds", 9))


def test_dump_reads_back(tmp_path: Path) -> None:
    settings = Outer(inner=Inner(max_bytes=7), weights={"x": 0.5}, folder=Path("a/b"))
    file = tmp_path / "dump.yaml"
    file.write_text(dump(settings))
    assert load(Outer, file) == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.lerning_rate=1", r"`inner\.lerning_rate` is not a setting; did you mean `learning_rate`\?"),
        ("zzz=1", "known keys: budgets, flag"),
        ("steps=many", r"`steps`: expected int, got 'many' \(str\)"),
        ("steps=1.5", "expected int, got 1.5"),
        ("steps=true", "expected int, got True"),
        ("flag=1", "expected bool, got 1"),
        ("inner.kind=c", "expected one of 'a', 'b', got 'c'"),
        ("inner.learning_rate=-1", "`inner`: `learning_rate` must be positive, got -1"),
        ("inner.max_bytes=20 parsecs", "`inner.max_bytes`: expected a size such as 20MB"),
        ("inner=3", "`inner`: expected a mapping of settings, got 3"),
        ("weights=3", "`weights`: expected a mapping, got 3"),
        ("budgets=[10 laps]", r"`budgets\[0\]`: a budget reads like"),
        ("noequals", "expected name=value"),
        ("steps=[", "not valid YAML"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(Outer, overrides=[override])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        read_yaml(tmp_path / "absent.yaml")
    for text, message in (
        ("- 1", "expected a mapping of settings, got list"),
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "`a` is given twice"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(SettingsError, match=message):
            read_yaml(tmp_path / "bad.yaml")
    with pytest.raises(SettingsError, match="expected a mapping of settings"):
        from_mapping(Outer, 3)


def test_sizes() -> None:
    assert [parse_bytes(x) for x in ("20MB", "1 KiB", "1.5k", 12, "3e6")] == [20_000_000, 1024, 1500, 12, 3_000_000]


def test_overrides_nest() -> None:
    assert parse_overrides(["a.b=1", "a.c=[x, y]", "d=1e-3"]) == {"a": {"b": 1, "c": ["x", "y"]}, "d": 1e-3}
