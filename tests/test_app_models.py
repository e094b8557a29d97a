"""The playground: which models it offers and loads, and how it runs them."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import accelerator
import chooser
import completion
import pytest
from chooser import ModelShelf, PlaygroundError, PlaygroundSettings, find_models, load_folder
from completion import FILL, Completer, CompletionRequest, prepare
from display import code_html
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from interface import notice_html, shown_error
from playground_server import CODE, make_runs, text_of
from sessions import Sessions

from benchmarks.playground_load import random_model
from codenas_hf.folders import bundled_folder
from codenas_hf.folders.places import RELEASED
from codenas_hf.folders.record import Record, Training
from codenas_hf.generation.decode import DecodeSettings, complete

HEADER = "def total(numbers):\n"
BUNDLED = str(bundled_folder(RELEASED))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("playground"))


@pytest.fixture(scope="module")
def completer(runs: Path) -> Completer:
    return Completer(PlaygroundSettings(runs=runs))


def ask(prompt: str, **wishes) -> completion.Prepared:
    return prepare(CompletionRequest(prompt=prompt, **wishes), settings=PlaygroundSettings())


def test_choices_are_winners_then_what_was_trained_then_named_models(runs: Path, tmp_path: Path) -> None:
    (runs / "unfinished" / "winner").mkdir(parents=True, exist_ok=True)
    trained = tmp_path / "runs" / "longer"
    shutil.copytree(runs, trained.parent)
    shutil.copytree(runs / "alpha" / "winner", trained)
    (trained / "record.json").write_text("{}")
    assert [label for label, _ in find_models(PlaygroundSettings(runs=trained.parent, any_model=False))] == [
        "alpha (winner)",
        "beta (winner)",
        "longer",
    ]
    settings = PlaygroundSettings(runs=runs, models=("owner/model", str(runs / "beta" / "winner")), any_model=False)
    labels = [label for label, _ in find_models(settings)]
    assert labels[:3] == ["alpha (winner)", "beta (winner)", "owner/model"]
    assert find_models(PlaygroundSettings(runs=tmp_path, any_model=False)) == [("codenas-py-4mb", BUNDLED)]


def test_models_of_the_local_cache_are_offered_smallest_first(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repo(name: str, size: int, files: tuple[str, ...]) -> types.SimpleNamespace:
        winner = runs / "alpha" / "winner"
        listed = [types.SimpleNamespace(file_name=f, file_path=str(winner / f), size_on_disk=size) for f in files]
        return types.SimpleNamespace(repo_id=name, repo_type="model", revisions=[types.SimpleNamespace(files=listed)])

    whole = ("config.json", "model.safetensors")
    repos = [repo("a/large", 900, whole), repo("a/small", 5, whole), repo("a/pickle", 1, ("config.json", "m.bin"))]
    repos.append(repo("a/huge", 9**9, whole))
    monkeypatch.setattr(
        chooser, "scan_cache_dir", lambda: types.SimpleNamespace(repos=[*repos, repo("a/huge", 9**9, whole)])
    )
    settings = PlaygroundSettings(runs=tmp_path, max_model_bytes=1000)
    assert [source for _, source in find_models(settings)] == [BUNDLED, "a/small", "a/large"]


def test_nothing_trained_says_how_to_get_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "scan_cache_dir", lambda: types.SimpleNamespace(repos=[]))

    def without(runs: Path) -> Path:
        raise FileNotFoundError("the package came without its model")

    monkeypatch.setattr(chooser, "default_model", without)
    settings = PlaygroundSettings(runs=tmp_path)
    with pytest.raises(
        PlaygroundError, match=r"no model yet. Train one with `accelerate launch recipes/search_two_stage"
    ):
        ModelShelf(settings).load("")
    notice = notice_html(settings)
    assert "accelerate launch recipes/search_two_stage.py" in notice
    assert "or a Hub id such as" in notice
    assert "--model" in notice_html(replace(settings, any_model=False))


def test_model_that_cannot_be_had_is_refused_with_a_mend(runs: Path, tmp_path: Path) -> None:
    shelf = ModelShelf(PlaygroundSettings(runs=runs))
    for name in ("../../nothing-there", "a b", "x/y/z", "<script>", "~nobody-here/x", "\x00", "a" * 5000):
        with pytest.raises(PlaygroundError, match="neither a folder here nor a Hub id"):
            shelf.load(name)
    with pytest.raises(PlaygroundError, match="No model is chosen"):
        shelf.load(" ")
    with pytest.raises(PlaygroundError, match=r"no readable config.json"):
        shelf.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(PlaygroundError, match=r"no .safetensors weights"):
        shelf.load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PlaygroundError, match="does not load as a causal language model"):
        shelf.load(str(tmp_path))
    with pytest.raises(PlaygroundError, match=r"MB of weights, this playground loads up to 0 MB. Pick a smaller"):
        load_folder(runs / "alpha" / "winner", source="alpha", trusted=False, max_bytes=1000)


def test_a_model_written_anew_is_loaded_anew(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "model")
    shelf = ModelShelf(PlaygroundSettings(runs=tmp_path))
    first = shelf.load(str(folder))
    assert shelf.load(str(folder)) is first
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    os.utime(weights, ns=(1, 1))
    second = shelf.load(str(folder))
    assert second is not first
    assert shelf.load(str(folder)) is second


def test_shared_playground_loads_only_what_it_offers(runs: Path) -> None:
    shelf = ModelShelf(PlaygroundSettings(runs=runs, any_model=False))
    for name in ("owner/model", str(runs / "alpha"), "/etc"):
        with pytest.raises(PlaygroundError, match=r"This playground offers .*alpha"):
            shelf.load(name)
    assert shelf.load(str(runs / "alpha" / "winner")).name == "alpha (winner)"


def test_a_record_that_is_not_ours_keeps_no_model_from_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = random_model(tmp_path / "model")
    for text in ('{"measured": "by somebody else"}', "{", '{"schema": 99}'):
        (folder / "record.json").write_text(text)
        loaded = load_folder(folder, source="x", trusted=False, max_bytes=10**9)
        assert loaded.record.quantities() == {}
        assert "record.json" in caplog.text
        caplog.clear()


def test_shelf_keeps_the_last_models(runs: Path, tmp_path: Path) -> None:
    folders = [str(runs / name / "winner") for name in ("alpha", "beta")]
    folders.append(str(random_model(tmp_path / "third")))
    shelf = ModelShelf(PlaygroundSettings(runs=runs, kept_models=2))
    first = [shelf.load(folder) for folder in folders]
    assert shelf.load(folders[2]) is first[2]
    assert shelf.load(folders[1]) is first[1]
    assert shelf.load(folders[0]) is not first[0]


def test_code_of_a_model_runs_only_after_consent_of_whoever_may_give_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "odd" / "winner", tmp_path / "ran"
    random_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd_model", "auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nraise ValueError('odd')\n"
    (folder / "configuration_odd.py").write_text(code)
    alone, shared = (PlaygroundSettings(runs=tmp_path, any_model=any_model) for any_model in (True, False))
    assert chooser.may_bring_code(str(folder))
    assert not chooser.may_bring_code(str(runs / "alpha" / "winner"))
    assert chooser.may_bring_code("owner/model")
    for settings, consent in ((alone, False), (shared, False), (shared, True)):
        with pytest.raises(PlaygroundError, match="brings its own model code"):
            ModelShelf(settings).load(str(folder), consent=consent)
    assert not ran.exists()
    with pytest.raises(PlaygroundError, match="does not load"):
        ModelShelf(alone).load(str(folder), consent=True)
    assert ran.exists()
    ran.unlink()
    with pytest.raises(PlaygroundError, match="does not load"):
        ModelShelf(replace(shared, trust_remote_code=True)).load(str(folder))


def hub_files(**sizes: int):
    siblings = [types.SimpleNamespace(rfilename=name.replace("__", "."), size=size) for name, size in sizes.items()]
    return lambda self, repo_id, files_metadata, timeout: types.SimpleNamespace(siblings=siblings)


def test_hub_model_is_fetched_in_safe_files_of_known_size(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        fetched.extend(allow_patterns)
        return str(runs / "alpha" / "winner")

    monkeypatch.setattr(chooser, "snapshot_download", download)
    files = {
        "model__safetensors": 10,
        "config__json": 1,
        "pytorch_model__bin": 10,
        "evil__pkl": 1,
        "onnx/m__safetensors": 1,
    }
    monkeypatch.setattr(chooser.HfApi, "model_info", hub_files(**files))
    shelf = ModelShelf(PlaygroundSettings(max_model_bytes=10**9))
    assert shelf.load("owner/model").name == "owner/model"
    assert fetched == ["model.safetensors", "config.json"]
    monkeypatch.setattr(chooser.HfApi, "model_info", hub_files(model__safetensors=2 * 10**9))
    with pytest.raises(PlaygroundError, match="has 2,000 MB of weights"):
        shelf.load("owner/large")
    monkeypatch.setattr(chooser.HfApi, "model_info", hub_files(pytorch_model__bin=10))
    with pytest.raises(PlaygroundError, match=r"has no .safetensors weights"):
        shelf.load("owner/pickle")


class TransportError(Exception):
    """As the Hub's client names what is no answer; it is no OSError."""


def test_hub_that_refuses_or_is_away_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    cases = [
        (RepositoryNotFoundError("no", response=response), "knows no model 'owner/model'"),
        (GatedRepoError("no", response=response), "is gated. Accept its terms"),
        (ConnectionError("no"), "cannot be reached and owner/model is not on this machine"),
        (TransportError("no"), "cannot be reached and owner/model is not on this machine"),
    ]
    monkeypatch.setattr(chooser, "snapshot_download", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("absent")))
    for error, message in cases:
        monkeypatch.setattr(
            chooser.HfApi, "model_info", lambda *args, error=error, **kwargs: (_ for _ in ()).throw(error)
        )
        with pytest.raises(PlaygroundError, match=message):
            chooser.fetch_from_hub("owner/model", max_bytes=10)


def test_completion_is_the_packages_own(completer: Completer, runs: Path) -> None:
    source = str(runs / "alpha" / "winner")
    prepared = ask(HEADER, examples=CODE, max_new_tokens=24, temperature=0.8, seed=3)
    *_, last = completer.run(source, prepared)
    loaded = completer.shelf.load(source)
    settings = completion.decode_settings(prepared, max_seconds=60)
    expected = complete(loaded.model, loaded.tokenizer, prepared.text, settings=settings)
    assert (last.completion, last.new_tokens) == (expected.text, expected.num_tokens)
    assert last.ended == completion.ENDED[expected.finish_reason]
    assert last.first_token_s is not None
    assert last.parses is not None
    again = [progress.completion for progress in completer.run(source, prepared)]
    assert again[-1] == last.completion
    assert all(last.completion.startswith(text) for text in again)


def test_gap_is_filled_between_prefix_and_suffix(completer: Completer, runs: Path) -> None:
    source = str(runs / "alpha" / "winner")
    prepared = ask(f"x = {FILL}\nprint(x)\n", max_new_tokens=6)
    *_, last = completer.run(source, prepared)
    loaded = completer.shelf.load(source)
    settings = completion.decode_settings(prepared, max_seconds=60)
    expected = complete(loaded.model, loaded.tokenizer, "x = ", suffix="\nprint(x)\n", settings=settings)
    assert last.completion == expected.text
    assert text_of(code_html(last)) == f"x = {last.completion}\nprint(x)\n"


def test_model_without_fill_tokens_says_so(completer: Completer, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "supports_infilling", lambda tokenizer: False)
    with pytest.raises(PlaygroundError, match=r"was not trained to fill gaps. Remove <FILL_HERE>"):
        list(completer.run(str(runs / "alpha" / "winner"), ask(f"x = {FILL}")))


def test_a_model_that_never_saw_a_gap_says_so(
    completer: Completer, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = completer.shelf.load(str(runs / "alpha" / "winner"))
    plain = replace(loaded, record=Record(training=Training(fim_rate=0.0)))
    monkeypatch.setattr(completer.shelf, "load", lambda source, **options: plain)
    with pytest.raises(PlaygroundError, match=r"was not trained to fill gaps"):
        list(completer.run("owner/model", ask(f"x = {FILL}")))


def test_names_of_special_tokens_are_plain_text(completer: Completer, runs: Path) -> None:
    source = str(runs / "alpha" / "winner")
    loaded = completer.shelf.load(source)
    names = "<|endoftext|><|fim_prefix|><|fim_middle|><|pad|>"
    assert completion.count_tokens(loaded, names) > len(names) / 4
    *_, last = completer.run(source, ask(f"# {names}\n", max_new_tokens=4))
    assert last.prompt_tokens > len(names) / 4
    assert names in text_of(code_html(last))


def test_stop_ends_the_completion_and_frees_the_model(completer: Completer, runs: Path) -> None:
    source, asked = str(runs / "alpha" / "winner"), []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) > 5

    # A random model may end at any token: take a seed of which it writes a while.
    wishes = [ask(HEADER, max_new_tokens=60, temperature=1.0, one_block=False, seed=seed) for seed in range(20)]
    request = next(wish for wish in wishes if list(completer.run(source, wish))[-1].new_tokens > 40)
    *_, last = completer.run(source, request, stopped=stopped)
    assert last.ended == "stopped"
    assert 0 < last.new_tokens < 40
    assert [thread.name for thread in threading.enumerate() if thread.name == "codenas-decode"] == []


def test_prompt_beyond_the_context_keeps_its_end_and_says_so(completer: Completer, runs: Path) -> None:
    *_, last = completer.run(str(runs / "alpha" / "winner"), ask("value = 12345\n" * 400, max_new_tokens=4))
    assert "did not fit into the model's context" in last.remarks[0]
    assert last.new_tokens <= 4


def test_time_limit_ends_a_completion(runs: Path) -> None:
    hasty = Completer(PlaygroundSettings(runs=runs, max_seconds=0.05))
    *_, last = hasty.run(str(runs / "beta" / "winner"), ask(HEADER, max_new_tokens=500, one_block=False))
    assert last.ended in {"time", "end"}
    assert last.new_tokens < 400


def test_zero_gpu_runs_the_pieces_in_its_own_wrapper(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def gpu(*, duration: int):
        def wrap(function):
            def wrapped(*args):
                calls.append((duration, args))
                yield from function(*args)

            return wrapped

        return wrap

    monkeypatch.setattr(accelerator, "spaces", types.SimpleNamespace(GPU=gpu))
    source = str(runs / "alpha" / "winner")
    *_, last = Completer(PlaygroundSettings(runs=runs)).run(source, ask(HEADER, max_new_tokens=3))
    assert last.ended
    duration, args = calls[0]
    assert duration == accelerator.GPU_SECONDS
    assert args[:3] == (source, HEADER, None)  # names and settings cross to the other process, never a model
    assert isinstance(args[3], DecodeSettings)


def test_stop_waits_until_the_last_state_was_shown() -> None:
    sessions = Sessions()
    sessions.stop("nobody")
    stop = sessions.start("a")
    seen = []

    def work() -> None:
        stop.wait(5)
        time.sleep(0.05)
        seen.append("last state")
        sessions.finish("a")

    worker = threading.Thread(target=work)
    worker.start()
    sessions.stop("a")
    assert seen == ["last state"]
    worker.join()


def test_settings_refuse_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1, got 0"):
        PlaygroundSettings(max_new_tokens=0)
    with pytest.raises(ValueError, match="`kept_models` must be at least 2"):
        PlaygroundSettings(kept_models=1)
    with pytest.raises(ValueError, match="`max_seconds` must be above 0"):
        PlaygroundSettings(max_seconds=0)


def test_error_for_the_page_is_escaped() -> None:
    assert shown_error(PlaygroundError("remove <FILL_HERE>")).message == "remove &lt;FILL_HERE&gt;"
