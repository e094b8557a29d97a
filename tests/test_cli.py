"""The command line: help that teaches, bad input in one line, exit codes."""

import ast
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import codenas_hf
from codenas_hf.cli.main import VERBS, build_parser, main, mistake
from codenas_hf.data import DataError
from codenas_hf.engine import Budget, IdentityError, PolicyError, RanksError
from codenas_hf.engine.progress import Status
from codenas_hf.folders.record import Measured, Record
from codenas_hf.jobs.finish import FinishError
from codenas_hf.jobs.models import open_model
from codenas_hf.measure.score import LeakError
from codenas_hf.release.export import ExportError
from codenas_hf.release.hub import PublishError
from codenas_hf.release.parcels import BundleError
from codenas_hf.release.targets import export_model
from codenas_hf.training import DivergenceError


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert VERBS[verb][1][1:] in " ".join(text.split())


def test_every_verb_of_the_plan_is_there() -> None:
    assert set(VERBS) == set(
        "corpus tokenizer search launch squeeze train evaluate complete serve status winner compare plot show".split()
        + "export prune publish latency".split()
    )
    assert build_parser().prog == "codenas"


def test_settings_are_shown_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "limits.bytes=4MB", "--config", "smoke", "--show-settings"]) == 0
    text = capsys.readouterr().out
    assert "bytes: 4000000" in text
    assert "study: smoke" in text
    assert list(tmp_path.iterdir()) == []


def test_settings_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "llama_tiny", "--budget", "3 steps", "search.seed=7", "--show-settings", "study=x"]) == 0
    text = capsys.readouterr().out
    assert "seed: 7" in text
    assert "study: x" in text
    for words in (["search", "--nosuch"], ["status", "runs", "a=b"]):
        with pytest.raises(SystemExit):
            main(words)
        assert words[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "serch.seed=1"], "codenas search: `serch` is not a setting; did you mean `search`?"),
        (["search", "--config", "nosuch"], "no settings file nosuch"),
        (["search", "space=nosuch"], "no settings file spaces/nosuch; there are"),
        (["search", "device=cuda"], "torch sees no GPU here"),
        (["search", "corpus.sources=[/nosuch]"], "/nosuch"),
        (["train", "nosuch"], "no settings file genomes/nosuch; there are"),
        (["train", "llama_tiny", "--budget", "soon"], "a budget reads like '300 steps'"),
        (
            ["train", "llama_tiny", "--fine-tune"],
            "--fine-tune wants a release folder with its weights, got llama_tiny",
        ),
        (["complete", "./nosuch"], "codenas complete: no such folder or file: ./nosuch"),
        (["complete", "runs/two_stag/winner"], "no such folder or file: runs/two_stag/winner"),
        (["complete", "nosuch.gguf"], "no such folder or file: nosuch.gguf"),
        (
            ["complete", "me/nosuch"],
            "me/nosuch is no folder here and was not loaded from the Hub: the Hub is not asked",
        ),
        (["evaluate", "./nosuch"], "nosuch"),
        (["compare", "nosuch"], "nosuch is no release and has no winner/"),
        (["show", "nosuch"], "nosuch is no release and has no winner/: expected config.json"),
        (["plot", "nosuch"], "no study in nosuch"),
        (["publish", "nosuch", "--repo-id", "me/x", "--dry-run"], "nosuch is no release"),
        (["export", "nosuch", "--out", "x.gguf"], "nosuch is no release and has no winner/"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_no_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "`codenas search` starts one" in capsys.readouterr().err


def test_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codenas_hf.jobs.search.search", stopped)
    assert main(["search"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["search"], ["squeeze", "gpt2"]])
def test_as_json_the_figures_of_a_search_are_events(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: object, follow: Any, **__: object) -> None:
        if follow is not None:
            follow(Status(1, 2, (1,), (4,), 0, 0, 0, None, None, None))
        raise KeyboardInterrupt

    monkeypatch.setattr(f"codenas_hf.jobs.{words[0]}.{words[0]}", told)
    assert main([*words, "--json"]) == 130
    (line,) = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["done"]) == ("search", [1])
    assert main(words) == 130
    assert capsys.readouterr().out == ""


def test_what_is_no_users_mistake_shows_where_it_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("a bug of ours")

    monkeypatch.setattr("codenas_hf.jobs.search.search", broken)
    with pytest.raises(AttributeError, match="a bug of ours"):
        main(["search"])


class _Extra(ValueError):
    """A class of another package."""


def _as_raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


def test_what_is_a_users_mistake_follows_from_types(monkeypatch: pytest.MonkeyPatch) -> None:
    for ours in (DataError("x"), IdentityError("x"), DivergenceError("x"), LeakError("x"), PublishError("x")):
        assert mistake(_as_raised(ours)) == "x"
    assert mistake(_as_raised(FileNotFoundError("x"))) == "x"
    for other in (ValueError("not from here"), _Extra("x"), KeyError("x"), RuntimeError("x"), TypeError("x")):
        assert mistake(_as_raised(other)) is None
    with pytest.raises(ValueError, match="a budget reads like") as caught:
        Budget.parse("soon")
    assert "a budget reads like" in str(mistake(caught.value))
    wanted = ["gguf>=0.19; extra == 'dev'", "ruff; extra == 'dev'", "gguf>=0.19; extra == 'export'", "numpy>=2"]
    monkeypatch.setattr("codenas_hf.hardware.metadata.requires", lambda name: wanted)
    missing = _as_raised(ModuleNotFoundError("No module named 'gguf'", name="gguf"))
    assert mistake(missing) == "gguf is not installed: pip install 'codenas-hf[export]'"
    assert mistake(_as_raised(ModuleNotFoundError("x", name="nosuch"))) is None


def test_whatever_we_raise_for_people_has_a_type_of_ours() -> None:
    """A bare RuntimeError is taken for a bug, and shows a traceback."""
    package = Path(codenas_hf.__file__).parent
    bare = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in ("RuntimeError", "Exception")
        and path.parent.name != "prompt_sets"  # a script that only we run
    ]
    assert bare == []
    for ours in (RanksError("rank 0 is gone"), PolicyError("x"), FinishError("x"), ExportError("x"), BundleError("x")):
        assert mistake(_as_raised(ours)) == str(ours)


def test_compare_reads_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, bits in (("a", 2.5), ("b", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        for needed in ("config.json", "model.safetensors"):
            (folder / needed).write_text("{}")
        parts = {"bits": [bits * 100, bits * 210, bits * 290], "bytes": [100.0, 210.0, 290.0]}
        Record(measured=Measured(bits_per_byte=bits, bits_by_project=parts)).write(folder)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "-0.5000 (-0.5000 to -0.5000)" in text, "the second against the first, in pairs on the same text"
    assert "2.5" in text
    assert "next-token" not in text  # nobody measured it


def test_one_rule_of_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status", str(tmp_path)], ["status", str(tmp_path / "nosuch")], ["plot", str(tmp_path)]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"codenas {words[0]}: no stud")
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {code} " in text for code in (0, 1, 2, 130))


def test_a_picture_has_one_of_two_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.txt", "x", "x.PDF"):
        assert main(["show", "nosuch", "--picture", str(tmp_path / name)]) == 2
        assert "expected one of the two, got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("licence", "hint"),
    [
        ("no such", "for any other licence give `other`"),
        ("", "give `other`"),
        ("MIT", "did you mean `mit`?"),
        ("Apache 2.0", "did you mean `apache-2.0`?"),
    ],
)
def test_a_licence_is_one_of_the_hub(licence: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "nosuch", "--repo-id", "me/x", "--license", licence, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert len(error.splitlines()) == 1


class _Stdin(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("given", "message"),
    [(b"", "nothing came on stdin"), (b"x = '\xff'", "stdin is not text in UTF-8: invalid start byte at byte 5")],
)
def test_what_comes_on_stdin(
    given: bytes, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codenas_hf.jobs.opening.open_runtime", lambda *words, **options: None)
    for words in (["complete", "model"], ["complete", "model", "-"]):
        monkeypatch.setattr("sys.stdin", _Stdin(io.BytesIO(given)))
        assert main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--temperature", "-1"], "`temperature` must be between 0 and 100, got -1.0"),
        (["x", "--max-new-tokens", "0"], "`max_new_tokens` must be between 1 and inf, got 0"),
        (["x\udcff"], "`prompt` is not text: character 2 is '\\udcff'"),
        (["x", "--suffix", "\udcff"], "`suffix` is not text"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_printed(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["complete", "./nosuch", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error


def test_a_prompt_alone_asks_the_newest_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def stream(model: object, prompt: str, **options: object) -> Iterator[str]:
        asked.append((str(model), prompt))
        yield "!"

    monkeypatch.setattr("codenas_hf.jobs.complete.stream", stream)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a model").mkdir()
    prompt = "def add(a, b):"
    assert main(["complete", prompt]) == 0
    assert capsys.readouterr() == (f"{prompt}!\n", "model     model_cards/codenas-py-4mb\n")
    for at, name in enumerate(("newer", "older")):
        winner = tmp_path / "runs" / name / "winner"
        winner.mkdir(parents=True)
        (winner.parent / "settings.yaml").write_text("{}")
        for file in ("config.json", "model.safetensors"):
            (winner / file).write_text("{}")
        os.utime(winner / "config.json", (10**9 - at, 10**9 - at))
    assert main(["complete", prompt]) == 0
    assert capsys.readouterr().err == "model     newer/winner\n"
    longer = tmp_path / "runs" / "longer"  # what `codenas train` leaves
    longer.mkdir()
    for file in ("settings.yaml", "config.json", "model.safetensors", "record.json"):
        (longer / file).write_text("{}")
    assert main(["complete", prompt]) == 0
    assert capsys.readouterr().err == "model     runs/longer\n"
    assert main(["complete", "a model", prompt]) == 0
    models, prompts = zip(*asked, strict=True)
    assert set(prompts) == {prompt}
    assert Path(models[0]).name == "codenas-py-4mb"
    assert models[1:] == (str(Path("runs/newer/winner")), str(Path("runs/longer")), "a model")


@pytest.mark.parametrize("prompt", ["def add(a, b):", "x = 1", ""])
def test_a_prompt_may_stand_behind_the_options(
    prompt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def stream(model: object, prompt: str, **options: object) -> Iterator[str]:
        asked.append((model, prompt, options["temperature"]))
        yield "!"

    monkeypatch.setattr("codenas_hf.jobs.complete.stream", stream)
    for words in (["m", "--temperature", "0", prompt], ["m", prompt, "--temperature", "0"]):
        assert main(["complete", *words]) == 0
    assert asked == [("m", prompt, 0.0)] * 2
    for words in (["m", "x", "--temperature", "0", "y"], ["m", "--temperature", "0", "x", "y"]):
        with pytest.raises(SystemExit):
            main(["complete", *words])
        assert "`codenas complete` does not understand: " in capsys.readouterr().err


def test_a_study_stands_for_its_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = tmp_path / "demo" / "winner"
    winner.mkdir(parents=True)
    (winner / "config.json").write_text("{}")
    asked: list[object] = []
    monkeypatch.setattr("codenas_hf.jobs.models.load_model", lambda model, **options: asked.append(model))
    for place in (tmp_path / "demo", winner, "me/hub"):
        open_model(place, device="cpu")
    assert asked == [winner, winner, "me/hub"]


def test_an_export_to_a_folder_where_a_file_is_wanted_is_refused_at_once(tmp_path: Path) -> None:
    class Stock:
        config = type("", (), {"model_type": "llama"})

    with pytest.raises(IsADirectoryError, match=r"is a folder: an export to gguf writes one file; name it, such as"):
        export_model(Stock(), tokenizer=tmp_path, out=tmp_path, to="gguf")  # type: ignore[arg-type]


def test_a_paragraph_of_another_package_becomes_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("not here.\n\nIf you want it,\nask.")

    monkeypatch.setattr("codenas_hf.jobs.search.search", refused)
    assert main(["search"]) == 2
    assert capsys.readouterr().err == "codenas search: not here. If you want it, ask.\n"
