"""README and docs say what is there: files, commands, settings, tables."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.table import pages
from codenas_hf.cli.main import build_parser
from codenas_hf.jobs.settings import RunSettings, config_path
from codenas_hf.strict_yaml import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
] + re.findall(r"`((?:codenas|accelerate launch) [^`]+)`", README)


def test_length() -> None:
    assert len(README.splitlines()) <= 300


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links(link: str) -> None:
    assert link.startswith("http") or (ROOT / link).exists()


@pytest.mark.parametrize(
    "path",
    sorted(set(re.findall(r"\b(?:recipes|configs|spaces_app|benchmarks|model_cards|tests|docs)/[\w/.-]*\w", README))),
)
def test_paths(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("codenas ", "accelerate launch "))])
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command.split(" (")[0])
    if words[0] == "accelerate":
        recipe = next(word for word in words if word.endswith(".py"))
        assert (ROOT / recipe).is_file()
        for word in words[: words.index(recipe)]:
            assert not word.endswith(".yaml") or (ROOT / word).is_file()
        verb = {"search_two_stage": "search", "train_winner": "train"}[Path(recipe).stem]
        words = ["codenas", verb, *words[words.index(recipe) + 1 :]]
    options = build_parser().parse_args(words[1:])
    if hasattr(options, "overrides"):
        load(RunSettings, *(config_path(name) for name in getattr(options, "config", ())), overrides=options.overrides)


@pytest.mark.parametrize("words", re.findall(r"`((?:search|corpus|limits|space)\.?\w*=[^`]+)`", README))
def test_settings_exist(words: str) -> None:
    name, _, value = words.partition("=")
    if value and not value.endswith("..."):
        load(RunSettings, overrides=[words])
    else:
        load(RunSettings, overrides=[f"{name}=null" if name.endswith("storage") else f"{name}=1"])


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)


def test_the_tables_are_those_of_the_result_files() -> None:
    for path, page in pages().items():
        assert path.read_text(encoding="utf-8") == page, f"{path.name}: run `python -m benchmarks.table`"
