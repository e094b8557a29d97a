"""What the docs and the help say of policies, formats and export targets is what the tables in the code say."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from codenas_hf.cli.main import main
from codenas_hf.compression.formats import BLOCKS, FORMATS
from codenas_hf.jobs.policies import POLICIES
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.wanted import LadderSettings
from codenas_hf.release.targets import TARGETS
from codenas_hf.strict_yaml import SettingsError

DOCS = Path(__file__).parent.parent / "docs"


def test_every_policy_is_told_and_others_are_refused() -> None:
    text = (DOCS / "search.md").read_text(encoding="utf-8")
    stages = set(get_args(get_type_hints(LadderSettings)["stages"]))
    assert set(re.findall(r"^\| `(\w+)`", text, flags=re.M)) == {*POLICIES, *stages}
    assert f"`{RunSettings().search.policy}` (default)" in text
    with pytest.raises(SettingsError, match=r"`policy` must be one of guided, .*, got 'gided'"):
        RunSettings.of("search.policy=gided")


def test_every_target_and_format_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    told = capsys.readouterr().out
    for name, target in TARGETS.items():
        assert f"| `{name}` | {' '.join(f'`{form}`' for form in target.forms)} |" in text
        assert f"{name:11}  {' '.join(target.forms)} " in told
    for form in FORMATS.values():
        row = next(
            line
            for line in text.partition("## Formats")[2].splitlines()
            if line.startswith("| `") and f"`{form.name}`" in line
        )
        assert f"{form.matrix.bits:g}" in row
    assert {form.matrix.name for form in FORMATS.values()} <= set(BLOCKS)
