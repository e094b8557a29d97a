"""The prompt sets: large enough, distinct, human where they claim to be, reproducible."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from codenas_hf.measure import metrics
from codenas_hf.suite.prompt_sets import make
from codenas_hf.suite.prompts import PROMPT_KINDS, load_prompts, prompt_file


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_two_hundred_distinct_prompts(kind):
    prompts = load_prompts(kind)
    assert len({prompt.text for prompt in prompts}) == len(prompts) >= 200
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)
    assert all(prompt.text == prompt.text.rstrip() for prompt in prompts)
    assert all(prompt.licence in ("MIT", "PSF-2.0") for prompt in prompts)


def test_a_part_is_spread_over_the_set():
    ids = [prompt.prompt_id for prompt in load_prompts("short", count=5)]
    assert len(ids) == 5
    assert ids[0].endswith("000")
    assert int(ids[-1][-3:]) > 150
    assert len(load_prompts("short", count=10**6)) == len(load_prompts("short"))


def test_unknown_set():
    with pytest.raises(ValueError, match=r"no prompt set 'short' in version 99; there are few_shot\.v1"):
        load_prompts("short", version=99)


def test_few_shot_prompts_with_their_references_are_programs():
    for prompt in load_prompts("few_shot"):
        tree = ast.parse(prompt.text + prompt.reference)
        assert len(tree.body) in (3, 4)


def test_human_code_hardly_collapses():
    """The floor that a model's rates are read against, scored by the same code."""
    for kind in ("few_shot", "mid_file"):
        prompts = load_prompts(kind)
        found = []
        for prompt in prompts:
            tokens = re.findall(r"\n[ \t]*|\w+|[^\w\s]", prompt.reference)
            given = re.findall(r"\n[ \t]*|\w+|[^\w\s]", prompt.text)
            found.append(metrics.collapse(tokens, prompt.reference, prompt_tokens=given, reference=prompt.reference))
        assert sum(item.collapsed for item in found) / len(found) < 0.02


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="version 1 is cut from Python 3.11")
def test_the_script_makes_the_sets(tmp_path):
    make.write(tmp_path)
    for kind in ("short", "few_shot"):
        assert (tmp_path / f"{kind}.v1.jsonl").read_text() == prompt_file(kind).read_text()
    assert len((tmp_path / "mid_file.v1.jsonl").read_text().splitlines()) >= 200


def test_the_script_needs_its_python(tmp_path, monkeypatch):
    monkeypatch.setattr(make.sys, "version_info", (3, 99, 0))
    with pytest.raises(RuntimeError, match=r"cut from Python 3\.11, this is 3\.99"):
        make.write(tmp_path)
