"""Strict settings: what is unknown, mistyped or impossible is named; what is written is read back."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

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
    name: str = "x"
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
        ("steps=[", "line 1, column 2: not valid YAML"),
        ("steps=010", "expected int, got '010'"),
        ("steps=12:30", "expected int, got '12:30'"),
        ("steps=.inf", "`steps`: expected a finite number, got inf"),
        ("inner.learning_rate=.nan", "`inner.learning_rate`: expected a finite number, got nan"),
        (
            "inner.learning_rate=1" + "0" * 400,
            r"`inner.learning_rate`: expected a number of usual size, got 100000000",
        ),
        ("steps=" + "9" * 5000, "the value of 'steps=9+', not valid YAML: Exceeds the limit"),
        ("inner.max_bytes=.inf", "expected a finite number"),
        ("inner.max_bytes=1e400MB", "expected a size such as 20MB"),
        ("flag=[on]", r"`flag`: expected bool, got \['on'\] \(list\); write true or false"),
        ("flag=maybe", "`flag`: expected bool, got 'maybe'"),
        ("name=1.10", r"`name`: expected str, got 1.1 \(float\); put it in quotes"),
        ("name=true", "`name`: expected str, got True"),
        ("name=", "`name`: expected str, got None"),
        ("name={a: 1}", "`name`: expected str, got {'a': 1}"),
        ("name=\udcff", r"expected name=value in UTF-8, got 'name=\\udcff'"),
        ('name="\\ud800"', r"`name`: expected text in UTF-8 without a zero, got '\\ud800'"),
        ('folder="a\\0b"', r"`folder`: expected text in UTF-8 without a zero, got 'a\\x00b'"),
        ("folder=~nouser/x", "`folder`: there is no home folder of ~nouser here"),
        ("name=@x", "line 1, column 1: not valid YAML: found character '@' that cannot start any token"),
        ("name=*x", "not valid YAML: found undefined alias 'x'"),
        ("name=!!int x", "not valid YAML: invalid literal"),
        ("name=!!python/name:os.system", "not valid YAML: could not determine a constructor"),
        ("name=!!timestamp 2026-11-25", "not valid YAML: could not determine a constructor"),
        ("name=a\n---\nb", "not valid YAML: but found another document"),
        ("name=&a [*a]", r"`name`: expected str, got \[\[\.\.\.\]\]"),
        ("name=\x07", r"not valid YAML: character 1 \(special characters are not allowed\)"),
        ("name=" + "[" * 3000, "not valid YAML: nested too deeply"),
        ("weights={[1]: 2}", "a key must be a name, got"),
        ('weights={"\\ud800": 2}', r"a key must be a name, got '\\ud800'"),
        ("weights={a: 1, a: 2}", "the value of 'weights={a: 1, a: 2}', line 1: `a` is given twice"),
        ("st\nep=1", "expected name=value"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        load(Outer, overrides=[override])
    assert str(raised.value).isprintable()  # so one line, on any terminal


@pytest.mark.parametrize(
    "typed", ["2026-11-25", "on", "no", "0123", "12:30", "1_000", "2026", "-7", "0x1f", "=", "<<", "1e", "1.2.3"]
)
def test_a_name_is_what_was_typed(typed: str, tmp_path: Path) -> None:
    assert load(Outer, overrides=[f"name={typed}"]).name == typed
    file = tmp_path / "a.yaml"
    file.write_text(f"name: {typed}\n")
    assert load(Outer, file).name == typed


@pytest.mark.parametrize(
    "name",
    ["1e4", "1E-3", "1.5", ".nan", "-.inf", "true", "null", "~", "", "on", "2026-11-25", "0123", "7", "a: b", "é"],
)
def test_any_text_survives_a_dump(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(dump(Outer(name=name)), encoding="utf-8")
    assert load(Outer, file).name == name
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["name"] == name


def test_numbers_and_switches() -> None:
    numbers = {
        "1e4": 1e4,
        "1E-4": 1e-4,
        "-.5": -0.5,
        "2.": 2.0,
        "+1.5e+3": 1500.0,
        "7": 7,
        "-0": "-0",
        ".inf": math.inf,
    }
    for text, number in numbers.items():
        got = parse_overrides([f"a={text}"])["a"]
        assert (got, type(got)) == (number, type(number)), text
    assert load(Outer, overrides=["steps=1_000_000"]).steps == 1_000_000
    assert [load(Outer, overrides=[f"flag={word}"]).flag for word in ("on", "yes", "true", "off", "no")] == [
        *(True, True, True, False, False)
    ]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        read_yaml(tmp_path / "absent.yaml")
    for text, message in (
        ("- 1", "expected a mapping of settings, got list"),
        ("a: [", r"bad\.yaml, line 1, column 5: not valid YAML"),
        ("a: 1\nb: 3\na: 2", r"bad\.yaml, line 3: `a` is given twice \(first in line 1\)"),
        ("a:\n  b: 1\n  b: 1", "line 3: `b` is given twice"),
        ("\udcff: 1", "bad.yaml is not text in UTF-8: invalid start byte at byte 0"),
    ):
        (tmp_path / "bad.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(SettingsError, match=message) as raised:
            read_yaml(tmp_path / "bad.yaml")
        assert str(raised.value).isprintable()
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    with pytest.raises(SettingsError, match="expected a mapping of settings"):
        from_mapping(Outer, 3)


def test_sizes() -> None:
    assert [parse_bytes(x) for x in ("20MB", "1 KiB", "1.5k", 12, "3e6")] == [20_000_000, 1024, 1500, 12, 3_000_000]


def test_overrides_nest() -> None:
    assert parse_overrides(["a.b=1", "a.c=[x, y]", "d=1e-3"]) == {"a": {"b": 1, "c": ["x", "y"]}, "d": 1e-3}
