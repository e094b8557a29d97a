"""What a person imports: one screen of names, loaded when used; and verbs that answer at once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import codenas_hf
from codenas_hf.jobs.settings import RunSettings

ROOT = Path(__file__).parent.parent
SPACE = """
export: stock
genes:
  vocab_size: [512]
  hidden_size: [32, 48, 64]
  num_hidden_layers: [1, 2, 3]
  head_dim: [16]
  intermediate_ratio: [1, 2]
"""
HEAVY = ("torch", "transformers", "optuna", "datasets", "matplotlib", "accelerate")


def loaded(code: str, folder: Path) -> tuple[set[str], float]:
    """Heavy modules that a fresh process has after `code`, and its seconds of processor time."""
    program = (
        f"import json, sys, time\n{code}\n"
        f"print(json.dumps([[m for m in {HEAVY} if m in sys.modules], time.process_time()]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=True)
    names, seconds = json.loads(done.stderr.splitlines()[-1])
    return set(names), seconds


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    names, _ = loaded("import codenas_hf; dir(codenas_hf)", tmp_path)
    assert names == set()


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["status"], ["show", "m"], ["winner", "m"]])
def test_a_verb_that_needs_no_torch_answers_at_once(words: list[str], tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"model.embed_tokens.weight": np.zeros((8, 4), np.float32)}, tmp_path / "m" / "model.safetensors")
    code = f"from codenas_hf.cli.main import main\ntry: main({words!r})\nexcept SystemExit: pass"
    names, seconds = loaded(code, tmp_path)
    assert not names - {"optuna"}
    assert seconds < 2.0  # about 0.4 where nothing else runs


def test_every_public_name_is_there() -> None:
    for name in codenas_hf.__all__:
        assert getattr(codenas_hf, name).__name__ == name
    assert set(codenas_hf.__all__) <= set(dir(codenas_hf))
    assert callable(codenas_hf.search)
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        codenas_hf.serch  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    ["import transformers, codenas_hf", "from codenas_hf import CodeNASForCausalLM\nimport transformers"],
)
def test_the_auto_classes_know_the_model_type(imports: str, tmp_path: Path) -> None:
    code = f"{imports}\nprint(transformers.AutoConfig.for_model('codenas').model_type)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "codenas", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_of_the_readme(
    tmp_path: Path, tiny_corpus_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands there, but with settings that take seconds, and nothing is sent."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(from codenas_hf import.*?)```", readme, flags=re.S)
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    words = [
        f"space={space}",
        f"corpus={{sources: [{tiny_corpus_folder}], benchmarks: [], held_out_fraction: 0.2, near_threshold: null}}",
        *("search.population=2", "search.generations=1", "search.budgets=[2 steps, 4 steps]", "search.keep=[1]"),
        *("train.sequence_length=64", "train.tokens_per_step=256", "candidate.score_bytes=4000"),
        "final_score_bytes=8000",
        "search.finish=null",  # or the winner has had more than the three steps below
    ]
    monkeypatch.chdir(tmp_path)
    small = RunSettings.of("study=mine", "limits.bytes=4MB", *words)
    monkeypatch.setattr(RunSettings, "of", classmethod(lambda cls, *given, config=(): small))
    changes = {'"600 seconds"': '"3 steps"', 'repo_id="me/my-codelm")': 'repo_id="me/my-codelm", dry_run=True)'}
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    names: dict[str, object] = {}
    exec(example, names)
    said = capsys.readouterr().out
    assert "bits_per_byte" in said
    assert (tmp_path / "runs" / "mine" / "winner" / "config.json").is_file()
    assert names["found"].result.objectives.limits == {"artifact_bytes": 4e6}  # type: ignore[attr-defined]


def test_a_launcher_that_is_told_everything_says_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('ours')\n")
    config = ROOT / "configs" / "accelerate" / "one.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(program)]
    done = subprocess.run(launch, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == "ours\n"
    assert "--config_file configs/accelerate/one.yaml" in (ROOT / "Makefile").read_text()
