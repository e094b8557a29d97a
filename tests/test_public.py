"""What a person imports: one screen of names, loaded when used; and verbs that answer at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import codenas_hf

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
