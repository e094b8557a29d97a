"""`codenas train`, whole: it says how it goes, and leaves a folder that generates."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from training_fakes import FakeTokens, tiny_model

import codenas_hf
from codenas_hf.architecture.genome import Genome
from codenas_hf.cli.main import main
from codenas_hf.data import PreparedData
from codenas_hf.data.tokens import Tokens
from codenas_hf.engine import Budget
from codenas_hf.folders import Record, Release, StudyFolder, read_json
from codenas_hf.folders.record import Origin
from codenas_hf.generation.loading import load_model
from codenas_hf.hardware import alone
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.text import prepare
from codenas_hf.jobs.train import (
    find_genome,
    run_training,
    study_settings,
    told_points,
    train,
    train_genome,
    winner_state,
)
from codenas_hf.release.cards import model_card
from codenas_hf.report.architecture import architecture_table, tensors_of_folder
from codenas_hf.report.curve import curve_lines
from codenas_hf.strict_yaml import load, read_yaml
from codenas_hf.training import accelerator_on
from codenas_hf.training import train as loop


def settings(folder: Path, *more: str) -> RunSettings:
    words = [f"folder={folder}", "train.sequence_length=64", "train.tokens_per_step=256", "train.log_every=5"]
    return load(RunSettings, overrides=[*words, "train.precision=float32", "final_score_bytes=8000", *more])


def test_a_genome_is_trained_said_and_released(tmp_path: Path, tiny_data: PreparedData) -> None:
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    said: list[str] = []
    folder = train_genome(
        genome,
        Budget("steps", 40),
        folder=tmp_path / "out",
        settings=settings(tmp_path, "log_with=[tensorboard]"),
        data=tiny_data,
        say=said.append,
    )
    record = Record.read(folder)
    losses = [point["loss"] for point in record.training.curve]
    assert losses[-1] < losses[0] - 0.5
    assert record.training.precision == "float32"
    # The context that the release promises is the one that was trained, and what it is worth there was measured.
    assert read_json(folder / "config.json")["max_position_embeddings"] == record.measured.context_tokens == 64
    assert record.measured.context_bits_per_byte == record.measured.bits_per_byte
    assert any("40 steps" in line and "bytes each" in line and "tokens a second" in line for line in said)
    assert any("bits per byte" in line for line in said)
    loaded = load_model(folder)
    inputs = loaded.tokenizer("def f(", return_tensors="pt")
    assert loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert list((tmp_path / "trackers").glob("events*"))


def test_a_context_beyond_the_training_is_measured_where_it_is_promised(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    how = settings(tmp_path, "candidate.max_position_embeddings=256", "final_score_bytes=4000")
    arguments: dict[str, Any] = {"settings": how, "data": tiny_data, "say": lambda text: None}
    folder = train_genome(genome, Budget("steps", 5), folder=tmp_path / "out", **arguments)
    measured = Record.read(folder).measured
    assert (measured.window_tokens, measured.context_tokens) == (64, 256)
    assert measured.context_bits_per_byte != measured.bits_per_byte


def test_a_training_that_was_killed_in_its_decay_takes_a_longer_budget(
    tmp_path: Path, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    how = settings(tmp_path, "train.checkpoint_minutes=1e-9")
    said: list[str] = []
    arguments: dict[str, Any] = {"settings": how, "data": tiny_data, "say": said.append}
    plain = Tokens.batch

    def killed(self: Tokens, step: int, **keywords: Any) -> Any:
        if step == 18:
            raise KeyboardInterrupt
        return plain(self, step, **keywords)

    monkeypatch.setattr(Tokens, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_genome(genome, Budget("steps", 20), folder=tmp_path / "out", **arguments)
    monkeypatch.undo()
    train_genome(genome, Budget("steps", 30), folder=tmp_path / "out", **arguments)
    assert any("out.training/constant" in line for line in said)
    assert any("trained   30 steps" in line for line in said)


def other_text(digest: str) -> FakeTokens:
    tokens = FakeTokens()
    tokens.digest = digest
    return tokens


def test_other_text_begins_anew_and_what_was_there_goes_on(tmp_path: Path) -> None:
    """Code that is edited, or a default corpus that changed with what is installed: nothing to mend by the user."""
    how = settings(tmp_path, "train.sequence_length=16", "train.tokens_per_step=64")
    said: list[str] = []

    def steps_run(digest: str, steps: int) -> int:
        return run_training(
            tiny_model(), other_text(digest), Budget("steps", steps), state=tmp_path / "out.training", settings=how,
            accelerator=accelerator_on("cpu"), say=said.append, watch=lambda point: None,
        ).steps_run  # fmt: skip

    assert (steps_run("first", 10), said) == (10, [])
    assert steps_run("edited", 10) == 10
    (line,) = said
    assert re.fullmatch(r"state +out\.training is of other text .* stays; .* is out\.[0-9a-f]{8}\.training", line)
    assert steps_run("first", 20) == steps_run("edited", 20) == 20 - 8, "each goes on from its own"
    assert len(list(tmp_path.glob("*.training"))) == 2


def test_a_winner_goes_on_only_with_its_own_text_and_gaps(tmp_path: Path) -> None:
    study, how = StudyFolder(tmp_path), settings(tmp_path, "train.sequence_length=16")
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    loop(tiny_model(), FakeTokens(), Budget("steps", 1), settings=how.train, folder=study.finish_training)
    study.winner.folder.mkdir()
    Record(genome_id=genome.genome_id).write(study.winner.folder)

    def state(how: RunSettings, digest: str = FakeTokens.digest) -> Path | None:
        data: Any = SimpleNamespace(tokens=lambda vocab_size, split: other_text(digest))
        return winner_state(study, genome, settings=how, data=data)

    assert state(how) == study.finish_training / "constant"
    assert state(how, "other") is None
    assert state(settings(tmp_path, "train.sequence_length=16", "train.fim_rate=0.5")) is None


@pytest.mark.parametrize("gene", [{}, {"qk_norm": True, "norm_type": "layernorm"}])
def test_a_release_is_trained_on_with_other_text(
    gene: dict[str, Any], tmp_path: Path, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock architecture or not: its weights and tokenizer, the new text, and a release of the same kind."""
    genome = Genome(
        vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **gene
    )
    options: dict[str, Any] = {"settings": settings(tmp_path), "say": lambda text: None}
    first = train_genome(genome, Budget("steps", 30), folder=tmp_path / "first", data=tiny_data, **options)
    source = Path(codenas_hf.__file__).parent
    words = [f"corpus.sources=[{source}]", "corpus.benchmarks=[]", "corpus.held_out_fraction=0.2"]
    options["settings"] = settings(tmp_path, *words)
    said: list[str] = []
    with monkeypatch.context() as impatient:
        impatient.setattr("codenas_hf.jobs.text.progress_lines", lambda say: lambda *part: say(part[0]))
        data = prepare(options["settings"], tokenizer=first, say=said.append)
    assert "corpus" in said
    assert data.vocab_sizes == (512,)
    before = (first / "model.safetensors").read_bytes()
    second = train(first, "60 steps", out=tmp_path / "second", fine_tune=True, **options)
    for path in (*second.rglob("*.json"), *second.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert str(source) not in text, path
        assert str(tmp_path) not in text, path
    records = [Record.read(folder) for folder in (first, second)]
    start, measured = records[1].start, records[1].measured
    assert start is not None
    assert start.folder == "first"
    assert (start.tokens, start.seconds) == (records[0].training.tokens, records[0].training.seconds)
    assert measured.bits_per_byte is not None
    assert start.bits_per_byte is not None
    assert measured.bits_per_byte < start.bits_per_byte - 0.05
    assert records[0].release.architecture == records[1].release.architecture
    assert (records[0].release.architecture == "codenas") == bool(gene)
    assert (first / "model.safetensors").read_bytes() == before
    layers = architecture_table(tensors_of_folder(second), Release(second).read_config())
    card = model_card(Release(second), repo_id="me/tuned", layers=layers).text
    assert f"data digest: `{data.digest}`" in card
    assert "Licences of the text:" in card
    assert f"from the release `first` (SHA-256 of its weights `{hashlib.sha256(before).hexdigest()[:12]}`" in card
    assert "Licences of the text that the release `first` was trained on:" in card
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


def test_a_release_does_not_say_where_it_is_trained_on(
    finished_study: StudyFolder, tmp_path: Path, tiny_data: PreparedData
) -> None:
    """Its settings lie below what is typed; those of the machine where it was made do not. A study is here."""
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    words = ("device=cpu", "corpus.archives=wheels", "train.optim.decay_share=0.4")
    made = train_genome(
        genome, Budget("steps", 3), folder=tmp_path / "made", settings=settings(tmp_path / "there", *words),
        data=tiny_data, say=lambda text: None,
    )  # fmt: skip
    found, plain = RunSettings.of("train.sequence_length=32", study=made), RunSettings.of()
    assert (found.train.sequence_length, found.train.tokens_per_step) == (32, 256)
    assert found.train.optim.decay_share == 0.4
    assert (found.folder, found.device) == (plain.folder, plain.device)
    assert (found.corpus.archives, found.train.precision) == (plain.corpus.archives, plain.train.precision)
    assert RunSettings.of("folder=mine", study=made).folder == Path("mine")
    study = RunSettings.of(study=finished_study.folder)
    assert study.folder == load(RunSettings, finished_study.settings).folder


def test_where_a_genome_comes_from_is_known_wherever_it_is_read(
    finished_study: StudyFolder, tmp_path: Path, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"has no trial 99 at rung 0; it has 0 to 1$"):
        find_genome(f"{finished_study.folder}:99")
    _, origin = find_genome("llama_tiny")
    assert origin == Origin(kind="file", name="llama_tiny.yaml")
    record = finished_study.winner.read_record()
    genome, searched = find_genome(str(finished_study.folder))
    assert genome.genome_id == record.genome_id
    assert searched == record.origin == find_genome(str(finished_study.winner.folder))[1]
    with monkeypatch.context() as patched:  # one of its trials is trained with the study's text and settings too
        asked: list[dict[str, Any]] = []
        patched.setattr("codenas_hf.jobs.train.winner_state", lambda *_, **__: Path("a state"))
        patched.setattr("codenas_hf.jobs.train.train_genome", lambda *_, **how: asked.append(how))
        patched.setattr("codenas_hf.jobs.train.study_data", lambda settings, **_: tiny_data)
        train(f"{finished_study.folder}:1", "5 steps", say=lambda line: None)
    (how,), known = asked, study_settings(finished_study.folder)
    assert (how["settings"].train, how["settings"].folder) == (known.train, finished_study.folder.parent)
    assert how["begin"] is None, "from fresh weights, whichever trial it is"
    _, trial = find_genome(f"{finished_study.folder}:1")
    assert trial is not None
    assert (trial.kind, trial.name, trial.rung, trial.number) == ("study", "demo", 0, 1)
    Record(genome_id="ab").write(tmp_path)
    with pytest.raises(ValueError, match=r"record.json names no genome"):
        find_genome(str(tmp_path))


def test_what_a_launcher_says_of_number_formats_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate would wrap the model for good; and measuring a step leaves the state that all of them share."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    before = [dict(kind._shared_state) for kind in (PartialState, AcceleratorState)]
    with alone():
        accelerator = accelerator_on("cpu")
        assert accelerator.mixed_precision == "no"
        model = torch.nn.Linear(2, 2)
        plain = model.forward
        assert accelerator.prepare_model(model).forward == plain
    assert [dict(kind._shared_state) for kind in (PartialState, AcceleratorState)] == before
    made = {
        path.name
        for path in Path(codenas_hf.__file__).parent.rglob("*.py")
        if re.search(r"\bAccelerator\(", path.read_text(encoding="utf-8"))
    }
    assert made == {"precision.py"}, "there is one way to make an Accelerator: training.accelerator_on"
    for file in (Path(__file__).parent.parent / "configs" / "accelerate").glob("*.yaml"):
        assert read_yaml(file)["mixed_precision"] == "no", file


@pytest.mark.parametrize("verb", ["train", "prune"])
def test_only_the_main_process_says_that_it_released(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are done while it still scores and writes."""
    monkeypatch.setattr(f"codenas_hf.jobs.{verb}.{verb}", lambda *_, **__: Path("out"))
    for rank, said in (("1", ""), ("0", "released  out\n")):
        monkeypatch.setenv("RANK", rank)
        assert main([verb, "llama_tiny", *(["--to", "50%"] if verb == "prune" else [])]) == 0
        out = capsys.readouterr().out
        assert out.startswith(said)
        assert said or not out


def test_the_curve_is_said_in_bits_per_byte_and_not_too_often() -> None:
    said: list[str] = []
    on_point = told_points(2.0, watch=curve_lines(said.append))
    for second in range(1, 301):
        on_point({"step": second, "tokens": 100 * second, "seconds": float(second), "loss": 1.3862944}, second / 300)
    assert 5 < len(said) < 40
    shares = [int(re.match(r" *(\d+)%", line).group(1)) for line in said]  # type: ignore[union-attr]
    assert shares == sorted(shares)
    assert "1.0000 bits per byte" in said[0]
    assert "100 tokens a second" in said[0]


@pytest.mark.parametrize(("name", "message"), [("nosuch", "is no tracker of accelerate"), ("aim", "is not installed")])
def test_a_tracker_that_is_not_there(name: str, message: str, tmp_path: Path, tiny_data: PreparedData) -> None:
    genome = Genome(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    with pytest.raises(ValueError, match=message):
        train_genome(
            genome,
            Budget("steps", 1),
            folder=tmp_path / "out",
            settings=settings(tmp_path, f"log_with=[{name}]"),
            data=tiny_data,
            say=lambda text: None,
        )
