"""Metrics against values worked out by hand, and the same through `evaluate`."""

from __future__ import annotations

import math
from pathlib import Path

import evaluate
import pytest

from codenas_hf.measure import metrics

MODULES = Path(metrics.__file__).parents[1] / "suite" / "modules"
HUMAN = """def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)
"""


def test_bits_per_byte():
    assert metrics.bits_per_byte(10 * math.log(2), 5) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="there is no text"):
        metrics.bits_per_byte(1.0, 0)


def test_wilson_interval_of_the_literature():
    low, high = metrics.wilson_interval(7, 164)
    assert (round(low, 3), round(high, 3)) == (0.021, 0.085)
    assert metrics.wilson_interval(0, 10)[0] == 0
    assert metrics.wilson_interval(10, 10)[1] == pytest.approx(1.0)
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes <= trials"):
            metrics.wilson_interval(*bad)


def test_pass_at_k():
    assert metrics.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert metrics.pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3,2) / C(5,2)
    assert metrics.pass_at_k(5, 4, 2) == 1.0
    assert metrics.pass_at_k(5, 0, 5) == 0.0
    with pytest.raises(ValueError, match="k <= samples"):
        metrics.pass_at_k(3, 1, 4)


def test_repetition():
    assert metrics.repetition([1, 2, 3, 4, 5]) == 0
    assert metrics.repetition([1] * 8) == pytest.approx(1 - 1 / 5)
    assert metrics.repetition([1, 2, 1, 2, 1], n=2) == pytest.approx(1 - 2 / 4)
    assert metrics.repetition([1, 2, 3]) == 0
    assert metrics.line_repetition("a\n a\n\nb\n") == pytest.approx(1 / 3)
    assert metrics.line_repetition("") == 0


def test_loops():
    assert metrics.loop_share([9, 9, 1, 2, 1, 2, 1, 2]) == 6 / 8
    assert metrics.loop_share([9, 1, 2, 1, 2, 1, 2, 1]) == 7 / 8  # the last repeat may be partial
    assert metrics.loop_share([1, 2, 1, 2]) == 0
    assert metrics.loop_share([5, 5, 5]) == 1
    assert metrics.loop_share(list(range(70)) * 3) == 0  # longer than a loop may be
    assert metrics.loop_share([]) == 0


def test_copy():
    assert metrics.copy_share([1, 2, 3, 9], [0, 1, 2, 3, 4]) == 3 / 4
    assert metrics.copy_share([], [1]) == 0


def test_collapse_by_cause():
    words = HUMAN.split()
    assert not metrics.collapse(words, HUMAN, reference=HUMAN).collapsed
    loop = metrics.collapse([1, 2] * 30, "x = 1\n" * 3, reference=HUMAN)
    assert loop.loop
    assert loop.repeat
    assert loop.collapsed
    repeat = metrics.collapse([*[1] * 12, 7, 2, 8], "a = 1\nb = 2\n", reference=HUMAN)
    assert (repeat.loop, repeat.repeat) == (False, True)
    assert metrics.collapse([1, 2], "\n  # nothing\n", reference=None).empty
    assert metrics.collapse([1, 2, 3], "x = 1", reference=HUMAN, ended=True).empty
    assert not metrics.collapse([1, 2, 3], "x = 1", reference="return 1", ended=True).empty
    assert metrics.collapse([1, 2, 3, 4, 5], "x = 1\ny", prompt_tokens=[1, 2, 3, 4, 6]).copy


def test_parses():
    assert metrics.parses(HUMAN)
    assert not metrics.parses("def f(:\n    pass")
    assert not metrics.parses("x = 1\ny = (2 +")
    assert metrics.parses("x = 1\ny = (2 +", spare_lines=1)
    assert not metrics.parses("y = (2 +", spare_lines=3)  # never nothing at all
    assert not metrics.parses("x = '\0'")


def test_edit_similarity():
    assert metrics.edit_similarity("abc", "abc") == 1
    assert metrics.edit_similarity("abcd", "bd") == pytest.approx(2 * 2 / 6)
    assert metrics.edit_similarity("", "x") == 0
    assert metrics.edit_similarity("", "") == 1
    long = "x" * 200
    assert metrics.edit_similarity(long + "a", long + "b") == pytest.approx(400 / 402)
    assert metrics.line_exact_match("  return 1  \nmore", "return 1\nother")
    assert not metrics.line_exact_match("return 1", "return 2")


def test_skeleton_forgets_names():
    assert metrics.skeleton("total = 1 + 'x'") == metrics.skeleton("n = 2 + 'yy'")
    assert metrics.skeleton("return x") != metrics.skeleton("yield x")
    assert metrics.skeleton("x = (") == ("NAME", "=", "(")


def test_prompt_collapse():
    same = metrics.prompt_collapse(["x = 1"] * 4, [[1, 2, 3]] * 4)
    assert (same.share, same.distinct, same.effective) == (1.0, 1, pytest.approx(1.0))
    assert same.distinct_2 == 2 / 8
    mixed = metrics.prompt_collapse(["a = 1", "return x", "if y:", "f(x)"], [[1, 2], [3, 4], [5, 6], [7, 8]])
    assert (mixed.share, mixed.distinct, mixed.distinct_2) == (0.0, 4, 1.0)
    assert mixed.effective == pytest.approx(4)
    with pytest.raises(ValueError, match="one completion for each prompt"):
        metrics.prompt_collapse([], [])


def test_sample_similarity():
    assert metrics.sample_similarity(["ab", "ab", "ab"]) == 1
    assert metrics.sample_similarity(["ab", "cd"]) == 0
    with pytest.raises(ValueError, match="two samples"):
        metrics.sample_similarity(["a"])


def test_legacy_columns():
    assert metrics.legacy_repetition_ratio("aaab") == 0.75
    assert metrics.legacy_collapse("aaaaaaaaab")
    assert not metrics.legacy_collapse(HUMAN)
    assert metrics.legacy_repetition_ratio("") == 0


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "bits_per_byte",
            {"predictions": [math.log(2) * 8, 0.0], "references": ["é", "ab"]},
            {"bits_per_byte": 2.0, "num_bytes": 4},
        ),
        ("parse_rate", {"predictions": [HUMAN, "def"]}, {"parse_rate": 0.5}),
        (
            "line_completion",
            {"predictions": ["a\nx", "abcd"], "references": ["a", "bd"]},
            {"line_exact_match": 0.5, "edit_similarity": (1 + 4 / 6) / 2},
        ),
        (
            "repetition",
            {"predictions": ["x = 1\n" * 20, HUMAN], "references": ["", HUMAN]},
            {"collapse_rate": 0.5, "loop_rate": 0.5},
        ),
        (
            "pass_at_k",
            {"predictions": [["def f():\n    return 1", "def f():\n    return 2"]], "references": ["assert f() == 1"]},
            {"pass@1": 0.5},
        ),
    ],
)
def test_modules_load_offline_by_path(name, options, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = evaluate.load(str(MODULES / name), cache_dir=str(tmp_path))
    result = module.compute(**options)
    for key, value in expected.items():
        assert result[key] == pytest.approx(value), key


def test_modules_are_classes_too():
    from codenas_hf.suite.modules.bits_per_byte.bits_per_byte import BitsPerByte

    module = BitsPerByte(keep_in_memory=True)
    module.add_batch(predictions=[math.log(2)], references=["a"])
    assert module.compute()["bits_per_byte"] == pytest.approx(1.0)
