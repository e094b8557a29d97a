"""The playground: requests, verdicts, what is shown, and how it is launched."""

from __future__ import annotations

import ast
import math
import re
import types
from dataclasses import replace
from pathlib import Path

import app
import completion
import pytest
from chooser import PlaygroundError, PlaygroundSettings, find_models
from completion import FILL, Completer, CompletionRequest, Progress, prepare
from display import code_html, hint_html, measures_html, panel_html
from picture import about_html, card_markdown, facts_of, parts_of
from playground_server import CODE, make_runs, text_of
from shots import apply_picks, read_examples, with_line_end

from codenas_hf.folders.record import LatencyFacts, Measured, Record

HEADER = "def total(numbers):\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("playground"))


@pytest.fixture(scope="module")
def completer(runs: Path) -> Completer:
    return Completer(PlaygroundSettings(runs=runs))


def ask(prompt: str, **wishes) -> completion.Prepared:
    return prepare(CompletionRequest(prompt=prompt, **wishes), settings=PlaygroundSettings())


def finished(text: str, *, prefix: str = HEADER, suffix: str = "", **more) -> Progress:
    return Progress(model="m", prefix=prefix, completion=text, suffix=suffix, ended="end", **more)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
        ("max_new_tokens", None),
        ("max_new_tokens", "64"),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0),
        ("min_p", 2),
        ("repetition_penalty", math.inf),
        ("seed", -1),
    ],
)
def test_value_out_of_range_is_refused_with_its_range(field: str, value: object) -> None:
    with pytest.raises(PlaygroundError, match=r"must be a number between .* and .*, got"):
        ask(HEADER, **{field: value})


def test_prompt_that_cannot_be_used_is_refused_with_a_mend() -> None:
    for prompt in ("", " \n\t"):
        with pytest.raises(PlaygroundError, match=r"prompt is empty. Write the beginning"):
            ask(prompt)
    with pytest.raises(PlaygroundError, match=r"1,000,000 characters, the most here is 20,000. Keep the part"):
        ask("x" * 10**6)
    with pytest.raises(PlaygroundError, match="20,008 characters"):
        ask("x = 1\n", examples="x" * 20_002)
    with pytest.raises(PlaygroundError, match="must be text"):
        ask(["def f():"])  # type: ignore[arg-type]
    for marked in (FILL * 2, f"a{FILL}b{FILL}"):
        with pytest.raises(PlaygroundError, match="may stand once"):
            ask(marked)
    with pytest.raises(PlaygroundError, match="may stand once"):
        ask(HEADER, examples=FILL)


def test_control_characters_are_left_out_and_said() -> None:
    prepared = ask("def f():\r\n\x00\x1b[31m\treturn '\ud800\x85é'\n")
    assert prepared.text == "def f():\n[31m\treturn 'é'\n"
    assert prepared.remarks == ("4 control characters were left out.",)
    assert ask(CODE).remarks == ()


def test_examples_stand_before_the_prompt_and_the_marker_splits_it() -> None:
    prepared = ask(f"def f():\n    return {FILL}\n\nprint(f())\n", examples=f"\n{CODE}\n\n")
    assert prepared.text == CODE.rstrip() + "\n\n\ndef f():\n    return "
    assert (prepared.prefix, prepared.suffix) == ("def f():\n    return ", "\n\nprint(f())\n")
    assert ask(HEADER).suffix is None
    assert ask(f"x = {FILL}").suffix == ""


def test_short_prompt_is_noticed_until_an_example_is_there() -> None:
    assert completion.is_short(HEADER, "")
    assert completion.is_short(f"def f():\n    return {FILL}\n", "")
    assert completion.is_short("def f():\n    return 1 +", "")
    assert not completion.is_short("def f():\n    return 1\n\n\nx = ", "")
    assert not completion.is_short(HEADER, "def add(a, b):\n    return a + b\n")
    assert not completion.is_short("x = 1\n" * 40, "")
    assert "one or two example functions" in hint_html(HEADER, "")
    assert hint_html(HEADER, CODE) == hint_html("", "") == ""
    assert "may stand once" in hint_html(FILL * 2, CODE)


def test_block_ends_only_where_the_prompt_began_one() -> None:
    settings = {
        prompt: completion.decode_settings(ask(prompt), max_seconds=5).stop
        for prompt in (
            HEADER,
            "class A:\n    x = 1\n",
            "x = 1\n",
            "def f(a):  # why\n",
            f"def f():\n    return {FILL}\n",
        )
    }
    assert ["\ndef" in stop for stop in settings.values()] == [True, True, False, True, False]
    assert completion.decode_settings(ask(HEADER, one_block=False), max_seconds=5).stop == ()


def test_parse_check_forgives_an_open_end_only_where_it_was_cut() -> None:
    assert completion.parse_check(finished("    return sum(numbers)\n"), cut=False) == (True, "Python reads it")
    open_end = finished("    result = 0\n    for n in numbers:\n        result +=")
    assert completion.parse_check(open_end, cut=True) == (True, "Python reads it, but for its cut end")
    assert completion.parse_check(open_end, cut=False) == (False, "Python stops at line 4: invalid syntax")
    wrong = completion.parse_check(finished("    return )\n    a = 1\n    b = 2\n"), cut=True)
    assert wrong == (False, "Python stops at line 2: unmatched ')'")
    broken = "x = )\n" + "y = 1\n" * 9
    assert completion.parse_check(finished("z = 2\n", prefix=broken), cut=True)[0] is False  # the prompt is not cut
    assert completion.parse_check(finished("  \n"), cut=True) == (None, "")
    filled = finished("1", prefix="x = (", suffix=")\n")
    assert completion.parse_check(filled, cut=True)[0] is True
    assert completion.parse_check(finished("a\x00b"), cut=False)[0] is False
    assert completion.parse_check(finished("(" * 100_000), cut=False)[0] is False
    assert completion.parse_check(finished("x = '\\d'\n", prefix=""), cut=False)[0] is True


@pytest.mark.parametrize(
    ("text", "ended", "warning"),
    [
        ("    x = 1\n" * 20, "length", "runs in a loop"),
        ("".join(f"    value{n} = 1\n    return value\n    pass\n" for n in range(9)), "length", "repeats itself"),
        (CODE, "length", "copies the prompt"),
        ("", "end", "wrote no code"),
        ("", "stopped", ""),
        ("    total = sum(numbers)\n    return total / len(numbers)\n", "end", ""),
    ],
)
def test_collapse_is_warned_of_by_its_kind(completer: Completer, text: str, ended: str, warning: str) -> None:
    loaded = completer.shelf.load(find_models(completer.settings)[0][1])
    found = completion.collapse_warning(finished(text), loaded=loaded, prompt=CODE + HEADER, ended=ended)
    assert warning in found
    assert bool(warning) == bool(found)


@pytest.mark.parametrize(
    ("prefix", "new", "suffix"),
    [
        (HEADER, "    return sum(numbers)\n", ""),
        ('x = "<script>alert(1)</script>', "<img src=x onerror=alert(1)>", '"\n'),
        ('"""open', "string & <b>", 'end</mark>"""\n'),
        ("\n\n", "\t\n", "\n"),
        ("", "é\u202e😀", ""),
    ],
)
def test_shown_code_is_the_text_escaped_with_the_completion_marked(prefix: str, new: str, suffix: str) -> None:
    shown = code_html(finished(new, prefix=prefix, suffix=suffix))
    assert text_of(shown) == prefix + new + suffix
    assert "".join(text_of(part) for part in re.findall(r"<mark>(.*?)</mark>", shown, re.DOTALL)) == new
    assert set(re.findall(r"</?(\w+)", shown)) <= {"pre", "code", "span", "mark"}


def test_long_prompt_is_shown_from_its_end() -> None:
    shown = text_of(code_html(finished("y", prefix="# 1\n" + "x\n" * 5000)))
    assert shown.startswith("…\n")
    assert shown.endswith("x\ny")
    assert len(shown) < 7000


def test_measures_are_shown_only_where_they_were_made() -> None:
    assert "tokens/s" not in measures_html(finished("x"))
    line = measures_html(finished("x", tokens_per_second=1234.4, first_token_s=0.0125, collapse="loop", new_tokens=7))
    assert [text in line for text in ("1,234 tokens/s", "first token 12 ms", "7 tokens", "loop")] == [True] * 4
    assert "&lt;b&gt;" in panel_html(replace(finished("x"), model="<b>"))
    assert "reading 5 tokens" in measures_html(Progress(model="m", prefix="x", prompt_tokens=5))


def test_picture_counts_every_parameter_once(completer: Completer) -> None:
    for _, source in find_models(completer.settings):
        loaded = completer.shelf.load(source)
        parts = parts_of(loaded.model)
        assert sum(part.each * part.count for part in parts) == loaded.model.num_parameters()
        assert [part.title.split()[0] for part in parts] == ["Embedding", "Layers", "Head"]
        assert parts[1].count == loaded.model.config.num_hidden_layers
        assert "4 heads on 2 key-value, feed-forward 96 silu" in about_html(loaded)
        assert facts_of(loaded)["Parameters"] == f"{loaded.num_parameters:,}"
        assert "Bits per byte" not in facts_of(loaded)


def test_measured_values_come_from_the_record(completer: Completer) -> None:
    loaded = completer.shelf.load(find_models(completer.settings)[0][1])
    told = replace(loaded, record=Record(measured=Measured(bits_per_byte=1.25, latency=LatencyFacts(decode_ms=0.5))))
    assert facts_of(told)["Bits per byte"] == "1.250"
    assert facts_of(told)["Decode per token"] == "0.500 ms"
    card = card_markdown(replace(loaded, card="---\na: b\n---\n# Hello\n![x](y.png)\n"))
    assert card == "# Hello"
    assert card_markdown(replace(loaded, card="")) == "This model has no card."


def test_whole_header_or_docstring_is_continued_on_a_new_line() -> None:
    assert with_line_end("def f():") == "def f():\n"
    assert with_line_end('def f():\n    """Doc."""') == 'def f():\n    """Doc."""\n'
    for prompt in ("x =", "def f():\n", "", "x = [1,"):
        assert with_line_end(prompt) == prompt


def test_picks_change_only_what_was_picked() -> None:
    shots, starts = read_examples()
    titles = list(shots)
    own = "def mine():\n    return 1\n"
    text = apply_picks(own, titles[:2], shots)
    assert text == "\n\n\n".join([own.rstrip(), shots[titles[0]], shots[titles[1]]]) + "\n"
    assert apply_picks(text, titles[1:2], shots) == f"{own.rstrip()}\n\n\n{shots[titles[1]]}\n"
    assert apply_picks(text, [], shots) == own
    assert apply_picks(text, titles[:2], shots) == text
    assert all(ast.parse(code) for code in shots.values())
    assert all(set(start["shots"]) <= set(shots) for start in starts)


def test_others_reach_only_what_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    options = app.parse_arguments(["--model", "a/b"])
    assert app.settings_from(options, host="127.0.0.1").any_model
    assert not app.settings_from(options, host="0.0.0.0").any_model
    assert not app.settings_from(app.parse_arguments(["--no-any-model"]), host="127.0.0.1").any_model
    assert app.settings_from(options, host="127.0.0.1").models == ("a/b",)
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert not app.settings_from(options, host="127.0.0.1").any_model


@pytest.mark.parametrize(
    ("environment", "arguments", "host"),
    [({}, [], "127.0.0.1"), ({"SPACE_ID": "a/b"}, [], "0.0.0.0"), ({}, ["--host", "::1"], "::1")],
)
def test_launch_listens_on_this_computer_unless_told(
    environment: dict[str, str], arguments: list[str], host: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launched: dict[str, object] = {}
    demo = types.SimpleNamespace(launch=lambda **options: launched.update(options))
    monkeypatch.setattr(app.Page, "build", lambda self: demo)
    app.main([*arguments, "--runs", str(runs)])
    assert launched["server_name"] == host
    assert launched["mcp_server"] is True


def test_space_reads_its_models_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "HERE", tmp_path)
    assert app.named_models() == []
    (tmp_path / "models" / "own").mkdir(parents=True)
    (tmp_path / "models.json").write_text('["models/own", "owner/model"]')
    assert app.named_models() == [str(tmp_path / "models" / "own"), "owner/model"]


def test_requirements_are_those_of_the_package() -> None:
    folder = Path(app.__file__).parent
    assert "gradio[mcp]" in (folder / "requirements.txt").read_text()
    header = (folder / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in header
    assert "app_file: app.py" in header
