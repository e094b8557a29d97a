"""docs/adding_a_gene.md: its edits are applied to a copy of the package, and its check runs there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = r"```python\n(.*?)```"


def edits(text: str) -> list[tuple[str, str, str, str]]:
    """File, verb, anchor and new text of each edit that the page describes."""
    found = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        name = re.search(r"`(?:codenas_hf/)?([\w/]+\.py)`", section)
        pattern = rf"(?:\n|, )(After|after|replace)\n\n{BLOCK}\n\n(?:add|with)\n\n{BLOCK}"
        for verb, anchor, new in re.findall(pattern, section, flags=re.DOTALL):
            assert name is not None, section
            found.append((name[1], verb.lower(), anchor.rstrip("\n"), new.rstrip("\n")))
    return found


def test_the_worked_example_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "adding_a_gene.md").read_text(encoding="utf-8")
    shutil.copytree(ROOT / "codenas_hf", tmp_path / "codenas_hf", ignore=shutil.ignore_patterns("__pycache__"))
    steps = edits(text)
    assert len(steps) == 6
    assert len({name for name, *_ in steps}) == 3
    for name, verb, anchor, new in steps:
        path = tmp_path / "codenas_hf" / name
        source = path.read_text(encoding="utf-8")
        assert source.count(anchor) == 1, f"{name} should hold once: {anchor}"
        path.write_text(source.replace(anchor, new if verb == "replace" else f"{anchor}\n{new}"), encoding="utf-8")
    check = re.search(r"```python check\n(.*?)```", text, flags=re.DOTALL)
    assert check is not None
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = f"import codenas_hf; assert codenas_hf.__file__.startswith({str(tmp_path)!r})\n{check[1]}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
