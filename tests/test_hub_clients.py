"""What was published is found and used by strangers: real clients, in processes that cannot import this package."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from finished_run import make_run
from hub_server import HubServer
from study_records import make_records, make_result

from codenas_hf.architecture.genome import Genome
from codenas_hf.data import PreparedData
from codenas_hf.folders import Record, StudyFolder
from codenas_hf.modeling_codenas import CodeNASForCausalLM
from codenas_hf.release.export import write_release
from codenas_hf.release.hub import publish
from codenas_hf.report.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Client = Callable[..., str]
HF = str(Path(sys.executable).with_name("hf"))

STRANGER = "import sys; sys.modules['codenas_hf'] = None\n"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with pytest.MonkeyPatch.context() as patch, HubServer() as found:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", "hf_alice")
        yield found


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Runs a command as somebody with an empty home and a token."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_bob",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }

    def run(*command: str, token: str = "hf_bob") -> str:
        done = subprocess.run(
            command, env={**environment, "HF_TOKEN": token}, cwd=home, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def stranger(client: Client) -> Client:
    """Runs Python that cannot import codenas_hf."""
    return lambda code: client(sys.executable, "-c", STRANGER + textwrap.dedent(code))


@pytest.fixture(scope="module")
def published(server: HubServer, finished_study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "demo", finished_study)
    write_report(make_result(make_records(generations=2, population=6)), folder=run / "report", name="demo")
    publish(run, repo_id="alice/demo", what=("dataset", "study", "model", "space", "collection"))
    return run


def test_a_stranger_runs_the_snippet_of_the_card(published: Path, stranger: Client) -> None:
    printed = stranger("""
        import re
        from huggingface_hub import ModelCard
        card = ModelCard.load("alice/demo")
        card.validate()
        exec(re.findall(r"```python\\n(.*?)```", card.content, re.DOTALL)[0])
        print(card.data.eval_results[0].metric_value)
    """)
    assert "def subtract(a, b):" in printed
    measured = StudyFolder(published).winner.read_record().measured
    assert measured.bits_per_byte is not None
    assert printed.strip().endswith(str(round(measured.bits_per_byte, 6)))


def test_a_model_with_its_own_code_loads_with_it(
    server: HubServer, stranger: Client, tiny_data: PreparedData, tmp_path: Path, published: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    genome = Genome.from_dict({"vocab_size": 512, **sizes, "position_embedding_type": "alibi"})
    model = CodeNASForCausalLM(genome.to_config()).eval()
    record = StudyFolder(published).winner.read_record()
    write_release(model, folder=tmp_path / "winner", tokenizer=tiny_data.tokenizer(512), record=record, stock=False)
    publish(tmp_path / "winner", repo_id="alice/own-code")
    assert "modeling_codenas.py" in server.files("model", "alice/own-code")
    printed = stranger("""
        import re
        from huggingface_hub import ModelCard
        exec(re.findall(r"```python\\n(.*?)```", ModelCard.load("alice/own-code").content, re.DOTALL)[0])
        print(type(model).__name__, sum(p.numel() for p in model.parameters()))
    """)
    assert printed.strip().endswith(f"CodeNASForCausalLM {model.num_parameters()}")


def test_a_pull_request_loads_by_its_revision(published: Path, stranger: Client) -> None:
    (published / "winner" / "notes.txt").write_text("more")
    (done,) = publish(published, repo_id="alice/demo", create_pr=True)
    number = re.search(r"(\d+)$", done.pr_url or "")
    assert number
    printed = stranger(f"""
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained("alice/demo", revision="refs/pr/{number[1]}")
        print(model.config.model_type)
    """)
    assert printed.strip() == "llama"


def test_corpus_and_study_load_with_datasets(published: Path, stranger: Client, tiny_data: PreparedData) -> None:
    printed = stranger("""
        from datasets import load_dataset
        corpus = load_dataset("alice/demo-corpus")
        print(len(corpus["train"]), corpus["train"].column_names)
        row = next(iter(load_dataset("alice/demo-corpus", split="report", streaming=True)))
        print(row["sha256"])
        print(len(load_dataset("alice/demo-study")["train"]))
        print(load_dataset("alice/demo-study", "front")["train"].column_names[:3])
    """).splitlines()
    train = tiny_data.corpus.split("train")
    assert printed[0] == f"{len(train)} {train.column_names}"
    assert printed[1] == tiny_data.corpus.split("report")[0]["sha256"]
    assert printed[2] == str(len(make_records(generations=2, population=6)))
    assert printed[3] == "['genome', 'winner', 'bits_per_byte']"


def test_the_hf_command_works_with_what_was_published(published: Path, client: Client, tmp_path: Path) -> None:
    client(HF, "download", "alice/demo", "config.json", "record.json", "--local-dir", str(tmp_path / "got"))
    assert Record.read(tmp_path / "got") == StudyFolder(published).winner.read_record()
    client(HF, "download", "alice/demo-playground", "--repo-type", "space", "--local-dir", str(tmp_path / "space"))
    assert json.loads((tmp_path / "space" / "models.json").read_text()) == ["alice/demo"]
    client(HF, "repos", "create", "mine", token="hf_bob")
    client(HF, "upload", "bob/mine", str(tmp_path / "got"), token="hf_bob")


def test_push_to_hub_works_as_everyone_expects(published: Path, client: Client, stranger: Client) -> None:
    code = f"""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        for part in (AutoModelForCausalLM, AutoTokenizer):
            part.from_pretrained("{published / "winner"}").push_to_hub("alice/pushed")
    """
    client(sys.executable, "-c", STRANGER + textwrap.dedent(code), token="hf_alice")
    printed = stranger("""
        from transformers import pipeline
        print(pipeline("text-generation", model="alice/pushed")("def f(", max_new_tokens=3)[0]["generated_text"][:6])
    """)
    assert printed.strip() == "def f("


def test_the_wheel_carries_the_templates(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    done = subprocess.run([*command, str(root)], capture_output=True, text=True, timeout=300)
    if "No module named" in done.stderr or "BackendUnavailable" in done.stderr:
        pytest.skip("hatchling is not installed here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "out")], check=True)
    package = tmp_path / "out" / "codenas_hf"
    assert (package / "model_cards" / "model.md.jinja").is_file()
    assert (package / "spaces_app" / "bundle.py").is_file()
    assert (package / "report" / "page.html.jinja").is_file()
